"""Cells on a grid: what a field of the grid shows where cells are too many to draw each."""

from __future__ import annotations

import numpy as np


def fields(points: np.ndarray, low: np.ndarray, high: np.ndarray, side: int) -> np.ndarray:
    """Field of each point, int64 ``(n,)``, row by row from `low`.

    Parameters
    ----------
    points
        ``(n, 2)`` (x, y), within the limits.
    low, high
        ``(2,)`` limits of the grid, `high` above `low`.
    side
        Fields a side.
    """
    place = ((points - low) / (high - low) * side).astype(np.int64).clip(0, side - 1)
    return place[:, 1] * side + place[:, 0]


def binned_means(
    points: np.ndarray, values: np.ndarray, low: np.ndarray, high: np.ndarray, side: int
) -> np.ndarray:
    """Mean of the finite values in each field, float64 ``(side, side)``; NaN where there is none.

    Examples
    --------
    >>> at = np.array([[0.1, 0.1], [0.2, 0.2], [0.9, 0.1]])
    >>> binned_means(at, np.array([1.0, 3.0, 5.0]), np.zeros(2), np.ones(2), 2).tolist()
    [[2.0, 5.0], [nan, nan]]
    """
    known = np.isfinite(values)
    where = fields(points[known], low, high, side)
    count = np.bincount(where, minlength=side * side)
    total = np.bincount(where, weights=values[known], minlength=side * side)
    out = np.divide(total, count, out=np.full(side * side, np.nan), where=count > 0)
    return out.reshape(side, side)


def binned_groups(
    points: np.ndarray, codes: np.ndarray, low: np.ndarray, high: np.ndarray, side: int, *, n_groups: int
) -> np.ndarray:
    """Most frequent group of each field, int64 ``(side, side)``; -1 cells without one, -2 no cell.

    Of equally frequent groups the first counts, and any group before none.

    Examples
    --------
    >>> at = np.array([[0.1, 0.1], [0.2, 0.2], [0.9, 0.1]])
    >>> binned_groups(at, np.array([1, 1, -1]), np.zeros(2), np.ones(2), 2, n_groups=2).tolist()
    [[1, -1], [-2, -2]]
    """
    where = fields(points, low, high, side)
    # pairs that occur, at most one per cell: a full table of fields x groups would be large
    pair, count = np.unique(where * (n_groups + 1) + codes % (n_groups + 1), return_counts=True)
    field, group = np.divmod(pair, n_groups + 1)
    order = np.lexsort((group, -count, field))
    first = order[np.unique(field[order], return_index=True)[1]]
    out = np.full(side * side, -2, dtype=np.int64)
    out[field[first]] = np.where(group[first] == n_groups, -1, group[first])
    return out.reshape(side, side)
