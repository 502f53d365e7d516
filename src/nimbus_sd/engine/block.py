"""From a tile's pixels and labels to the network's input, and from its output to partials."""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from nimbus_sd.arrays import Interval, LabelIndex, Tile, TilePlan, interior_mask, resample_axis
from nimbus_sd.engine.source import LabelSource, Sample, check_planes, index_labels


@dataclass(frozen=True)
class TileLabels:
    """What a tile's labels decide, computed once for all its channels.

    Attributes
    ----------
    index
        Labels of the owned pixels.
    gather
        Matrix from core model px to label sums at full resolution.
    mask
        Interior mask at model resolution, float32 ``outer_shape``.
    """

    index: LabelIndex
    gather: sparse.csr_array
    mask: np.ndarray


def read_tile_labels(labels: LabelSource, plan: TilePlan, tile: Tile) -> TileLabels | None:
    """Read the labels of a tile; None when no labelled pixel is owned by it."""
    # one px of margin: an interior pixel's neighbours must be known
    rect = [
        Interval(max(r.start - 1, 0), min(r.stop + 1, n))
        for r, n in zip(tile.read, labels.shape, strict=True)
    ]
    array = labels.read(*rect)
    owned = tuple(slice(o.start - r.start, o.stop - r.start) for o, r in zip(tile.owned, rect, strict=True))
    index = index_labels(array[owned], labels.name)
    if index.ids.size == 0:
        return None
    coarse = [
        axis.model_index(o.start, o.stop) - c.start
        for axis, o, c in zip((plan.y, plan.x), tile.owned, tile.core, strict=True)
    ]
    size = tile.core[0].size * tile.core[1].size
    gather = index.gather(coarse[0], coarse[1], tile.core[1].size)
    gather.resize((index.ids.size, size))
    nearest = [
        axis.nearest(o.start, o.stop) - r.start
        for axis, o, r in zip((plan.y, plan.x), tile.outer, rect, strict=True)
    ]
    mask = interior_mask(array)[np.ix_(*nearest)].astype(np.float32)
    return TileLabels(index, gather, mask)


class TileLabelCache:
    """Labels of the tiles in flight, so that the channel groups of a tile share one read."""

    def __init__(self, *, keep: int) -> None:
        self._keep = keep
        self._entries: dict[Hashable, Future[TileLabels | None]] = {}
        self._lock = Lock()

    def get(self, key: Hashable, labels: LabelSource, plan: TilePlan, tile: Tile) -> TileLabels | None:
        """Return the tile's labels; the first caller reads, the others wait for it."""
        with self._lock:
            future = self._entries.get(key)
            mine = future is None
            if future is None:
                future = self._entries[key] = Future()
                for old in list(self._entries)[: -self._keep]:
                    del self._entries[old]
        if mine:
            try:
                future.set_result(read_tile_labels(labels, plan, tile))
            except BaseException as error:
                future.set_exception(error)
                raise
        return future.result()


@dataclass(frozen=True)
class TileInput:
    """One tile and channel group, ready for the network.

    Attributes
    ----------
    batch
        ``(g, 2, y, x)`` model px: transformed marker and mask.
    intensity
        Raw sums per label, float64 ``(n, g)``; None where not asked for.
    """

    tile: Tile
    group: tuple[int, ...]
    labels: TileLabels
    batch: Tensor
    intensity: np.ndarray | None


def prepare(
    sample: Sample,
    plan: TilePlan,
    tile: Tile,
    group: tuple[int, ...],
    labels: TileLabels,
    *,
    scale: np.ndarray,
    transform: str,
    dtype: torch.dtype,
    intensity: bool,
) -> TileInput:
    """Read the pixels of a channel group and build the network's input."""
    raw = sample.image.read(list(group), *tile.read)
    check_planes(sample.image, list(group), raw)
    batch = torch.empty((len(group), 2, *tile.outer_shape), dtype=dtype, memory_format=torch.channels_last)
    # plane by plane: float copies of a whole group would set the peak of memory
    for k, (plane, plane_scale) in enumerate(zip(raw, scale, strict=True)):
        marker = to_model_pixels(plane, plan, tile, scale=float(plane_scale), transform=transform)
        batch[k, 0] = torch.from_numpy(marker)
    batch[:, 1] = torch.from_numpy(labels.mask)
    sums = None
    if intensity:
        owned = tuple(
            slice(o.start - r.start, o.stop - r.start) for o, r in zip(tile.owned, tile.read, strict=True)
        )
        sums = labels.index.sum(raw[:, *owned])
    return TileInput(tile, group, labels, batch, sums)


def to_model_pixels(
    plane: np.ndarray, plan: TilePlan, tile: Tile, *, scale: float, transform: str
) -> np.ndarray:
    """Normalise ``clip(x / scale, 0, 1)``, resample to model px, transform: float32 ``(y, x)``."""
    # clip before dividing, and in the pixels' precision: nothing can overflow or become 0 / 0
    dtype = np.float64 if plane.dtype == np.float64 else np.float32
    limit = max(dtype(scale), np.finfo(dtype).smallest_subnormal)
    x = (np.minimum(plane, limit, dtype=dtype) / limit).astype(np.float32, copy=False)
    for axis, mapping, outer, read in zip((-2, -1), (plan.y, plan.x), tile.outer, tile.read, strict=True):
        lower, upper, weight = mapping.linear(outer.start, outer.stop)
        x = resample_axis(x, lower - read.start, upper - read.start, weight, axis=axis)
    return np.sqrt(x) if transform == "sqrt" else x
