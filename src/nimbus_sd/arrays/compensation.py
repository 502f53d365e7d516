"""Take signal that spilled between channels back out of pixels: linear, or non-negative least squares."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

METHODS = ("nnls", "linear")
_SLAB = 4096  # pixels at once: fits a cache
_SWEEPS = 500
_TOLERANCE = 1e-8  # of a pixel's largest channel


def compensate_pixels(pixels: np.ndarray, spillover: np.ndarray, *, method: str = "nnls") -> np.ndarray:
    """Find what was there before it spilled, pixel by pixel.

    A pixel `y` is taken as ``x @ spillover`` of the true `x`. ``"linear"`` solves that, which
    gives negative values where less arrived than should have. ``"nnls"`` minimises
    ``|x @ spillover - y|²`` over ``x ≥ 0``; the two agree where the first is not negative.

    Parameters
    ----------
    pixels
        ``(c, ...)`` finite.
    spillover
        ``(c, c)``, regular: rows emit, columns receive, 1 on the diagonal.
    method
        One of :data:`METHODS`.

    Returns
    -------
    float32 of the same shape. Each pixel's result depends on that pixel alone.

    References
    ----------
    Chevrier et al. (2018), *Compensation of signal spillover in suspension and imaging mass
    cytometry*, Cell Systems 6:612.

    Examples
    --------
    >>> spillover = np.array([[1.0, 0.25], [0.0, 1.0]])
    >>> compensate_pixels(np.array([[8.0, 8.5], [3.0, 0.0]]), spillover).tolist()
    [[8.0, 8.0], [1.0, 0.0]]
    """
    spillover = np.asarray(spillover, dtype=np.float64)
    inverse = np.linalg.inv(spillover)
    flat = pixels.reshape(len(pixels), -1)
    out = np.empty(flat.shape, dtype=np.float32)
    for start in range(0, flat.shape[1], _SLAB):
        part = slice(start, start + _SLAB)
        observed = flat[:, part].T.astype(np.float64)
        found = observed @ inverse
        if method == "nnls":
            wrong = np.flatnonzero((found < 0).any(axis=1))
            found[wrong] = _non_negative(observed[wrong], found[wrong], spillover)
        out[:, part] = found.T
    return out.reshape(pixels.shape)


def _non_negative(observed: np.ndarray, start: np.ndarray, spillover: np.ndarray) -> np.ndarray:
    """Non-negative solutions ``(n, c)`` of ``x @ spillover = observed``, from a start near them.

    Channels are solved in turn for all pixels at once, again and again (projected
    Gauss-Seidel). As little spills, a few rounds do; pixels that are not done after
    :data:`_SWEEPS` of them go to an active-set solver, one by one. Grouping pixels by their
    set of positive channels instead, as fast combinatorial NNLS does, gains nothing here:
    among tens of channels nearly every pixel has a set of its own.
    """
    gram, target = spillover @ spillover.T, observed @ spillover.T
    tolerance = _TOLERANCE * np.abs(observed).max(axis=1, initial=0)
    out = np.empty_like(start)
    left = np.arange(len(start))
    x = np.maximum(start, 0).T.copy()
    b = target.T.copy()
    for _ in range(_SWEEPS):
        change = np.zeros(left.size)
        for j, row in enumerate(gram):
            step = np.maximum(x[j] + (b[j] - row @ x) / row[j], 0) - x[j]
            x[j] += step
            np.maximum(change, np.abs(step), out=change)
        going = change > tolerance[left]
        if not going.all():
            out[left[~going]] = x[:, ~going].T
            left, x, b = left[going], x[:, going], b[:, going]
        if not left.size:
            return out
    for i in left:
        out[i] = nnls(spillover.T, observed[i])[0]
    return out
