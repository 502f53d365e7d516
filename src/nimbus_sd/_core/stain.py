"""Colours of haematoxylin, eosin and DAB: the one matrix that simulation, kernels and training share.

Light falls off exponentially with the amount of dye (Beer–Lambert): optical density
``-log(rgb)`` is linear in the dyes. The dyes' vectors are those of Ruifrok & Johnston,
"Quantification of histochemical staining by color deconvolution" (2001), as in
:func:`skimage.color.rgb2hed`.
"""

from __future__ import annotations

import numpy as np

#: Rows: optical density of a unit of haematoxylin, eosin, DAB in red, green, blue.
RGB_FROM_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
HED_FROM_RGB = np.linalg.inv(RGB_FROM_HED)

_FLOOR = 1e-6  # of the light; scikit-image's too
_UNIT = -np.log(_FLOOR)  # optical density that scikit-image calls 1


def optical_density(rgb: np.ndarray) -> np.ndarray:
    """``-log(rgb)`` in units of ``-log(1e-6)``; 0 is white.

    Parameters
    ----------
    rgb
        uint8, or float in [0, 1], any shape.

    Returns
    -------
    float64 of the same shape, ≥ 0.
    """
    rgb = np.asarray(rgb)
    light = rgb / 255 if rgb.dtype == np.uint8 else rgb.astype(np.float64)
    return -np.log(np.maximum(light, _FLOOR)) / _UNIT


def separate(rgb: np.ndarray) -> np.ndarray:
    """Amounts of the three dyes, clipped at 0.

    Parameters
    ----------
    rgb
        ``(..., 3)``, uint8 or float in [0, 1].

    Returns
    -------
    float64 ``(..., 3)``: haematoxylin, eosin, DAB.

    Examples
    --------
    >>> separate(np.array([255, 255, 255], np.uint8)).tolist()
    [0.0, 0.0, 0.0]
    """
    return np.maximum(optical_density(rgb) @ HED_FROM_RGB, 0)


def combine(hed: np.ndarray) -> np.ndarray:
    """Colour of tissue with these amounts of dye: uint8 ``(..., 3)``, the inverse of :func:`separate`.

    Examples
    --------
    >>> combine(np.array([0.05, 0.02, 0.0])).tolist()
    [160, 120, 202]
    """
    light = np.exp(-_UNIT * (np.asarray(hed, dtype=np.float64) @ RGB_FROM_HED))
    return np.rint(255 * np.clip(light, 0, 1)).astype(np.uint8)
