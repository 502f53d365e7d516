"""Four ranges of intensity, negative to over-exposed, and where a first guess puts them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logit

from nimbus_sd.arrays.mixture import Mixture, fit_mixture

#: The ranges in rising order; what :func:`gate_ranges` returns are places in here, -1 = no intensity.
RANGES = ("negative", "uncertain", "positive", "overexposed")
#: The three thresholds: last of the negative range, first of the positive and of the over-exposed one.
THRESHOLDS = ("negative", "positive", "overexposed")

_SCALE_AT = 0.97  # intensities around this quantile are where arcsinh turns from a line to a logarithm
_SPLITS = 2  # times that the upper population is looked at again for two in it
_MIN_SPLIT = 50  # cells
_APART = 2.0  # Ashman's D
_GAIN = 0.02  # of the information criterion, per cell
_SHARE = 0.4  # of the cells that are split
_CONTRAST = 4.0  # brightness of the upper population over that of the lower one


def gate_ranges(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The range of each cell.

    ``x <= negative`` is negative, ``negative < x < positive`` uncertain,
    ``positive <= x < overexposed`` positive, ``x >= overexposed`` over-exposed. Where two
    thresholds are equal the range between them is empty, and a value at both is in the lower one
    of negative and positive, in the upper one of positive and over-exposed.

    Parameters
    ----------
    values
        ``(n, m)``, NaN where there is none.
    thresholds
        ``(m, 3)`` or ``(n, m, 3)``, as :data:`THRESHOLDS`; all NaN where a marker has none.

    Returns
    -------
    int8 ``(n, m)``, places in :data:`RANGES`, -1 where value or thresholds are NaN.

    Examples
    --------
    >>> gate_ranges(np.array([[10.0], [15.0], [20.0], [90.0]]), np.array([[10, 20, 90]])).ravel().tolist()
    [0, 1, 2, 3]
    """
    low, high, over = (np.broadcast_to(thresholds, (*values.shape, 3))[..., i] for i in range(3))
    out = np.select([values >= over, values <= low, values >= high], [3, 0, 2], 1).astype(np.int8)
    out[np.isnan(values) | np.isnan(low) | np.isnan(high) | np.isnan(over)] = -1
    return out


def range_labels(ranges: np.ndarray) -> np.ndarray:
    """1 in the positive range, 0 in the negative one, NaN elsewhere: float32 of the same shape.

    Examples
    --------
    >>> range_labels(np.array([0, 1, 2, 3, -1])).tolist()
    [0.0, nan, 1.0, nan, nan]
    """
    return np.array([0, np.nan, 1, np.nan, np.nan], np.float32)[ranges]


@dataclass(frozen=True)
class Suggestion:
    """Thresholds of one marker in one section, and how sure they are.

    Attributes
    ----------
    negative, positive, overexposed
        In units of the intensities.
    separation
        Ashman's D of the two populations, on the scale of the fit; NaN without two.
    contrast
        How many times brighter the upper population is; NaN without two.
    clear
        Whether there are positive cells at all.
    """

    negative: float
    positive: float
    overexposed: float
    separation: float
    contrast: float
    clear: bool


def suggest(values: np.ndarray, *, confidence: float = 0.99, quantile: float = 0.995) -> Suggestion | None:
    """Guess three thresholds from the intensities of one marker in one section.

    Two normal distributions are fitted to ``arcsinh(x / s)``, `s` the 97th percentile: linear
    where background and stray light of neighbours lie, logarithmic where positive cells do.
    A cell is negative as long as the odds are `confidence` for the lower one; positive from where
    they are `confidence` for the upper one, but at least from half a standard deviation below its
    mean (the upper one is split again, up to twice, where it holds two clear populations: the
    lower of these is stray light or weak staining). Over-exposed: from the `quantile` of the
    cells above that.

    Without an upper population (less than four times as bright, and Ashman's D below 4) nobody
    is positive: both upper thresholds lie beyond the brightest cell, and only what is within two
    standard deviations of the background is negative.

    Parameters
    ----------
    values
        ``(n,)``, NaN left out.
    confidence
        In (0.5, 1).
    quantile
        In (0, 1].

    Returns
    -------
    None with fewer than 10 values, or if all are alike.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> found = suggest(np.append(rng.gamma(4, 25, 9000), rng.gamma(9, 300, 1000)))
    >>> found.clear, 100 < found.negative < found.positive < 2700 < found.overexposed
    (True, True)
    """
    x = np.asarray(values, dtype=np.float64)
    x = x[np.isfinite(x)]
    if x.size < 10 or x.min() == x.max():
        return None
    scale = _scale(x)
    z = np.arcsinh(x / scale)
    found = _fit(z)
    contrast = np.sinh(found.high) / max(np.sinh(found.low), 1e-6) if found else np.nan
    if found is None or found.gain <= 0 or (contrast < _CONTRAST and found.separation < 2 * _APART):
        return _nobody(x)
    negative, positive = _cuts(found, confidence)
    separation = found.separation
    for _ in range(_SPLITS):
        upper = z[z >= positive]
        again = _fit(upper) if upper.size >= _MIN_SPLIT else None
        if again is None or not _splits(again):
            break
        found, positive = again, max(positive, _cuts(again, confidence)[1])
    positive = max(positive, found.high - found.high_sd / 2, negative)
    low, high = (float(np.sinh(v) * scale) for v in (negative, positive))
    called = x[x >= high]
    over = float(np.quantile(called, quantile)) if called.size else high
    return Suggestion(low, high, max(over, high), separation, float(contrast), clear=True)


def _splits(found: Mixture) -> bool:
    """Two clear populations, the upper one no mere tail of the other."""
    return found.separation >= _APART and found.gain >= _GAIN and found.weight >= _SHARE


def _scale(x: np.ndarray) -> float:
    for guess in (np.quantile(x, _SCALE_AT), x[x > 0].mean() if (x > 0).any() else 0, np.abs(x).mean()):
        if guess > 0:
            return float(guess)
    return 1.0


def _fit(z: np.ndarray) -> Mixture | None:
    """The best of several starts: Otsu's cut alone overlooks rare populations."""
    middle, spread = _background(z)
    starts = (None, middle + 4 * spread, *np.quantile(z, [0.9, 0.99]))
    width = 0.02 * float(np.ptp(z))  # zeros of count images would be a population without a width
    found = [fit_mixture(z, min_sd=max(width, 1e-12), start=s) for s in starts]
    return max((m for m in found if m), key=lambda m: m.gain, default=None)


def _background(x: np.ndarray) -> tuple[float, float]:
    """Median, and standard deviation by the values below it, which positive cells don't widen."""
    middle = float(np.median(x))
    return middle, float(1.4826 * np.median(middle - x[x <= middle]))


def _cuts(found: Mixture, confidence: float) -> tuple[float, float]:
    grid = np.linspace(found.low, found.high, 4001)
    odds = found.log_odds(grid)
    sure = float(logit(confidence))
    below, above = grid[odds <= -sure], grid[odds >= sure]
    return float(below.max(initial=found.low)), float(above.min(initial=found.high))


def _nobody(x: np.ndarray) -> Suggestion:
    middle, spread = _background(x)
    top = float(x.max())
    beyond = top + 0.05 * (top - float(x.min()))
    return Suggestion(min(middle + 2 * spread, top), beyond, beyond, np.nan, np.nan, clear=False)
