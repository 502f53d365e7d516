"""Make scores mean what they say: temperature, Platt, isotonic; and when to say "uncertain"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import expit

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays.metrics import defined

METHODS = ("temperature", "platt", "isotonic")
NO_LOW, NO_HIGH = -1.0, 2.0  # limits that no score in [0, 1] passes
_EPS = 1e-6
_STEPS = 100


@dataclass(frozen=True)
class Calibrator:
    """A rising map from scores to probabilities.

    Attributes
    ----------
    method
        ``"temperature"``, ``"platt"`` or ``"isotonic"``.
    slope, intercept
        Of the logit: sigmoid(slope · logit(score) + intercept); temperature is 1 / slope.
    x, y
        Knots of the isotonic map, linear in between.
    """

    method: str
    slope: float = 1.0
    intercept: float = 0.0
    x: tuple[float, ...] = ()
    y: tuple[float, ...] = ()

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities of `scores` in [0, 1], of any shape; NaN stays NaN."""
        if self.method == "isotonic":
            return np.interp(scores, self.x, self.y)
        return expit(self.slope * logit(scores) + self.intercept)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibrator:
        """Undo :meth:`to_dict`."""
        return cls(
            str(values["method"]), float(values["slope"]), float(values["intercept"]),
            tuple(map(float, values["x"])), tuple(map(float, values["y"])),
        )  # fmt: skip


def logit(scores: np.ndarray) -> np.ndarray:
    """Log odds, float64; scores within 1e-6 of 0 and 1 are moved there."""
    p = np.clip(np.asarray(scores, dtype=np.float64), _EPS, 1 - _EPS)
    return np.log(p) - np.log1p(-p)


def fit_calibrator(truth: np.ndarray, scores: np.ndarray, *, method: str = "temperature") -> Calibrator:
    """Fit a rising map from scores to the share of positives.

    Temperature and Platt minimise the cross-entropy by Newton's method, against
    Platt's smoothed targets ``(n₊ + 1) / (n₊ + 2)`` and ``1 / (n₋ + 2)``, so that
    classes that scores part cleanly give a finite slope. Where higher scores would
    mean fewer positives the slope is 0. Isotonic is the least-squares rising step map.

    Parameters
    ----------
    truth
        ``(n,)`` of 1, 0, NaN (left out).
    scores
        ``(n,)`` in [0, 1]; NaN is left out.
    method
        One of :data:`METHODS`.

    Raises
    ------
    InputError
        If the method is unknown, scores leave [0, 1] or a class is missing.

    References
    ----------
    Guo et al. (2017), *On calibration of modern neural networks* (temperature); Platt (1999),
    *Probabilistic outputs for support vector machines*; Zadrozny and Elkan (2002),
    *Transforming classifier scores into accurate multiclass probability estimates* (isotonic).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> p = rng.random(5000)
    >>> truth = (rng.random(5000) < p).astype(float)
    >>> flat = 1 / (1 + np.exp(-logit(p) / 3))  # too timid by a temperature of 1/3
    >>> round(fit_calibrator(truth, flat).slope)
    3
    """
    if method not in METHODS:
        msg = f"method={method!r}; valid: {', '.join(METHODS)}"
        raise InputError(msg)
    kept = defined(truth, scores)
    y, s = np.asarray(truth, np.float64)[kept], np.asarray(scores, np.float64)[kept]
    n_positive = int(y.sum())
    if n_positive in (0, y.size):
        msg = f"{y.size} labelled cells, {n_positive} of them positive: calibration needs both classes"
        raise InputError(msg)
    if s.min() < 0 or s.max() > 1:
        msg = f"scores lie in [{s.min():.3g}, {s.max():.3g}]; only scores in [0, 1] can be calibrated"
        raise InputError(msg)
    if method == "isotonic":
        return _fit_isotonic(y, s)
    z = logit(s)
    target = np.where(y == 1, (n_positive + 1) / (n_positive + 2), 1 / (y.size - n_positive + 2))
    design = z[:, None] if method == "temperature" else np.column_stack([z, np.ones_like(z)])
    found = _newton(design, target)
    if found[0] <= 0:
        design[:, 0] = 0
        found = _newton(design, target)
        found[0] = 0.0
    return Calibrator(method, float(found[0]), float(found[1]) if method == "platt" else 0.0)


