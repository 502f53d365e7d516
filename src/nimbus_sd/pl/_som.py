"""The nodes of a self-organising map, as a tree or on their grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.pl import _style as style
from nimbus_sd.pl._colours import group_colours, legend, palette
from nimbus_sd.pl._table import check_table
from nimbus_sd.pl._tree_layout import spanning_tree, tree_layout

_MAX_PANELS = 16
_NEEDED = ("codes", "grid", "node_size", "node_metacluster", "markers")


@dataclass(frozen=True)
class _Map:
    """Nodes of a trained map: places, edges, radii, mean values and metaclusters."""

    place: np.ndarray  # (n, 2)
    edges: np.ndarray  # (m, 2)
    size: np.ndarray  # (n,) cells
    mean: np.ndarray  # (n, k)
    markers: list[str]
    group: np.ndarray  # (n,) str
    colours: dict[str, str]


def som(
    adata: ad.AnnData,
    color: str | Sequence[str] | None = None,
    *,
    key: str = "flowsom",
    layout: str = "tree",
    n_columns: int = 4,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw the nodes of a self-organising map, their areas as large as they have cells.

    As a tree, the minimum spanning tree of the nodes that have cells (alike nodes are
    joined), or at their places on the map's grid, nodes without cells as small crosses.

    Parameters
    ----------
    adata
        Table after :func:`nimbus_sd.tl.flowsom`.
    color
        ``"metacluster"``, a marker (the nodes' mean value), or several of these, a panel
        each, at most 16; None draws metaclusters.
    key
        Where the map is in ``uns``.
    layout
        ``"tree"`` or ``"grid"``.
    n_columns
        Panels side by side.
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
        If there is no map, or it was not trained on a marker.
    InputError
        If there are too many panels, or the layout is unknown.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> import nimbus_sd as nb
    >>> rng = np.random.default_rng(0)
    >>> adata = ad.AnnData(np.repeat(np.eye(3), 40, axis=0) + rng.normal(0, 0.1, (120, 3)))
    >>> nb.tl.flowsom(adata, n_nodes=16, n_metaclusters=3)
    >>> fig = nb.pl.som(adata, ["metacluster", "0"], return_fig=True)
    """
    check_table(adata)
    style.check_save(save)
    if layout not in ("tree", "grid") or n_columns < 1:
        msg = f"layout={layout!r}, n_columns={n_columns}; valid: 'tree', 'grid'; at least 1 column"
        raise InputError(msg)
    stored = adata.uns.get(key)
    if not isinstance(stored, dict) or any(name not in stored for name in _NEEDED):
        msg = f"uns has no map {key!r}; run nb.tl.flowsom(adata) first"
        raise ElementNotFoundError(msg)
    nodes = _read(adata, stored, layout)
    panels = ["metacluster"] if color is None else [color] if isinstance(color, str) else list(color)
    missing = [c for c in panels if c != "metacluster" and c not in nodes.markers]
    if missing:
        msg = (
            f"color={missing}: the map was not trained on it; valid: metacluster, {', '.join(nodes.markers)}"
        )
        raise ElementNotFoundError(msg)
    if not 0 < len(panels) <= _MAX_PANELS:
        msg = f"{len(panels)} panels; pass 1 to {_MAX_PANELS} colours and call again for the rest"
        raise InputError(msg)
    shown = style.is_shown(show, save=save, return_fig=return_fig)

    def build() -> tuple[Figure, np.ndarray]:
        columns = min(n_columns, len(panels))
        rows = math.ceil(len(panels) / columns)
        side = 5.0 if len(panels) == 1 else float(np.clip(11.0 / columns, 2.6, 4.0))
        fig = style.new_figure(figsize or (columns * side + 1.2, rows * (side + 0.2)), shown=shown)
        axes = fig.subplots(rows, columns, squeeze=False).ravel()
        for ax, name in zip(axes, panels, strict=False):
            _panel(ax, nodes, name, large=side > 3.5)
        for ax in axes[len(panels) :]:
            ax.remove()
        if "metacluster" in panels:
            legend(fig, nodes.colours, title="metacluster")
        return fig, axes[: len(panels)]

    fig, axes = style.with_style(build)
    return style.finish(fig, axes, shown=shown, save=save, return_fig=return_fig)


