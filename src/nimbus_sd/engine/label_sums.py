"""Sums over the labels of a tile where its planes are: on CUDA, or on the CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.block import TileLabels
from nimbus_sd.engine.transfer import send

_SUM_BYTES = 256 << 20  # temporaries of one reduction
_BYTES_PER_TERM = 24  # picked, widened, weighted
# torch indexes few unsigned tensors; the same bits as a signed dtype can always be indexed
_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


class LabelSums:
    """Sums over the labels of a tile, on a device; one serves all channel groups of the tile.

    Parameters
    ----------
    labels
        Of the tile.
    device
        Where the planes to sum are.
    raw
        Send what :meth:`raw_sums` needs now, and not at its first call.
    """

    def __init__(self, labels: TileLabels, device: torch.device, *, raw: bool = False) -> None:
        gather, self.labels = labels.gather, labels
        self._index, self._device, self._core = labels.index, device, gather.shape[1]
        weight = None if (gather.data == 1).all() else torch.from_numpy(gather.data)
        self._cells = _Segments(gather.indices, np.diff(gather.indptr), weight, device)
        self._pixels = self._raw_segments() if raw else None

    def sum(self, planes: Tensor) -> Tensor:
        """Sum probabilities ``(g, y, x)`` of the core as at full resolution: float64 ``(n, g)``."""
        _check_size(planes, self._core, "core")
        return self._cells.sum(planes)

    def raw_sums(self, raw: Tensor) -> Tensor:
        """Sum the pixels ``(g, y, x)`` that the tile owns: float64 ``(n, g)``."""
        _check_size(raw, self._index.shape[0] * self._index.shape[1], "owned")
        if self._pixels is None:
            self._pixels = self._raw_segments()
        return self._pixels.sum(raw)

    def _raw_segments(self) -> _Segments:
        # sorted where it is fast; stable, so that pixels are added in the order of the image
        rows = send(torch.from_numpy(self._index.rows.astype(np.int32)), self._device)
        order = rows.sort(stable=True).indices
        return _Segments(self._index.pixels, self._index.count, None, self._device, order)


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
        chosen = send(torch.from_numpy(index.astype(np.int32)), device)
        self._index = chosen if order is None else chosen[order]
        self._lengths = send(torch.from_numpy(lengths.astype(np.int64)), device)
        self._weight = None if weight is None else send(weight, device)[:, None]

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


def _check_size(planes: Tensor, size: int, what: str) -> None:
    y, x = planes.shape[-2:]
    if y * x != size:
        msg = f"planes have {y} x {x} px, the tile's {what} has {size}; give ({what} y, {what} x) px"
        raise InputError(msg)
