"""Where in a two-dimensional map of cells each marker is active."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.pl import _style as style
from nimbus_sd.pl._binned_map import binned_groups, binned_means
from nimbus_sd.pl._colours import group_colours, right_legend
from nimbus_sd.pl._table import check_table, check_unique, groups, pick_markers, quantity, values

_MAX_PANELS = 48
_MAX_GROUPS = 120
_LISTED = 24  # groups; the names of more stand on the map
_SCATTERED = 20_000  # cells; more are averaged per field of a grid
_FIELDS = 220  # a side of the grid, about two px each in the figure


@dataclass(frozen=True)
class _Panel:
    """One map: a value per cell and its limits, or a group per cell and the groups' colours."""

    title: str
    values: np.ndarray
    limits: tuple[float, float]
    colours: dict[str, str] | None = None


def marker_umap(
    adata: ad.AnnData,
    markers: str | Sequence[str] | None = None,
    *,
    groupby: str | Sequence[str] | None = None,
    basis: str = "umap",
    layer: str | None = None,
    quantiles: tuple[float, float] = (0.01, 0.99),
    n_columns: int = 6,
    size: float | None = None,
    cmap: str = "viridis",
    seed: int = 0,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw the UMAP once per marker, coloured by the marker's activation (or score).

    Every panel has colour limits of its own, quantiles over the cells, written under its title.
    Up to 20,000 cells are dots, in random order so that none hides behind its like; of more cells
    the mean (of groups the most frequent one) is drawn in a grid of 220 x 220 fields. More than 24
    groups are named on the map, fewer in a legend.

    Parameters
    ----------
    adata
        Table of :func:`nimbus_sd.tl.embed` or :func:`nimbus_sd.tl.predict`, with coordinates.
    markers
        None takes all, or the first 48 with a warning; ``[]`` draws groups alone.
    groupby
        Columns of ``obs`` to draw before the markers, for instance clusters.
    basis
        ``"umap"`` is ``obsm["X_umap"]``; or the whole name of an entry of ``obsm``, of which the
        first two columns are drawn.
    layer
        Layer to colour by; None takes ``X``.
    quantiles
        Of the finite values, where the colours of a panel start and end.
    n_columns
        Panels side by side.
    size
        Area of a dot in square points; None takes one that suits the number of cells.
    cmap
        Colour map of the markers.
    seed
        Decides the order of the dots.
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
    The figure if `return_fig`; the axes ``(n_panels,)`` if it is not shown; else None.

    Raises
    ------
    ElementNotFoundError
        If the coordinates, a column, a marker or the layer does not exist.
    InputError
        If a column does not group cells, there is nothing or too much to draw, or an option is out
        of range.

    References
    ----------
    Gutwein et al. (2024), *Interpretable embeddings for segmentation-free single-cell analysis
    in multiplex imaging*, figure 2.

    Examples
    --------
    >>> import numpy as np
    >>> import nimbus_sd as nb
    >>> adata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))["truth"].copy()
    >>> adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    >>> fig = nb.pl.marker_umap(adata, ["CD3", "CD8"], groupby="cell_type", return_fig=True)
    """
    check_table(adata)
    style.check_save(save)
    _check(quantiles, n_columns, size)
    points = _coordinates(adata, basis)
    columns = [] if groupby is None else check_unique(groupby)
    drawn_groups = [_group_panel(adata, name) for name in columns]
    named = markers is None or isinstance(markers, str) or len(markers) > 0
    names = pick_markers(adata, markers, where="the table", limit=_MAX_PANELS) if named else []
    if not names and not columns:
        msg = "nothing to draw; name markers, or columns of obs with groupby="
        raise InputError(msg)
    matrix = values(adata, names, layer, where="the table")
    what, _ = quantity(adata, layer, matrix)
    panels = drawn_groups + [
        _Panel(n, v, _limits(v, quantiles)) for n, v in zip(names, matrix.T, strict=True)
    ]
    known = np.isfinite(points).all(axis=1)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(known))
    shown = style.is_shown(show, save=save, return_fig=return_fig)

    def build() -> tuple[Figure, np.ndarray]:
        across = min(n_columns, len(panels))
        down = math.ceil(len(panels) / across)
        side = min(2.2, 11.5 / across)
        height = down * (side + 0.22) + 0.1
        handles = _handles(panels)
        width = across * (side + 0.03) + (0.9 if names else 0.1) + _legend_width(handles, height)
        fig = style.new_figure(figsize or (width, height), shown=shown)
        axes = fig.subplots(down, across, squeeze=False).ravel()
        for ax, panel in zip(axes, panels, strict=False):
            _draw(ax, panel, points, order, size, cmap)
        for ax in axes[len(panels) :]:
            ax.remove()
        used = axes[: len(panels)]
        if names:
            share = min(0.8, 1.6 / height)
            colours = ScalarMappable(Normalize(0, 1), cmap)
            bar = fig.colorbar(colours, ax=list(used), shrink=share, aspect=14, anchor=(0, 1), panchor=(1, 1))
            bar.set_ticks([0, 1], labels=[f"{q:g}" for q in quantiles])
            bar.set_label(f"{what}, quantiles")
        if handles:
            right_legend(fig, handles, title="")
        return fig, used

    fig, axes = style.with_style(build)
    return style.finish(fig, axes, shown=shown, save=save, return_fig=return_fig)


def _check(quantiles: tuple[float, float], n_columns: int, size: float | None) -> None:
    if len(quantiles) != 2 or not 0 <= quantiles[0] < quantiles[1] <= 1:
        msg = f"quantiles={quantiles}: two numbers from 0 to 1, the lower first"
        raise InputError(msg)
    if n_columns < 1 or (size is not None and not size > 0):
        msg = f"n_columns={n_columns}, size={size}: at least 1 column and a size above 0"
        raise InputError(msg)


def _coordinates(adata: ad.AnnData, basis: str) -> np.ndarray:
    """float64 ``(n_obs, 2)``."""
    found = next((k for k in (f"X_{basis}", basis) if k in adata.obsm), None)
    if found is None:
        known = ", ".join(map(repr, adata.obsm)) or "none"
        rep = "X_nextchannel" if "X_nextchannel" in adata.obsm else "X"
        make = f"sc.pp.neighbors(adata, use_rep={rep!r}); sc.tl.umap(adata)"
        hint = f"; make it with {make}" if basis in ("umap", "X_umap") else ""
        msg = f"basis={basis!r}: obsm has no {f'X_{basis}'!r} (entries: {known}){hint}"
        raise ElementNotFoundError(msg)
    points = np.asarray(adata.obsm[found], dtype=np.float64)
    if points.ndim != 2 or points.shape[1] < 2 or not np.isfinite(points[:, :2]).all(axis=1).any():
        msg = f"obsm[{found!r}] has shape {points.shape}; valid: (n_obs, at least 2) with finite coordinates"
        raise InputError(msg)
    return points[:, :2]


def _group_panel(adata: ad.AnnData, name: str) -> _Panel:
    column = groups(adata, name, limit=_MAX_GROUPS)
    every = group_colours(adata, name)
    colours = {str(c): every[str(c)] for c in column.categories}
    return _Panel(name.replace("_", " "), np.asarray(column.codes), (0.0, 1.0), colours)


def _limits(column: np.ndarray, quantiles: tuple[float, float]) -> tuple[float, float]:
    """Quantiles of the finite values; the whole range where these are equal, for a marker of few cells."""
    finite = column[np.isfinite(column)]
    if not finite.size:
        return 0.0, 1.0
    low, high = map(float, np.quantile(finite, quantiles))
    if not high > low:
        low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low, low + 1.0)


def _draw(
    ax: Axes, panel: _Panel, points: np.ndarray, order: np.ndarray, size: float | None, cmap: str
) -> None:
    at, told = points[order], panel.values[order]
    low, high = at.min(0), at.max(0)
    pad = 0.03 * np.where(high > low, high - low, 1.0)
    low, high = low - pad, high + pad
    norm = Normalize(*panel.limits, clip=True)
    table = (
        None
        if panel.colours is None
        else np.array([*map(to_rgba, panel.colours.values()), to_rgba(style.MISSING)])
    )
    if len(order) > _SCATTERED and size is None:
        if table is None:
            grid = np.ma.masked_invalid(binned_means(at, told, low, high, _FIELDS))
            ax.imshow(
                grid, extent=(low[0], high[0], low[1], high[1]), origin="lower", cmap=cmap, norm=norm,
                aspect="auto", interpolation="nearest",
            )  # fmt: skip
        else:
            code = binned_groups(at, told, low, high, _FIELDS, n_groups=len(table) - 1)
            rgba = np.where((code > -2)[..., None], table[code], 0.0)
            ax.imshow(
                rgba, extent=(low[0], high[0], low[1], high[1]), origin="lower", aspect="auto",
                interpolation="nearest",
            )  # fmt: skip
    else:
        area = float(np.clip(9000 / max(len(order), 1), 0.6, 14)) if size is None else size
        missing = ~np.isfinite(told) if table is None else np.zeros(len(told), bool)
        ax.scatter(at[missing, 0], at[missing, 1], s=area, c=style.MISSING, lw=0, rasterized=True)
        shade: Any = (
            {"c": told[~missing], "cmap": cmap, "norm": norm} if table is None else {"c": table[told]}
        )
        ax.scatter(at[~missing, 0], at[~missing, 1], s=area, lw=0, rasterized=True, **shade)
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[], box_aspect=1)
    ax.spines[:].set_color("0.8")
    ax.set_title(panel.title, loc="left")
    if panel.colours is not None and len(panel.colours) > _LISTED:
        _name(ax, panel, at, told)
    if table is None:
        ax.set_title(f"{panel.limits[0]:.2g}–{panel.limits[1]:.2g}", loc="right", fontsize=6.5, color="0.35")


def _name(ax: Axes, panel: _Panel, points: np.ndarray, codes: np.ndarray) -> None:
    """Names of groups at the cell nearest to each group's median."""
    halo = [patheffects.withStroke(linewidth=1.4, foreground="white")]
    for k, name in enumerate(panel.colours or {}):
        mine = points[codes == k]
        if len(mine):
            at = mine[np.argmin(((mine - np.median(mine, axis=0)) ** 2).sum(1))]
            ax.text(at[0], at[1], name, fontsize=5, ha="center", va="center", path_effects=halo)


def _handles(panels: list[_Panel]) -> list[Patch]:
    """Entries of one legend of all groups, each column's name before them."""
    handles = []
    for panel in panels:
        if panel.colours is not None and len(panel.colours) <= _LISTED:
            handles.append(Patch(alpha=0, label=f"{panel.title}:"))
            handles += [Patch(facecolor=c, label=name) for name, c in panel.colours.items()]
    return handles


def _legend_width(handles: list[Patch], height: float) -> float:
    """About what :func:`right_legend` takes, in inches."""
    if not handles:
        return 0.0
    columns = -(-len(handles) // max(1, int((height - 0.4) / 0.19)))
    return columns * (0.4 + 0.075 * min(28, max(len(str(h.get_label())) for h in handles)))
