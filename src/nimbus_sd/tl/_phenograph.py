"""Cluster cells by the neighbours they share."""

from __future__ import annotations

from importlib.metadata import version
from typing import Literal

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.version import __version__
from nimbus_sd._sdata.cluster_edits import check_new_column, forget_edits
from nimbus_sd._sdata.truth import check_adata
from nimbus_sd.tl._neighbour_graph import (
    NO_CLUSTER,
    GraphSettings,
    check_threads,
    cluster_cells,
    communities_library,
    representation,
)


def phenograph(
    adata: ad.AnnData,
    *,
    k: int = 8,
    use_rep: str | None = "X_nextchannel",
    method: Literal["leiden", "louvain"] = "leiden",
    resolution: float = 1.0,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    min_cells: int = 50,
    key_added: str = "phenograph",
    seed: int = 0,
    n_jobs: int | None = None,
) -> None:
    """Cluster cells by the communities of a graph of nearest neighbours.

    Two neighbours are tied by the share of their k neighbours that both have (Jaccard index),
    as PhenoGraph does it. Neighbours are exact up to 30,000 cells, approximate beyond.

    Parameters
    ----------
    adata
        Table of :func:`nimbus_sd.tl.embed`, or any other.
    k
        Neighbours of each cell, itself not counted.
    use_rep
        Entry of ``obsm`` to cluster by; None or ``"X"`` takes ``X``. Values are used as they are.
    method
        ``"leiden"``, whose clusters hang together, or ``"louvain"`` as in the paper.
    resolution
        Of the modularity: larger gives more clusters.
    metric
        Distance between cells.
    min_cells
        Clusters of fewer cells are unknown, ``"-1"``.
    key_added
        Column of ``obs`` to write.
    seed
        Decides the approximate search and the communities.
    n_jobs
        Threads of the search; None takes all.

    Returns
    -------
    None; writes ``obs[key_added]`` categorical, ``"0"`` the largest, ``"-1"`` (the last category) in
    clusters of fewer than `min_cells` cells; ``obsp[f"{key_added}_connectivities"]`` float64
    ``(n_obs, n_obs)`` sparse, the graph; and ``uns["phenograph"][key_added]``: the settings,
    ``modularity``, ``n_clusters``, ``n_unknown`` cells and versions. Earlier edits of
    ``obs[key_added]`` are forgotten.

    Raises
    ------
    MissingExtraError
        If igraph, which is under the GPL and an extra (``nimbus-sd[leiden]``), is not installed.
    ElementNotFoundError
        If the table has no `use_rep`.
    InputError
        If values are not finite, there are not more cells than neighbours, or an argument is
        out of range.

    Warns
    -----
    NimbusWarning
        If no cluster has `min_cells` cells.

    References
    ----------
    Levine et al. (2015), PhenoGraph, Cell 162:184; Traag et al. (2019), Leiden, Sci. Rep.
    9:5233; Gutwein et al. (2024), for k = 8 and 50 cells.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import nimbus_sd as nb
    >>> rng = np.random.default_rng(0)
    >>> X = np.repeat(np.eye(3), [70, 60, 20], axis=0) + rng.normal(0, 0.1, (150, 3))
    >>> adata = ad.AnnData(X.astype("float32"), obs=pd.DataFrame(index=[f"c{i}" for i in range(150)]))
    >>> nb.tl.phenograph(adata, use_rep="X", resolution=0.1)
    >>> adata.obs["phenograph"].value_counts(sort=False).to_dict()
    {'0': 70, '1': 60, '-1': 20}
    """
    check_adata(adata)
    settings = GraphSettings(k, method, resolution, metric, min_cells, seed)
    communities_library()  # missing, it is missed before the search
    check_threads(n_jobs)
    check_new_column(adata, key_added)
    values = representation(adata, use_rep)
    labels, graph, modularity = cluster_cells(values, settings, n_jobs=n_jobs, where="the table")

    n_clusters = int(labels.max()) + 1
    names = [str(i) for i in range(n_clusters)]
    codes = np.where(labels < 0, n_clusters, labels)
    unknown = int((labels < 0).sum())
    adata.obs[key_added] = pd.Categorical.from_codes(codes, [*names, NO_CLUSTER] if unknown else names)
    forget_edits(adata, key_added)
    adata.obsp[f"{key_added}_connectivities"] = graph
    adata.uns["phenograph"] = dict(adata.uns.get("phenograph", {})) | {
        key_added: {
            **settings.to_dict(),
            "use_rep": use_rep or "X",
            "connectivities_key": f"{key_added}_connectivities",
            "modularity": modularity,
            "n_clusters": n_clusters,
            "n_unknown": unknown,
            "versions": {"nimbus_sd": __version__, "igraph": version("igraph")},
        }
    }
