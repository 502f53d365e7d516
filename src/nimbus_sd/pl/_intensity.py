"""Bring pixels of markers to [0, 1] for drawing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.normalization import Normalization

_FALLBACK_QUANTILE = 0.999


def check_scale(normalization: Normalization | None, quantile: float | None, gamma: float) -> None:
    """Raise unless at most one source of the scale is given and all numbers are in range."""
    if normalization is not None and quantile is not None:
        msg = "normalization= and quantile= both say what counts as 1; pass one of them"
        raise InputError(msg)
    if quantile is not None and not 0 < quantile <= 1:
        msg = f"quantile={quantile} must lie in (0, 1]"
        raise InputError(msg)
    if not gamma > 0:
        msg = f"gamma={gamma} must be positive; 1 is linear, 0.5 brightens"
        raise InputError(msg)


def scaled(
    pixels: np.ndarray,
    names: Sequence[str],
    known: np.ndarray | None,
    normalization: Normalization | None,
    quantile: float | None,
) -> np.ndarray:
    """``clip(pixels / scale, 0, 1)``, the scale from the first source that knows it.

    Parameters
    ----------
    pixels
        ``(c, y, x)``.
    names
        Markers ``(c,)``.
    known
        Scales ``(c,)`` of the table, NaN where it has none; None if it has none at all.
    normalization, quantile
        A given normalisation goes first, then a quantile of these pixels, then `known`,
        then the 0.999 quantile.
    """
    shown = np.array(
        [np.quantile(plane, _FALLBACK_QUANTILE if quantile is None else quantile) for plane in pixels]
    )
    shown = np.where(shown > 0, shown, np.maximum(pixels.max((1, 2)), 1e-12))
    if normalization is not None:
        scale = normalization.scale_of(names)
    elif quantile is None and known is not None:
        scale = np.where(np.isnan(known), shown, known)
    else:
        scale = shown
    return np.clip(pixels / scale[:, None, None].astype(np.float32), 0, 1)
