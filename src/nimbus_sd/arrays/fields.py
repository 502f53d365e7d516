"""How far each field of view lies from the others: shares and quantiles, robust z-scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_TO_SD = 1.4826  # median absolute deviation of a normal distribution to its standard deviation


def field_shares(positive: np.ndarray, fields: Sequence[np.ndarray]) -> np.ndarray:
    """Share of positive cells per field: bool ``(n, k)`` and rows of each field to ``(fields, k)``."""
    return np.stack([positive[rows].mean(0) for rows in fields])


def field_quantiles(values: np.ndarray, fields: Sequence[np.ndarray], levels: Sequence[float]) -> np.ndarray:
    """Quantiles per field, ``(fields, levels, k)``."""
    return np.stack([np.quantile(values[rows], levels, axis=0) for rows in fields])


def robust_z(values: np.ndarray, *, error: np.ndarray | float = 0.0, floor: float = 0.0) -> np.ndarray:
    """Distance from the median over fields, in units of their spread.

    ``(value - median) / sqrt((1.4826 MAD)² + error² + floor²)``: MAD is the median absolute
    deviation over the fields, `error` what a field of that many cells varies by chance.

    Parameters
    ----------
    values
        ``(fields, …)``.
    error
        Broadcasts with `values`.
    floor
        Least spread, for values that are equal in most fields.

    Returns
    -------
    Like `values`; 0 where there is no spread at all and the value is the median.

    Examples
    --------
    >>> robust_z(np.array([1.0, 2.0, 3.0, 11.0])).round(2).tolist()
    [-1.01, -0.34, 0.34, 5.73]
    """
    distance = values - np.median(values, axis=0)
    spread = _TO_SD * np.median(np.abs(distance), axis=0)
    unit = np.sqrt(spread**2 + np.square(error) + floor**2)
    beyond = np.select([distance > 0, distance < 0], [np.inf, -np.inf], 0.0)
    return np.divide(distance, unit, out=beyond, where=unit > 0)


def share_z(shares: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Robust z of shares, on the arcsine-square-root scale, where chance is ``1 / (2 sqrt n)``.

    Parameters
    ----------
    shares
        ``(fields, k)``.
    sizes
        Cells per field, ``(fields,)``.

    Examples
    --------
    >>> share_z(np.array([[0.1], [0.1], [0.5]]), np.array([100, 100, 100])).ravel().round(1).tolist()
    [0.0, 0.0, 9.3]
    """
    error = 1 / (2 * np.sqrt(np.maximum(sizes, 1)))
    return robust_z(np.arcsin(np.sqrt(shares)), error=error[:, None])
