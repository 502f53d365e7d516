"""Markers in tissue: who is positive, how strongly, and the signal before any camera sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nimbus_sd.simulation._types import AnyArray, BoolArray, FloatArray
from nimbus_sd.simulation.config import CELL_TYPES, Marker
from nimbus_sd.simulation.noise import fibres, smooth_noise
from nimbus_sd.simulation.tissue import LUMEN, SPARSE, STROMA, Tissue

_MEMBRANE = 0.7


@dataclass(frozen=True)
class Expression:
    """Truth of one marker.

    Parameters
    ----------
    positive
        ``(n + 1,)`` bool, entry 0 False.
    level
        ``(n + 1,)`` float32, the baseline for negative cells, 0 outside.
    """

    positive: BoolArray
    level: FloatArray


@dataclass(frozen=True)
class Signal:
    """Expected intensity of one marker, level 1 being bright.

    Parameters
    ----------
    own
        ``(y, x)`` float32, signal of the cell that owns the pixel, before blur.
    total
        ``(y, x)`` float32, with extracellular signal and what left the cells, before blur.
    """

    own: FloatArray
    total: FloatArray


@dataclass(frozen=True)
class Compartments:
    """Where things are in a tissue's cells, each ``(y, x)`` float32 in [0, 1].

    Made once per tissue and shared by its markers.
    """

    membrane: FloatArray
    cytoplasm: FloatArray
    nucleus: FloatArray
    stroma: FloatArray

    @classmethod
    def of(cls, rng: np.random.Generator, tissue: Tissue) -> Compartments:
        """Find the compartments of `tissue`."""
        inside = tissue.cells > 0
        membrane = np.where(inside, np.exp((0.5 * tissue.mpp - tissue.edge) / _MEMBRANE), 0)
        nucleus = tissue.nuclei.astype(np.float32)
        stroma = np.isin(tissue.region, (STROMA, SPARSE)) * np.where(inside, 0.25, 1.0)
        stroma *= np.where(tissue.region == SPARSE, smooth_noise(rng, inside.shape, 40 / tissue.mpp) > 0, 1)
        return cls(membrane.astype(np.float32), inside - nucleus, nucleus, stroma.astype(np.float32))


def express(rng: np.random.Generator, tissue: Tissue, marker: Marker) -> Expression:
    """Draw which cells are positive for `marker` and at which level."""
    by_type = np.array([marker.types.get(name, 0.0) for name in CELL_TYPES])
    probability = by_type[tissue.types]
    if marker.patchy:
        at = tissue.centres.astype(int)
        patch = smooth_noise(rng, tissue.cells.shape, rng.uniform(15, 80) / tissue.mpp)[at[:, 0], at[:, 1]]
        boost = np.where(patch > rng.normal(0, 0.7), 1.6, 0.15)
        probability = np.clip(probability * (1 - marker.patchy + marker.patchy * boost), 0, 1)
    n = len(probability)
    positive = rng.random(n) < probability
    positive[0] = False
    level = marker.level * rng.lognormal(0, marker.spread, n)
    dim = rng.random(n) < marker.dim
    level = np.where(dim, level * rng.uniform(0.1, 0.5, n), level)
    quiet = marker.baseline * marker.level * rng.lognormal(0, 0.5, n)
    if marker.faint:
        chance = np.array([marker.faint.get(name, 0.0) for name in CELL_TYPES])
        little = marker.faint_level * marker.level * rng.lognormal(0, 0.5, n)
        quiet = np.where(rng.random(n) < chance[tissue.types], np.maximum(quiet, little), quiet)
    quiet[0] = 0
    return Expression(positive, np.where(positive, level, quiet).astype(np.float32))


def _membrane(rng: np.random.Generator, tissue: Tissue, parts: Compartments, cap: float) -> FloatArray:
    """Membrane weight, gathered on one side of each cell as far as `cap` says."""
    if not cap:
        return parts.membrane
    side = rng.uniform(-np.pi, np.pi, tissue.n_cells + 1).astype(np.float32)
    facing = np.clip(0.6 + np.cos(tissue.angle - side[tissue.cells]), 0, None)
    return parts.membrane * (1 - cap + cap * facing)


def texture(rng: np.random.Generator, shape: tuple[int, int], strength: float, scale: float) -> FloatArray:
    """Multiplicative grain with mean 1: ``(y, x)`` float32."""
    return np.exp(strength * smooth_noise(rng, shape, scale) - strength**2 / 2)


def _stray(rng: np.random.Generator, image: FloatArray, reach: float, scale: float) -> FloatArray:
    """Move every pixel's value by up to about `reach` px along a field that changes over `scale` px."""
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    at = [
        np.clip(np.rint(line + reach * smooth_noise(rng, image.shape[:2], scale)), 0, size - 1).astype(
            np.int32
        )
        for line, size in zip((rows, columns), image.shape, strict=True)
    ]
    return image[at[0], at[1]]


def render(
    rng: np.random.Generator, tissue: Tissue, marker: Marker, *, expression: Expression, parts: Compartments
) -> Signal:
    """Paint the expected signal of one marker, before optics.

    Parameters
    ----------
    rng
        Source of randomness.
    tissue, marker
        What is stained.
    expression
        Levels per cell.
    parts
        Compartments of the same tissue.
    """
    shape = tissue.cells.shape
    weight = np.zeros(shape, np.float32)
    if marker.membrane:
        weight += marker.membrane * _membrane(rng, tissue, parts, marker.cap)
    if marker.cytoplasm:
        weight += marker.cytoplasm * parts.cytoplasm
    if marker.nucleus:
        weight += marker.nucleus * parts.nucleus
    if marker.puncta:
        grains = smooth_noise(rng, shape, 1.0 / tissue.mpp) > 1.5
        weight += marker.puncta * grains * (tissue.cells > 0)
    weight *= texture(rng, shape, rng.uniform(0.2, 0.8), rng.uniform(0.8, 2.0) / tissue.mpp)
    weight *= texture(rng, shape, rng.uniform(0.2, 1.0), rng.uniform(2.5, 6) / tissue.mpp)
    own = expression.level[tissue.cells] * weight
    if marker.ragged:
        own = _stray(rng, own, marker.ragged / tissue.mpp, 3.5 / tissue.mpp)
    total = own
    if marker.secreted:
        spread = _gaussian(own, marker.secreted / tissue.mpp)
        total = 0.5 * own + spread * np.where(tissue.region == LUMEN, 0.5, 1).astype(np.float32)
    if marker.ecm:
        bundles = fibres(rng, shape, rng.uniform(5, 12) / tissue.mpp)
        haze = rng.uniform(0.05, 0.3)
        total = total + marker.ecm * parts.stroma * (haze + (1 - haze) * bundles)
    return Signal(own, total.astype(np.float32))


def _gaussian(image: FloatArray, sigma: float) -> FloatArray:
    return ndimage.gaussian_filter(image, sigma, truncate=3.0) if sigma > 0.2 else image


def cell_means(values: AnyArray, tissue: Tissue) -> FloatArray:
    """Mean of a ``(y, x)`` image over each true cell: ``(n + 1,)`` float32, 0 for cells without pixels."""
    n = tissue.n_cells + 1
    sums = np.bincount(tissue.cells.ravel(), weights=values.ravel(), minlength=n)
    return (sums / np.maximum(np.bincount(tissue.cells.ravel(), minlength=n), 1)).astype(np.float32)
