"""Mean score or activation of each marker in each group of cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram as scipy_dendrogram
from scipy.cluster.hierarchy import linkage

from nimbus_sd._core.errors import InputError
from nimbus_sd.pl import _style as style
from nimbus_sd.pl._colours import group_colours
from nimbus_sd.pl._table import check_table, groups, pick_markers, quantity, values

_MAX_GROUPS = 100
_MAX_MARKERS = 120
_STANDARDIZE = (None, "marker", "zscore")
_METHODS = ("average", "complete", "single", "ward", "weighted")


def marker_heatmap(
    adata: ad.AnnData,
    groupby: str = "leiden",
    *,
    markers: str | Sequence[str] | None = None,
    layer: str | None = None,
    standardize: str | None = None,
    method: str = "average",
    cluster_markers: bool = True,
    annotate: bool = False,
    cmap: str | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw the mean score, or activation, of each marker in each cluster.

    Clusters and markers are ordered by hierarchical clustering (Euclidean, leaves
    ordered so that neighbours are alike), with the clusters' dendrogram and sizes
    at the right, in the colours that the clusters have in every plot.

    Parameters
    ----------
    adata
        Table of :func:`nimbus_sd.tl.predict` or :func:`nimbus_sd.tl.embed` with clusters.
    groupby
        Column of ``obs``; cells without a value are left out.
    markers
        At most 120; None takes all, or the first 120 with a warning.
    layer
        Layer to average; None takes ``X``, scores or activations. NaN are left out of the means.
    standardize
        ``"marker"`` stretches each marker's means to 0–1, ``"zscore"`` centres them
        and divides by their standard deviation over the clusters; None leaves them. Activations
        of different markers compare only so.
    method
        ``"average"``, ``"complete"``, ``"single"``, ``"ward"`` or ``"weighted"`` linkage.
    cluster_markers
        Order the markers too; else they keep the order given.
    annotate
        Write the values into the fields.
    cmap
        Colour map; None takes ``"viridis"``, or ``"PuOr_r"`` around 0 for z-scores.
    figsize
        Inches.
    show
        None shows the figure unless it is saved or returned.
    save
        Path of the file to write.
    return_fig
        Return the figure.

    Returns
    -------
    The figure if `return_fig`; a dict of axes (``"heatmap"``, ``"dendrogram"``,
    ``"sizes"``, ``"colorbar"``) if it is not shown; else None.

    Raises
    ------
    ElementNotFoundError
        If the column, the layer or a marker does not exist.
    InputError
        If the column does not group cells, or an option is unknown.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))
    >>> nb.tl.predict(sdata, progress=False)
    >>> adata = sdata["nimbus"]
    >>> adata.obs["cell_type"] = sdata["truth"].obs["cell_type"].reindex(adata.obs_names)
    >>> fig = nb.pl.marker_heatmap(adata, "cell_type", return_fig=True)
    """
    check_table(adata)
    style.check_save(save)
    for name, value, valid in (("standardize", standardize, _STANDARDIZE), ("method", method, _METHODS)):
        if value not in valid:
            msg = f"{name}={value!r}; valid: {', '.join(map(repr, valid))}"
            raise InputError(msg)
    names = pick_markers(adata, markers, where="the table", limit=_MAX_MARKERS)
    column = groups(adata, groupby, limit=_MAX_GROUPS)
    matrix = values(adata, names, layer, where="the table")
    what, bounded = quantity(adata, layer, matrix)
    means = _standardized(_means(matrix, column), standardize)
    sizes = np.bincount(column.codes[column.codes >= 0], minlength=len(column.categories))
    tree, rows = _order(means, method)
    columns = _order(means.T, method)[1] if cluster_markers else np.arange(len(names))
    frame = pd.DataFrame(
        means[np.ix_(rows, columns)],
        index=[str(column.categories[i]) for i in rows],
        columns=[names[i] for i in columns],
    )
    colours = group_colours(adata, groupby)
    shown = style.is_shown(show, save=save, return_fig=return_fig)
    label = (
        f"mean {what}" + {"marker": " (0–1 per marker)", "zscore": " (z per marker)", None: ""}[standardize]
    )

    def build() -> tuple[Figure, dict[str, Axes]]:
        fig = style.new_figure(figsize or _size(frame), shown=shown)
        axes = _axes(fig, frame)
        limits = _limits(frame, standardize, bounded=bounded)
        drawn = _heatmap(axes["heatmap"], frame, limits, cmap or ("PuOr_r" if limits[0] < 0 else "viridis"))
        axes["heatmap"].set_ylabel(groupby)
        if annotate:
            _annotate(axes["heatmap"], frame, drawn)
        _tree(axes["dendrogram"], tree)
        _sizes(axes["sizes"], sizes[rows], [colours[name] for name in frame.index])
        fig.colorbar(drawn, cax=axes["colorbar"], label=label)
        return fig, axes

    fig, axes = style.with_style(build)
    return style.finish(fig, axes, shown=shown, save=save, return_fig=return_fig)


