"""Panels of :func:`nimbus_sd.pl.image`: arrays in, artists out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm, to_rgba
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from nimbus_sd.pl import _style as style
from nimbus_sd.pl._view import Extent, Picture, Window

#: px a side of the grid on which outlines are drawn, at least about
_OUTLINE_PX = 1000
#: below this diameter (px of the figure) outlines of negative cells would only grey the image
_SMALL_CELL = 12.0


@dataclass(frozen=True)
class Scores:
    """Scores of one field.

    Attributes
    ----------
    ids
        Label ids, one per row.
    values
        ``(n_cells, n_markers)``.
    threshold
        Per marker: above it a cell is positive.
    scale
        Per marker: the intensity that counts as 1, NaN where unknown; None if all are.
    """

    ids: pd.Index
    values: np.ndarray
    threshold: np.ndarray
    scale: np.ndarray | None


@dataclass(frozen=True)
class Look:
    """Colours and the exponent of the grey scale."""

    positive: str
    negative: str
    cmap: str
    score_cmap: str
    gamma: float


@dataclass(frozen=True)
class _Cells:
    """Cells as drawn: the ids in view, the place of each px among them, borders."""

    present: np.ndarray  # (n,) bool: background is not a cell
    where: np.ndarray  # (y, x) positions
    border: np.ndarray  # (y, x) bool, thin
    thick: np.ndarray  # (y, x) bool
    extent: Extent
    small: bool


def default_size(aspect: float, rows: int, columns: int) -> tuple[float, float]:
    """Inches of a figure whose panels have height / width = `aspect`."""
    width = float(np.clip(13.0 / rows, 2.4, 4.4)) / max(1.0, aspect) ** 0.5
    return columns * width + 0.7, rows * (width * aspect + 0.3) + 1.0


def draw(
    axes: np.ndarray,
    names: list[str],
    scaled: Picture,
    cells: Picture,
    scores: Scores | None,
    maps: Picture | None,
    window: Window,
    look: Look,
    mpp: float | None,
    *,
    own_figure: bool,
) -> None:
    """Fill a ``(n_markers, 1 or 2)`` grid of axes; the legend goes below the figure if it is our own."""
    fig = axes[0, 0].get_figure(root=True)
    per_px = fig.get_figwidth() * fig.dpi * 0.9 / axes.shape[1] / window.x.size
    drawn, ids = _prepare(cells, zoom=per_px * (cells.extent[1] - cells.extent[0]) / cells.pixels.shape[1])
    rows = None if scores is None else scores.ids.get_indexer(ids.astype(np.int64))
    unknown = False
    for i, name in enumerate(names):
        per_cell = np.full(ids.size, np.nan)
        if scores is not None and rows is not None:
            per_cell[rows >= 0] = scores.values[rows[rows >= 0], i]
            unknown |= bool(np.isnan(per_cell[drawn.present]).any())
        cut = np.nan if scores is None else scores.threshold[i]
        gray = PowerNorm(look.gamma, 0, 1)
        left = axes[i, 0].imshow(
            scaled.pixels[i], cmap=look.cmap, norm=gray, extent=scaled.extent, interpolation="antialiased"
        )
        _overlay(axes[i, 0], _outlines(drawn, per_cell, cut, look), cells.extent)
        axes[i, 0].set_title(name, fontweight="bold", loc="left")
        style.scale_bar(axes[i, 0], width=window.x.size, mpp=mpp)
        if axes.shape[1] == 2:
            right = _right(axes[i, 1], drawn, per_cell, maps, i, look)
        if scores is not None:
            known = per_cell[drawn.present & ~np.isnan(per_cell)]
            text = f"{int((known > cut).sum()):,} of {known.size:,} cells > {cut:g}"
            axes[i, -1].set_title(text, loc="right", fontsize=8)
    for k, ax in enumerate(axes.flat):
        _frame(ax, window, left=k % axes.shape[1] == 0, bottom=k >= axes.size - axes.shape[1])
    kwargs: dict[str, Any] = {"location": "bottom", "aspect": 30, "shrink": 0.7, "pad": 0.02, "format": "%g"}
    first: dict[str, Any] = {"ax": list(axes[:, 0]), **kwargs}
    if not own_figure:  # as high as the image, and without a label, which a neighbour could hide
        first = {"cax": axes[0, 0].inset_axes((1.05, 0, 0.04, 1)), "format": "%g"}
    bar = fig.colorbar(
        left, label="normalised intensity" if own_figure else "", ticks=_gray_ticks(look), **first
    )
    bar.ax.minorticks_off()
    if axes.shape[1] == 2:
        text = "score of the cell" if maps is None else "score per pixel"
        fig.colorbar(right, ax=list(axes[:, 1]), label=text, ticks=[0, 0.25, 0.5, 0.75, 1], **kwargs)
    if scores is not None:
        _legend(axes, drawn.small, unknown, look, own_figure=own_figure)


def _gray_ticks(look: Look) -> list[float]:
    return [0, 0.05, 0.25, 0.5, 1] if look.gamma < 0.8 else [0, 0.25, 0.5, 0.75, 1]


def _prepare(cells: Picture, *, zoom: float) -> tuple[_Cells, np.ndarray]:
    """Cells for drawing where one px of `cells` takes `zoom` px of the figure, and their ids."""
    ids = np.union1d(cells.pixels, np.zeros(1, cells.pixels.dtype))
    where = np.searchsorted(ids, cells.pixels)
    present = ids != 0
    area = (where > 0).sum() / max(1, present.sum())
    big = style.enlarge(where, side=_OUTLINE_PX)
    drawn = _Cells(
        present=present,
        where=big,
        border=style.outline(big, width=1),
        thick=style.outline(big, width=2),
        extent=cells.extent,
        small=bool(np.sqrt(area * 4 / np.pi) * zoom < _SMALL_CELL),
    )
    return drawn, ids


def _outlines(cells: _Cells, per_cell: np.ndarray, cut: float, look: Look) -> np.ndarray:
    """RGBA ``(y, x, 4)`` uint8: thick borders of positive cells, faint ones of the others."""
    colours = np.zeros((per_cell.size, 4))
    colours[:] = to_rgba(look.negative, 0.0 if cells.small and not np.isnan(cut) else 0.7)
    colours[np.isnan(per_cell) & ~np.isnan(cut)] = to_rgba(style.MISSING, 0.5)
    positive = per_cell > cut
    colours[positive] = to_rgba(look.positive, 1.0)
    colours[~cells.present] = 0
    visible = np.where(positive[cells.where], cells.thick, cells.border)
    return (colours * 255).round().astype(np.uint8)[cells.where] * visible[..., None]


def _overlay(ax: Axes, rgba: np.ndarray, extent: Extent) -> None:
    ax.imshow(rgba, extent=extent, interpolation="antialiased", interpolation_stage="rgba")


def _right(ax: Axes, cells: _Cells, per_cell: np.ndarray, maps: Picture | None, i: int, look: Look) -> object:
    """The score column: cells filled, or pixels with thin outlines."""
    if maps is not None:
        drawn = ax.imshow(
            maps.pixels[i], cmap=look.score_cmap, norm=Normalize(0, 1), extent=maps.extent,
            interpolation="antialiased",
        )  # fmt: skip
    else:
        values = np.where(cells.present, per_cell, np.nan)[cells.where]
        background = np.full((*cells.where.shape, 4), 255, np.uint8)
        background[cells.present[cells.where]] = np.array(to_rgba(style.MISSING)) * 255
        ax.imshow(background, extent=cells.extent, interpolation="nearest", gid="no score")
        drawn = ax.imshow(
            values, cmap=look.score_cmap, norm=Normalize(0, 1), extent=cells.extent, interpolation="nearest"
        )
    if not cells.small:
        rgba = np.zeros((*cells.where.shape, 4), np.uint8)
        rgba[cells.border] = (255, 255, 255, 200 if maps is None else 90)
        _overlay(ax, rgba, cells.extent)
    return drawn


def _frame(ax: Axes, window: Window, *, left: bool, bottom: bool) -> None:
    ax.set_xlim(window.x.start, window.x.stop)
    ax.set_ylim(window.y.stop, window.y.start)
    for axis, outer in ((ax.xaxis, bottom), (ax.yaxis, left)):
        axis.set_major_locator(MaxNLocator(4, integer=True))
        axis.set_tick_params(labelbottom=outer) if axis is ax.xaxis else axis.set_tick_params(labelleft=outer)
    if left and bottom:
        ax.set_xlabel("x (px)")
        ax.set_ylabel("y (px)")


def _legend(axes: np.ndarray, small: bool, unknown: bool, look: Look, *, own_figure: bool) -> None:
    face = "#404040"  # the colours are made for dark ground
    handles: list[Line2D | Patch] = [Patch(facecolor=face, edgecolor=look.positive, lw=1.8, label="positive")]
    if not small:
        handles.append(Patch(facecolor=face, edgecolor=look.negative, lw=0.9, label="negative"))
    if unknown:
        handles.append(Patch(facecolor=style.MISSING, edgecolor="white", label="no score"))
    if own_figure:
        fig = axes[0, 0].get_figure(root=True)
        fig.legend(handles=handles, loc="outside lower center", ncols=len(handles), handlelength=1.4)
    else:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": len(handles)}
        axes[0, 0].legend(handles=handles, handlelength=1.4, **below)
