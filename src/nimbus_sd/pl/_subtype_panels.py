"""Panels of :func:`nimbus_sd.pl.subtypes`: arrays in, artists out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import is_color_like, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nimbus_sd._core.errors import InputError
from nimbus_sd.pl import _style as style
from nimbus_sd.pl._subtype_outlines import Outlines
from nimbus_sd.pl._view import Picture, Window

_SIDE = 1200  # px a side of the grid on which outlines are drawn, at least about
_FINE = 150  # px per inch for which widths of outlines are meant
_ANSWERS = ("negative", "positive", "undefined")
_STROKES: tuple[tuple[float, Any], ...] = ((1.0, "-"), (2.0, "-"), (1.2, (0, (1.6, 1.2))))  # pt


@dataclass(frozen=True)
class Look:
    """Colours of the answers, and how strongly cells are filled with them, 0 to 1."""

    positive: str
    negative: str
    undefined: str
    fill: float

    def __post_init__(self) -> None:
        for colour in (self.positive, self.negative, self.undefined):
            if not is_color_like(colour):
                msg = f"{colour!r} is no colour that matplotlib knows; valid: '#FF2A2A', 'red' and so on"
                raise InputError(msg)
        if not 0 <= self.fill <= 1:
            msg = f"fill={self.fill!r} must lie from 0 (outlines alone) to 1"
            raise InputError(msg)

    def colours(self, answer: np.ndarray) -> np.ndarray:
        """Colour of each answer (1, 0, NaN), uint8 ``(n, 4)``."""
        table = np.array([to_rgba(c) for c in (self.negative, self.positive, self.undefined)])
        return (table[codes(answer)] * 255).round().astype(np.uint8)


@dataclass(frozen=True)
class Cells:
    """Cells in view, with one answer per marker.

    Attributes
    ----------
    ids
        Of the labels, int64 ``(n,)``.
    xy
        Centres in px of the grid, ``(n, 2)``.
    answers
        1, 0 or NaN, ``(n, m)``.
    labels
        Ids on the grid; None of cells that are points or shapes.
    width
        Of the circles for those, px of the grid.
    """

    ids: np.ndarray
    xy: np.ndarray
    answers: np.ndarray
    labels: Picture | None
    width: float


def codes(answer: np.ndarray) -> np.ndarray:
    """0 negative, 1 positive, 2 undefined."""
    return np.where(np.isnan(answer), 2, answer > 0).astype(np.int64)


def default_size(aspect: float, rows: int, columns: int) -> tuple[float, float]:
    """Inches of a figure whose panels have height / width = `aspect`."""
    width = float(np.clip(15.0 / columns, 2.4, 4.2)) / max(1.0, aspect) ** 0.5
    return columns * width + 0.2, rows * (width * aspect + 0.28) + 0.25


def draw(
    axes: list[Axes],
    he: Picture,
    backgrounds: list[Picture],
    cells: Cells,
    *,
    names: list[str],
    title: str | None,
    window: Window,
    look: Look,
    mpp: float | None,
    halo: bool,
) -> None:
    """Fill the panels: the H&E alone first if it has a title, then one for each marker.

    Parameters
    ----------
    axes
        As many as there are pictures.
    he
        ``(y, x, 3)`` in [0, 1].
    backgrounds
        The same, one for each marker.
    cells
        In view.
    names
        Of the markers.
    title
        Of the H&E; None leaves it out.
    halo
        A light rim around cells, for backgrounds that are coloured.
    """
    outlines = None if cells.labels is None else _outlines(axes[0], cells, cells.labels, halo=halo)
    if title is not None:
        _background(axes[0], he, window, title)
        style.scale_bar(axes[0], width=window.x.size, mpp=mpp)
        axes = axes[1:]
    for ax, name, picture, answer in zip(axes, names, backgrounds, cells.answers.T, strict=True):
        _background(ax, picture, window, name)
        if outlines is None or cells.labels is None:
            _circles(ax, cells, answer, look, halo=halo)
        else:
            rgba = outlines.paint(codes(answer), look.colours(answer), look.fill)
            where = cells.labels.extent
            ax.imshow(rgba, extent=where, interpolation="antialiased", interpolation_stage="rgba")
        ax.set_title(_counted(answer), loc="right", fontsize=7.5)
        if title is None:
            style.scale_bar(ax, width=window.x.size, mpp=mpp)


def _background(ax: Axes, picture: Picture, window: Window, title: str) -> None:
    ax.imshow(picture.pixels, extent=picture.extent, interpolation="antialiased")
    ax.set(xlim=(window.x.start, window.x.stop), ylim=(window.y.stop, window.y.start), xticks=[], yticks=[])
    ax.set_title(title, fontweight="bold", loc="left")


def _outlines(ax: Axes, cells: Cells, labels: Picture, *, halo: bool) -> Outlines:
    pixels = style.enlarge(labels.pixels, side=_SIDE)
    return Outlines.of(pixels, cells.ids, unit=pixels.shape[1] / _panel_width(ax, labels), halo=halo)


def _panel_width(ax: Axes, labels: Picture) -> float:
    """Px of a figure of usual resolution under a panel, before the layout is known."""
    grid, fig = ax.get_subplotspec(), ax.get_figure(root=True)
    wide, high = fig.get_size_inches() * _FINE  # type: ignore[union-attr]
    if grid is None:
        box = ax.get_position()
        wide, high = wide * box.width, high * box.height
    else:
        wide, high = wide / grid.get_gridspec().ncols, high / grid.get_gridspec().nrows
    return float(min(wide, high * labels.pixels.shape[1] / labels.pixels.shape[0]))


def _circles(ax: Axes, cells: Cells, answer: np.ndarray, look: Look, *, halo: bool) -> None:
    colours = look.colours(answer) / 255
    faces = colours * np.array([1, 1, 1, look.fill])
    width = np.full(len(cells.xy), cells.width)
    strokes = [_STROKES[code] for code in codes(answer)]
    circles = EllipseCollection(
        width,
        width,
        np.zeros(len(width)),
        units="xy",
        offsets=cells.xy,
        offset_transform=ax.transData,
        facecolors=faces,
        edgecolors=colours,
        linewidths=[stroke[0] for stroke in strokes],
        linestyles=[stroke[1] for stroke in strokes],
    )
    if halo:
        circles.set_path_effects([patheffects.withStroke(linewidth=3.0, foreground="white", alpha=0.8)])
    ax.add_collection(circles)


def _counted(answer: np.ndarray) -> str:
    known = answer[~np.isnan(answer)]
    text = f"{int((known > 0).sum()):,} of {known.size:,} positive"
    missing = answer.size - known.size
    return f"{text}, {missing:,} undefined" if missing else text


def legend(fig: Figure, cells: Cells, look: Look, *, lights: dict[str, str], ax: Axes | None) -> None:
    """Answers that occur, and the colours of the fluorescence, below the figure or the axes."""
    there = np.unique(codes(cells.answers))
    each = dict(zip(_ANSWERS, (look.negative, look.positive, look.undefined), strict=True))
    handles = [
        Patch(facecolor="none", edgecolor=each[name], lw=_STROKES[i][0], ls=_STROKES[i][1], label=name)
        for i, name in sorted(enumerate(_ANSWERS), key=lambda pair: pair[1] != "positive")
        if i in there
    ]
    handles += [Patch(facecolor=c, edgecolor="0.4", lw=0.5, label=name) for name, c in lights.items()]
    look_of: dict[str, Any] = {"handles": handles, "ncols": len(handles), "handlelength": 1.3}
    if ax is None:
        fig.legend(loc="outside lower center", **look_of)
    else:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01), **look_of)