def _means(matrix: np.ndarray, column: pd.Categorical) -> np.ndarray:
    """``(n_groups, n_markers)`` means without NaN; NaN where a group has no value."""
    means = np.full((len(column.categories), matrix.shape[1]), np.nan)
    for i in range(len(column.categories)):
        part = matrix[column.codes == i]
        known = np.isfinite(part)
        count = known.sum(0)
        total = np.where(known, part, 0).sum(0)
        means[i] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return means


def _standardized(means: np.ndarray, how: str | None) -> np.ndarray:
    if how is None:
        return means
    known = np.isfinite(means)
    count = np.maximum(known.sum(0), 1)
    if how == "marker":
        low = np.where(known, means, np.inf).min(0)
        spread = np.where(known, means, -np.inf).max(0) - low
    else:
        low = np.where(known, means, 0).sum(0) / count
        spread = np.sqrt(np.where(known, (means - low) ** 2, 0).sum(0) / count)
    usable = np.isfinite(spread) & (spread > 0)
    return np.where(known, (means - low) / np.where(usable, spread, 1), np.nan)


def _order(means: np.ndarray, method: str) -> tuple[dict[str, Any] | None, np.ndarray]:
    """Dendrogram (None for fewer than two) and the order of its leaves; missing means count as 0."""
    if len(means) < 2:
        return None, np.arange(len(means))
    tree = scipy_dendrogram(linkage(np.nan_to_num(means), method=method, optimal_ordering=True), no_plot=True)
    return tree, np.array(tree["leaves"])


def _limits(frame: pd.DataFrame, standardize: str | None, *, bounded: bool) -> tuple[float, float]:
    if standardize == "zscore":
        most = float(np.nanmax(np.abs(frame.to_numpy()), initial=0))
        return -max(most, 1e-3), max(most, 1e-3)
    if standardize == "marker" or bounded:
        return 0.0, 1.0
    return min(0.0, float(np.nanmin(frame.to_numpy(), initial=0))), max(float(np.nanmax(frame)), 1e-9)


def _size(frame: pd.DataFrame) -> tuple[float, float]:
    names = max(len(name) for name in frame.columns)
    rows = max(len(name) for name in frame.index)
    return len(frame.columns) * 0.26 + rows * 0.075 + 3.6, max(len(frame) * 0.26, 1.0) + names * 0.075 + 0.7


def _axes(fig: Figure, frame: pd.DataFrame) -> dict[str, Axes]:
    widths = [max(1.0, len(frame.columns) * 0.26), 0.6, 0.9, 0.12]
    grid = fig.add_gridspec(1, 4, width_ratios=widths, wspace=0.03)
    names = ("heatmap", "dendrogram", "sizes", "colorbar")
    return {name: fig.add_subplot(grid[i]) for i, name in enumerate(names)}


def _heatmap(ax: Axes, frame: pd.DataFrame, limits: tuple[float, float], cmap: str) -> Any:
    colours = colormaps[cmap].with_extremes(bad=style.MISSING)
    drawn = ax.pcolormesh(
        np.ma.masked_invalid(frame.to_numpy()), cmap=colours, vmin=limits[0], vmax=limits[1],
        edgecolors="white", linewidth=0.4,
    )  # fmt: skip
    ax.set_facecolor(style.MISSING)
    ax.set_xticks(np.arange(len(frame.columns)) + 0.5, list(frame.columns), rotation=90)
    ax.set_yticks(np.arange(len(frame)) + 0.5, list(frame.index))
    ax.set_ylim(len(frame), 0)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return drawn


def _annotate(ax: Axes, frame: pd.DataFrame, drawn: Any) -> None:
    for i, row in enumerate(frame.to_numpy()):
        for j, value in enumerate(row):
            if np.isfinite(value):
                red, green, blue, _ = drawn.cmap(drawn.norm(value))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                ax.text(
                    j + 0.5, i + 0.5, _short(value), ha="center", va="center", fontsize=5.5,
                    color="white" if dark else "black",
                )  # fmt: skip


def _short(value: float) -> str:
    """At most about four characters: .25, -1.20, 37.4, 1570."""
    text = f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def _tree(ax: Axes, tree: dict[str, Any] | None) -> None:
    """Leaves at the left, one per row: scipy puts leaf i at 10 i + 5."""
    ax.axis("off")
    if tree is None:
        return
    leaves = len(tree["leaves"])
    lines = [
        np.column_stack([d, np.asarray(i) / 10]) for i, d in zip(tree["icoord"], tree["dcoord"], strict=True)
    ]
    ax.add_collection(LineCollection(lines, colors="0.25", linewidths=0.8))
    ax.set(xlim=(0, max(max(max(d) for d in tree["dcoord"]), 1e-9) * 1.05), ylim=(leaves, 0))


def _sizes(ax: Axes, sizes: np.ndarray, colours: list[str]) -> None:
    ax.barh(np.arange(sizes.size) + 0.5, sizes, height=0.7, color=colours)
    for i, n in enumerate(sizes):
        ax.annotate(f"{n:,}", (n, i + 0.5), (2, 0), textcoords="offset points", va="center", fontsize=6.5)
    ax.set(ylim=(sizes.size, 0), xlim=(0, sizes.max() * 1.45), xlabel="cells", yticks=[], xticks=[0])
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
