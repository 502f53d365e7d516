"""Give clusters names."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import anndata as ad

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.cluster_edits import Edit, apply_edit, check_edit, labels_of
from nimbus_sd._sdata.cluster_files import as_mapping
from nimbus_sd._sdata.truth import check_adata


def name_clusters(
    adata: ad.AnnData, names: Mapping[Any, Any] | str | PathLike[str], key: str = "metacluster"
) -> None:
    """Name clusters; no two may end up with one name, :func:`nimbus_sd.tl.merge_clusters` does that.

    :func:`nimbus_sd.tl.undo_clusters` takes it back.

    Parameters
    ----------
    adata
        Table with the clusters.
    names
        ``{cluster: name}``; clusters that it leaves out keep theirs. Or the path of a
        file: ``.json`` with the same, ``.csv`` with two columns, or the remapping CSV
        of Pixie, of which ``cell_meta_cluster`` and ``cell_meta_cluster_rename`` count.
    key
        Column of ``obs`` with the clusters.

    Returns
    -------
    None; writes the slots that :func:`nimbus_sd.tl.merge_clusters` does.

    Raises
    ------
    ElementNotFoundError
        If the column or a cluster does not exist.
    InputError
        If a name is empty or two clusters would share one, or the file is none of the
        formats.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import nimbus_sd as nb
    >>> obs = pd.DataFrame({"leiden": pd.Categorical(["0", "1", "0"])}, index=list("abc"))
    >>> adata = ad.AnnData(np.zeros((3, 1), "float32"), obs=obs)
    >>> nb.tl.name_clusters(adata, {"0": "T cell"}, key="leiden")
    >>> adata.obs["leiden"].tolist()
    ['T cell', '1', 'T cell']
    """
    check_adata(adata)
    found = as_mapping(names)
    if found.of_nodes and not found.renamed:
        msg = "the file gives clusters to nodes and no names to clusters; use nb.tl.merge_clusters for it"
        raise InputError(msg)
    edit = Edit("name", None, found.renamed if found.of_nodes else found.names)
    check_edit(adata, key, edit)
    owner: dict[str, str] = {}
    for cluster in labels_of(adata, key).categories:
        name = edit.mapping.get(cluster, cluster)
        if name in owner:
            msg = (
                f"clusters {owner[name]!r} and {cluster!r} would both be named {name!r}; give them different "
                "names, or merge them with nb.tl.merge_clusters"
            )
            raise InputError(msg)
        owner[name] = cluster
    apply_edit(adata, key, edit)
