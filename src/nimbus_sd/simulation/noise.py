"""Smooth random fields, the raw material of tissue, texture and background."""

from __future__ import annotations

import numpy as np

from nimbus_sd.simulation._types import FloatArray


def _interpolation(size: int, step: float) -> FloatArray:
    """Gaussian weights (size, knots) that read a line of knots `step` px apart at every pixel."""
    knots = (np.arange(int(np.ceil(size / step)) + 3) - 1) * step
    distance = (np.arange(size)[:, None] + 0.5 - knots[None]) / step
    weights = np.exp(-1.5 * distance**2)
    return (weights / np.sqrt((weights**2).sum(1, keepdims=True))).astype(np.float32)


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], scale: float | tuple[float, float]
) -> FloatArray:
    """Draw a smooth Gaussian random field.

    Parameters
    ----------
    rng
        Source of randomness.
    shape
        ``(y, x)`` in px.
    scale
        Correlation length in px, one number or ``(y, x)``.

    Returns
    -------
    ``(y, x)`` float32 with mean 0 and variance 1 at every pixel.
    """
    scales = (scale, scale) if isinstance(scale, (int, float)) else scale
    rows, columns = (_interpolation(n, max(float(s), 1.0)) for n, s in zip(shape, scales, strict=True))
    knots = rng.standard_normal((rows.shape[1], columns.shape[1]), dtype=np.float32)
    return rows @ knots @ columns.T


def fibres(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> FloatArray:
    """Draw wavy bundles of fibres.

    Fibres are the zero lines of an anisotropic field whose phase is bent by a
    second, smoother one.

    Parameters
    ----------
    rng, shape
        As for :func:`smooth_noise`.
    scale
        Distance between bundles in px.

    Returns
    -------
    ``(y, x)`` float32 in [0, 1].
    """
    stretch = (scale, 4 * scale) if rng.random() < 0.5 else (4 * scale, scale)
    field = smooth_noise(rng, shape, stretch) + smooth_noise(rng, shape, 2 * scale)
    return np.exp(-((field / 0.35) ** 2))
