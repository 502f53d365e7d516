"""Where the cells of each group lie, sample by sample."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.spatial import cKDTree
from spatialdata import SpatialData

from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd._sdata.resolve import resolve_sample
from nimbus_sd._sdata.table import existing_table
from nimbus_sd.pl import _style as style
from nimbus_sd.pl._cells import diameter, fill, region_and_ids
from nimbus_sd.pl._colours import group_colours, legend, rgba
from nimbus_sd.pl._table import check_table, groups, with_calls
from nimbus_sd.pl._view import Extent, make_window, one_pair, read_labels

_MAX_GROUPS = 60
_MAX_SAMPLES = 12
_SMALL_CELL = 5.0  # px of the picture below which borders would cover the cells


@dataclass(frozen=True)
class _Panel:
    """What is drawn of one sample: filled cells, or dots where there are no labels to read."""

    title: str
    extent: Extent
    mpp: float | None
    pixels: np.ndarray | None
    points: np.ndarray
    colours: np.ndarray


def spatial_map(
    data: SpatialData | ad.AnnData,
    groupby: str = "metacluster",
    *,
    samples: str | Sequence[str] | None = None,
    table: str = "nimbus",
    crop: Sequence[int] | None = None,
    highlight: str | Sequence[str] | None = None,
    mpp: float | None = None,
    n_columns: int = 3,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw cells filled with the colour of their phenotype or cluster, a panel per sample.

    Of a SpatialData object labels are drawn, read at the level or stride that fits the
    figure; of a table alone, or of cells that are points or shapes, a dot at each cell's
    centroid. A group has the same colour in every plot: that of ``uns[f"{groupby}_colors"]``,
    else by its number or its place among the categories; groups called "unassigned" or the
    like, and cells without a group, are grey.

    Parameters
    ----------
    data
        Object with labels ``(y, x)``, points or shapes, or a table with ``obsm["spatial"]``
        ``(n, 2)``.
    groupby
        Column of ``obs``, at most 60 groups; or a marker of a table with the layer
        ``"positive"`` (:func:`nimbus_sd.tl.predict_subtypes`).
    samples
        Names of the annotated elements, at most 12; None takes all, or the first 12 with a
        warning.
    table
        Name of the table in a SpatialData object.
    crop
        ``(y0, y1, x0, x1)`` in px, in every sample; of labels only.
    highlight
        Groups to colour; the others are grey.
    mpp
        µm per px for the scale bar; None takes what the object says, else the bar is in px.
        For a table alone, µm per unit of ``obsm["spatial"]``; without it there is no bar.
    n_columns
        Samples side by side.
    figsize
        Inches.
    ax
        Draw there, one sample and without legend.
    show
        None shows the figure unless it is saved, returned or drawn on `ax`.
    save
        Path of the file to write.
    return_fig
        Return the figure.

    Returns
    -------
    The figure if `return_fig`; the axes ``(n_samples,)``, or the one given, if it is not
    shown; else None.

    Raises
    ------
    ElementNotFoundError
        If the column, a sample, the table or a group does not exist.
    InputError
        If the column does not group cells, the table has no coordinates, or there are too
        many samples.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=2, shape=(128, 128))
    >>> fig = nb.pl.spatial_map(sdata, "cell_type", table="truth", return_fig=True)
    """
    style.check_save(save)
    if n_columns < 1:
        msg = f"n_columns={n_columns}: at least 1"
        raise InputError(msg)
    adata = existing_table(data, table, []) if isinstance(data, SpatialData) else data
    check_table(adata)
    adata = with_calls(adata, groupby)
    column = groups(adata, groupby, limit=_MAX_GROUPS)
    region, ids = _regions(adata, data)
    names = _samples(samples, list(dict.fromkeys(region)), alone=ax is not None)
    colours = _highlighted(group_colours(adata, groupby), list(map(str, column.categories)), highlight)
    each = rgba([*colours.values(), style.MISSING])[column.codes]  # code -1 is the last
    panels = []
    for name in names:
        rows = region == name
        if isinstance(data, SpatialData) and name not in {**data.points, **data.shapes}:
            panels.append(_filled(data, name, ids[rows], each[rows], crop, mpp))
        else:
            if isinstance(data, SpatialData):
                _check_dots(adata, name, crop)
            panels.append(_dots(adata, name, rows, each[rows], mpp))
    missing = bool((column.codes[np.isin(region, names)] < 0).any())
    shown = style.is_shown(show, save=save, return_fig=return_fig, ax=ax)

    def build() -> tuple[Figure, Any]:
        if ax is not None:
            _draw(ax, panels[0])
            owner: Any = ax.get_figure(root=True)
            return owner, ax
        columns = min(n_columns, len(panels))
        rows = math.ceil(len(panels) / columns)
        size = figsize or _size(panels, rows, columns)
        fig = style.new_figure(size, shown=shown)
        axes = fig.subplots(rows, columns, squeeze=False).ravel()
        for one, panel in zip(axes, panels, strict=False):
            _draw(one, panel)
        for one in axes[len(panels) :]:
            one.remove()
        legend(fig, _listed(colours, highlight, missing), title=groupby.replace("_", " "))
        return fig, axes[: len(panels)]

    fig, axes = style.with_style(build)
    return style.finish(fig, axes, shown=shown, save=save, return_fig=return_fig, ax=ax)


