"""Silver labels from cell types or thresholds, and how far they disagree with intensity."""

from __future__ import annotations

import numpy as np

from nimbus_sd.arrays.metrics import auroc

CHECKS = ("n_positive", "n_negative", "n_undefined", "auroc", "dim_positives", "bright_negatives")
"""What :func:`disagreement` measures, in order."""


def assign_labels(codes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Look each cell's type up in an assignment matrix.

    Parameters
    ----------
    codes
        ``(n,)`` row of the matrix, -1 for cells without one.
    matrix
        ``(types, markers)`` of 1, 0, NaN.

    Returns
    -------
    ``(n, markers)`` float32; NaN for cells without a type.

    Examples
    --------
    >>> assign_labels(np.array([1, -1]), np.array([[1.0], [0.0]])).ravel().tolist()
    [0.0, nan]
    """
    padded = np.concatenate([matrix, np.full((1, matrix.shape[1]), np.nan)]).astype(np.float32)
    return padded[codes]


def threshold_labels(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """1 above the marker's threshold, else 0; NaN where value or threshold is: ``(n, m)`` float32."""
    unknown = np.isnan(values) | np.isnan(thresholds)
    return np.where(unknown, np.nan, values > thresholds).astype(np.float32)


def disagreement(labels: np.ndarray, intensity: np.ndarray) -> np.ndarray:
    """Compare one marker's labels with its intensities, as one would by eye.

    Parameters
    ----------
    labels
        ``(n,)`` of 1, 0, NaN.
    intensity
        ``(n,)``.

    Returns
    -------
    Values named by :data:`CHECKS`: counts; AUROC of the intensity for the label; share of
    positive cells dimmer than the median negative one; share of negative cells brighter
    than the median positive one. NaN where a class is missing.

    Examples
    --------
    >>> disagreement(np.array([1, 1, 0, 0]), np.array([5.0, 1.0, 2.0, 2.0]))[3:].tolist()
    [0.5, 0.5, 0.0]
    """
    known = ~np.isnan(intensity)
    positive, negative = intensity[known & (labels == 1)], intensity[known & (labels == 0)]
    counts = [(labels == 1).sum(), (labels == 0).sum(), np.isnan(labels).sum()]
    if not positive.size or not negative.size:
        return np.array([*counts, np.nan, np.nan, np.nan], dtype=np.float64)
    return np.array(
        [
            *counts,
            auroc(labels, intensity),
            (positive < np.median(negative)).mean(),
            (negative > np.median(positive)).mean(),
        ]
    )
