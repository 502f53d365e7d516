"""How much haematoxylin, the dye of nuclei, an H&E shows."""

from __future__ import annotations

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.stain import HED_FROM_RGB, optical_density

# what each 8-bit value of red, green and blue adds, (3, 256): exact, as there are no other values
_ADDS = HED_FROM_RGB[:, :1] * optical_density(np.arange(256, dtype=np.uint8))


def haematoxylin(rgb: np.ndarray) -> np.ndarray:
    """Amount of haematoxylin by colour deconvolution, as :func:`skimage.color.rgb2hed` gives it.

    A px depends on nothing else, to the last bit: by blocks it is the same as at once.

    Parameters
    ----------
    rgb
        uint8 ``(3, y, x)``: red, green, blue.

    Returns
    -------
    float32 ``(y, x)``, ≥ 0; 0 is white or without haematoxylin.

    Raises
    ------
    InputError
        If it is something else.

    References
    ----------
    Ruifrok and Johnston (2001), *Quantification of histochemical staining by color
    deconvolution*.

    Examples
    --------
    >>> haematoxylin(np.array([160, 120, 202], np.uint8)[:, None, None]).round(3)
    array([[0.05]], dtype=float32)
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or len(rgb) != 3:
        msg = f"an array {rgb.shape} of {rgb.dtype} is no H&E; valid: (3, y, x) of uint8"
        raise InputError(msg)
    total = _ADDS[0][rgb[0]]
    total += _ADDS[1][rgb[1]]
    total += _ADDS[2][rgb[2]]
    return np.maximum(total, 0, out=total).astype(np.float32)
