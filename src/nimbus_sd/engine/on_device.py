"""A tile on its device: pixels go up as they were read, normalised and reduced there, sums come back.

The arithmetic is that of :mod:`nimbus_sd.engine.block`, in torch, so that it
runs on CUDA and, for tests and comparisons, on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import AxisMap, Interval, Tile, TilePlan
from nimbus_sd.engine.block import TileLabels
from nimbus_sd.engine.source import Sample, check_planes

_pin = Tensor.pin_memory
_SUM_BYTES = 256 << 20  # temporaries of one reduction
_BYTES_PER_TERM = 24  # picked, widened, weighted
# torch indexes few unsigned tensors; the same bits as a signed dtype can always be indexed
_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


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
        """Pixels that the tile owns, ``(g, y, x)``: what :meth:`LabelSums.raw_sums` takes."""
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
        raw, mask, y, x = _pin(raw), _pin(mask), y.copied(_pin), x.copied(_pin)
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
        raw, mask = _send(raw_tile.raw, device), _send(raw_tile.mask, device)
        y, x = (table.copied(lambda t: _send(t, device)) for table in raw_tile.axes)
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
    y, x = (table.copied(lambda t: _send(t, raw.device)) for table in _axis_tables(plan, tile))
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


class LabelSums:
    """Sums over the labels of a tile, on a device; one serves all channel groups of the tile.

    Parameters
    ----------
    labels
        Of the tile.
    device
        Where the planes to sum are.
    """

    def __init__(self, labels: TileLabels, device: torch.device) -> None:
        gather = labels.gather
        self._index, self._device, self._core = labels.index, device, gather.shape[1]
        weight = None if (gather.data == 1).all() else torch.from_numpy(gather.data)
        self._cells = _Segments(gather.indices, np.diff(gather.indptr), weight, device)
        self._pixels: _Segments | None = None

    def sum(self, planes: Tensor) -> Tensor:
        """Sum probabilities ``(g, y, x)`` of the core as at full resolution: float64 ``(n, g)``."""
        _check_size(planes, self._core, "core")
        return self._cells.sum(planes)

    def raw_sums(self, raw: Tensor) -> Tensor:
        """Sum the pixels ``(g, y, x)`` that the tile owns: float64 ``(n, g)``."""
        _check_size(raw, self._index.shape[0] * self._index.shape[1], "owned")
        if self._pixels is None:
            # sorted where it is fast; stable, so that pixels are added in the order of the image
            rows = _send(torch.from_numpy(self._index.rows.astype(np.int32)), self._device)
            order = rows.sort(stable=True).indices
            self._pixels = _Segments(self._index.pixels, self._index.count, None, self._device, order)
        return self._pixels.sum(raw)


class _Segments:
    """Sums of chosen elements of planes, one segment of the choice per label."""

    def __init__(
        self,
        index: np.ndarray,
        lengths: np.ndarray,
        weight: Tensor | None,
        device: torch.device,
        order: Tensor | None = None,
    ) -> None:
        chosen = _send(torch.from_numpy(index.astype(np.int32)), device)
        self._index = chosen if order is None else chosen[order]
        self._lengths = _send(torch.from_numpy(lengths.astype(np.int64)), device)
        self._weight = None if weight is None else _send(weight, device)[:, None]

    def sum(self, planes: Tensor) -> Tensor:
        step = max(_SUM_BYTES // (_BYTES_PER_TERM * max(len(self._index), 1)), 1)
        return torch.cat([self._sum(part) for part in planes.split(step)], dim=1)

    def _sum(self, planes: Tensor) -> Tensor:
        flat = planes.reshape(len(planes), -1)
        signed = flat.view(_SIGNED.get(flat.dtype, flat.dtype))
        picked = signed.index_select(1, self._index).view(flat.dtype)
        terms = picked.T.to(torch.float64, memory_format=torch.contiguous_format)
        if self._weight is not None:
            terms *= self._weight
        # one thread adds one label in order: repeatable, where index_add_ adds atomically in any order.
        # unsafe skips a check of the lengths for which the host would wait
        return torch.segment_reduce(terms, "sum", lengths=self._lengths, unsafe=True, initial=0.0)


@dataclass
class Pending:
    """Results on their way to the host.

    Parameters
    ----------
    tensors
        By name, on one device or on the CPU; they may be dropped afterwards.
    """

    tensors: dict[str, Tensor]
    _event: torch.cuda.Event | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        device = next((t.device for t in self.tensors.values() if t.device.type == "cuda"), None)
        if device is None:
            return
        self.tensors = {name: _fetch(t) for name, t in self.tensors.items()}
        self._event = torch.cuda.current_stream(device).record_event()

    def result(self) -> dict[str, np.ndarray]:
        """Wait for the copies; the arrays lie in page-locked memory on CUDA: copy what is kept long."""
        if self._event is not None:
            self._event.synchronize()
        return {name: t.numpy() for name, t in self.tensors.items()}


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
    top = _send(torch.from_numpy(limit), raw.device)[:, None, None]
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


def _send(host: Tensor, device: torch.device) -> Tensor:
    """Copy to a device without waiting: from pageable memory CUDA would wait."""
    if device.type == "cuda" and not host.is_pinned():
        host = _pin(host)
    return host.to(device, non_blocking=True)


def _fetch(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _check_size(planes: Tensor, size: int, what: str) -> None:
    y, x = planes.shape[-2:]
    if y * x != size:
        msg = f"planes have {y} x {x} px, the tile's {what} has {size}; give ({what} y, {what} x) px"
        raise InputError(msg)
