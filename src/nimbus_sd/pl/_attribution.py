"""What the embedding of each cluster rests on: activation beside attributions from outside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.cluster.hierarchy import leaves_list, linkage

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata.layer_names import layer_names
from nimbus_sd.arrays.agreement import spearman_rows
from nimbus_sd.pl import _style as style
from nimbus_sd.pl._colours import group_colours
from nimbus_sd.pl._table import check_table, groups, pick_markers, values

_MAX_GROUPS = 40
_MAX_MARKERS = 120
#: layers of nb.tl.channel_attribution
_LAYERS = {"occlusion": "occlusion", "gradient_x_input": "gradient × input"}


def attribution(
    adata: ad.AnnData,
    groupby: str = "phenograph",
    *,
    markers: str | Sequence[str] | None = None,
    layers: str | Sequence[str] | None = None,
    cluster_markers: bool = True,
    gamma: float = 0.6,
    cmap: str = "viridis",
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw which markers the embeddings of each cluster rest on, by activation and by attribution.

    One map per measure, clusters x markers, in the same order: each cluster's mean as the share of
    its sum over the markers drawn. Bars beside the attributions tell how well they agree with the
    activations of the interpretability stage: Spearman's correlation over markers of a cluster's
    means. The titles tell the same for single cells (mean over cells), as the table records it.

    Parameters
    ----------
    adata
        Table of :func:`nimbus_sd.tl.embed` after :func:`nimbus_sd.tl.channel_attribution`.
    groupby
        Column of ``obs`` with at most 40 clusters; cells without a value are left out.
    markers
        At most 120; None takes all, or the first 120 with a warning.
    layers
        Attributions to draw; None takes ``"occlusion"`` and ``"gradient_x_input"``, those that the
        table has. NaN are left out of the means.
    cluster_markers
        Put markers side by side that act alike, else the order given.
    gamma
        Exponent of the colours; below 1 makes small shares visible.
    cmap
        Colour map.
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
    The figure if `return_fig`; a dict of axes (``"activation"``, each layer, and
    ``f"{layer}_agreement"``) if it is not shown; else None.

    Raises
    ------
    ElementNotFoundError
        If there is no attribution, or the column, a layer or a marker does not exist.
    InputError
        If the column does not group cells, or values are negative.

    Examples
    --------
    >>> import numpy as np
    >>> import nimbus_sd as nb
    >>> adata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))["truth"].copy()
    >>> adata.X = np.nan_to_num(adata.X)
    >>> adata.layers["occlusion"] = adata.X ** 2
    >>> fig = nb.pl.attribution(adata, "cell_type", return_fig=True)
    """
    check_table(adata)
    style.check_save(save)
    if not gamma > 0:
        msg = f"gamma={gamma} must be above 0; 1 is linear"
        raise InputError(msg)
    drawn = _layers(adata, layers)
    names = pick_markers(adata, markers, where="the table", limit=_MAX_MARKERS)
    column = groups(adata, groupby, limit=_MAX_GROUPS)
    maps = {"activation": _shares(adata, names, None, column.codes)}
    maps |= {layer: _shares(adata, names, layer, column.codes) for layer in drawn}
    rows = _order(maps["activation"])
    columns = _order(np.concatenate(list(maps.values())).T) if cluster_markers else np.arange(len(names))
    maps = {name: m[np.ix_(rows, columns)] for name, m in maps.items()}
    agreement = {layer: spearman_rows(maps["activation"], maps[layer]) for layer in drawn}
    ticks = [str(column.categories[i]) for i in rows], [names[i] for i in columns]
    every = group_colours(adata, groupby)
    shown = style.is_shown(show, save=save, return_fig=return_fig)

    def build() -> tuple[Figure, dict[str, Axes]]:
        size = (2.6 + 0.19 * len(names), (len(maps) * max(0.17 * len(rows), 0.8)) + 1.5)
        fig = style.new_figure(figsize or size, shown=shown)
        top = float(np.nanmax([0.0, *(np.nanquantile(m, 0.995) for m in maps.values())])) or 1.0
        norm = PowerNorm(gamma, 0, 100 * top, clip=True)
        axes = _axes(fig, list(maps), len(names))
        for name in maps:
            image = _map(axes[name], 100 * maps[name], norm, cmap, ticks)
            axes[name].set_title(_titled(adata, name), loc="left")
        for ax in [axes[name] for name in maps][:-1]:
            ax.set_xticklabels([])
        for name, told in agreement.items():
            _bars(axes[f"{name}_agreement"], told, [every[t] for t in ticks[0]])
        bar = fig.colorbar(
            image, ax=list(axes.values()), shrink=min(0.6, 2.5 / fig.get_figheight()), aspect=20, extend="max"
        )
        bar.locator = MaxNLocator(4)  # crowded otherwise, where gamma brings large shares together
        bar.set_label("% of the cluster's sum over markers")
        fig.supylabel(groupby.replace("_", " "), fontsize=8.5)
        return fig, axes

    fig, axes = style.with_style(build)
    return style.finish(fig, axes, shown=shown, save=save, return_fig=return_fig)


