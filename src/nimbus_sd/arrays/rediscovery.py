"""Which known type each cluster holds most of, and how often known types are found again."""

from __future__ import annotations

import numpy as np


def count_pairs(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """How many cells have each pair of codes.

    Parameters
    ----------
    rows, columns
        int ``(n,)`` codes from 0; a cell with a negative one is left out.
    shape
        Number of row and of column codes.

    Returns
    -------
    int64 of `shape`.

    Examples
    --------
    >>> count_pairs(np.array([0, 0, 1, -1]), np.array([1, 1, 0, 0]), (2, 2)).tolist()
    [[0, 2], [1, 0]]
    """
    known = (rows >= 0) & (columns >= 0)
    flat = rows[known].astype(np.int64) * shape[1] + columns[known]
    return np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)


def majority(counts: np.ndarray) -> np.ndarray:
    """Type that most cells of each cluster have.

    A tie goes to the type that has fewer cells in all, then to the first.

    Parameters
    ----------
    counts
        int ``(n_clusters, n_types)`` cells.

    Returns
    -------
    int64 ``(n_clusters,)`` types; -1 for a cluster without a cell of known type.

    Examples
    --------
    >>> majority(np.array([[5, 1], [2, 2], [0, 0]])).tolist()
    [0, 1, -1]
    """
    if not counts.shape[1]:
        return np.full(len(counts), -1, dtype=np.int64)
    by_rarity = np.argsort(counts.sum(0), kind="stable")
    winner = by_rarity[np.argmax(counts[:, by_rarity], axis=1)]
    return np.where(counts.sum(1) > 0, winner, -1).astype(np.int64)


def row_shares(counts: np.ndarray) -> np.ndarray:
    """Each row divided by its sum, float64; NaN in a row without cells.

    Examples
    --------
    >>> row_shares(np.array([[3, 1], [0, 2]])).tolist()
    [[0.75, 0.25], [0.0, 1.0]]
    """
    total = counts.sum(1, keepdims=True).astype(np.float64)
    return np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
