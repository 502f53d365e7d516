"""Pictures of a report: scores where the cells lie, a piece of the image, clusters."""

from __future__ import annotations

from functools import partial
from typing import Any

import anndata as ad
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from spatialdata import SpatialData

from nimbus_sd import pl
from nimbus_sd._core.errors import NimbusError
from nimbus_sd._sdata.resolve import resolve_pairs, resolve_sample
from nimbus_sd.app._report_facts import Facts
from nimbus_sd.app._report_html import paragraph, picture
from nimbus_sd.pl import _style as style
from nimbus_sd.pl._table import values

_GROUND, _INK = "#15181c", "#e6e6e6"
_CROP = 400  # px of the piece of image
_OVERLAID = 3  # markers that can be told apart at a glance
_PANEL = 1.9  # inches
_CROPS = 10  # per marker
_DOTS = 60_000  # cells per map; more would only cover each other


def largest(facts: Facts, n: int) -> list[str]:
    """Names of the `n` samples with most cells, in their usual order."""
    chosen = set(facts.samples["cells"].sort_values(ascending=False, kind="stable").index[:n])
    return [str(s) for s in facts.samples.index if s in chosen]


def score_maps(adata: ad.AnnData, facts: Facts, samples: list[str]) -> str:
    """Scores of the drawn markers at the cells' places, one picture per sample."""
    if "spatial" not in adata.obsm:
        return paragraph("The table has no coordinates (obsm['spatial']), so there are no maps.")
    points = np.asarray(adata.obsm["spatial"], dtype=np.float64)[:, :2]
    parts = []
    for name in samples:
        rows = np.flatnonzero(facts.sample == facts.samples.index.get_loc(name))
        rows = rows[np.isfinite(points[rows]).all(1)]
        if not rows.size:
            parts.append(paragraph(f"{name}: no cell has a position.", kind="quiet"))
            continue
        shown = rows[:: -(-rows.size // _DOTS)]
        scores = values(adata[shown], facts.drawn, facts.layer, where="the table")
        fig = style.with_style(partial(_panels, points[shown], scores, facts.drawn))
        alt = f"Scores of {', '.join(facts.drawn)} at the places of {rows.size:,} cells of {name}"
        parts.append(
            picture(fig, alt=alt, caption=f"{name}, {rows.size:,} cells", kind="plate dark", dpi=100)
        )
    return "\n".join(parts)


def _panels(points: np.ndarray, scores: np.ndarray, names: list[str]) -> Figure:
    low, high = points.min(0), points.max(0)
    wide, tall = np.maximum(high - low, 1e-9)
    aspect = float(np.clip(tall / wide, 0.3, 2.0))
    fig = Figure(figsize=(_PANEL * len(names) + 0.7, _PANEL * aspect * 0.9 + 0.3), layout="constrained")
    fig.set_facecolor(_GROUND)
    axes = fig.subplots(1, len(names), squeeze=False)[0]
    size = float(np.clip(_PANEL * 72 * 0.85 * np.sqrt(aspect / len(points)), 0.5, 9)) ** 2
    for ax, name, column in zip(axes, names, scores.T, strict=True):
        drawn = _dots(ax, points, column, size)
        ax.set_title(name, color=_INK, loc="left")
    bar = fig.colorbar(drawn, ax=list(axes), ticks=[0, 0.5, 1], aspect=18, pad=0.01)
    bar.ax.tick_params(colors=_INK, length=0)
    bar.outline.set_visible(False)
    return fig


def _dots(ax: Axes, points: np.ndarray, column: np.ndarray, size: float) -> Any:
    order = np.argsort(np.nan_to_num(column, nan=-1), kind="stable")  # the bright ones on top
    known = order[np.isfinite(column[order])]
    x, y = points.T
    unknown = ~np.isfinite(column)
    ax.scatter(x[unknown], y[unknown], s=size, c="#5a5f66", lw=0)
    drawn = ax.scatter(
        x[known], y[known], s=size, c=column[known], cmap="viridis", norm=Normalize(0, 1), lw=0
    )
    ax.set(aspect="equal", xticks=[], yticks=[], facecolor=_GROUND)
    ax.invert_yaxis()  # as images are drawn
    ax.spines[:].set_visible(False)
    return drawn


def group_maps(
    sdata: SpatialData | None, adata: ad.AnnData, facts: Facts, column: str, samples: list[str], table: str
) -> str:
    """Cells in the colours of their groups, in panels."""
    regions = list(facts.samples.loc[samples, "region"])
    fig, failed = None, ""
    for data in [adata] if sdata is None else [sdata, adata]:  # dots, where labels can't be read
        try:
            fig = pl.spatial_map(data, column, samples=regions, table=table, return_fig=True)
            break
        except NimbusError as error:
            failed = str(error)
    if fig is None:
        return paragraph(f"No map of {column}: {failed}", kind="quiet")
    alt = f"{column} of the cells of {', '.join(samples)}, where they lie"
    return picture(fig, alt=alt, caption=f"Cells coloured by {column}.", dpi=90)


def group_heatmap(adata: ad.AnnData, facts: Facts, column: str) -> str:
    """Mean score of each marker in each group."""
    fig = pl.marker_heatmap(adata, column, layer=facts.layer, return_fig=True)
    caption = f"Mean score of each marker in each group of {column}; alike ones beside each other."
    return picture(fig, alt=f"Heatmap of mean scores by {column}", caption=caption, dpi=110)


def image_piece(sdata: SpatialData, adata: ad.AnnData, facts: Facts, sample: str, table: str) -> str:
    """The drawn markers as colours, with outlines, where cells are densest."""
    region = str(facts.samples.loc[sample, "region"])
    markers = facts.drawn[:_OVERLAID]
    try:
        shape = _shape(sdata, region)
        rows = facts.sample == facts.samples.index.get_loc(sample)
        crop = _densest(np.asarray(adata.obsm["spatial"])[rows], shape)
        fig = pl.overlay(sdata, markers, labels=region, table=table, crop=crop, return_fig=True)
    except (NimbusError, KeyError) as error:
        return paragraph(f"No piece of the image: {error}", kind="quiet")
    names = ", ".join(markers)
    caption = (
        f"A piece of {sample}, y {crop[0]} to {crop[1]} and x {crop[2]} to {crop[3]} px, where cells are "
        f"many: {names}, brightness after normalisation, with the outlines of the cells."
    )
    return picture(
        fig, alt=f"{names} with cell outlines, {sample}", caption=caption, kind="plate photo", dpi=100
    )


def unsure_cells(sdata: SpatialData, facts: Facts, table: str) -> str:
    """Crops of the cells whose scores are nearest to the threshold."""
    options: dict[str, Any] = {"pick": "least_certain", "n": _CROPS, "threshold": facts.threshold}
    try:
        fig = pl.cell_gallery(sdata, facts.drawn, table=table, layer=facts.layer, return_fig=True, **options)
    except NimbusError as error:
        return paragraph(f"No crops of cells: {error}", kind="quiet")
    caption = (
        "Cells that the network is least sure of, brightness after normalisation, each with its score. If "
        "most of them are plain to the eye, take this marker's calls with care."
    )
    alt = f"Crops of cells with scores near {facts.threshold:g}, for {', '.join(facts.drawn)}"
    return picture(fig, alt=alt, caption=caption, dpi=100)


def _shape(sdata: SpatialData, region: str) -> tuple[int, int]:
    pair = resolve_pairs(sdata, labels=region)[0]
    return resolve_sample(sdata, pair).sample.labels.shape


def _densest(points: np.ndarray, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """``(y0, y1, x0, x1)`` of the square with most centres; the middle if positions are no px."""
    side_y, side_x = min(_CROP, shape[0]), min(_CROP, shape[1])
    step = _CROP // 4
    edges = [np.arange(0, n + step, step) for n in shape]
    counts = np.histogram2d(points[:, 1], points[:, 0], edges)[0]
    if not counts.sum():
        y, x = (shape[0] - side_y) // 2, (shape[1] - side_x) // 2
        return y, y + side_y, x, x + side_x
    total = np.zeros_like(counts)
    for i in range(min(4, counts.shape[0])):  # an image smaller than the square has fewer
        for j in range(min(4, counts.shape[1])):
            total[: counts.shape[0] - i, : counts.shape[1] - j] += counts[i:, j:]
    y, x = (int(k) * step for k in np.unravel_index(int(total.argmax()), total.shape))
    y, x = min(y, shape[0] - side_y), min(x, shape[1] - side_x)
    return y, y + side_y, x, x + side_x