def _layers(adata: ad.AnnData, layers: str | Sequence[str] | None) -> list[str]:
    found = [name for name in _LAYERS if name in adata.layers]
    wanted = found if layers is None else [layers] if isinstance(layers, str) else list(layers)
    missing = [name for name in wanted if name not in adata.layers]
    if missing or not wanted:
        known = ", ".join(map(repr, layer_names(adata.layers))) or "none"
        told = f"layers {missing}" if missing else f"attribution ({', '.join(map(repr, _LAYERS))})"
        msg = f"the table has no {told}; layers: {known}. nb.tl.channel_attribution writes them"
        raise ElementNotFoundError(msg)
    return wanted


def _titled(adata: ad.AnnData, name: str) -> str:
    """The measure and, where the table records it, its agreement with activation cell by cell."""
    title = _LAYERS.get(name, name.replace("_", " "))
    record = adata.uns.get("channel_attribution", {}).get(name, {})
    rho = float(record.get("spearman_cells", np.nan))
    return f"{title} (agreement within cells {rho:.2f})" if np.isfinite(rho) else title


def _shares(adata: ad.AnnData, names: list[str], layer: str | None, codes: np.ndarray) -> np.ndarray:
    """``(n_groups, n_markers)`` means divided by their sum; NaN for a group without values."""
    matrix = values(adata, names, layer, where="the table")
    if np.nanmin(matrix, initial=0) < 0:
        what = "X" if layer is None else f"layer {layer!r}"
        msg = f"{what} holds negative values, which are no shares; draw it with nb.pl.marker_heatmap"
        raise InputError(msg)
    finite = np.isfinite(matrix)
    out = np.full((int(codes.max()) + 1, len(names)), np.nan)
    for k in range(len(out)):
        mine = codes == k
        count = finite[mine].sum(0)
        total = np.where(finite[mine], matrix[mine], 0).sum(0)
        mean = np.divide(total, count, out=np.full(len(names), np.nan), where=count > 0)
        whole = np.nansum(mean)
        out[k] = mean / whole if whole > 0 else mean
    return out


def _order(matrix: np.ndarray) -> np.ndarray:
    if len(matrix) < 2:
        return np.arange(len(matrix))
    return leaves_list(linkage(np.nan_to_num(matrix), "average", optimal_ordering=True))


def _axes(fig: Figure, names: list[str], n_markers: int) -> dict[str, Axes]:
    grid = fig.add_gridspec(len(names), 2, width_ratios=[max(n_markers * 0.19, 1.2), 0.8])
    axes: dict[str, Axes] = {}
    for i, name in enumerate(names):
        axes[name] = fig.add_subplot(grid[i, 0])
        if i:
            axes[f"{name}_agreement"] = fig.add_subplot(grid[i, 1], sharey=axes[name])
    return axes


def _map(
    ax: Axes, percent: np.ndarray, norm: PowerNorm, cmap: str, ticks: tuple[list[str], list[str]]
) -> Any:
    ax.set_facecolor(style.MISSING)
    drawn = ax.pcolormesh(
        np.ma.masked_invalid(percent), cmap=cmap, norm=norm, edgecolors="white", linewidth=0.3
    )
    ax.set_yticks(np.arange(len(ticks[0])) + 0.5, ticks[0], fontsize=6.5)
    ax.set_xticks(np.arange(len(ticks[1])) + 0.5, ticks[1], rotation=90, fontsize=6.5)
    ax.set_ylim(len(ticks[0]), 0)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return drawn


def _bars(ax: Axes, told: np.ndarray, colours: list[str]) -> None:
    ax.barh(np.arange(len(told)) + 0.5, np.nan_to_num(told), height=0.7, color=colours)
    ax.axvline(0, color="0.3", lw=0.6)
    mean = np.nanmean(told) if np.isfinite(told).any() else np.nan
    low = min(0.0, float(np.nanmin(told, initial=0)))
    ax.set(xlim=(-1 if low < 0 else 0, 1), xticks=[0, 1])
    ax.set_title(f"agreement\nmean {mean:.2f}", loc="left", fontsize=7)
    ax.tick_params(axis="y", left=False, labelleft=False)
    ax.tick_params(axis="x", labelsize=6.5)
    ax.spines[["top", "right", "left"]].set_visible(False)
