"""Write which clusters were merged and how they are named."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.files import whole_file
from nimbus_sd._sdata.cluster_edits import clusters_before, labels_of
from nimbus_sd._sdata.cluster_files import ClusterMapping, to_csv, to_json


def write_cluster_mapping(
    adata: AnnData,
    path: str | PathLike[str],
    key: str = "metacluster",
    *,
    node_key: str | None = "som_node",
    overwrite: bool = False,
) -> None:
    """Write a mapping that :func:`nimbus_sd.tl.merge_clusters` reads.

    Parameters
    ----------
    adata
        Table with the clusters.
    path
        ``.csv`` or ``.json``. For nodes the CSV is the remapping file of Pixie:
        ``cell_som_cluster`` (the node), ``cell_meta_cluster`` (numbers from 1),
        ``cell_meta_cluster_rename`` (the name).
    key
        Column of ``obs`` with the clusters as they are now.
    node_key
        Column with the nodes of the map that they group. If there is none, or None is
        given, the mapping is from the clusters before the first edit.
    overwrite
        Replace a file that exists.

    Raises
    ------
    ElementNotFoundError
        If there is no column `key`.
    InputError
        If the file exists, has another suffix, or a node or former cluster has cells
        in two of today's clusters.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import nimbus_sd as nb
    >>> obs = pd.DataFrame({"som_node": [0, 1, 1], "metacluster": ["T", "B", "B"]}, index=list("abc"))
    >>> adata = ad.AnnData(np.zeros((3, 1), "float32"), obs=obs)
    >>> file = Path(tempfile.mkdtemp()) / "mapping.csv"
    >>> nb.io.write_cluster_mapping(adata, file)
    >>> file.read_text().split()
    ['cell_som_cluster,cell_meta_cluster,cell_meta_cluster_rename', '0,1,T', '1,2,B']
    """
    target = Path(path)
    if target.suffix.lower() not in (".csv", ".json"):
        msg = f"{target}: unknown suffix {target.suffix!r}; valid: '.csv', '.json'"
        raise InputError(msg)
    if target.exists() and not overwrite:
        msg = f"{target} exists. Give overwrite=True to replace it, or another path."
        raise InputError(msg)
    if not target.parent.is_dir():
        msg = f"{target.parent} is not a folder. Make it first, or give another path."
        raise InputError(msg)
    mapping = _mapping(adata, key, node_key)
    text = to_csv(mapping) if target.suffix.lower() == ".csv" else to_json(mapping)
    with whole_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


def _mapping(adata: AnnData, key: str, node_key: str | None) -> ClusterMapping:
    now = labels_of(adata, key)
    of_nodes = node_key is not None and node_key in adata.obs
    before = labels_of(adata, str(node_key)) if of_nodes else clusters_before(adata, key)
    what = f"node of {node_key!r}" if of_nodes else f"cluster of {key!r} before the edits"
    pairs = np.unique(np.column_stack([before.codes, now.codes]), axis=0)
    pairs = pairs[(pairs >= 0).all(1)]
    codes, counts = np.unique(pairs[:, 0], return_counts=True)
    if (counts > 1).any():
        several = before.categories[int(codes[counts > 1][0])]
        msg = f"{what}: {several!r} has cells in several of today's clusters, which no mapping can say"
        raise InputError(msg)
    names = {str(before.categories[i]): str(now.categories[j]) for i, j in pairs}
    return ClusterMapping(_with_empty_nodes(adata, key, names) if of_nodes else names, of_nodes=of_nodes)


def _with_empty_nodes(adata: AnnData, key: str, names: dict[str, str]) -> dict[str, str]:
    """Add the nodes of the map that have no cells, so that new cells in them are mapped too."""
    flowsom = adata.uns.get("flowsom", {})
    if str(flowsom.get("key_metacluster")) != key:
        return names
    every = pd.Series(flowsom["node_metacluster"]).astype(str)
    return {str(i): names.get(str(i), name) for i, name in enumerate(every)}
