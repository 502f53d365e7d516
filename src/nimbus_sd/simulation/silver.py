"""Silver labels as studies get them: integrated expression is clustered, clusters are named, names decide."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.cluster.vq import kmeans2
from scipy.spatial import cKDTree

from nimbus_sd.simulation._types import AnyArray, FloatArray

_FIT_ON = 4000
_KNEE = 3.0


def integrated_expression(images: AnyArray, labels: AnyArray) -> FloatArray:
    """Mean of each channel over each label 1..n: ``(c, y, x)`` and ``(y, x)`` to float64 ``(n, c)``."""
    n = int(labels.max()) + 1
    area = np.maximum(np.bincount(labels.ravel(), minlength=n), 1)
    sums = [np.bincount(labels.ravel(), weights=image.ravel(), minlength=n) for image in images]
    return (np.stack(sums, axis=1) / area[:, None])[1:]


def cluster_cells(rng: np.random.Generator, expression: FloatArray, n_clusters: int) -> AnyArray:
    """Over-cluster cells on scaled, capped ``arcsinh`` intensities: ``(n, c)`` to cluster ids ``(n,)``."""
    top = np.maximum(np.quantile(expression, 0.99, axis=0), 1e-6)
    z = np.clip(np.arcsinh(_KNEE * expression / top), 0, np.arcsinh(_KNEE))
    some = rng.permutation(len(z))[:_FIT_ON]
    # two equal rows would give k-means an empty cluster
    start = np.unique(z[some], axis=0)
    start = start[rng.permutation(len(start))[:n_clusters]]
    with warnings.catch_warnings():
        # a cluster that loses all its cells keeps its centre, which is what is wanted
        warnings.filterwarnings("ignore", "One of the clusters is empty", UserWarning)
        centres, _ = kmeans2(z[some], start, iter=15, minit="matrix", missing="warn", rng=rng)
    return cKDTree(centres).query(z)[1]


def silver_labels(
    rng: np.random.Generator, expression: FloatArray, positive: FloatArray, *, n_clusters: int = 36
) -> FloatArray:
    """Label cells by the majority of their cluster, right and wrong as in studies.

    Parameters
    ----------
    rng
        Source of randomness.
    expression
        ``(n, c)`` integrated expression of all cells of a dataset.
    positive
        ``(n, c)`` truth: 1, 0 or NaN.
    n_clusters
        Clusters that an expert names.

    Returns
    -------
    ``(n, c)`` float32: 1 or 0, NaN where the truth is undefined. Some 10 % are wrong.
    """
    cluster = cluster_cells(rng, expression, n_clusters)
    known = ~np.isnan(positive)
    size = int(cluster.max()) + 1
    votes = np.zeros((2, size, positive.shape[1]))
    np.add.at(votes[0], cluster, known)
    np.add.at(votes[1], cluster, np.nan_to_num(positive))
    majority = votes[1] > 0.5 * votes[0]
    return np.where(known, majority[cluster], np.nan).astype(np.float32)
