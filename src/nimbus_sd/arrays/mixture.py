"""Two normal distributions in one heap of numbers, by expectation and maximisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

_STEPS = 500
_TOLERANCE = 1e-7


@dataclass(frozen=True)
class Mixture:
    """Two normal components, the lower first.

    Attributes
    ----------
    weight
        Share of the upper one.
    low, high
        Means.
    low_sd, high_sd
        Standard deviations.
    gain
        How much the Bayesian information criterion of two components beats that of
        one, per value; below 0 one normal distribution explains the values better.
    """

    weight: float
    low: float
    high: float
    low_sd: float
    high_sd: float
    gain: float

    @property
    def separation(self) -> float:
        """Ashman's D: above 2 the two are clearly apart."""
        return float(np.sqrt(2) * (self.high - self.low) / np.hypot(self.low_sd, self.high_sd))

    def log_odds(self, values: np.ndarray) -> np.ndarray:
        """Log odds that a value is of the upper component, made to rise with the value.

        Of two unequal widths the wider one wins in both tails; beyond the point where
        the odds turn they keep their extreme value instead.
        """
        a = (1 / self.low_sd**2 - 1 / self.high_sd**2) / 2
        b = self.high / self.high_sd**2 - self.low / self.low_sd**2
        x = np.asarray(values, dtype=np.float64)
        if a != 0:
            turn = -b / (2 * a)
            x = np.maximum(x, turn) if a > 0 else np.minimum(x, turn)
        return (
            _log_density(x, self.high, self.high_sd)
            - _log_density(x, self.low, self.low_sd)
            + (np.log(self.weight) - np.log1p(-self.weight))
        )


def fit_mixture(values: np.ndarray, *, min_sd: float = 1e-3, start: float | None = None) -> Mixture | None:
    """Fit two normal distributions with widths of their own.

    Parameters
    ----------
    values
        ``(n,)``, NaN is left out.
    min_sd
        No component gets narrower: values that repeat would have infinite density.
    start
        Where to cut the values for the first guess; None takes Otsu's threshold.

    Returns
    -------
    None if there are fewer than 10 values or they are all alike.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> found = fit_mixture(np.append(rng.normal(-4, 1, 3000), rng.normal(2, 0.5, 1000)))
    >>> round(found.low), round(found.high), round(found.weight, 2), found.separation > 2
    (-4, 2, 0.25, True)
    """
    x = np.asarray(values, dtype=np.float64)
    x = np.sort(x[~np.isnan(x)])
    if x.size < 10 or x[0] == x[-1]:
        return None
    upper = (x > (_otsu(x) if start is None else start)).astype(np.float64)
    if not 0 < upper.sum() < x.size:
        upper = (x > _otsu(x)).astype(np.float64)
    before = -np.inf
    for _ in range(_STEPS):
        weight = float(np.clip(upper.mean(), 1e-6, 1 - 1e-6))
        low, low_sd = _moments(x, 1 - upper, min_sd)
        high, high_sd = _moments(x, upper, min_sd)
        down = np.log1p(-weight) + _log_density(x, low, low_sd)
        up = np.log(weight) + _log_density(x, high, high_sd)
        likelihood = float(np.logaddexp(down, up).sum())
        upper = expit(up - down)
        if likelihood - before < _TOLERANCE * x.size:
            break
        before = likelihood
    if low > high:
        low, high, low_sd, high_sd, weight = high, low, high_sd, low_sd, 1 - weight
    one = float(_log_density(x, x.mean(), max(x.std(), min_sd)).sum())
    gain = (2 * (likelihood - one) - 3 * np.log(x.size)) / x.size
    return Mixture(weight, low, high, low_sd, high_sd, float(gain))


def _moments(x: np.ndarray, weight: np.ndarray, min_sd: float) -> tuple[float, float]:
    total = max(float(weight.sum()), 1e-12)
    mean = float((weight * x).sum() / total)
    return mean, max(float(np.sqrt((weight * (x - mean) ** 2).sum() / total)), min_sd)


def _log_density(x: np.ndarray, mean: float, sd: float) -> np.ndarray:
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)


def _otsu(x: np.ndarray) -> float:
    """The cut of sorted values with the largest variance between the two sides."""
    n = np.arange(1, x.size)
    left = np.cumsum(x)[:-1]
    gap = left / n - (x.sum() - left) / (x.size - n)
    between = np.where(x[1:] > x[:-1], n * (x.size - n) * gap**2, -1)
    return float(x[int(np.argmax(between))])
