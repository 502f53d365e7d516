"""Read what a figure can show of an image: one rectangle, at a level or stride that fits.

Whatever the size of the slide, at most about ``MAX_SIDE`` px a side are returned, and
larger rectangles are read and shrunk piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import xarray as xr
from spatialdata import SpatialData

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._core.near import did_you_mean
from nimbus_sd._sdata import elements as el
from nimbus_sd._sdata.align import is_identity, pixel_map
from nimbus_sd._sdata.he import looks_like_he
from nimbus_sd._sdata.resolve import Pair, ResolvedSample, resolve_pairs
from nimbus_sd.arrays import Interval
from nimbus_sd.engine.source import ImageSource, LabelSource

MAX_SIDE = 1500
#: Pixels of all channels that are held at once while a large rectangle is shrunk.
_PIECE_PX = 4096 * 4096

Extent = tuple[float, float, float, float]


@dataclass(frozen=True)
class Window:
    """A rectangle of the sample's grid and how much it is shrunk.

    Attributes
    ----------
    y, x
        px of the sample's grid.
    step
        A power of two: this many px become one.
    """

    y: Interval
    x: Interval
    step: int


@dataclass(frozen=True)
class Picture:
    """Pixels with the place where they belong, ``(left, right, bottom, top)`` in px of the sample's grid."""

    pixels: np.ndarray
    extent: Extent


def one_pair(sdata: SpatialData, *, image: str | None, labels: str | None) -> Pair:
    """The single image/labels pair to draw; where an H&E lies there as well, the other image.

    Raises
    ------
    InputError
        If several fit; the message lists them.
    """
    for argument, value in (("image", image), ("labels", labels)):
        if value is not None and not isinstance(value, str):
            msg = f"{argument}={value!r}: one name; draw one field at a time"
            raise InputError(msg)
    if image is None and labels is None and len(sdata.labels) > 1:
        known = ", ".join(map(repr, sdata.labels))
        msg = f"several fields; choose one with labels=. Valid: {known}"
        raise InputError(msg)
    try:
        return resolve_pairs(sdata, image=image, labels=labels)[0]
    except InputError:
        others = {name: each for name, each in sdata.images.items() if not looks_like_he(each)}
        if image is not None or len(others) in (0, len(sdata.images)):
            raise
        light = SpatialData(images=others, labels=dict(sdata.labels), attrs=sdata.attrs)
        return resolve_pairs(light, labels=labels)[0]


def make_window(shape: tuple[int, int], crop: Sequence[int] | None, *, where: str) -> Window:
    """Check `crop` ``(y0, y1, x0, x1)`` against the grid's shape (y, x) px.

    Raises
    ------
    InputError
        If it is not four integers within the image.
    """
    y0, y1, x0, x1 = (0, shape[0], 0, shape[1]) if crop is None else _four(crop)
    if not (0 <= y0 < y1 <= shape[0] and 0 <= x0 < x1 <= shape[1]):
        msg = (
            f"crop={(y0, y1, x0, x1)} does not lie within {where}, which is {shape[0]} x {shape[1]} px "
            "(y, x); pass (y0, y1, x0, x1) in px"
        )
        raise InputError(msg)
    step = 1
    while max(y1 - y0, x1 - x0) > MAX_SIDE * step:
        step *= 2
    return Window(Interval(y0, y1), Interval(x0, x1), step)


def _four(crop: Sequence[int]) -> tuple[int, int, int, int]:
    numbers = [] if isinstance(crop, str) else list(crop)
    if len(numbers) != 4 or any(int(n) != n for n in numbers):
        msg = f"crop={crop!r}: pass four integers (y0, y1, x0, x1) in px"
        raise InputError(msg)
    y0, y1, x0, x1 = map(int, numbers)
    return y0, y1, x0, x1


def _levels(element: object) -> list[xr.DataArray]:
    if not isinstance(element, xr.DataTree):
        return []
    return [next(iter(child.to_dataset().data_vars.values())) for child in element.children.values()]


def coarser_level(element: object, shape: tuple[int, int], step: int) -> xr.DataArray | None:
    """The coarsest level that still has every px the figure can show; None: the finest."""
    fitting = [
        a for a in _levels(element) if a.shape[-2] < shape[0] and shape[0] / a.shape[-2] <= step * 1.01
    ]
    return min(fitting, key=lambda a: a.shape[-2], default=None)


def read_image(
    sdata: SpatialData, sample: ResolvedSample, channels: Sequence[int], window: Window
) -> Picture:
    """``(c, y, x)`` float32, px that are merged are averaged."""
    source = sample.sample.image
    if isinstance(source, el.ElementImage):
        source = _image_level(sdata, source, window.step)
    return read_source(source, channels, window, sample.sample.image.shape)


def thumbnail(sdata: SpatialData, name: str) -> Picture:
    """A whole image, ``(c, y, x)`` float32, shrunk to what a figure can show; extent in its own px."""
    array = el.get_image(sdata, name)
    source = el.ElementImage(name, array, el.channel_names(array))
    window = make_window(source.shape, None, where=f"image {name!r}")
    channels = range(len(source.channels))
    return read_source(_image_level(sdata, source, window.step), channels, window, source.shape)


def _image_level(sdata: SpatialData, source: el.ElementImage, step: int) -> el.ElementImage:
    coarse = coarser_level(sdata.images[source.name], source.shape, step)
    return source if coarse is None else el.ElementImage(source.name, coarse, source.channels)


