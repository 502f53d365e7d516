"""From raw patches to what an embedding network sees."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nimbus_sd._core.errors import InputError
from nimbus_sd.models.embedding import TRANSFORMS

_PIECE = 1 << 17  # px that are normalised at once on the CPU: a piece stays in the cache


def normalise(
    patches: Tensor | np.ndarray, scale: Tensor | np.ndarray, transform: str, *, out: Tensor | None = None
) -> Tensor:
    """Map intensities to [0, 1]: ``clip(x / scale, 0, 1)``, then the transform.

    Parameters
    ----------
    patches
        Raw ``(b, c, y, x)``, any real dtype, on any device; 0 is no signal.
    scale
        Intensity of each channel that maps to 1, image units, ``(c,)``.
    transform
        ``"identity"`` or ``"sqrt"``.
    out
        float32 of the same shape and device to fill.

    Returns
    -------
    float32 ``(b, c, y, x)`` on the device of `patches`, with its strides.

    Raises
    ------
    InputError
        If the transform is unknown, or there is not one scale per channel.

    Examples
    --------
    >>> x = np.array([0, 1, 4, 9], np.uint16).reshape(1, 1, 2, 2)
    >>> normalise(x, np.array([4.0]), "sqrt").flatten().tolist()
    [0.0, 0.5, 1.0, 1.0]
    """
    raw = torch.from_numpy(patches) if isinstance(patches, np.ndarray) else patches
    factor = torch.as_tensor(scale, dtype=torch.float64)
    if transform not in TRANSFORMS:
        msg = f"transform={transform!r}; valid: {', '.join(TRANSFORMS)}"
        raise InputError(msg)
    if raw.ndim != 4 or factor.shape != (raw.shape[1],):
        msg = (
            f"patches of shape {tuple(raw.shape)} and scales of shape {tuple(factor.shape)}; valid: "
            "(b, c, y, x) and (c,), a scale for each channel"
        )
        raise InputError(msg)
    if out is None:
        out = torch.empty_like(raw, dtype=torch.float32)
    if not len(raw):
        return out
    if raw.device.type == "cpu":
        _on_cpu(raw.numpy(), factor.cpu().numpy(), transform, out.numpy())
        return out
    # float32 would round these
    wide = raw.dtype == torch.float64 or (not raw.is_floating_point() and raw.element_size() > 2)
    x = raw.to(torch.float64) if wide else out.copy_(raw)
    limit = factor.to(raw.device, x.dtype).clamp(min=_least(wide=wide))[:, None, None]
    # clip before dividing: nothing can overflow
    torch.minimum(x, limit, out=x)
    x.div_(limit).clamp_(min=0)
    if x is not out:
        out.copy_(x)
    return out.sqrt_() if transform == "sqrt" else out


def _on_cpu(raw: np.ndarray, factor: np.ndarray, transform: str, out: np.ndarray) -> None:
    """With NumPy: torch's threads would wait for each other at every piece while readers use the cores."""
    wide = raw.dtype == np.float64 or (raw.dtype.kind in "ui" and raw.dtype.itemsize > 2)
    limit = np.empty_like(out[:1], np.float64 if wide else np.float32)  # whole: broadcasting is slower
    limit[...] = np.maximum(factor, _least(wide=wide))[:, None, None]
    step = max(_PIECE // max(limit.size, 1), 1)
    for start in range(0, len(raw), step):
        into = out[start : start + step]
        x = np.empty_like(into, limit.dtype) if wide else into
        x[...] = raw[start : start + step]
        np.minimum(x, limit, out=x)
        np.divide(x, limit, out=x)
        if raw.dtype.kind in "if":
            np.maximum(x, 0, out=x)
        if transform == "sqrt":
            np.sqrt(x, out=x)
        if wide:
            into[...] = x


def _least(*, wide: bool) -> float:
    """Smallest positive number: scales are at least that, so that nothing is divided by 0."""
    return float(np.finfo(np.float64 if wide else np.float32).smallest_subnormal)
