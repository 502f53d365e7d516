"""What phenograph and subcluster share: checks, nearest neighbours, communities of their graph."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import anndata as ad
import numpy as np
from scipy import sparse
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd._core.lazy import require
from nimbus_sd.arrays.metaclusters import largest_first
from nimbus_sd.arrays.neighbour_graph import jaccard_graph, without_self

NO_CLUSTER = "-1"
_EXACT_CELLS = 30_000  # all distances up to here; they grow with the square
_SEARCHED = 30  # neighbours that the approximate search keeps: few are found badly
_ITERATIONS = 10


@dataclass(frozen=True)
class GraphSettings:
    """What decides a clustering of a neighbour graph.

    Parameters
    ----------
    k
        Neighbours.
    method
        ``"leiden"`` or ``"louvain"``.
    resolution
        Of the modularity.
    metric
        ``"euclidean"`` or ``"cosine"``.
    min_cells
        Smaller clusters are none.
    seed
        Of search and communities.
    """

    k: int
    method: str
    resolution: float
    metric: str
    min_cells: int
    seed: int

    def __post_init__(self) -> None:
        wrong = isinstance(self.resolution, bool) or not isinstance(self.resolution, int | float | np.number)
        valid: dict[str, tuple[bool, str]] = {
            "k": (_whole(self.k, 1), "a whole number, at least 1"),
            "method": (self.method in ("leiden", "louvain"), "'leiden', 'louvain'"),
            "resolution": (not wrong and 0 < self.resolution < math.inf, "a number above 0"),
            "metric": (self.metric in ("euclidean", "cosine"), "'euclidean', 'cosine'"),
            "min_cells": (_whole(self.min_cells, 1), "a whole number, at least 1"),
            "seed": (_whole(self.seed, 0) and self.seed < 2**32, "0 to 2**32 - 1"),
        }
        for name, (good, told) in valid.items():
            if not good:
                msg = f"{name}={getattr(self, name)!r}; valid: {told}"
                raise InputError(msg)

    def to_dict(self) -> dict[str, Any]:
        """For ``uns``."""
        return asdict(self)


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= least


def check_threads(n_jobs: int | None) -> None:
    """Raise InputError unless it is None or a whole number from 1."""
    if n_jobs is not None and not _whole(n_jobs, 1):
        msg = f"n_jobs={n_jobs!r}; valid: a number of threads from 1, or None for all"
        raise InputError(msg)


def representation(adata: ad.AnnData, use_rep: str | None) -> np.ndarray:
    """float32 ``(n_obs, d)`` of ``obsm[use_rep]``, or of X (None or ``"X"``).

    Raises
    ------
    ElementNotFoundError
        If there is no such entry.
    InputError
        If a value is not finite, or it is no matrix of numbers.
    """
    if use_rep not in (None, "X", *adata.obsm):
        known = ", ".join(map(repr, ["X", *adata.obsm]))
        hint = "; nb.tl.embed writes it" if use_rep == "X_nextchannel" else ""
        msg = f"use_rep={use_rep!r}: the table has no such entry in obsm; valid: {known}{hint}"
        raise ElementNotFoundError(msg)
    where = f"obsm[{use_rep!r}]" if use_rep in adata.obsm else "X"
    found: Any = adata.obsm.get(use_rep, adata.X)
    if found is None or not found.shape[1]:
        msg = f"{where} is empty; name an entry of obsm with use_rep="
        raise InputError(msg)
    found = found.toarray() if hasattr(found, "toarray") else found
    try:
        out = np.ascontiguousarray(found, dtype=np.float32)
    except (TypeError, ValueError) as error:
        msg = f"{where} holds something else than numbers ({error}); name another entry with use_rep="
        raise InputError(msg) from error
    bad = int((~np.isfinite(out)).any(axis=1).sum())
    if bad:
        msg = f"{where} holds NaN or infinite values in {bad} of {len(out)} cells; drop these cells first"
        raise InputError(msg)
    return out


def cluster_cells(
    values: np.ndarray, settings: GraphSettings, *, n_jobs: int | None, where: str
) -> tuple[np.ndarray, sparse.csr_matrix, float]:
    """Clusters of cells by the communities of their neighbour graph.

    Parameters
    ----------
    values
        float32 ``(n, d)``.
    settings
        How.
    n_jobs
        Threads; None takes all.
    where
        What to call the cells in errors and warnings.

    Returns
    -------
    int64 ``(n,)`` clusters, 0 the largest, -1 in one of fewer than ``min_cells`` cells; the graph;
    and the modularity of all communities, the small ones too.

    Raises
    ------
    InputError
        If there are not more cells than neighbours.
    """
    if len(values) <= settings.k:
        msg = f"{where}: {len(values)} cells are too few for k={settings.k} neighbours; give a smaller k"
        raise InputError(msg)
    graph = jaccard_graph(nearest(values, settings, n_jobs=n_jobs))
    labels, modularity = communities(graph, settings)
    labels = largest_first(labels, np.ones(len(labels)))
    labels[np.bincount(labels)[labels] < settings.min_cells] = -1
    if (labels < 0).all():
        warnings.warn(
            f"{where}: no cluster has min_cells={settings.min_cells} cells; give a smaller min_cells or "
            "resolution, or a larger k",
            NimbusWarning,
            stacklevel=3,
        )
    return labels, graph, modularity


def nearest(values: np.ndarray, settings: GraphSettings, *, n_jobs: int | None = None) -> np.ndarray:
    """int64 ``(n, k)`` nearest other cells: exact up to 30,000 cells, else by pynndescent."""
    if settings.metric == "cosine":
        length = np.linalg.norm(values, axis=1, keepdims=True)
        values = values / np.where(length > 0, length, 1)
    if len(values) <= _EXACT_CELLS:
        with threadpool_limits(n_jobs):
            search = NearestNeighbors(n_neighbors=settings.k, algorithm="brute").fit(values)
            found: np.ndarray = search.kneighbors(return_distance=False)
        return found.astype(np.int64, copy=False)
    import numba  # these two compile for seconds
    import pynndescent

    most = int(numba.get_num_threads())
    wanted = min(max(settings.k + 1, _SEARCHED), len(values) - 1)
    index = pynndescent.NNDescent(
        values, n_neighbors=wanted, random_state=int(settings.seed), n_jobs=min(n_jobs or most, most)
    )
    return completed(without_self(index.neighbor_graph[0].astype(np.int64), settings.k), values)


def completed(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Neighbours ``(n, k)`` where each row with a -1, which a search did not find, is looked up exactly."""
    lost = np.flatnonzero((rows < 0).any(axis=1))
    if lost.size:
        k = rows.shape[1]
        exact = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(values)
        found = exact.kneighbors(values[lost], return_distance=False)
        others = np.argsort(found == lost[:, None], axis=1, kind="stable")[:, :k]
        rows = rows.copy()
        rows[lost] = np.take_along_axis(found, others, axis=1)
    return rows