def _read(adata: ad.AnnData, stored: dict[str, Any], layout: str) -> _Map:
    codes = np.asarray(stored["codes"], dtype=np.float64)
    group = np.array([str(g) for g in stored["node_metacluster"]])
    mean = np.asarray(stored.get("node_mean", codes), dtype=np.float64)
    size = np.asarray(stored["node_size"], dtype=np.float64)
    if layout == "grid":
        # the map counts along its second side first
        place = np.stack(np.divmod(np.arange(len(codes)), int(stored["grid"][1])), axis=1).astype(np.float64)
        edges = np.empty((0, 2), np.int64)
    else:
        used = np.flatnonzero(size > 0)
        edges = spanning_tree(codes[used])
        place = tree_layout(len(used), edges)
        codes, group, mean, size = codes[used], group[used], mean[used], size[used]
    markers = [str(m) for m in stored["markers"]]
    return _Map(place, edges, size, mean, markers, group, _colours(adata, stored, group))


def _colours(adata: ad.AnnData, stored: dict[str, Any], group: np.ndarray) -> dict[str, str]:
    """As in every other plot, where the column is still there."""
    column = str(stored.get("key_metacluster", "metacluster"))
    known = group_colours(adata, column) if column in adata.obs else {}
    used = set(group)
    if used <= set(known):
        return {name: c for name, c in known.items() if name in used}
    names = list(dict.fromkeys(map(str, pd.unique(group))))
    return dict(zip(names, palette(len(names)), strict=True))


def _panel(ax: Axes, nodes: _Map, name: str, *, large: bool) -> None:
    filled = nodes.size > 0
    (x, y), (empty_x, empty_y) = nodes.place[filled].T, nodes.place[~filled].T
    spacing = _inches(ax, nodes.place)
    largest = (spacing * 72 * 1.3) ** 2 if len(nodes.edges) else (spacing * 72 * 0.95) ** 2
    area = largest * nodes.size / max(nodes.size.max(), 1)
    area = np.maximum(area, 9.0)
    if len(nodes.edges):
        ax.add_collection(LineCollection(nodes.place[nodes.edges], colors="0.7", linewidths=0.7, zorder=0))
    ax.scatter(empty_x, empty_y, s=7, c="0.6", marker="x", lw=0.6, gid="empty")
    # large nodes at the edge reach beyond the axes
    look: dict[str, Any] = {
        "s": area[filled],
        "edgecolors": "0.25",
        "linewidths": 0.3,
        "gid": "nodes",
        "clip_on": False,
    }
    if name == "metacluster":
        ax.scatter(x, y, c=[nodes.colours[g] for g in nodes.group[filled]], **look)
        _names(ax, nodes, apart=0.15 / spacing, fontsize=7.5 if large else 6.0)
    else:
        value = nodes.mean[filled, nodes.markers.index(name)]
        top = 1.0 if value.min() >= 0 and value.max() <= 1 else float(value.max())
        drawn = ax.scatter(
            x,
            y,
            c=value,
            cmap="viridis",
            vmin=min(0.0, float(value.min())),
            vmax=top,
            **look,
        )
        fig: Any = ax.get_figure(root=True)
        fig.colorbar(drawn, ax=ax, shrink=0.5, aspect=18, pad=0.01)
    ax.set_title(name, loc="left")
    ax.set_aspect("equal")
    ax.margins(0.04)
    ax.axis("off")


def _inches(ax: Axes, place: np.ndarray) -> float:
    """Length of one unit of the layout, about, before the layout of the figure is known."""
    fig: Any = ax.get_figure(root=True)
    place_of: Any = ax.get_subplotspec()
    grid = place_of.get_gridspec()
    wide, high = np.ptp(place, axis=0) + 1.0
    return float(min((fig.get_figwidth() - 1.2) / grid.ncols / wide, fig.get_figheight() / grid.nrows / high))


def _names(ax: Axes, nodes: _Map, *, apart: float, fontsize: float) -> None:
    """Each metacluster's name at its most central node, the largest first where two would collide."""
    halo = [patheffects.withStroke(linewidth=2.0, foreground="white")]
    totals = {g: nodes.size[nodes.group == g].sum() for g in nodes.colours}
    taken: list[np.ndarray] = []
    for name in sorted(totals, key=lambda g: -totals[g]):
        mine = np.flatnonzero((nodes.group == name) & (nodes.size > 0))
        if not mine.size:
            continue
        middle = np.average(nodes.place[mine], axis=0, weights=nodes.size[mine])
        at = nodes.place[mine[np.argmin(((nodes.place[mine] - middle) ** 2).sum(1))]]
        if len(name) > 12 or any(((at - other) ** 2).sum() < apart**2 for other in taken):
            continue
        taken.append(at)
        ax.annotate(
            name, tuple(at), (0, 2.5), textcoords="offset points", fontsize=fontsize, ha="center",
            path_effects=halo, zorder=3,
        )  # fmt: skip
