"""Tiles and texts of :func:`nimbus_sd.pl.cell_gallery`: arrays in, artists out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.pl import _style as style
from nimbus_sd.pl._gallery_crops import Crop
from nimbus_sd.pl._intensity import scaled
from nimbus_sd.pl._overlay import blend


@dataclass(frozen=True)
class Row:
    """One row of the gallery: its name, the table's rows, what is written on each and in which colour."""

    name: str
    channels: list[str]
    cells: np.ndarray
    texts: list[str]
    colours: list[str]


def tiles(
    row: Row,
    crops: list[Crop],
    known: np.ndarray | None,
    normalization: Normalization | None,
    quantile: float | None,
    gamma: float,
    colours: list[str],
    times: int,
) -> list[np.ndarray]:
    """RGB of each crop, enlarged; where there are labels its own cell outlined, the neighbours faintly."""
    if not crops:
        return []
    raw = np.concatenate([c.pixels for c in crops], axis=2)
    light = np.split(scaled(raw, row.channels, known, normalization, quantile) ** gamma, len(crops), axis=2)
    out = []
    for crop, pixels, colour in zip(crops, light, row.colours, strict=True):
        rgb = blend(pixels, colours).repeat(times, 0).repeat(times, 1)
        if crop.labels is None:
            out.append(rgb)
            continue
        labels = crop.labels.repeat(times, 0).repeat(times, 1)
        faint = style.outline(labels)
        rgb[faint] = 0.65 * rgb[faint] + 0.35
        own = style.outline(np.where(labels == crop.cell, labels, 0), width=2)
        rgb[own] = to_rgb(colour)
        out.append(rgb)
    return out


def write(ax: Axes, rows: list[Row], pitch: int) -> None:
    halo = [patheffects.withStroke(linewidth=1.8, foreground="black")]
    for i, row in enumerate(rows):
        for k, (text, colour) in enumerate(zip(row.texts, row.colours, strict=True)):
            ax.text(
                (k + 0.05) * pitch, (i + 0.04) * pitch, text, color=colour, fontsize=6.5, va="top",
                path_effects=halo,
            )  # fmt: skip
    ax.set_yticks((np.arange(len(rows)) + 0.48) * pitch, [r.name for r in rows])
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def caption(
    ax: Axes,
    rows: list[Row],
    side: int,
    mpp: float | None,
    times: int,
    pitch: int,
    colours: list[str] | None,
) -> None:
    """Side of the crops, and the colours of markers or outlines."""
    told = f"crops of {side} px" if mpp is None else f"crops of {side * mpp:.3g} µm"
    if colours is None:
        marks = {"positive": style.POSITIVE, "negative": style.NEGATIVE}
        used = {c for row in rows for c in row.colours}
        handles = [
            Patch(facecolor="#404040", edgecolor=c, lw=1.6, label=name)
            for name, c in marks.items()
            if c in used
        ]
    else:
        handles = [
            Patch(facecolor=c, edgecolor="0.3", lw=0.5, label=name)
            for name, c in zip(rows[0].channels, colours, strict=True)
        ]
    ax.set_xlabel(told, loc="left")
    if not handles:
        return
    ax.legend(
        handles=handles, loc="upper right", bbox_to_anchor=(1.0, -0.08 / len(rows)), ncols=len(handles),
        handlelength=1.2, borderaxespad=0.1, columnspacing=1.2,
    )  # fmt: skip
