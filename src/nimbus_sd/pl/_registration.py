"""How well an H&E lies on the fluorescence of its section, block by block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D
from spatialdata import SpatialData

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata.elements import affine, mpp_of
from nimbus_sd._sdata.image_pair import resolve_image_pair
from nimbus_sd.pl import _style as style
from nimbus_sd.pl._view import thumbnail

_VALUES = {"correlation": "correlation as the images lie", "peak": "correlation at the best shift"}
_NEEDED = {"he", "image", "y0", "y1", "x0", "x1", "dy", "dx", "shift", "judged", "ok", *_VALUES}
_MAX_ARROWS = 900
_BAD = "#D55E00"
_FRAME = 0.007  # width of a block's frame, of the picture's side
_WIDEST = 0.06  # of the block's side


def registration(
    frame: pd.DataFrame,
    sdata: SpatialData | None = None,
    *,
    he: str | None = None,
    value: str = "correlation",
    tolerance_um: float = 3.5,
    coordinate_system: str | None = None,
    cmap: str = "viridis",
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw where an H&E lies on the fluorescence of its section, and where it does not.

    Blocks are coloured by correlation, those that are not ok have an orange frame around that,
    those that could not be judged no colour. An arrow shows by how much and whereto the H&E
    lies off: one that is as long as half a block stands for the tolerance, and none is longer
    than a block. With the object, the H&E is drawn, and of each block's colour only a frame.

    Parameters
    ----------
    frame
        From :func:`nimbus_sd.pp.registration_qc`.
    sdata
        Object with the images, for the H&E beneath and a scale bar. Only what a figure can show
        is read of pyramids; a single scale is read whole, piece by piece.
    he
        Which H&E; None where the frame has but one.
    value
        ``"correlation"`` as the images lie, or ``"peak"``, that at the best shift: low where the
        images show different tissue, high where they are merely displaced.
    tolerance_um
        ``nucleus_radius_um`` of :func:`nimbus_sd.pp.registration_qc`; the scale of the arrows.
    coordinate_system
        As given to :func:`nimbus_sd.pp.registration_qc`.
    cmap
        Colour map, from 0 to the highest correlation (0.5 at least).
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
        If the H&E or the value is not in the frame, or an image not in the object.
    InputError
        If it is no frame of blocks, has several H&Es and none is named, or `tolerance_um` is not
        positive.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_sections(shape=(256, 256))
    >>> found = nb.pp.registration_qc(sdata, he="p0s0_he", image="p0s0_if", block_um=40, progress=False)
    >>> fig = nb.pl.registration(found, sdata, return_fig=True)
    """
    style.check_save(save)
    if not (np.isfinite(tolerance_um) and tolerance_um > 0):
        msg = f"tolerance_um={tolerance_um!r} must be a positive number of µm, such as nucleus_radius_um"
        raise InputError(msg)
    part = _one(frame, he, value)
    beneath = None if sdata is None else _beneath(sdata, part, coordinate_system)
    shown = style.is_shown(show, save=save, return_fig=return_fig, ax=ax)
    height, width = float(part["y1"].max()), float(part["x1"].max())

    def build() -> tuple[Figure, Axes]:
        if ax is None:
            long = 6.0 / max(width, height)
            fig: Any = style.new_figure(figsize or (long * width + 1.2, long * height + 0.6), shown=shown)
            axes = fig.subplots()
        else:
            fig, axes = ax.get_figure(root=True), ax
        _draw(axes, part, value, cmap, beneath)
        _arrows(axes, part, tolerance_um)
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")
        axes.set_title(f"{part['he'].iloc[0]} on {part['image'].iloc[0]}", loc="left")
        if beneath is not None:
            style.scale_bar(axes, width=width, mpp=beneath[2])
        return fig, axes

    fig, axes = style.with_style(build)
    return style.finish(fig, axes, shown=shown, save=save, return_fig=return_fig, ax=ax)


def _one(frame: object, he: str | None, value: str) -> pd.DataFrame:
    if not isinstance(frame, pd.DataFrame) or not set(frame) >= _NEEDED or frame.empty:
        msg = "pass a frame of nb.pp.registration_qc: it has the columns 'he', 'peak', 'dy', 'dx', 'ok', ..."
        raise InputError(msg)
    if value not in _VALUES:
        msg = f"value={value!r}; valid: {', '.join(_VALUES)}"
        raise ElementNotFoundError(msg)
    known = list(dict.fromkeys(frame["he"]))
    if he is None and len(known) > 1:
        msg = f"the frame has {len(known)} H&Es; choose one with he=. Valid: {', '.join(map(repr, known))}"
        raise InputError(msg)
    if he is not None and he not in known:
        msg = f"no H&E {he!r} in the frame; valid: {', '.join(map(repr, known))}"
        raise ElementNotFoundError(msg)
    return frame[frame["he"] == (known[0] if he is None else he)]


