"""Clusters of a joint table, back in the tables of a cohort: what this run wrote, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_HISTORY = "cluster_edits"


def without_parts(adata: AnnData) -> AnnData:
    """The joint table without a map of which only parts are the same in all stores."""
    if "flowsom" in adata.uns and not {"node_metacluster", "key_node"} <= set(adata.uns["flowsom"]):
        del adata.uns["flowsom"]
    return adata


def hand_back(
    adata: AnnData, sdatas: Sequence[SpatialData], table: str, *, method: str, key: str, node: str
) -> None:
    """Give each object its rows of the joint table's clusters.

    Parameters
    ----------
    adata
        Joint table, cells in the order of `sdatas`.
    sdatas
        Objects, each with `table`.
    table
        Name of their tables.
    method
        What wrote the clusters: leiden, flowsom or phenograph.
    key, node
        Columns of clusters, and of nodes of the map.
    """
    start = 0
    for sdata in sdatas:
        own = sdata.tables[table]
        rows = slice(start, start := start + own.n_obs)
        _forget(own, key)
        names = (key, f"{key}_before_edits", *([node] if method == "flowsom" else []))
        for name in names:
            if name in adata.obs:
                own.obs[name] = adata.obs[name].iloc[rows].set_axis(own.obs_names)
        _records(adata, own, method, key)


def edit_each(sdatas: Sequence[SpatialData], table: str, mapping: Path, key: str, node: str) -> None:
    """Edit the clusters of each object, whose earlier edits are its own; a store may lack some."""
    from nimbus_sd._sdata.cluster_edits import Edit, apply_edit, labels_of
    from nimbus_sd._sdata.cluster_files import as_mapping

    found = as_mapping(mapping)
    by = node if found.of_nodes else None
    for sdata in sdatas:
        own = sdata.tables[table]
        known = set(labels_of(own, by or key).categories)
        flowsom = own.uns.get("flowsom", {})
        if by is not None and str(flowsom.get("key_metacluster")) == key:
            known |= {str(i) for i in range(len(flowsom["node_metacluster"]))}
        names = {k: v for k, v in found.names.items() if k in known}
        if names:
            apply_edit(own, key, Edit("merge", by, names))


def _forget(own: AnnData, key: str) -> None:
    from nimbus_sd._sdata.cluster_edits import forget_edits

    forget_edits(own, key)
    own.obsp.pop(f"{key}_connectivities", None)  # of clusters that are gone; a joint graph has no place here


def _records(adata: AnnData, own: AnnData, method: str, key: str) -> None:
    if method == "phenograph":
        record = {k: v for k, v in adata.uns["phenograph"][key].items() if k != "connectivities_key"}
        own.uns["phenograph"] = {**own.uns.get("phenograph", {}), key: record}
    else:
        name = "flowsom" if method == "flowsom" else key
        own.uns[name] = adata.uns[name]
    if f"{key}_colors" in adata.uns:
        own.uns[f"{key}_colors"] = adata.uns[f"{key}_colors"]
    history = adata.uns.get(_HISTORY, {})
    if key in history:
        own.uns[_HISTORY] = {**own.uns.get(_HISTORY, {}), key: history[key]}
