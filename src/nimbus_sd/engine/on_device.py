"""A tile on its device: pixels go up as they were read, and become the network's input there.

The arithmetic is that of :mod:`nimbus_sd.engine.block`, in torch, so that it
runs on CUDA and, for tests and comparisons, on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nimbus_sd.arrays import AxisMap, Interval, Tile, TilePlan
from nimbus_sd.engine.block import TileLabels
from nimbus_sd.engine.source import Sample, check_planes
from nimbus_sd.engine.transfer import send, to_pinned


@dataclass(frozen=True)
class AxisTable:
    """Which pixels of a tile's read the model px of one axis interpolate between.

    Attributes
    ----------
    lower, upper
        A slice where the pixels are evenly spaced, else int64 ``(n,)``.
    weight
        Weight of `upper`, float32 ``(n,)``; None where all are 0.
    """

    lower: slice | Tensor
    upper: slice | Tensor
    weight: Tensor | None

    @classmethod
    def of(cls, axis: AxisMap, outer: Interval, read: Interval) -> AxisTable:
        """Tabulate model px `outer` of an axis, relative to the pixels `read`."""
        lower, upper, weight = axis.linear(outer.start, outer.stop)
        if not weight.any():
            even = _even(lower - read.start)
            return cls(even, even, None)
        return cls(_even(lower - read.start), _even(upper - read.start), torch.from_numpy(weight))

    @property
    def tensors(self) -> list[Tensor]:
        """What lies in memory."""
        return [t for t in (self.lower, self.upper, self.weight) if isinstance(t, Tensor)]

    def copied(self, copy: Callable[[Tensor], Tensor]) -> AxisTable:
        """Apply `copy` to what lies in memory."""
        lower, upper = (copy(t) if isinstance(t, Tensor) else t for t in (self.lower, self.upper))
        return AxisTable(lower, upper, None if self.weight is None else copy(self.weight))


@dataclass(frozen=True)
class RawTile:
    """One tile and channel group as it was read, for a device.

    Attributes
    ----------
    labels
        What the tile's labels decide, in host memory.
    raw
        ``(g, y, x)`` pixels of ``tile.read``, in the image's dtype.
    mask
        Interior mask at model resolution, bool ``outer_shape``.
    axes
        Where model px lie within `raw`, for y and x.
    """

    tile: Tile
    group: tuple[int, ...]
    labels: TileLabels
    raw: Tensor
    mask: Tensor
    axes: tuple[AxisTable, AxisTable]


@dataclass(frozen=True)
class DeviceTile(RawTile):
    """A tile whose copy to a device has begun; `ready` follows copies on a stream of their own."""

    ready: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Let the current stream wait for the copies; the host does not."""
        if self.ready is None:
            return
        stream = torch.cuda.current_stream(self.raw.device)
        stream.wait_event(self.ready)
        for tensor in (self.raw, self.mask, *self.axes[0].tensors, *self.axes[1].tensors):
            # allocated on the stream of the copies: without this it could be reused too early
            tensor.record_stream(stream)

    @property
    def owned(self) -> Tensor:
        """Pixels that the tile owns, ``(g, y, x)``: what ``LabelSums.raw_sums`` takes."""
        self.wait()
        y, x = (
            slice(o.start - r.start, o.stop - r.start)
            for o, r in zip(self.tile.owned, self.tile.read, strict=True)
        )
        return self.raw[:, y, x]


def read_raw(
    sample: Sample, plan: TilePlan, tile: Tile, group: tuple[int, ...], labels: TileLabels, *, pin: bool
) -> RawTile:
    """Read and check the pixels of a channel group, in a reader's thread.

    Parameters
    ----------
    sample, plan, tile, group, labels
        As :func:`nimbus_sd.engine.block.prepare` takes them.
    pin
        Hold them in page-locked memory, which CUDA copies from without waiting.
    """
    planes = sample.image.read(list(group), *tile.read)
    check_planes(sample.image, list(group), planes)
    raw, mask = _as_tensor(planes), torch.from_numpy(labels.mask > 0)
    y, x = _axis_tables(plan, tile)
    if pin:
        raw, mask, y, x = to_pinned(raw), to_pinned(mask), y.copied(to_pinned), x.copied(to_pinned)
    return RawTile(tile, group, labels, raw, mask, (y, x))


