"""Do scores mean what they say: reliability bins and the expected calibration error; NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nimbus_sd._core.errors import InputError

STRATEGIES = ("width", "mass")


@dataclass(frozen=True)
class ReliabilityBins:
    """Cells of similar score, and how many of them are positive.

    Attributes
    ----------
    lower, upper
        Limits of the bins that hold cells, float64 ``(k,)``.
    count
        Cells, int64 ``(k,)``.
    mean_score
        What the scores promise, float64 ``(k,)``.
    share_positive
        What the truth keeps, float64 ``(k,)``.
    """

    lower: np.ndarray
    upper: np.ndarray
    count: np.ndarray
    mean_score: np.ndarray
    share_positive: np.ndarray

    @property
    def expected_calibration_error(self) -> float:
        """Σ count · |share_positive − mean_score| / Σ count; NaN without cells."""
        gap = self.count * np.abs(self.share_positive - self.mean_score)
        return float(gap.sum() / self.count.sum()) if self.count.size else float("nan")


def reliability_bins(
    truth: np.ndarray, scores: np.ndarray, *, n_bins: int = 15, strategy: str = "width"
) -> ReliabilityBins:
    """Sort cells into bins by score and compare promise with truth.

    Parameters
    ----------
    truth
        ``(n,)`` of 1, 0, NaN (left out).
    scores
        ``(n,)`` in [0, 1]; NaN is left out.
    n_bins
        Number of bins; empty ones are left out.
    strategy
        ``"width"`` equal steps of score, ``"mass"`` equally many cells (equal scores
        stay together).

    Raises
    ------
    InputError
        If scores leave [0, 1] or the strategy is unknown.

    Examples
    --------
    >>> bins = reliability_bins(np.array([0, 1, 1, 1]), np.array([0.2, 0.2, 0.9, 0.9]), n_bins=2)
    >>> bins.mean_score.tolist(), bins.share_positive.tolist()
    ([0.2, 0.9], [0.5, 1.0])
    >>> round(bins.expected_calibration_error, 3)
    0.2
    """
    if n_bins < 1 or strategy not in STRATEGIES:
        msg = f"n_bins={n_bins}, strategy={strategy!r}: at least 1 bin; valid: {', '.join(STRATEGIES)}"
        raise InputError(msg)
    truth, scores = (np.asarray(v, dtype=np.float64) for v in (truth, scores))
    kept = ~np.isnan(truth) & ~np.isnan(scores)
    y, s = truth[kept], scores[kept]
    if s.size and (s.min() < 0 or s.max() > 1):
        msg = f"scores lie in [{s.min():.3g}, {s.max():.3g}]; a promise of a share must lie in [0, 1]"
        raise InputError(msg)
    edges = np.linspace(0, 1, n_bins + 1)
    if strategy == "width":
        bins = width_bins(s, n_bins)
    else:
        inner = np.unique(np.quantile(s, edges[1:-1])) if s.size else edges[:0]
        inner = inner[(inner > 0) & (inner < 1)]
        bins = np.searchsorted(inner, s, side="left")
        edges = np.concatenate([[0.0], inner, [1.0]])
    count = np.bincount(bins, minlength=edges.size - 1)
    filled = np.flatnonzero(count)
    mean = [np.bincount(bins, weights=v, minlength=count.size)[filled] / count[filled] for v in (s, y)]
    return ReliabilityBins(edges[filled], edges[filled + 1], count[filled], mean[0], mean[1])


def expected_calibration_error(
    truth: np.ndarray, scores: np.ndarray, *, n_bins: int = 15, strategy: str = "width"
) -> float:
    """Mean distance between promised and true share of positives, weighted by cells.

    Parameters
    ----------
    truth, scores, n_bins, strategy
        As for :func:`reliability_bins`.

    Returns
    -------
    In [0, 1]; NaN without cells.

    Raises
    ------
    InputError
        As :func:`reliability_bins`.

    Examples
    --------
    >>> expected_calibration_error(np.array([1.0, 0.0]), np.array([1.0, 0.0]))
    0.0
    """
    return reliability_bins(truth, scores, n_bins=n_bins, strategy=strategy).expected_calibration_error


def width_bins(scores: np.ndarray, n_bins: int) -> np.ndarray:
    """Bin of each score in [0, 1]: bins are open below, closed above, 0 is in the first."""
    return np.clip(np.ceil(scores * n_bins).astype(np.int64) - 1, 0, n_bins - 1)


def calibration_error_of_sums(gap: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Σ |Σ_bin w (y − s)| / Σ w per row of ``(r, bins)`` sums; NaN where nothing weighs."""
    out = np.full(total.shape, np.nan)
    return np.divide(np.abs(gap).sum(1), total, out=out, where=total > 0)
