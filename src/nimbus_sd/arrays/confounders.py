"""What may make a cell hard to call: neighbours within a radius, spread of intensities; NumPy and SciPy."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree

from nimbus_sd._core.errors import InputError

_PAIRS = 1 << 22  # neighbour pairs held at a time


def neighbour_counts(
    points: np.ndarray, radius: float, *, positive: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Count the other cells, and the positive ones per marker, within a radius.

    Parameters
    ----------
    points
        ``(n, 2)`` centroids of one sample, any unit.
    radius
        In the same unit; cells at exactly this distance count.
    positive
        ``(n, k)`` bool; None counts no positives.

    Returns
    -------
    int64 ``(n,)`` cells and ``(n, k)`` positive cells, the cell itself not among them.

    Raises
    ------
    InputError
        If points are not finite or the radius is not above 0.

    Examples
    --------
    >>> points = np.array([[0, 0], [3, 4], [30, 0]])
    >>> cells, positives = neighbour_counts(points, 5, positive=np.array([[True], [False], [True]]))
    >>> cells.tolist(), positives.ravel().tolist()
    ([1, 1, 0], [0, 1, 0])
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or not np.isfinite(points).all() or not radius > 0:
        msg = f"points {points.shape} must be finite (n, 2) and radius={radius} above 0"
        raise InputError(msg)
    n = len(points)
    flags = np.zeros((n, 0)) if positive is None else np.asarray(positive, dtype=np.float64)
    positives = np.zeros(flags.shape, np.int64)
    if n == 0:
        return np.zeros(0, np.int64), positives
    tree = cKDTree(points)
    cells = tree.query_ball_point(points, radius, return_length=True).astype(np.int64)
    if flags.shape[1]:
        for start, stop in _chunks(cells):
            pairs = cKDTree(points[start:stop]).sparse_distance_matrix(tree, radius, output_type="ndarray")
            near = sparse.csr_array((np.ones(pairs.size), (pairs["i"], pairs["j"])), shape=(stop - start, n))
            positives[start:stop] = np.rint(near @ flags).astype(np.int64)
        positives -= flags.astype(np.int64)
    return cells - 1, positives


def _chunks(counts: np.ndarray) -> list[tuple[int, int]]:
    """Runs of cells with at most about `_PAIRS` neighbours together."""
    part = np.cumsum(counts) // _PAIRS
    starts = np.flatnonzero(np.append(True, part[1:] != part[:-1]))
    return list(zip(starts.tolist(), [*starts[1:].tolist(), counts.size], strict=True))


def coefficient_of_variation(values: np.ndarray) -> np.ndarray:
    """Standard deviation over mean of each column, NaN where the mean is 0 or nothing is finite.

    Parameters
    ----------
    values
        ``(n, k)``; NaN is left out.

    Returns
    -------
    float64 ``(k,)``.

    Examples
    --------
    >>> coefficient_of_variation(np.array([[1.0, 0.0], [3.0, 0.0]])).tolist()
    [0.5, nan]
    """
    values = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(values)
    n = known.sum(0)
    mean = np.divide(np.where(known, values, 0).sum(0), n, out=np.zeros(n.shape), where=n > 0)
    square = np.where(known, (values - mean) ** 2, 0).sum(0)
    spread = np.sqrt(np.divide(square, n, out=np.zeros(n.shape), where=n > 0))
    return np.divide(spread, mean, out=np.full(n.shape, np.nan), where=mean != 0)
