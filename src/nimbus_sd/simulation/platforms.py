"""Platforms: how expected signal becomes the numbers of an instrument's file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nimbus_sd.simulation._types import AnyArray, FloatArray
from nimbus_sd.simulation.config import PlatformConfig
from nimbus_sd.simulation.markers import Compartments, Expression, Signal, cell_means
from nimbus_sd.simulation.noise import smooth_noise
from nimbus_sd.simulation.tissue import LUMEN, SPARSE, Tissue

_FIELD_AREA = 512.0**2
_MIN_COUNTS = 4.0
_MIN_CONTRAST = 0.5
_DIMMEST = 0.02


@dataclass(frozen=True)
class Exposure:
    """Expected intensity at the detector, level 1 being bright.

    Parameters
    ----------
    expected
        ``(y, x)`` float32, everything that reaches the detector.
    background
        ``(y, x)`` float32, the part that no positive cell sends.
    """

    expected: FloatArray
    background: FloatArray


def expose(
    rng: np.random.Generator, tissue: Tissue, platform: PlatformConfig, *, signal: Signal, parts: Compartments
) -> Exposure:
    """Blur the signal and add background, nuclear bleed-through, debris and uneven light."""
    shape = tissue.cells.shape
    background = np.zeros(shape, np.float32)
    if platform.background:
        solid = np.where(np.isin(tissue.region, (SPARSE, LUMEN)), rng.uniform(0.1, 0.7), 1.0).astype(
            np.float32
        )
        solid *= np.where(tissue.cells > 0, 1, rng.uniform(0.4, 1.0)).astype(np.float32)
        solid = ndimage.gaussian_filter(solid, rng.uniform(0.8, 4) / tissue.mpp, truncate=2.5)
        background += platform.background * solid * np.exp(0.4 * smooth_noise(rng, shape, 50 / tissue.mpp))
    if platform.bleed:
        background += platform.bleed * parts.nucleus
    sigma = platform.blur / tissue.mpp
    expected = (
        ndimage.gaussian_filter(signal.total + background, sigma, truncate=3.0)
        if sigma > 0.2
        else (signal.total + background)
    )
    if platform.debris:
        expected = expected + _debris(rng, tissue, platform.debris)
    if platform.gradient:
        light = np.clip(1 + platform.gradient * smooth_noise(rng, shape, 150 / tissue.mpp), 0.2, None)
        expected = expected * light
    return Exposure(np.clip(expected, 0, None).astype(np.float32), background + (signal.total - signal.own))


def _debris(rng: np.random.Generator, tissue: Tissue, per_field: float) -> FloatArray:
    """Bright specks and flakes outside of any cell's plan: ``(y, x)`` float32."""
    shape, mpp = tissue.cells.shape, tissue.mpp
    specks = np.zeros(shape, np.float32)
    for _ in range(rng.poisson(per_field * shape[0] * shape[1] * mpp**2 / _FIELD_AREA)):
        radius = rng.uniform(0.7, 4) / mpp
        y, x = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        top, left = int(max(y - 3 * radius, 0)), int(max(x - 3 * radius, 0))
        rows, columns = np.ogrid[top : int(y + 3 * radius) + 1, left : int(x + 3 * radius) + 1]
        ratio = rng.uniform(0.5, 2)
        spot = np.exp(-((((rows - y) ** 2 * ratio + (columns - x) ** 2 / ratio) / radius**2) ** 2))
        window = specks[top : int(y + 3 * radius) + 1, left : int(x + 3 * radius) + 1]
        window += rng.uniform(0.8, 10) * spot[: window.shape[0], : window.shape[1]]
    return specks


def detectable(
    tissue: Tissue, platform: PlatformConfig, *, expression: Expression, signal: Signal, exposure: Exposure
) -> AnyArray:
    """Which cells' own signal could be seen: ``(n + 1,)`` bool.

    At least four ions per cell for counts, at least half as bright as the
    background on the same pixels, and twice as bright as a typical negative cell.
    """
    own = cell_means(signal.own, tissue)
    behind = cell_means(exposure.background, tissue)
    quiet = own[1:][~expression.positive[1:]]
    usual = float(np.median(quiet)) if len(quiet) else 0.0
    seen = (own > _MIN_CONTRAST * behind) & (own > max(_DIMMEST, 2 * usual))
    if platform.kind.startswith("ions"):
        area = np.bincount(tissue.cells.ravel(), minlength=len(own)) * tissue.mpp**2
        seen &= own * area * platform.counts > _MIN_COUNTS
    return seen


def truth_of(expression: Expression, seen: AnyArray) -> FloatArray:
    """Positivity per true cell, ``(n + 1,)`` float32: 1 seen, NaN expressed but invisible, 0 negative."""
    return np.where(expression.positive, np.where(seen, 1.0, np.nan), 0.0).astype(np.float32)


def _denoise(counts: AnyArray, threshold: float, mpp: float) -> AnyArray:
    """Remove counts whose neighbourhood of about 3 µm holds fewer than `threshold` per µm²."""
    size = max(3, 2 * round(1.3 / mpp) + 1)
    density = ndimage.uniform_filter(counts.astype(np.float32), size) / mpp**2
    return np.where(density >= threshold, counts, 0)


def detect(rng: np.random.Generator, exposure: Exposure, platform: PlatformConfig, mpp: float) -> AnyArray:
    """Turn expected intensity into pixel values of the platform's dtype.

    Parameters
    ----------
    rng
        Source of randomness.
    exposure
        Expected intensity.
    platform
        The instrument.
    mpp
        µm per px.

    Returns
    -------
    ``(y, x)`` uint16 (ions, fluorescence16), uint8 (ions_denoised, fluorescence8) or float32 (float).
    """
    photons = rng.poisson(exposure.expected * platform.counts * mpp**2)
    shape = photons.shape
    if platform.hot:
        hot = rng.random(shape) < platform.hot * mpp**2 / 1000
        photons = photons + hot * rng.integers(1, max(2, int(platform.counts * mpp**2) + 2), shape)
    if platform.kind == "ions":
        return np.minimum(photons, 65535).astype(np.uint16)
    if platform.kind == "ions_denoised":
        return np.minimum(_denoise(photons, platform.denoise, mpp), 255).astype(np.uint8)
    light = photons / (platform.counts * mpp**2)
    if platform.kind == "float":
        return (12.0 * light + rng.normal(0, 0.05, shape)).astype(np.float32)
    top, noise = (255, 0.6) if platform.kind == "fluorescence8" else (65535, 60.0)
    full = 0.45 * top
    return np.clip(np.rint(light * full + rng.normal(0, noise, shape)), 0, top).astype(
        np.uint8 if top == 255 else np.uint16
    )