def _newton(design: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Coefficients that minimise the cross-entropy of sigmoid(design · b) to the targets."""
    b = np.zeros(design.shape[1])
    b[0] = 1.0
    ridge = 1e-9 * target.size * np.eye(b.size)
    loss = _cross_entropy(design @ b, target)
    for _ in range(_STEPS):
        p = expit(design @ b)
        gradient = design.T @ (p - target) + ridge @ b
        hessian = (design * (p * (1 - p))[:, None]).T @ design + ridge
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        # far from the optimum a full step may overshoot
        while size > 1e-8 and _cross_entropy(design @ (b - size * step), target) > loss:
            size /= 2
        b = b - size * step
        new = _cross_entropy(design @ b, target)
        if loss - new < 1e-12 * (1 + abs(loss)):
            break
        loss = new
    return b


def _cross_entropy(z: np.ndarray, target: np.ndarray) -> float:
    return float((np.logaddexp(0, z) - target * z).sum())


def _fit_isotonic(y: np.ndarray, s: np.ndarray) -> Calibrator:
    x, inverse = np.unique(s, return_inverse=True)  # equal scores share one value
    n = np.bincount(inverse)
    mean = np.bincount(inverse, weights=y) / n
    value = isotonic_regression(mean, weights=n.astype(np.float64)).x
    inner = np.zeros(x.size, dtype=bool)
    if x.size > 2:
        inner[1:-1] = (value[1:-1] == value[:-2]) & (value[1:-1] == value[2:])
    return Calibrator("isotonic", x=tuple(x[~inner].tolist()), y=tuple(np.clip(value[~inner], 0, 1).tolist()))


def abstention_limits(
    truth: np.ndarray, scores: np.ndarray, *, error_rate: float, decision: float = 0.5
) -> tuple[float, float]:
    """Two limits that leave the fewest cells uncertain at a stated rate of errors.

    Cells at or below the lower limit are called negative, at or above the upper one
    positive, those between "uncertain". Among the cells called negative, and among
    those called positive, at most `error_rate` are wrong, so also among all called. The
    limits lie on either side of `decision`: of a rare marker all cells could be called
    negative with few errors, which helps nobody.

    Parameters
    ----------
    truth
        ``(n,)`` of 1, 0, NaN (left out).
    scores
        ``(n,)``; NaN is left out.
    error_rate
        In (0, 1).
    decision
        No cell above it is called negative, no other positive.

    Returns
    -------
    Lower and upper limit; -1 and 2 stand for a side on which no cell may be called.

    Raises
    ------
    InputError
        If the rate is out of range, or as :func:`nimbus_sd.arrays.metrics.defined`.

    Examples
    --------
    >>> abstention_limits(np.array([0, 0, 1, 0, 1, 1]), np.array([.1, .2, .4, .6, .8, .9]), error_rate=0.1)
    (0.2, 0.8)
    """
    if not 0 < error_rate < 1:
        msg = f"error_rate={error_rate} must lie in (0, 1), for instance 0.05"
        raise InputError(msg)
    kept = defined(truth, scores)
    s, where = np.unique(np.asarray(scores, np.float64)[kept], return_inverse=True)
    n = np.bincount(where, minlength=s.size)
    positive = np.bincount(where, weights=np.asarray(truth, np.float64)[kept], minlength=s.size)
    low = np.flatnonzero((s <= decision) & (np.cumsum(positive) <= error_rate * np.cumsum(n)))
    false = np.cumsum((n - positive)[::-1])[::-1]
    high = np.flatnonzero((s > decision) & (false <= error_rate * np.cumsum(n[::-1])[::-1]))
    return (float(s[low[-1]]) if low.size else NO_LOW), (float(s[high[0]]) if high.size else NO_HIGH)


def call_cells(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """1 at or above `high`, 0 at or below `low`, NaN between them; float32 of any shape."""
    out = np.full(np.shape(scores), np.nan, dtype=np.float32)
    out[scores <= low] = 0
    out[scores >= high] = 1
    return out


def assign_folds(
    truth: np.ndarray, *, n_folds: int, groups: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """Fold of each cell for cross-fitting, int64 ``(n,)``.

    Parameters
    ----------
    truth
        ``(n,)``; each class is spread evenly over the folds.
    n_folds
        At least 2.
    groups
        ``(n,)`` codes of fields that must stay together; None, or fewer than two of
        them, splits cells.
    seed
        Decides the shuffle.
    """
    rng = np.random.default_rng(seed)
    if groups is not None:
        known, code = np.unique(groups, return_inverse=True)
        if known.size > 1:
            return (rng.permutation(known.size) % n_folds)[code]
    out = np.empty(np.size(truth), np.int64)
    for value in (0, 1):
        rows = rng.permutation(np.flatnonzero((truth == 1) == bool(value)))
        out[rows] = np.arange(rows.size) % n_folds
    return out
