"""From a tile's probabilities to sums, and what can be wrong with them."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from nimbus_sd._core.errors import OutOfMemoryError, WeightsError


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return any(
        hint in str(error).lower() for hint in ("out of memory", "not enough memory", "can't allocate memory")
    )


def no_memory(device: torch.device) -> OutOfMemoryError:
    """What to raise when a device has no memory for the smallest piece of work."""
    return OutOfMemoryError(
        f"the device {device} ran out of memory with one marker per batch; pass a smaller tile= "
        "(a multiple of 16, such as 256), precision='bfloat16' or another device="
    )


def sum_planes(gather: sparse.csr_array, planes: np.ndarray) -> np.ndarray:
    """Sum probabilities ``(g, y, x)`` over the labels: float64 ``(n, g)``."""
    return np.stack([gather @ p.reshape(-1).astype(np.float64) for p in planes], axis=1)


def check_finite(sums: np.ndarray, name: str) -> None:
    """Raise :class:`WeightsError` if the network `name` gave what is no number."""
    if not np.isfinite(sums).all():
        msg = f"model {name!r} gave NaN or infinite probabilities; its weights are damaged: load them again"
        raise WeightsError(msg)