def communities(graph: sparse.csr_matrix, settings: GraphSettings) -> tuple[np.ndarray, float]:
    """Community of each cell, int64 from 0, and their modularity at resolution 1."""
    igraph = communities_library()
    upper = sparse.triu(graph, k=1).tocoo()
    # arrays: lists of the edges and their weights take over 150 bytes an edge
    net = igraph.Graph(n=graph.shape[0], edges=np.column_stack([upper.row, upper.col]))
    weights = upper.data
    with _seeded(int(settings.seed)):
        if settings.method == "leiden":
            found = net.community_leiden(
                objective_function="modularity", weights=weights, resolution=float(settings.resolution),
                n_iterations=_ITERATIONS,
            )  # fmt: skip
        else:
            found = net.community_multilevel(weights=weights, resolution=float(settings.resolution))
    modularity = net.modularity(found.membership, weights=weights) if weights.size else 0.0
    return np.asarray(found.membership, dtype=np.int64), float(modularity)


def communities_library() -> Any:
    """Give igraph, which is under the GPL and therefore an extra."""
    return require("igraph", extra="leiden")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed igraph's generator, and give it back to Python's, which is its default."""
    igraph = communities_library()
    igraph.set_random_number_generator(random.Random(seed))  # noqa: S311
    try:
        yield
    finally:
        igraph.set_random_number_generator(random)
