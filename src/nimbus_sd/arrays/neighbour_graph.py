"""Graphs of nearest neighbours, weighted by how many neighbours two cells share; NumPy and SciPy."""

from __future__ import annotations

import numpy as np
from scipy import sparse

_COMPARED = 1 << 24  # comparisons of neighbours at a time


def jaccard_graph(neighbours: np.ndarray) -> sparse.csr_matrix:
    """Undirected graph of cells, weighted by the Jaccard index of their sets of neighbours.

    Cell i points to its k neighbours N(i), itself not among them, with the weight
    ``|N(i) ∩ N(j)| / |N(i) ∪ N(j)|``; the graph is the mean of that matrix and its transpose,
    so that neighbours both ways weigh twice as much as neighbours one way.

    Parameters
    ----------
    neighbours
        int ``(n, k)`` rows of the k nearest cells, without the cell itself and without repeats.

    Returns
    -------
    float64 ``(n, n)``, symmetric, zero diagonal, at most ``2 n k`` entries, none of them 0.

    References
    ----------
    Levine et al. (2015), PhenoGraph, Cell 162:184.

    Examples
    --------
    >>> jaccard_graph(np.array([[1, 2], [0, 2], [0, 1], [0, 1]])).toarray().round(3).tolist()[0]
    [0.0, 0.333, 0.333, 0.167]
    """
    n, k = neighbours.shape
    ordered = np.sort(neighbours, axis=1)
    weight = np.empty((n, k))
    step = max(1, _COMPARED // max(k * k * k, 1))
    for start in range(0, n, step):
        mine = ordered[start : start + step]
        theirs = ordered[neighbours[start : start + step]]  # (rows, k, k): neighbours of each neighbour
        # a set has no repeats: pairs that are equal are members that both have
        shared = (mine[:, None, :, None] == theirs[:, :, None, :]).sum((2, 3))
        weight[start : start + step] = shared / (2 * k - shared)
    rows = np.arange(0, n * k + 1, max(k, 1))
    directed = sparse.csr_matrix((weight.ravel(), neighbours.ravel().astype(np.int64), rows), shape=(n, n))
    graph = sparse.csr_matrix((directed + directed.T) / 2)
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph


def without_self(neighbours: np.ndarray, k: int) -> np.ndarray:
    """The first k of each row that are not the row itself.

    Parameters
    ----------
    neighbours
        int ``(n, at least k + 1)``, nearest first; the cell itself anywhere or, among many
        cells in one place, nowhere.
    k
        How many to keep.

    Examples
    --------
    >>> without_self(np.array([[0, 1, 2], [2, 0, 1], [0, 1, 3]]), 2).tolist()
    [[1, 2], [2, 0], [0, 1]]
    """
    others = neighbours != np.arange(len(neighbours))[:, None]
    first = np.argsort(~others, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(neighbours, first, axis=1)