def _regions(adata: ad.AnnData, data: SpatialData | ad.AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Region and label id of every row; a table without regions is one sample."""
    if not isinstance(data, SpatialData):
        if "spatial" not in adata.obsm:
            msg = "the table has no obsm['spatial']; pass the SpatialData object, or set (n, 2) positions"
            raise InputError(msg)
        if "spatialdata_attrs" not in adata.uns:
            return np.full(adata.n_obs, "all cells"), np.arange(adata.n_obs)
    return region_and_ids(adata, where="the table")


def _samples(samples: str | Sequence[str] | None, known: list[str], *, alone: bool) -> list[str]:
    names = known if samples is None else [samples] if isinstance(samples, str) else list(samples)
    missing = [n for n in names if n not in known]
    if missing or not names:
        msg = f"samples={names}: the table annotates {', '.join(map(repr, known))}"
        raise ElementNotFoundError(msg)
    if alone and len(names) > 1:
        msg = f"ax= takes one sample; choose it with samples=. Valid: {', '.join(map(repr, known))}"
        raise InputError(msg)
    if len(names) > _MAX_SAMPLES and samples is not None:
        msg = f"{len(names)} samples don't fit on one figure; pass at most {_MAX_SAMPLES} and call again"
        raise InputError(msg)
    if len(names) > _MAX_SAMPLES:
        text = f"drawing the first {_MAX_SAMPLES} of {len(names)} samples; choose others with samples=[...]"
        warnings.warn(text, NimbusWarning, stacklevel=3)
    return names[:_MAX_SAMPLES]


def _highlighted(
    colours: dict[str, str], used: list[str], highlight: str | Sequence[str] | None
) -> dict[str, str]:
    """Colours of the categories in use; grey for those that are not to be seen."""
    colours = {name: colours[name] for name in used}
    if highlight is None:
        return colours
    wanted = [highlight] if isinstance(highlight, str) else list(map(str, highlight))
    missing = [n for n in wanted if n not in colours]
    if missing:
        msg = f"highlight={missing}: no such group; valid: {', '.join(colours)}"
        raise ElementNotFoundError(msg)
    return {name: colour if name in wanted else style.MISSING for name, colour in colours.items()}


def _listed(colours: dict[str, str], highlight: str | Sequence[str] | None, missing: bool) -> dict[str, str]:
    if highlight is not None:
        wanted = [highlight] if isinstance(highlight, str) else list(map(str, highlight))
        return {name: colours[name] for name in wanted} | {"other cells": style.MISSING}
    return colours | ({"no group": style.MISSING} if missing else {})


def _filled(
    sdata: SpatialData,
    name: str,
    ids: np.ndarray,
    colours: np.ndarray,
    crop: Sequence[int] | None,
    mpp: float | None,
) -> _Panel:
    sample = resolve_sample(sdata, one_pair(sdata, image=None, labels=name), mpp=mpp)
    window = make_window(sample.sample.labels.shape, crop, where=f"labels {name!r}")
    cells = read_labels(sdata, sample, window)
    grey = rgba([style.MISSING])[0]
    labels = style.enlarge(cells.pixels, side=1000)
    pixels = fill(labels, ids, colours, missing=grey)
    if diameter(labels) > _SMALL_CELL:
        pixels[style.outline(labels)] = 255
    return _Panel(name, cells.extent, sample.sample.mpp, pixels, np.empty((0, 2)), colours)


def _check_dots(adata: ad.AnnData, name: str, crop: Sequence[int] | None) -> None:
    if "spatial" not in adata.obsm:
        msg = f"{name!r} is drawn as dots, but the table has no obsm['spatial']; set (n, 2) positions"
        raise InputError(msg)
    if crop is not None:
        msg = (
            f"crop= cuts labels, and {name!r} are points or shapes; leave it out, and set limits on the axes"
        )
        raise InputError(msg)


def _dots(adata: ad.AnnData, name: str, rows: np.ndarray, colours: np.ndarray, mpp: float | None) -> _Panel:
    points = np.asarray(adata.obsm["spatial"])[rows, :2].astype(np.float64)
    known = np.isfinite(points).all(1)
    if not known.any():
        msg = f"sample {name!r}: no cell has a position in obsm['spatial']"
        raise InputError(msg)
    points, colours = points[known], colours[known]
    low, high = points.min(0), points.max(0)
    margin = 0.03 * max(float((high - low).max()), 1.0)
    extent = (low[0] - margin, high[0] + margin, high[1] + margin, low[1] - margin)
    return _Panel(name, extent, mpp, None, points, colours)


def _size(panels: list[_Panel], rows: int, columns: int) -> tuple[float, float]:
    aspect = float(np.median([(p.extent[2] - p.extent[3]) / (p.extent[1] - p.extent[0]) for p in panels]))
    width = float(np.clip(10.5 / columns, 2.6, 5.0)) / max(1.0, aspect) ** 0.5
    return columns * width + 1.6, max(rows * (width * aspect + 0.25), 2.2)


def _draw(ax: Axes, panel: _Panel) -> None:
    left, right, bottom, top = panel.extent
    if panel.pixels is not None:
        ax.imshow(panel.pixels, extent=panel.extent, interpolation="antialiased", interpolation_stage="rgba")
    else:
        inches = 3.0 / max(right - left, bottom - top)  # the panel is about that wide
        size = float(np.clip((0.9 * _spacing(panel.points) * inches * 72) ** 2, 0.3, 40))
        x, y = panel.points.T
        ax.scatter(x, y, s=size, c=panel.colours / 255, lw=0, rasterized=True)
        ax.set_aspect("equal")
    ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    ax.set_title(panel.title, loc="left")
    if panel.pixels is not None or panel.mpp is not None:  # positions alone have no unit
        style.scale_bar(ax, width=right - left, mpp=panel.mpp)


def _spacing(points: np.ndarray) -> float:
    """Median distance of a cell to the nearest other."""
    if len(points) < 2:
        return float("inf")
    distance = cKDTree(points).query(points, k=2)[0]
    return float(np.median(distance[:, 1]))
