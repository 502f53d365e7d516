"""Every metric of one group of cells, why one is undefined, and bootstrap limits; NumPy only."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nimbus_sd.arrays.metrics import METRICS, Ranked

_CHUNK = 1 << 21  # weights held at a time while resampling
_EXACT = 1 << 23  # cells whose weights float32 still adds up exactly


def evaluate_scores(
    truth: np.ndarray, scores: np.ndarray, *, threshold: float = 0.5, n_bins: int = 15
) -> tuple[dict[str, float], str]:
    """All metrics of one group of cells, and why any of them is undefined.

    Parameters
    ----------
    truth
        ``(n,)`` of 1, 0, NaN (left out).
    scores
        ``(n,)``; NaN is left out.
    threshold
        Cells above it are called positive.
    n_bins
        Bins of equal width for the expected calibration error.

    Returns
    -------
    Each of :data:`METRICS` (NaN where undefined, never 0 instead), and the reason
    ("" if all are defined).

    Raises
    ------
    InputError
        As :func:`defined`.

    Examples
    --------
    >>> found, reason = evaluate_scores(np.array([0.0, 0.0]), np.array([0.2, 0.7]))
    >>> found["specificity"], found["f1"], reason.split(":")[0]
    (0.5, nan, 'no positive cells')
    """
    ranked = Ranked.of(truth, scores)
    found = {k: float(v[0]) for k, v in ranked.metrics(None, threshold=threshold, n_bins=n_bins).items()}
    return found, _reason(ranked, found)


def bootstrap(
    truth: np.ndarray,
    scores: np.ndarray,
    *,
    threshold: float = 0.5,
    n_bins: int = 15,
    n_resamples: int = 200,
    groups: np.ndarray | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile limits of every metric when the cells, or whole fields, are drawn again.

    Parameters
    ----------
    truth, scores, threshold, n_bins
        As for :func:`evaluate_scores`.
    n_resamples
        Number of resamples.
    groups
        ``(n,)`` integers: draw whole groups (fields) instead of cells; cells of one
        field resemble one another, so limits by cells are too narrow.
    level
        Share of the resamples between the limits.
    seed
        Decides the draws; the same for every set of scores of the same cells.

    Returns
    -------
    Metric to (lower, upper); NaN where undefined in more than half of the resamples,
    or where there are fewer than two groups.

    Raises
    ------
    InputError
        As :func:`defined`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(0, 2, 500)
    >>> lower, upper = bootstrap(y, np.clip(y * 0.4 + rng.random(500) * 0.6, 0, 1))["auroc"]
    >>> bool(0.8 < lower < upper < 1)
    True
    """
    ranked = Ranked.of(truth, scores)
    if not ranked.scores.size or n_resamples < 1:
        return dict.fromkeys(METRICS, (float("nan"), float("nan")))
    code = None
    if groups is not None:
        # numbered over all cells, so that a marker with fewer defined ones draws the same fields
        code = np.unique(groups, return_inverse=True)[1]
        if np.unique(code[ranked.order]).size < 2:
            return dict.fromkeys(METRICS, (float("nan"), float("nan")))
    parts = [
        ranked.metrics(weights[:, ranked.order], threshold=threshold, n_bins=n_bins)
        for weights in resample_weights(np.size(truth), n_resamples, groups=code, seed=seed)
    ]
    tails = ((1 - level) / 2, (1 + level) / 2)
    return {name: _limits(np.concatenate([p[name] for p in parts]), tails) for name in METRICS}


def resample_weights(
    n: int, n_resamples: int, *, groups: np.ndarray | None, seed: int
) -> Iterator[np.ndarray]:
    """How often each cell is drawn, ``(r, n)`` float32 (float64 for millions of cells), chunk by chunk.

    Parameters
    ----------
    n
        Cells.
    n_resamples
        Rows over all chunks.
    groups
        ``(n,)`` codes 0..g-1: groups are drawn instead of cells.
    seed
        Decides the draws, whatever the chunks.
    """
    rng = np.random.default_rng(seed)
    units = n if groups is None else int(groups.max(initial=-1)) + 1
    step = max(1, _CHUNK // max(n, 1))
    for start in range(0, n_resamples if n else 0, step):
        rows = min(step, n_resamples - start)
        drawn = np.stack(
            [np.bincount(rng.integers(units, size=units), minlength=units) for _ in range(rows)]
        ).astype(np.float32 if n < _EXACT else np.float64)
        yield drawn if groups is None else drawn[:, groups]


def _limits(values: np.ndarray, tails: tuple[float, float]) -> tuple[float, float]:
    known = values[~np.isnan(values)]
    if known.size * 2 <= values.size:
        return float("nan"), float("nan")
    lower, upper = np.quantile(known, tails)
    return float(lower), float(upper)


def _reason(ranked: Ranked, found: dict[str, float]) -> str:
    missing = [name for name in METRICS if np.isnan(found[name])]
    n, n_positive = ranked.positive.size, int(ranked.positive.sum())
    if not n:
        return "no cell with both a truth and a score"
    reasons = []
    if n_positive in (0, n):
        which = "positive" if n_positive == 0 else "negative"
        gone = [m for m in missing if m != "ece" and (m != "precision" or n_positive == 0)]
        reasons.append(f"no {which} cells: {', '.join(gone)} undefined")
    if n_positive and "precision" in missing:
        reasons.append("no cell is called positive: precision undefined")
    if "ece" in missing:
        reasons.append("scores outside [0, 1]: ece undefined")
    return "; ".join(reasons)
