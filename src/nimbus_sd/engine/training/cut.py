"""Cut a sample into training tiles of one size with the kernels that prediction uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import AxisMap, Interval, Tile, TilePlan, interior_mask
from nimbus_sd.engine.block import to_model_pixels
from nimbus_sd.engine.source import ImageSource, LabelSource, check_planes, index_labels

STRIDE, MINIMUM = 16, 32  # of prediction: both see the same padded image


@dataclass(frozen=True)
class CellCount:
    """Labels of one sample: ids ascending int64 ``(n,)`` and px per label ``(n,)``."""

    ids: NDArray[Any]
    count: NDArray[Any]


@dataclass(frozen=True)
class PlaceLabels:
    """Where the cells of a place are.

    Attributes
    ----------
    rows
        ``(y, x)`` int32: 0 background, ``1 + row`` of the cell in the sample's list,
        -1 beyond the image (padding, whose mirrored cells are not to be learned from).
    mask
        ``(y, x)`` uint8, the interior mask as prediction makes it.
    """

    rows: NDArray[Any]
    mask: NDArray[Any]


def fit_tile(shapes: Sequence[tuple[int, int]], factors: Sequence[float], tile: int) -> int:
    """Side of the tiles: `tile`, or less where no sample is that large.

    Parameters
    ----------
    shapes
        (y, x) full-resolution px of every sample.
    factors
        Full-resolution px per model px.
    tile
        Wanted side in model px, a multiple of 16.

    Examples
    --------
    >>> fit_tile([(400, 300)], [2.0], 512)
    208
    """
    if tile < MINIMUM or tile % STRIDE:
        msg = f"tile={tile} must be a multiple of {STRIDE} px and at least {MINIMUM}, for instance 512"
        raise InputError(msg)
    sides = [
        AxisMap(n, f, STRIDE, MINIMUM).model_size for s, f in zip(shapes, factors, strict=True) for n in s
    ]
    return min(tile, max(sides))


def cut_places(shape: tuple[int, int], *, factor: float, tile: int, overlap: int = 16) -> list[Tile]:
    """Tiles of one size that cover the padded image of prediction.

    A last tile that would reach beyond the padded image is moved back into it; an
    image that is smaller than a tile is padded further.

    Parameters
    ----------
    shape
        Full-resolution (y, x) px.
    factor
        Full-resolution px per model px.
    tile, overlap
        Side of a tile and what neighbours share, model px.

    Returns
    -------
    Tiles in row-major order; ``core`` equals ``outer``.

    Examples
    --------
    >>> [t.outer[1].start for t in cut_places((96, 250), factor=1.0, tile=96, overlap=16)]
    [0, 80, 160]
    """
    if not 0 <= overlap < tile or overlap % STRIDE:
        msg = f"overlap={overlap} must be a multiple of {STRIDE} px below tile={tile}, for instance {STRIDE}"
        raise InputError(msg)
    axes = axis_maps(shape, factor, tile)
    sides = [_spans(axis, tile, overlap) for axis in axes]
    places = []
    for i, (y, x) in enumerate((y, x) for y in sides[0] for x in sides[1]):
        core = (y[0], x[0])
        places.append(Tile(i, core, core, (y[1], x[1]), (y[2], x[2])))
    return places


def axis_maps(shape: tuple[int, int], factor: float, tile: int) -> tuple[AxisMap, AxisMap]:
    """Return the maps from full resolution to model px; at least one tile wide."""
    y, x = (AxisMap(n, factor, STRIDE, max(tile, MINIMUM)) for n in shape)
    return y, x


def _spans(axis: AxisMap, tile: int, overlap: int) -> list[tuple[Interval, Interval, Interval]]:
    last = axis.model_size - tile
    starts = [*range(0, last, tile - overlap), last]
    spans = []
    for start in starts:
        lower, upper, _ = axis.linear(start, start + tile)
        nearest = axis.nearest(start, start + tile)
        touched = [int(i) for a in (lower, upper, nearest) for i in (a.min(), a.max() + 1)]
        spans.append(
            (
                Interval(start, start + tile),
                Interval(min(touched), max(touched)),
                Interval(*axis.owned(start, start + tile)),
            )
        )
    return spans


def count_cells(labels: LabelSource, *, block: int = 2048) -> CellCount:
    """Ids and sizes of all labels, read in blocks of at most `block` px a side."""
    height, width = labels.shape
    ids, counts = [], []
    for y, x in product(range(0, height, block), range(0, width, block)):
        rect = Interval(y, min(y + block, height)), Interval(x, min(x + block, width))
        index = index_labels(labels.read(*rect), labels.name)
        ids.append(index.ids)
        counts.append(index.count)
    every, where = np.unique(np.concatenate(ids), return_inverse=True)
    total = np.bincount(where, weights=np.concatenate(counts), minlength=every.size)
    return CellCount(every.astype(np.int64), total.astype(np.int64))


def read_place_labels(
    labels: LabelSource, axes: tuple[AxisMap, AxisMap], place: Tile, ids: NDArray[Any]
) -> PlaceLabels | None:
    """Read the labels of a place; None where it holds no cell.

    Parameters
    ----------
    labels
        Of the sample.
    axes
        From :func:`axis_maps`.
    place
        From :func:`cut_places`.
    ids
        The sample's labels, ascending int64.

    Raises
    ------
    InputError
        If a label is not among `ids`.
    """
    # one px of margin: an interior pixel's neighbours must be known
    rect = [
        Interval(max(r.start - 1, 0), min(r.stop + 1, n))
        for r, n in zip(place.read, labels.shape, strict=True)
    ]
    array = labels.read(*rect)
    nearest = [
        axis.nearest(o.start, o.stop) - r.start for axis, o, r in zip(axes, place.outer, rect, strict=True)
    ]
    inside = [
        np.floor(np.arange(o.start, o.stop) * axis.factor + 1e-9) < axis.size
        for axis, o in zip(axes, place.outer, strict=True)
    ]
    coarse = array[np.ix_(*nearest)]
    rows = np.zeros(coarse.shape, np.int32)
    cells = coarse > 0
    known = np.searchsorted(ids, coarse[cells].astype(np.int64))
    if known.size and (known.max() >= ids.size or (ids[known] != coarse[cells].astype(np.int64)).any()):
        msg = f"labels {labels.name!r} changed while they were read; start again"
        raise InputError(msg)
    rows[cells] = known + 1
    rows[~inside[0]] = -1
    rows[:, ~inside[1]] = -1
    if not (rows > 0).any():
        return None
    mask = interior_mask(array)[np.ix_(*nearest)].astype(np.uint8)
    return PlaceLabels(rows, mask)


def read_place_planes(
    image: ImageSource,
    axes: tuple[AxisMap, AxisMap],
    place: Tile,
    *,
    channels: Sequence[str],
    scale: NDArray[Any],
) -> NDArray[np.float32]:
    """``clip(x / scale, 0, 1)`` of a place at model px, as prediction has it before its transform.

    Parameters
    ----------
    image
        Of the sample.
    axes, place
        As for :func:`read_place_labels`.
    channels
        Names, in the order of the result.
    scale
        Intensity of each that maps to 1.

    Returns
    -------
    float32 ``(len(channels), y, x)``.
    """
    plan = TilePlan(axes[0], axes[1], tile=place.outer[0].size, halo=0)
    position = {name: i for i, name in enumerate(image.channels)}
    wanted = [position[c] for c in channels]
    out = np.empty((len(wanted), place.outer[0].size, place.outer[1].size), np.float32)
    for group in _by_chunk(image, wanted):
        native = [wanted[k] for k in group]
        raw = image.read(native, *place.read)
        check_planes(image, native, raw)
        for k, plane in zip(group, raw, strict=True):
            out[k] = to_model_pixels(plane, plan, place, scale=float(scale[k]), transform="identity")
    return out


def _by_chunk(image: ImageSource, wanted: Sequence[int]) -> Iterator[list[int]]:
    """Positions in `wanted` whose channels share a chunk, so that each chunk is read once."""
    chunk_of = np.repeat(np.arange(len(image.chunks[0])), image.chunks[0])
    order = sorted(range(len(wanted)), key=lambda k: (chunk_of[wanted[k]], wanted[k]))
    for _, members in groupby(order, key=lambda k: chunk_of[wanted[k]]):
        yield list(members)
