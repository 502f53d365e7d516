"""Between the host and a device, without waiting: page-locked memory, copies up, results back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

to_pinned = Tensor.pin_memory


def send(host: Tensor, device: torch.device) -> Tensor:
    """Copy to a device without waiting: from pageable memory CUDA would wait."""
    if device.type == "cuda" and not host.is_pinned():
        host = to_pinned(host)
    return host.to(device, non_blocking=True)


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


def _fetch(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