def upload(raw_tile: RawTile, device: torch.device, *, stream: torch.cuda.Stream | None = None) -> DeviceTile:
    """Begin to copy a tile to a device.

    Parameters
    ----------
    raw_tile
        From :func:`read_raw`.
    device
        Where to.
    stream
        Copy on this one, beside what the current stream computes; :func:`network_input` and
        :attr:`DeviceTile.owned` wait for it, for other uses call :meth:`DeviceTile.wait`.
    """
    with torch.cuda.stream(stream):  # None selects nothing
        raw, mask = send(raw_tile.raw, device), send(raw_tile.mask, device)
        y, x = (table.copied(lambda t: send(t, device)) for table in raw_tile.axes)
        ready = None if stream is None else stream.record_event()
    return DeviceTile(raw_tile.tile, raw_tile.group, raw_tile.labels, raw, mask, (y, x), ready)


def model_pixels(raw: Tensor, plan: TilePlan, tile: Tile, scale: np.ndarray, transform: str) -> Tensor:
    """Normalise, resample and transform the pixels of a tile: float32 ``(g, y', x')`` model px.

    Parameters
    ----------
    raw
        ``(g, y, x)`` pixels of ``tile.read``, on any device.
    plan, tile
        The map to model px.
    scale
        Intensity that maps to 1, ``(g,)``.
    transform
        Of the card: ``"sqrt"`` or ``"identity"``.
    """
    y, x = (table.copied(lambda t: send(t, raw.device)) for table in _axis_tables(plan, tile))
    return _model_pixels(raw, (y, x), scale, transform)


def network_input(tile: DeviceTile, *, scale: np.ndarray, transform: str, dtype: torch.dtype) -> Tensor:
    """Build the network's input ``(g, 2, y', x')``, channels last: marker and mask.

    Parameters
    ----------
    tile
        From :func:`upload`.
    scale
        Intensity that maps to 1, ``(g,)``.
    transform
        Of the card: ``"sqrt"`` or ``"identity"``.
    dtype
        Of the network.
    """
    tile.wait()
    marker = _model_pixels(tile.raw, tile.axes, scale, transform)
    batch = torch.empty(
        (len(marker), 2, *marker.shape[1:]),
        dtype=dtype,
        device=marker.device,
        memory_format=torch.channels_last,
    )
    batch[:, 0] = marker
    batch[:, 1] = tile.mask
    return batch


def _axis_tables(plan: TilePlan, tile: Tile) -> tuple[AxisTable, AxisTable]:
    y, x = (
        AxisTable.of(axis, outer, read)
        for axis, outer, read in zip((plan.y, plan.x), tile.outer, tile.read, strict=True)
    )
    return y, x


def _even(index: np.ndarray) -> slice | Tensor:
    """Evenly spaced, ascending indices as a slice: a view then takes the place of a copy."""
    if index.size > 1:
        step = int(index[1] - index[0])
        if step > 0 and np.all(np.diff(index) == step):
            return slice(int(index[0]), int(index[-1]) + 1, step)
    return torch.from_numpy(index)


def _model_pixels(
    raw: Tensor, axes: tuple[AxisTable, AxisTable], scale: np.ndarray, transform: str
) -> Tensor:
    dtype, real = (torch.float64, np.float64) if raw.dtype == torch.float64 else (torch.float32, np.float32)
    # clip before dividing, and in the pixels' precision: nothing can overflow or become 0 / 0
    limit = np.maximum(np.asarray(scale).astype(real), np.finfo(real).smallest_subnormal)
    top = send(torch.from_numpy(limit), raw.device)[:, None, None]
    x = torch.minimum(raw.to(dtype), top).div_(top).to(torch.float32)
    for dim, table in zip((1, 2), axes, strict=True):
        low = _pick(x, table.lower, dim)
        if table.weight is None:
            x = low
            continue
        weight = table.weight[:, None] if dim == 1 else table.weight
        x = torch.addcmul(low, _pick(x, table.upper, dim) - low, weight)
    return x.sqrt() if transform == "sqrt" else x


def _pick(x: Tensor, index: slice | Tensor, dim: int) -> Tensor:
    if isinstance(index, Tensor):
        return x.index_select(dim, index)
    return x[:, index] if dim == 1 else x[:, :, index]


def _as_tensor(planes: np.ndarray) -> Tensor:
    """Share the memory of `planes` if torch can hold and write it, else copy."""
    native = planes.astype(planes.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(native, requirements=["C", "W"]))
