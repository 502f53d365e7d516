"""Up to seven markers of one field in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import is_color_like, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from spatialdata import SpatialData

from nimbus_sd._core.channels import select_channels
from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.resolve import ResolvedSample, resolve_sample
from nimbus_sd._sdata.table import existing_table
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.pl import _style as style
from nimbus_sd.pl._cells import diameter, fill, outlined, region_and_ids
from nimbus_sd.pl._colours import OVERLAY, group_colours, on_dark, rgba, right_legend
from nimbus_sd.pl._intensity import check_scale, scaled
from nimbus_sd.pl._table import check_unique, groups, scales, with_calls
from nimbus_sd.pl._view import Window, make_window, one_pair, read_image, read_labels

_MAX_GROUPS = 30
_SMALL_CELL = 8.0  # px of the picture below which outlines would hide the markers


def overlay(
    sdata: SpatialData,
    markers: str | Sequence[str],
    *,
    image: str | None = None,
    labels: str | None = None,
    table: str | None = "nimbus",
    groupby: str | None = None,
    outlines: bool = True,
    colors: Sequence[str] | None = None,
    crop: Sequence[int] | None = None,
    normalization: Normalization | None = None,
    quantile: float | None = None,
    gamma: float = 0.5,
    mpp: float | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw up to seven markers of one field in one picture, with cell outlines.

    Each marker has a colour; where several are bright their colours add up. Only the
    rectangle is read, at the level or stride that fits the figure.

    Parameters
    ----------
    sdata
        Object with image ``(c, y, x)`` and labels ``(y, x)``.
    markers
        Channel names, one to seven.
    image, labels
        Names of the elements; they can be left out where only one pair exists, an H&E apart.
    table
        Name of the table with ``var["scale"]`` and the groups; one that does not exist, or
        None, is not asked unless `groupby` needs it.
    groupby
        Column of the table's ``obs``: outlines take the colours of its groups, at most 30;
        or a marker of a table with the layer ``"positive"``; None draws them white.
    outlines
        Draw them; where cells are too small for it they are left out.
    colors
        One per marker; None takes magenta, green, blue, yellow, red, cyan, white.
    crop
        ``(y0, y1, x0, x1)`` in px of the finer of the two grids; None shows all.
    normalization
        What intensity counts as 1; None takes ``table.var["scale"]``, else the
        0.999 quantile of the pixels shown.
    quantile
        Take that quantile of the pixels shown as 1 instead.
    gamma
        Exponent of the intensity; 0.5 makes dim cells visible, 1 is linear.
    mpp
        µm per px for the scale bar; None takes what the object says, else the bar is in px.
    figsize
        Inches.
    ax
        Draw there.
    show
        None shows the figure unless it is saved, returned or drawn on `ax`.
    save
        Path of the file to write.
    return_fig
        Return the figure.

    Returns
    -------
    The figure if `return_fig`; the axes if it is not shown; else None.

    Raises
    ------
    ElementNotFoundError
        If an element, channel, table or column does not exist.
    InputError
        If there are too many markers, colours don't fit them, several fields fit, or the
        crop is not within the image.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))
    >>> fig = nb.pl.overlay(sdata, ["CD3", "CD20", "VIM"], return_fig=True)
    """
    names = check_unique(markers)
    colours = _colours(names, colors)
    check_scale(normalization, quantile, gamma)
    style.check_save(save)
    sample = resolve_sample(sdata, one_pair(sdata, image=image, labels=labels), mpp=mpp)
    window = make_window(sample.sample.labels.shape, crop, where=f"labels {sample.pair.labels!r}")
    channels, _ = select_channels(sample.native_image.channels, names, where=sample.pair.image)
    adata = None
    if groupby is not None or (table is not None and table in sdata.tables):
        adata = existing_table(sdata, str(table), [] if groupby is None else [sample.pair.labels])
    picture = read_image(sdata, sample, [sample.native_image.channels.index(c) for c in channels], window)
    known = None if adata is None else scales(adata, names)
    light = scaled(picture.pixels, names, known, normalization, quantile) ** gamma
    groups_drawn: dict[str, str] = {}
    borders = None
    if outlines:
        borders, extent, groups_drawn = _outlines(sdata, sample, window, adata, groupby)
    shown = style.is_shown(show, save=save, return_fig=return_fig, ax=ax)

    def build() -> tuple[Figure, Axes]:
        size = figsize or _size(window, groups_drawn)
        fig: Any = style.new_figure(size, shown=shown) if ax is None else ax.get_figure(root=True)
        one = fig.add_subplot() if ax is None else ax
        one.imshow(blend(light, colours), extent=picture.extent, interpolation="antialiased")
        if borders is not None:
            one.imshow(borders, extent=extent, interpolation="antialiased", interpolation_stage="rgba")
        one.set(xlim=(window.x.start, window.x.stop), ylim=(window.y.stop, window.y.start))
        one.set(xticks=[], yticks=[])
        style.scale_bar(one, width=window.x.size, mpp=sample.sample.mpp)
        _legends(one, dict(zip(names, colours, strict=True)), groups_drawn, own_figure=ax is None)
        return fig, one

    fig, drawn = style.with_style(build)
    return style.finish(fig, drawn, shown=shown, save=save, return_fig=return_fig, ax=ax)


