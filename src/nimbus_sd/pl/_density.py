"""Kernel density on [0, 1]."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d

_BINS = 1024
_NARROWEST = 1 / 256  # so that a single value still has a width


def mirrored_density(x: np.ndarray, *, bandwidth: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian kernel density on [0, 1]; what would fall outside is mirrored back, so it adds up to 1.

    Counted into 1,024 bins first: millions of cells take no longer than thousands.

    Parameters
    ----------
    x
        ``(n,)``; values outside [0, 1] and NaN are left out.
    bandwidth
        Standard deviation of the kernel; None takes Silverman's rule, 0.9 times the
        smaller of the standard deviation and IQR / 1.34, times n to the -1/5.

    Returns
    -------
    Positions ``(1024,)`` and density ``(1024,)``, zeros without values.

    References
    ----------
    Silverman (1986), *Density estimation for statistics and data analysis*, eq. 3.31.

    Examples
    --------
    >>> at, density = mirrored_density(np.array([0.0, 0.1, 0.9]))
    >>> round(float(density.mean()), 6)
    1.0
    """
    at = (np.arange(_BINS) + 0.5) / _BINS
    known = x[(x >= 0) & (x <= 1)]
    if not known.size:
        return at, np.zeros(_BINS)
    width = silverman(known) if bandwidth is None else bandwidth
    counts = np.histogram(known, _BINS, range=(0, 1))[0] / known.size
    return at, gaussian_filter1d(counts, width * _BINS, mode="reflect", truncate=6.0) * _BINS


def silverman(x: np.ndarray) -> float:
    """Bandwidth of `x` ``(n,)``, at least 1/256."""
    spread = [s for s in (x.std(), np.subtract(*np.quantile(x, [0.75, 0.25])) / 1.34) if s > 0]
    return max(0.9 * float(min(spread, default=0.0)) * x.size**-0.2, _NARROWEST)
