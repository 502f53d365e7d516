"""From raw H&E patches to what a sub-typing network sees."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from nimbus_sd._core.errors import InputError


def native_size(patch: int, model_mpp: float, mpp: float) -> int:
    """Side in px of an image's patches that show as much tissue as the model's.

    Parameters
    ----------
    patch
        Side of the model's patches in px.
    model_mpp, mpp
        µm per px of the model and of the image.

    Examples
    --------
    >>> native_size(112, 0.325, 0.5), native_size(112, 0.325, 0.325)
    (73, 112)
    """
    if not mpp > 0:
        msg = f"mpp={mpp!r} must be a positive number of µm per px, for instance 0.325"
        raise InputError(msg)
    return max(round(patch * model_mpp / mpp), 2)


def prepare(raw: Tensor, patch: int) -> Tensor:
    """Map 8-bit patches to [0, 1] at the model's pixel size.

    Parameters
    ----------
    raw
        uint8 ``(b, 3, S, S)``, on any device.
    patch
        Side that the model sees in px; where S differs, patches are resampled (bilinear,
        averaged where they shrink).

    Returns
    -------
    float32 ``(b, 3, patch, patch)`` on the same device.
    """
    x = raw.float().div_(255)
    if x.shape[-1] == patch:
        return x
    return F.interpolate(x, size=(patch, patch), mode="bilinear", antialias=True, align_corners=False)