def blend(light: np.ndarray, colours: Sequence[str]) -> np.ndarray:
    """Add up markers, each in its colour, and clip.

    Parameters
    ----------
    light
        ``(c, y, x)`` in [0, 1].
    colours
        One per marker.

    Returns
    -------
    float32 ``(y, x, 3)`` in [0, 1].
    """
    weights = np.array([to_rgb(c) for c in colours], dtype=np.float32)
    return np.clip(np.einsum("cyx,ck->yxk", light.astype(np.float32), weights), 0, 1)


def _colours(names: list[str], colors: Sequence[str] | None) -> list[str]:
    if len(names) > len(OVERLAY):
        msg = f"{len(names)} markers can't be told apart; pass at most {len(OVERLAY)} and call again"
        raise InputError(msg)
    chosen = list(OVERLAY[: len(names)]) if colors is None else list(colors)
    wrong = [c for c in chosen if not is_color_like(c)]
    if wrong or len(chosen) != len(names):
        msg = f"colors={chosen}: pass {len(names)} colours that matplotlib knows, one per marker"
        raise InputError(msg)
    return chosen


def _outlines(
    sdata: SpatialData, sample: ResolvedSample, window: Window, adata: Any, groupby: str | None
) -> tuple[np.ndarray | None, Any, dict[str, str]]:
    """RGBA borders of the cells, where they lie, and the groups among them."""
    cells = read_labels(sdata, sample, window)
    if diameter(cells.pixels) < _SMALL_CELL:
        return None, cells.extent, {}
    labels = style.enlarge(cells.pixels, side=1000)
    white = np.array([255, 255, 255, 150], np.uint8)
    if groupby is None:
        plain = np.where((labels > 0)[..., None], white, 0).astype(np.uint8)
        return outlined(plain, labels), cells.extent, {}
    adata = with_calls(adata, groupby)
    column = groups(adata, groupby, limit=_MAX_GROUPS)
    region, ids = region_and_ids(adata, where="the table")
    rows = region == sample.pair.labels
    seen = rows & np.isin(ids, np.unique(cells.pixels)) & (column.codes >= 0)
    colours = {name: on_dark(c) for name, c in group_colours(adata, groupby).items()}
    used = list(map(str, column.categories))
    each = rgba([*(colours[name] for name in used), style.MISSING])[column.codes]
    listed = {used[k]: colours[used[k]] for k in np.unique(column.codes[seen])}
    filled = fill(labels, ids[rows], each[rows], missing=white)
    return outlined(filled, labels, width=3), cells.extent, listed


def _size(window: Window, found: dict[str, str]) -> tuple[float, float]:
    aspect = window.y.size / window.x.size
    width = 6.0 / max(1.0, aspect)
    return width + (2.0 if found else 0.3), width * aspect + 0.5


def _legends(ax: Axes, markers: dict[str, str], found: dict[str, str], *, own_figure: bool) -> None:
    """Markers below; groups at the right, or below too where only the axes are ours."""
    handles = [Patch(facecolor=c, edgecolor="0.3", lw=0.5, label=name) for name, c in markers.items()]
    outlines = [Patch(facecolor="#404040", edgecolor=c, lw=1.8, label=name) for name, c in found.items()]
    look: dict[str, Any] = {"handlelength": 1.2, "columnspacing": 1.4}
    if not own_figure:
        shown = [*handles, *outlines]
        below: dict[str, Any] = {
            "loc": "upper center",
            "bbox_to_anchor": (0.5, -0.01),
            "ncols": min(len(shown), 4),
        }
        ax.legend(handles=shown, **below, **look)
        return
    fig: Any = ax.get_figure(root=True)
    fig.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), **look)
    if outlines:
        right_legend(fig, outlines, title="outlines")
