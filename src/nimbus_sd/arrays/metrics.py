"""How good are scores against 1 / 0 truth: rates at a threshold and ranking; NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays.reliability import calibration_error_of_sums, width_bins

#: Decided by calls at a threshold; recall is the rate of true positives, specificity that of true negatives.
RATES = ("precision", "recall", "specificity", "balanced_accuracy", "f1")
METRICS = (*RATES, "auroc", "average_precision", "ece")


@dataclass(frozen=True)
class Confusion:
    """Counts of right and wrong calls, numbers or arrays of one shape.

    Attributes
    ----------
    tp, fp, tn, fn
        True and false positives, true and false negatives; weights add up too.
    """

    tp: np.ndarray
    fp: np.ndarray
    tn: np.ndarray
    fn: np.ndarray


def confusion(truth: np.ndarray, calls: np.ndarray, *, axis: int | None = None) -> Confusion:
    """Count right and wrong calls.

    Parameters
    ----------
    truth
        1 positive, 0 negative, NaN undefined (left out).
    calls
        Same shape, bool.
    axis
        Count along this axis; None counts all.

    Examples
    --------
    >>> c = confusion(np.array([1, 1, 0, np.nan]), np.array([True, False, True, True]))
    >>> int(c.tp), int(c.fp), int(c.tn), int(c.fn)
    (1, 1, 0, 1)
    """
    positive, negative, called = truth == 1, truth == 0, np.asarray(calls, dtype=bool)
    return Confusion(
        tp=(positive & called).sum(axis),
        fp=(negative & called).sum(axis),
        tn=(negative & ~called).sum(axis),
        fn=(positive & ~called).sum(axis),
    )


def rates(counts: Confusion) -> dict[str, np.ndarray]:
    """Precision, recall, specificity, balanced accuracy and F1, NaN where undefined.

    Without positive cells only the specificity is defined (F1 and precision would
    be 0 however good the scores are); without a call, precision is not. The balanced
    accuracy, ``(recall + specificity) / 2``, needs both classes.

    Parameters
    ----------
    counts
        Numbers or arrays.

    Returns
    -------
    Each of :data:`RATES`: float64 arrays of the counts' shape.

    Examples
    --------
    >>> found = rates(Confusion(*map(np.array, (3, 1, 5, 1))))
    >>> float(found["precision"]), float(found["recall"]), float(found["f1"])
    (0.75, 0.75, 0.75)
    """
    tp, fp, tn, fn = (np.asarray(v, dtype=np.float64) for v in (counts.tp, counts.fp, counts.tn, counts.fn))
    some = tp + fn > 0
    recall, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    return {
        "precision": _ratio(tp, np.where(some, tp + fp, 0)),
        "recall": recall,
        "specificity": specificity,
        "balanced_accuracy": (recall + specificity) / 2,
        "f1": _ratio(2 * tp, np.where(some, 2 * tp + fp + fn, 0)),
    }


def auroc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Chance that a positive cell scores above a negative one, ties count half.

    Parameters
    ----------
    truth
        ``(n,)`` of 1, 0, NaN (left out).
    scores
        ``(n,)``; NaN is left out.

    Returns
    -------
    In [0, 1]; NaN unless there are both classes.

    Examples
    --------
    >>> auroc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.4, 0.8]))
    0.875
    """
    ranked = Ranked.of(truth, scores)
    return float(ranked.auroc(*ranked.cumulated(None))[0])


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Precision averaged over recall, as a step function: Σ (Rₖ − Rₖ₋₁) Pₖ over distinct scores.

    Parameters
    ----------
    truth, scores
        As for :func:`auroc`.

    Returns
    -------
    In [0, 1]; NaN unless there are both classes.

    Examples
    --------
    >>> round(average_precision(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])), 4)
    0.8333
    """
    ranked = Ranked.of(truth, scores)
    return float(ranked.average_precision(*ranked.cumulated(None))[0])


def best_threshold(truth: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """The threshold with the largest F1 on these very labels, and that F1.

    Optimistic by construction: nobody has it in practice.

    Parameters
    ----------
    truth, scores
        As for :func:`auroc`.

    Returns
    -------
    Threshold (cells above it are positive) midway between two scores, and F1; NaN
    without positive cells.

    Examples
    --------
    >>> best_threshold(np.array([0, 0, 1, 1]), np.array([1.0, 2.0, 4.0, 8.0]))
    (3.0, 1.0)
    """
    ranked = Ranked.of(truth, scores)
    tp, fp = (c[0] for c in ranked.cumulated(None))
    if not tp.size or tp[-1] == 0:
        return float("nan"), float("nan")
    f1 = 2 * tp / (tp + fp + tp[-1])
    k = int(np.argmax(f1))
    value = ranked.scores[ranked.ends]
    low = value[k + 1] if k + 1 < value.size else np.nextafter(value[k], -np.inf)
    cut = low + (value[k] - low) / 2
    return float(cut if cut < value[k] else low), float(f1[k])


@dataclass(frozen=True)
class Ranked:
    """Cells sorted by falling score, so that weights of many resamples run through in one sweep.

    Attributes
    ----------
    positive
        bool ``(n,)``, sorted.
    scores
        float64 ``(n,)``, falling.
    order
        Where the sorted cells were in the input, int64 ``(n,)``.
    ends
        Index of the last cell of each run of equal scores, int64.
    """

    positive: np.ndarray
    scores: np.ndarray
    order: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, truth: np.ndarray, scores: np.ndarray) -> Ranked:
        """Sort; cells without truth or score are left out."""
        kept = defined(truth, scores)
        order = kept[np.argsort(-np.asarray(scores, dtype=np.float64)[kept], kind="stable")]
        s = np.asarray(scores, dtype=np.float64)[order]
        ends = np.flatnonzero(np.append(s[1:] != s[:-1], True)) if s.size else np.empty(0, np.int64)
        return cls(np.asarray(truth)[order] == 1, s, order, ends)

    def cumulated(self, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Weight of positives and of negatives at or above each distinct score, ``(r, k)`` each.

        Parameters
        ----------
        weights
            ``(r, n)`` in sorted order, float32 (sums below 2^24 are exact) or float64;
            None weighs every cell once.
        """
        w = np.ones((1, self.scores.size)) if weights is None else weights
        total = np.cumsum(w, axis=1)[:, self.ends]
        positive = np.cumsum(w * self.positive, axis=1)[:, self.ends]
        return positive, total - positive

    def auroc(self, tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
        """Area under the ROC curve of every resample, ``(r,)``."""
        if not self.ends.size:
            return np.full(len(tp), np.nan)
        above = np.concatenate([np.zeros((len(tp), 1), tp.dtype), tp[:, :-1]], axis=1)
        area = (np.diff(fp, axis=1, prepend=fp.dtype.type(0)) * (tp + above)).sum(1, dtype=np.float64) / 2
        return _ratio(area, tp[:, -1].astype(np.float64) * fp[:, -1])

    def average_precision(self, tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
        """Average precision of every resample, ``(r,)``."""
        if not self.ends.size:
            return np.full(len(tp), np.nan)
        gain = np.diff(tp, axis=1, prepend=tp.dtype.type(0))
        area = (gain * tp / np.maximum(tp + fp, 1e-30)).sum(1, dtype=np.float64)
        return np.where(fp[:, -1] > 0, _ratio(area, tp[:, -1]), np.nan)

    def metrics(self, weights: np.ndarray | None, *, threshold: float, n_bins: int) -> dict[str, np.ndarray]:
        """All of :data:`METRICS` for every resample, ``(r,)`` each."""
        tp, fp = self.cumulated(weights)
        if not self.ends.size:
            return {name: np.full(len(tp), np.nan) for name in METRICS}
        above = int(np.searchsorted(-self.scores[self.ends], -threshold, side="left"))
        zero = np.zeros(len(tp))
        called_tp, called_fp = (tp[:, above - 1], fp[:, above - 1]) if above else (zero, zero)
        found = rates(Confusion(called_tp, called_fp, fp[:, -1] - called_fp, tp[:, -1] - called_tp))
        found["auroc"] = self.auroc(tp, fp)
        found["average_precision"] = self.average_precision(tp, fp)
        found["ece"] = self._calibration_error(weights, n_bins)
        return found

    def _calibration_error(self, weights: np.ndarray | None, n_bins: int) -> np.ndarray:
        w = np.ones((1, self.scores.size)) if weights is None else weights
        if self.scores[0] > 1 or self.scores[-1] < 0:
            return np.full(len(w), np.nan)
        bins = width_bins(self.scores, n_bins)
        starts = np.flatnonzero(np.append(True, bins[1:] != bins[:-1]))  # sorted, so a bin is one run
        gap = np.add.reduceat(w * (self.positive - self.scores).astype(w.dtype), starts, axis=1)
        return calibration_error_of_sums(gap, w.sum(1))


def defined(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Indices of the cells that have a truth and a score.

    Raises
    ------
    InputError
        If shapes differ, or truth holds anything but 1, 0 and NaN.
    """
    truth, scores = np.asarray(truth), np.asarray(scores)
    if truth.ndim != 1 or truth.shape != scores.shape:
        msg = f"truth {truth.shape} and scores {scores.shape} must be (n,) each; pass one marker at a time"
        raise InputError(msg)
    truth = truth.astype(np.float64, copy=False)
    odd = ~(np.isnan(truth) | (truth == 0) | (truth == 1))
    if odd.any():
        msg = (
            f"truth holds {np.unique(truth[odd])[:5].tolist()}; valid: 1 positive, 0 negative, NaN undefined"
        )
        raise InputError(msg)
    return np.flatnonzero(~np.isnan(truth) & ~np.isnan(scores.astype(np.float64, copy=False)))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    out = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), np.nan)
    return np.divide(numerator, denominator, out=out, where=np.asarray(denominator) > 0)
