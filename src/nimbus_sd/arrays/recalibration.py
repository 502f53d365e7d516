"""Is a marker's decision in the wrong place? Ask its intensities, without labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nimbus_sd.arrays.calibration import logit
from nimbus_sd.arrays.metrics import best_threshold, confusion, rates
from nimbus_sd.arrays.mixture import fit_mixture

_MIN_SEPARATION = 2.0  # Ashman's D: below it two modes are not clearly apart
_MIN_GAIN = 0.02  # of the information criterion per cell: below it one mode explains the values


@dataclass(frozen=True)
class Shift:
    """What label-free recalibration found for one marker.

    Attributes
    ----------
    shift
        Added to the logit of every score; 0 changes nothing.
    agreement, best_agreement
        F1 of the calls at 0.5, and at the best cut, against the calls by intensity.
    best_cut
        The score where they agree best.
    share
        Share of cells that the intensities call positive.
    reason
        Why nothing is changed, "" if something is.
    """

    shift: float
    agreement: float
    best_agreement: float
    best_cut: float
    share: float
    reason: str


def agreeing_shift(
    scores: np.ndarray,
    intensity: np.ndarray,
    *,
    strength: float = 0.5,
    max_shift: float = 1.5,
    min_gain: float = 0.2,
    min_positive: int = 20,
) -> Shift:
    """Move the decision of one marker part of the way to where scores and intensities agree.

    A mixture of two normal distributions of the log intensity calls cells positive
    or negative. The score cut whose calls agree best with them (F1) is searched; if it
    agrees clearly better than 0.5 does, logits are shifted towards it.

    Parameters
    ----------
    scores
        ``(n,)`` in [0, 1]; NaN is left out.
    intensity
        ``(n,)`` mean intensity per cell, ≥ 0; NaN is left out.
    strength
        Part of the way.
    max_shift
        Largest shift of the logit.
    min_gain
        By how much F1 of the agreement has to rise.
    min_positive
        Cells that intensities must call positive, and negative.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> positive = rng.random(2000) < 0.3
    >>> intensity = np.exp(rng.normal(np.where(positive, 2, -1), 0.5))
    >>> too_low = 1 / (1 + np.exp(2.5 - rng.normal(np.where(positive, 2, -3), 0.8)))
    >>> agreeing_shift(too_low, intensity).shift > 0.5
    True
    """
    known = ~np.isnan(scores) & ~np.isnan(intensity)
    s = np.asarray(scores, dtype=np.float64)[known]
    x = _log_intensity(np.asarray(intensity, dtype=np.float64)[known])
    mixture = fit_mixture(x, min_sd=0.05)
    if mixture is None:
        return _refused("fewer than 10 cells, or all intensities alike")
    if mixture.separation < _MIN_SEPARATION or mixture.gain < _MIN_GAIN:
        return _refused(f"intensities have one mode (separation {mixture.separation:.1f})")
    bright = (mixture.log_odds(x) > 0).astype(np.float64)
    n = int(bright.sum())
    if min(n, bright.size - n) < min_positive:
        return _refused(
            f"only {n} of {bright.size} cells are positive by intensity", share=float(bright.mean())
        )
    now = float(np.nan_to_num(rates(confusion(bright, s > 0.5))["f1"]))
    cut, best = best_threshold(bright, s)
    found = Shift(0.0, now, best, cut, float(bright.mean()), "")
    if best - now < min_gain:
        why = f"scores and intensities agree as well at 0.5 (F1 {now:.2f}, at best {best:.2f})"
        return Shift(**(found.__dict__ | {"reason": why}))
    moved = float(np.clip(-strength * logit(np.array(cut)), -max_shift, max_shift))
    return Shift(**(found.__dict__ | {"shift": moved}))


def _refused(reason: str, *, share: float = float("nan")) -> Shift:
    nan = float("nan")
    return Shift(0.0, nan, nan, nan, share, reason)


def _log_intensity(x: np.ndarray) -> np.ndarray:
    """Logarithm with an offset of half the median: dim background counts stay one mode."""
    top = float(x.max(initial=0))
    return np.log(x + 0.5 * float(np.median(x)) + 1e-4 * top + 1e-300) if x.size else x