def read_source(
    source: ImageSource, channels: Sequence[int], window: Window, full: tuple[int, int]
) -> Picture:
    """As :func:`read_image`, of an image whose px cover a grid of the shape `full`."""

    def read(y: Interval, x: Interval, step: int) -> np.ndarray:
        return _mean(source.read(list(channels), y, x).astype(np.float32), step)

    return _pieces(read, window, source.shape, full, len(channels))


def read_labels(sdata: SpatialData, sample: ResolvedSample, window: Window) -> Picture:
    """``(y, x)`` label ids; of px that are merged the one in the middle counts."""
    source: LabelSource = sample.sample.labels
    full = source.shape
    if isinstance(source, el.ElementLabels):
        coarse = coarser_level(sdata.labels[source.name], full, window.step)
        source = source if coarse is None else el.ElementLabels(source.name, coarse)
    return read_label_source(source, window, full)


def read_label_source(source: LabelSource, window: Window, full: tuple[int, int]) -> Picture:
    """As :func:`read_labels`, of labels whose px cover a grid of the shape `full`."""

    def read(y: Interval, x: Interval, step: int) -> np.ndarray:
        ids = source.read(y, x)
        return ids[_middles(ids.shape[0], step)][:, _middles(ids.shape[1], step)]

    return _pieces(read, window, source.shape, full, 1)


def read_maps(
    sdata: SpatialData, sample: ResolvedSample, base: str, markers: Sequence[str], window: Window
) -> Picture:
    """``(c, y, x)`` probabilities of the element that ``predict(maps=base)`` wrote for this sample.

    Raises
    ------
    ElementNotFoundError
        If there is none, or it lacks a marker.
    InputError
        If it does not lie on the sample's grid.
    """
    name = next((n for n in (f"{base}_{sample.pair.labels}", base) if n in sdata.images), None)
    if name is None:
        known = ", ".join(map(repr, sdata.attrs.get(el.ATTRS_KEY, {}).get("maps", []))) or "none"
        msg = f"no score map {base!r} in the object; maps: {known}; write one with predict(maps={base!r})"
        raise ElementNotFoundError(msg)
    array = el.get_image(sdata, name)
    source = el.ElementImage(name, array, el.channel_names(array))
    missing = [m for m in markers if m not in source.channels]
    if missing:
        near = did_you_mean(missing, source.channels)
        msg = f"score map {name!r} has no marker {missing}{near}; valid: {', '.join(source.channels)}"
        raise ElementNotFoundError(msg)
    system = sample.pair.system
    aligned = (
        system in el.systems(sdata, "images", name)
        and source.shape == sample.sample.labels.shape
        and is_identity(pixel_map(sample.to_world, el.affine(sdata, "images", name, system)), source.shape)
    )
    if not aligned:
        msg = (
            f"score map {name!r} does not lie on the grid of labels {sample.pair.labels!r}; draw the labels "
            "that it was predicted for"
        )
        raise InputError(msg)
    channels = [source.channels.index(m) for m in markers]
    return read_source(_image_level(sdata, source, window.step), channels, window, source.shape)


def _pieces(
    read: Callable[[Interval, Interval, int], np.ndarray],
    window: Window,
    shape: tuple[int, int],
    full: tuple[int, int],
    n_channels: int,
) -> Picture:
    """Read the window from a grid of `shape` that covers `full`, piece by piece if it is shrunk."""
    factors = full[0] / shape[0], full[1] / shape[1]
    step = max(1, int(window.step / max(factors) + 0.01))
    y = _on_level(window.y, factors[0], shape[0], step)
    x = _on_level(window.x, factors[1], shape[1], step)
    if step == 1:
        pixels = read(y, x, 1)
    else:
        side = step  # a multiple of step that is a power of two keeps pieces on chunk borders
        while 4 * side * side * n_channels <= _PIECE_PX:
            side *= 2
        pixels = np.concatenate(
            [
                np.concatenate([read(rows, columns, step) for columns in _cut(x, side)], axis=-1)
                for rows in _cut(y, side)
            ],
            axis=-2,
        )
    left, right = x.start * factors[1], x.stop * factors[1]
    return Picture(pixels, (left, right, y.stop * factors[0], y.start * factors[0]))


def _on_level(full: Interval, factor: float, size: int, step: int) -> Interval:
    start = int(full.start / factor) // step * step
    stop = -(-int(np.ceil(full.stop / factor - 1e-6)) // step) * step
    return Interval(min(start, size - 1), min(stop, size))


def _cut(interval: Interval, side: int) -> list[Interval]:
    edges = [interval.start, *range((interval.start // side + 1) * side, interval.stop, side), interval.stop]
    return [Interval(a, b) for a, b in pairwise(edges)]


def _mean(pixels: np.ndarray, step: int) -> np.ndarray:
    if step == 1:
        return pixels
    for axis in (-2, -1):
        starts = np.arange(0, pixels.shape[axis], step)
        count = np.diff(np.append(starts, pixels.shape[axis])).astype(np.float32)
        count = count[:, None] if axis == -2 else count
        pixels = np.add.reduceat(pixels, starts, axis=axis) / count
    return pixels


def _middles(size: int, step: int) -> np.ndarray:
    return np.minimum(np.arange(0, size, step) + step // 2, size - 1)
