"""Merge clusters that are one."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import anndata as ad

from nimbus_sd._sdata.cluster_edits import Edit, apply_edit
from nimbus_sd._sdata.cluster_files import as_mapping
from nimbus_sd._sdata.truth import check_adata


def merge_clusters(
    adata: ad.AnnData,
    mapping: Mapping[Any, Any] | str | PathLike[str],
    key: str = "metacluster",
    *,
    node_key: str = "som_node",
) -> None:
    """Merge clusters, or group the nodes of a map anew.

    :func:`nimbus_sd.tl.undo_clusters` takes it back.

    Parameters
    ----------
    adata
        Table with the clusters.
    mapping
        ``{cluster: name of its new cluster}`` or ``{name: [clusters]}``; clusters that
        it leaves out stay as they are. Or the path of a file: ``.json`` with the same,
        ``.csv`` with two columns, or the remapping CSV of Pixie
        (``cell_som_cluster``, ``cell_meta_cluster``, ``cell_meta_cluster_rename``), which
        names the new cluster of every node in ``obs[node_key]``. The latter replaces
        what `key` holds by the names, or by the numbers where the file has no names.
    key
        Column of ``obs`` with the clusters, those of
        :func:`nimbus_sd.tl.flowsom`, Leiden or others.
    node_key
        Column of ``obs`` with the nodes that a Pixie CSV is about, for example
        ``"cell_som_cluster"`` in a table that Pixie made.

    Returns
    -------
    None; writes ``obs[key]`` (categorical, names as text) and the history, in
    ``uns["cluster_edits"]`` and ``obs[f"{key}_before_edits"]``; the metaclusters of
    nodes in ``uns["flowsom"]`` and colours in ``uns[f"{key}_colors"]`` follow.

    Raises
    ------
    ElementNotFoundError
        If a column does not exist, or the mapping names unknown clusters or nodes.
    InputError
        If the mapping is empty, gives a cluster two names or an empty one, leaves out
        nodes that have cells, or the file is none of the formats.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import nimbus_sd as nb
    >>> obs = pd.DataFrame({"metacluster": pd.Categorical(["0", "1", "2", "1"])}, index=list("abcd"))
    >>> adata = ad.AnnData(np.zeros((4, 1), "float32"), obs=obs)
    >>> nb.tl.merge_clusters(adata, {"2": "1"})
    >>> adata.obs["metacluster"].tolist()
    ['0', '1', '1', '1']
    """
    check_adata(adata)
    found = as_mapping(mapping)
    apply_edit(adata, key, Edit("merge", node_key if found.of_nodes else None, found.names))
