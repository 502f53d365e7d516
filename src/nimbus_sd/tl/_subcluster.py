"""Split clusters further."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Literal

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._core.version import __version__
from nimbus_sd._sdata.cluster_edits import check_new_column, forget_edits, labels_of
from nimbus_sd._sdata.truth import check_adata
from nimbus_sd.tl._neighbour_graph import (
    GraphSettings,
    check_threads,
    cluster_cells,
    communities_library,
    representation,
)


def subcluster(
    adata: ad.AnnData,
    cluster_key: str,
    clusters: str | Sequence[str],
    *,
    k: int = 8,
    use_rep: str | None = "X_nextchannel",
    method: Literal["leiden", "louvain"] = "leiden",
    resolution: float = 1.0,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    min_cells: int = 50,
    key_added: str | None = None,
    seed: int = 0,
    n_jobs: int | None = None,
) -> None:
    """Cluster the cells of one or several clusters anew, each cluster by itself.

    The graph is built among the cluster's cells alone, as :func:`nimbus_sd.tl.phenograph` builds
    it. Cells of other clusters keep theirs. To split several clusters as one, merge them first
    (:func:`nimbus_sd.tl.merge_clusters`); the new column can be merged, named and undone too.

    Parameters
    ----------
    adata
        Table with the clusters.
    cluster_key
        Column of ``obs`` with them.
    clusters
        Which to split.
    k, use_rep, method, resolution, metric, seed, n_jobs
        As in :func:`nimbus_sd.tl.phenograph`.
    min_cells
        Parts of fewer cells become one, called ``"3,-1"``: no cluster, and unknown to
        :func:`nimbus_sd.tl.rediscovery`. A cluster of which no part has as many stays whole.
    key_added
        Column of ``obs`` to write; None takes ``f"{cluster_key}_sub"``. May be `cluster_key`
        itself, to split what was split before once more.

    Returns
    -------
    None; writes ``obs[key_added]`` categorical: cells of cluster ``"3"`` get ``"3,0"`` (the
    largest part), ``"3,1"``, ..., in the place of ``"3"``; and ``uns["subcluster"][key_added]``:
    the settings, ``split`` and its ``modularity``, and versions. Earlier edits of
    ``obs[key_added]`` are forgotten.

    Raises
    ------
    MissingExtraError
        If igraph, which is under the GPL and an extra (``nimbus-sd[leiden]``), is not installed.
    ElementNotFoundError
        If the column, a cluster or `use_rep` does not exist.
    InputError
        If a cluster has not more cells than neighbours, values are not finite, or an argument is
        out of range.

    Warns
    -----
    NimbusWarning
        If no part of a cluster has `min_cells` cells.

    References
    ----------
    Gutwein et al. (2024), *Interpretable embeddings for segmentation-free single-cell analysis
    in multiplex imaging*, figure 5.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import nimbus_sd as nb
    >>> rng = np.random.default_rng(0)
    >>> X = np.repeat(np.eye(3), 60, axis=0) + rng.normal(0, 0.1, (180, 3))
    >>> obs = pd.DataFrame({"type": ["T"] * 120 + ["B"] * 60}, index=[f"c{i}" for i in range(180)])
    >>> adata = ad.AnnData(X.astype("float32"), obs=obs)
    >>> nb.tl.subcluster(adata, "type", "T", use_rep="X", k=20, resolution=0.1)
    >>> adata.obs["type_sub"].value_counts(sort=False).to_dict()
    {'B': 60, 'T,0': 60, 'T,1': 60}
    """
    check_adata(adata)
    settings = GraphSettings(k, method, resolution, metric, min_cells, seed)
    communities_library()  # missing, it is missed before the search
    check_threads(n_jobs)
    key = f"{cluster_key}_sub" if key_added is None else key_added
    check_new_column(adata, key)
    column = labels_of(adata, cluster_key)
    wanted = _wanted(clusters, column, cluster_key)
    values = representation(adata, use_rep)

    text = np.array([*column.categories, None], dtype=object)[column.codes]  # code -1 is the last
    parts: dict[str, list[str]] = {}
    modularity = []
    for name in wanted:
        rows = np.flatnonzero(column.codes == column.categories.get_loc(name))
        where = f"cluster {name!r} of obs[{cluster_key!r}]"
        labels, _, score = cluster_cells(values[rows], settings, n_jobs=n_jobs, where=where)
        modularity.append(score)
        if (labels < 0).all():
            parts[name] = [name]
            continue
        text[rows] = [f"{name},{i}" for i in labels]
        parts[name] = [
            f"{name},{i}" for i in [*range(labels.max() + 1), *([-1] if (labels < 0).any() else [])]
        ]
    names = [new for old in column.categories for new in parts.get(old, [old])]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        msg = (
            f"obs[{cluster_key!r}] has clusters {', '.join(twice)} already; rename them first (name_clusters)"
        )
        raise InputError(msg)
    adata.obs[key] = pd.Categorical(text, categories=names)
    forget_edits(adata, key)
    adata.uns["subcluster"] = dict(adata.uns.get("subcluster", {})) | {
        key: {
            **settings.to_dict(), "use_rep": use_rep or "X", "cluster_key": cluster_key,
            "split": json.dumps(parts, ensure_ascii=False), "modularity": np.array(modularity),
            "versions": {"nimbus_sd": __version__, "igraph": version("igraph")},
        }
    }  # fmt: skip


def _wanted(clusters: str | Sequence[str], column: pd.Categorical, cluster_key: str) -> list[str]:
    names = [clusters] if isinstance(clusters, str | int) else list(map(str, clusters))
    names = list(map(str, names))
    missing = [n for n in names if n not in column.categories]
    if missing:
        msg = (
            f"obs[{cluster_key!r}] has no cluster {', '.join(missing)}; valid: {', '.join(column.categories)}"
        )
        raise ElementNotFoundError(msg)
    if not names or len(set(names)) < len(names):
        msg = f"clusters={names}: name at least one cluster, and each once"
        raise InputError(msg)
    return names