def _beneath(
    sdata: SpatialData, part: pd.DataFrame, system: str | None
) -> tuple[np.ndarray, tuple[Any, Affine2D], float | None]:
    """Colours ``(y, x, 3)`` in [0, 1], where they lie on the image's grid, and µm per px, where known."""
    he, image = part["he"].iloc[0], part["image"].iloc[0]
    mpp = mpp_of(sdata, "images", image)
    pair = resolve_image_pair(sdata, he=he, image=image, coordinate_system=system, mpp=mpp or 1.0)
    matrix = np.linalg.inv(pair.to_world) @ affine(sdata, "images", he, pair.system)
    picture = thumbnail(sdata, he)
    colours = np.moveaxis(picture.pixels, 0, -1) / 255
    return colours, (picture.extent, Affine2D(matrix)), mpp


def _draw(ax: Axes, part: pd.DataFrame, value: str, cmap: str, beneath: Any) -> None:
    """Each block's colour, over the H&E as a frame that leaves room for that of bad ones around it."""
    top = float(part[value].max())
    colour = ScalarMappable(Normalize(0, max(0.5, top) if np.isfinite(top) else 0.5), cmap)
    wide = min(_FRAME * float(np.sqrt(len(part))), _WIDEST)
    blocks = part[["x0", "x1", "y0", "y1"]].to_numpy(np.float64)
    if beneath is None:
        shapes = _rings(blocks, 0, 0.5)
    else:
        colours, (extent, to_grid), _ = beneath
        ax.imshow(colours, extent=extent, transform=to_grid + ax.transData, interpolation="antialiased")
        shapes = _rings(blocks, wide, 2 * wide)
    faces = colour.to_rgba(part[value].to_numpy())
    faces[:, 3] = part["judged"]
    ax.add_collection(PolyCollection(shapes, facecolors=faces, edgecolors="none"), autolim=False)
    bad = _rings(blocks[~part["ok"].to_numpy()], 0, wide)
    frame = PolyCollection(bad, facecolors=_BAD, edgecolors="none", gid="bad_blocks")
    ax.add_collection(frame, autolim=False)
    owner: Any = ax.get_figure(root=True)
    owner.colorbar(colour, ax=ax, location="right", shrink=0.6, aspect=25, label=_VALUES[value])


def _rings(blocks: np.ndarray, outer: float, inner: float) -> Any:
    """Frames of blocks (x0, x1, y0, y1), `outer` to `inner` sides from their borders: ``(n, 10, 2)``."""
    inward = (
        np.array([1, -1, 1, -1])
        * np.minimum(blocks[:, 1] - blocks[:, 0], blocks[:, 3] - blocks[:, 2])[:, None]
    )
    loops = []
    for share, order in ((outer, (0, 1, 2, 3, 0)), (inner, (0, 3, 2, 1, 0))):
        x0, x1, y0, y1 = (blocks + share * inward).T
        corners = np.stack([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
        loops.append(corners[list(order)])
    return np.concatenate(loops).transpose(2, 0, 1)  # the inner one runs the other way: a hole


def _arrows(ax: Axes, part: pd.DataFrame, tolerance: float) -> None:
    """Shifts of judged blocks; half a block (or half of several, where there are many) is the tolerance."""
    step = int(np.ceil(np.sqrt(len(part) / _MAX_ARROWS)))
    rows, columns = (np.unique(part[c], return_inverse=True)[1] for c in ("y0", "x0"))
    seen = part[(rows % step == step // 2) & (columns % step == step // 2) & part["judged"]]
    if seen.empty:
        return
    side = step * float((part["x1"] - part["x0"]).median())
    times = 0.5 * side / tolerance
    middle = seen[["x0", "x1"]].mean(axis=1), seen[["y0", "y1"]].mean(axis=1)
    short = times * np.minimum(1, 0.95 * side / np.maximum(seen["shift"] * times, 1e-9))
    ax.quiver(
        *middle, seen["dx"] * short, seen["dy"] * short, angles="xy", scale_units="xy", scale=1,
        units="inches", width=0.014, headwidth=4, headlength=4.5, headaxislength=4, minlength=0.5,
        color="white", edgecolor="black", linewidth=0.4, pivot="mid", gid="shifts",
    )  # fmt: skip
    long = {1: "half a block", 2: "a block"}.get(step, f"{step / 2:g} blocks")
    text = f"arrows: how far the H&E lies off; {long} long = {tolerance:g} µm"
    ax.set_xlabel(text if part["ok"].all() else f"{text}. Orange: not ok", fontsize=7.5, loc="left")
