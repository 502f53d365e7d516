"""What a score and an intensity mean among all cells of a dataset: context per marker, features per cell."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

_STEPS = np.arange(0, 0.976, 0.025)
LEVELS = np.concatenate([_STEPS, [0.98, 0.99, 0.995, 0.999, 1.0]])
"""Quantile levels of the square root of cell intensity that a context holds."""
_MEDIAN, _TOP, _PEAK = np.searchsorted(LEVELS, [0.5, 0.99, 0.999])
_STATISTICS = ("mean_negative", "mean_positive", "sd_negative", "sd_positive", "share", "otsu")
CONTEXT_NAMES = (*(f"q{level:.3f}" for level in LEVELS), *_STATISTICS)
"""Columns of a context."""
N_FEATURES = 14
NEIGHBOURS = 6
_BINS = 256
_ROOM = 0.01


def otsu_threshold(values: np.ndarray) -> float:
    """Split `values` ``(n,)`` so that the variance between both parts is largest (Otsu 1979; 256 bins)."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return high
    counts, edges = np.histogram(values, _BINS, (low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    mean_below = np.cumsum(counts * centres) / np.maximum(below, 1)
    mean_above = (np.cumsum((counts * centres)[::-1]) / np.maximum(above[::-1], 1))[::-1]
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centres[np.argmax(between)])


def _weighted(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation; 0 where all weights are."""
    total = max(float(weights.sum()), 1e-6)
    mean = float((weights * values).sum()) / total
    return mean, float(np.sqrt((weights * (values - mean) ** 2).sum() / total))


def fit_context(score: np.ndarray, intensity: np.ndarray) -> np.ndarray:
    """Describe one marker over all cells of a dataset.

    Parameters
    ----------
    score
        ``(n,)`` mean probability per cell.
    intensity
        ``(n,)`` mean intensity per cell, 1 being the marker's scale.

    Returns
    -------
    Float32 of the length of :data:`CONTEXT_NAMES`: quantiles of the square root of the
    intensity; its mean and spread in negative and positive cells (weighted by the score);
    mean score; Otsu's threshold. NaN-free; zeros for no cells.

    Examples
    --------
    >>> context = fit_context(np.array([0.1, 0.9]), np.array([0.04, 0.64]))
    >>> round(float(context[CONTEXT_NAMES.index("mean_positive")]), 2)
    0.74
    """
    if not len(score):
        return np.zeros(len(CONTEXT_NAMES), np.float32)
    root = np.sqrt(np.maximum(intensity, 0))
    negative, positive = _weighted(root, 1 - score), _weighted(root, score)
    statistics = [negative[0], positive[0], negative[1], positive[1], score.mean(), otsu_threshold(root)]
    return np.concatenate([np.quantile(root, LEVELS), statistics]).astype(np.float32)


def nearest_cells(positions: np.ndarray, *, k: int = NEIGHBOURS) -> np.ndarray:
    """The `k` nearest other cells of each as rows of `positions` ``(n, 2)``: int ``(n, ≤ k)``."""
    k = min(k, len(positions) - 1)
    if k < 1:
        return np.empty((len(positions), 0), np.intp)
    near = cKDTree(positions).query(positions, k=k + 1)[1]
    # equal centroids: the cell itself need not come first
    others = near != np.arange(len(near))[:, None]
    others[others.all(axis=1), -1] = False
    return near[others].reshape(len(near), k)


def neighbour_mean(values: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Mean of the nearest cells' values, without the cell's own.

    Parameters
    ----------
    values
        ``(n, …)`` of one field.
    near
        From :func:`nearest_cells` of the same cells.

    Returns
    -------
    Like `values`; zeros for a cell that is alone.
    """
    out = np.zeros_like(values)
    for column in near.T:
        out += values[column]
    return out / max(near.shape[1], 1)


def cell_features(
    score: np.ndarray,
    intensity: np.ndarray,
    *,
    neighbours: np.ndarray,
    area: np.ndarray,
    context: np.ndarray,
) -> np.ndarray:
    """Features of one marker's cells: what they show, and where that lies among the dataset's cells.

    The context enters only relative to the cell: as values of its own it would tell the
    training datasets apart, and mislead on others.

    Parameters
    ----------
    score, intensity
        ``(n,)`` mean probability; mean intensity, 1 being the marker's scale.
    neighbours
        ``(n,)`` mean intensity of the nearest cells.
    area
        ``(n,)`` model px.
    context
        From :func:`fit_context`.

    Returns
    -------
    Float32 ``(n, N_FEATURES)``.
    """
    p = np.clip(score, 1e-4, 1 - 1e-4)
    s, around = np.sqrt(np.maximum(intensity, 0)), np.sqrt(np.maximum(neighbours, 0))
    quantiles, (negative, positive, sd_negative, _, _, otsu) = np.split(
        context.astype(np.float64), [len(LEVELS)]
    )
    rank = np.interp(s, quantiles, LEVELS)
    z = (s - negative) / (sd_negative + _ROOM)
    cell = [
        np.log(p / (1 - p)),
        s,
        np.log(s * s + 1e-3),
        around,
        s - around,
        np.log(area + 10),
        np.log(rank + 1e-3),
        np.log(1.001 - rank),
        np.log((s + _ROOM) / (quantiles[_TOP] + _ROOM)),
        np.log((s + _ROOM) / (quantiles[_PEAK] + _ROOM)),
        np.log((s + _ROOM) / (quantiles[_MEDIAN] + _ROOM)),
        np.clip((s - negative) / (positive - negative + 0.02), -3, 5),
        np.sign(z) * np.log1p(np.abs(z)),
        np.log((s + _ROOM) / (otsu + _ROOM)),
    ]
    return np.stack(cell, axis=1).astype(np.float32)
