"""Group the nodes of a self-organising map: capped z-scores, hierarchical and consensus clustering; SciPy."""

from __future__ import annotations

import numpy as np
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import squareform

_RESAMPLES = 100
_SHARE = 0.9  # of the nodes, in each resample


def z_scores(values: np.ndarray, cap: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Z-scores of each column, clipped to ``[-cap, cap]``; 0 where a column is constant.

    Parameters
    ----------
    values
        ``(n, k)``.
    cap
        Largest absolute value.

    Returns
    -------
    float64 ``(n, k)`` z-scores, ``(k,)`` means and ``(k,)`` standard deviations.

    Examples
    --------
    >>> z, mean, std = z_scores(np.array([[0.0, 5.0], [2.0, 5.0]]), 3.0)
    >>> z.tolist(), mean.tolist(), std.tolist()
    ([[-1.0, 0.0], [1.0, 0.0]], [1.0, 5.0], [1.0, 0.0])
    """
    values = np.asarray(values, dtype=np.float64)
    mean, std = values.mean(0), values.std(0)
    z = np.divide(values - mean, std, out=np.zeros(values.shape), where=std > 0)
    return z.clip(-cap, cap), mean, std


def hierarchical(z: np.ndarray, n_clusters: int, *, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Agglomerate rows and cut the tree into exactly so many clusters.

    Parameters
    ----------
    z
        ``(n, k)``, n at least `n_clusters` and 2.
    n_clusters
        Clusters.
    method
        ``"average"``, ``"ward"`` or ``"complete"``, by Euclidean distance.

    Returns
    -------
    int64 ``(n,)`` clusters from 0, and SciPy's linkage ``(n - 1, 4)``.

    Examples
    --------
    >>> labels, tree = hierarchical(np.array([[0.0], [0.1], [5.0]]), 2, method="average")
    >>> labels.tolist(), tree.shape
    ([0, 0, 1], (2, 4))
    """
    tree = linkage(z, method=method)
    return cut_tree(tree, n_clusters=n_clusters).ravel().astype(np.int64), tree


def consensus(z: np.ndarray, n_clusters: int, *, method: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster rows by how often they end up together when a tenth of the rows is left out.

    Each of 100 resamples is agglomerated into `n_clusters`; one minus the share of
    resamples with both rows in which they were together is the distance of the final
    tree (average linkage).

    Parameters
    ----------
    z, n_clusters, method
        As in :func:`hierarchical`.
    seed
        Decides the resamples.

    Returns
    -------
    As :func:`hierarchical`.

    References
    ----------
    Monti et al. (2003), *Consensus clustering*, Machine Learning 52:91.

    Examples
    --------
    >>> rows = np.array([[0.0], [0.1], [5.0], [5.1]])
    >>> consensus(rows, 2, method="average", seed=0)[0].tolist()
    [0, 0, 1, 1]
    """
    n = len(z)
    size = min(max(round(_SHARE * n), n_clusters, 2), n)
    rng = np.random.default_rng(seed)
    together, drawn = np.zeros((n, n)), np.zeros((n, n))
    for _ in range(_RESAMPLES):
        rows = np.sort(rng.choice(n, size, replace=False))
        member = np.eye(n_clusters)[hierarchical(z[rows], n_clusters, method=method)[0]]
        together[np.ix_(rows, rows)] += member @ member.T
        drawn[np.ix_(rows, rows)] += 1
    distance = 1 - np.divide(together, drawn, out=np.zeros((n, n)), where=drawn > 0)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), method="average")
    return cut_tree(tree, n_clusters=n_clusters).ravel().astype(np.int64), tree


def largest_first(labels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Number clusters anew, 0 for the one with most cells; equal sizes keep their order.

    Parameters
    ----------
    labels
        int ``(n,)`` cluster of each node, from 0, none left out.
    sizes
        Cells of each node ``(n,)``.

    Examples
    --------
    >>> largest_first(np.array([0, 1, 1, 2]), np.array([5, 4, 4, 5])).tolist()
    [1, 0, 0, 2]
    """
    order = np.argsort(-np.bincount(labels, weights=sizes), kind="stable")
    return np.argsort(order)[labels]
