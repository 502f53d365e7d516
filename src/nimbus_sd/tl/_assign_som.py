"""Assign new cells to a map that was trained on others."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata.cluster_edits import check_new_column, forget_edits
from nimbus_sd._sdata.truth import check_adata
from nimbus_sd.tl._cluster_rows import assign_nodes, check_rows, table_rows

_FAR = 2.0  # times the training cells' mean distance to their nodes
_NEEDED = {"codes", "markers", "layer", "node_metacluster", "mean_distance", "key_node", "key_metacluster"}


def assign_som(
    adata: ad.AnnData, reference: ad.AnnData | Mapping[str, Any], *, layer: str | None = None
) -> None:
    """Assign cells to the nodes and metaclusters that :func:`nimbus_sd.tl.flowsom` found on others.

    Metaclusters that were merged or named since then are taken as they are now. Values
    must be made as those of the map were: same model or same units.

    Parameters
    ----------
    adata
        Table to write to; may have other markers besides.
    reference
        Table with the map, or its ``uns["flowsom"]``.
    layer
        Layer with the values; None takes the one that the map was trained on.

    Returns
    -------
    None; writes the columns of ``obs`` that the map wrote, every metacluster a category
    whether or not it has cells here, and ``uns["flowsom"]``, ``node_size`` and
    ``node_mean`` being those of these cells. Warns if cells lie twice as far from their
    nodes as those of the map.

    Raises
    ------
    ElementNotFoundError
        If a layer or marker of the map does not exist.
    InputError
        If it is no map, or values are not finite.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import nimbus_sd as nb
    >>> rng = np.random.default_rng(0)
    >>> X = np.repeat(np.eye(3), 40, axis=0) + rng.normal(0, 0.1, (120, 3))
    >>> adata = ad.AnnData(X.astype("float32"), obs=pd.DataFrame(index=[f"c{i}" for i in range(120)]))
    >>> new = adata[::2].copy()
    >>> nb.tl.flowsom(adata, n_nodes=9, n_metaclusters=3)
    >>> nb.tl.assign_som(new, adata)
    >>> bool((new.obs["metacluster"] == adata.obs["metacluster"][::2]).all())
    True
    """
    check_adata(adata)
    trained = reference.obs if isinstance(reference, ad.AnnData) else pd.DataFrame()
    if isinstance(reference, ad.AnnData):
        reference = reference.uns.get("flowsom", {})
    if not isinstance(reference, Mapping) or not set(reference) >= _NEEDED:
        msg = "no map there: pass a table after nb.tl.flowsom, or its uns['flowsom']"
        raise InputError(msg)
    codes = np.asarray(reference["codes"], dtype=np.float32)
    source = str(reference["layer"]) if layer is None else layer
    rows = table_rows(adata, source, list(map(str, reference["markers"])))
    key_node, key_metacluster = str(reference["key_node"]), str(reference["key_metacluster"])
    check_new_column(adata, key_node, key_metacluster)
    check_rows(rows, vary=False)

    node, sums, distance = assign_nodes(rows, codes)
    of_node = pd.Categorical(np.asarray(reference["node_metacluster"], dtype=object).astype(str))
    column = trained.get(key_metacluster, pd.Series(dtype="category"))
    of_node = of_node.reorder_categories(_in_order(of_node.categories, column))
    sizes = np.bincount(node, minlength=len(codes))
    _warn_if_far(distance, float(reference["mean_distance"]))
    adata.obs[key_node] = node
    adata.obs[key_metacluster] = of_node[node]
    forget_edits(adata, key_metacluster)
    means = np.divide(sums, sizes[:, None], out=np.full(sums.shape, np.nan), where=sizes[:, None] > 0)
    adata.uns["flowsom"] = copy.deepcopy(dict(reference)) | {
        "layer": source, "node_size": sizes, "node_mean": means,
    }  # fmt: skip


def _in_order(names: pd.Index, column: pd.Series) -> list[str]:
    """As in the column of the table with the map, else numbers by value and then names."""
    known = list(map(str, column.astype("category").cat.categories))
    left = sorted(set(names) - set(known), key=lambda n: (0, int(n), n) if n.isdecimal() else (1, 0, n))
    return [name for name in known if name in names] + left


def _warn_if_far(distance: float, trained: float) -> None:
    if distance > _FAR * trained:
        warnings.warn(
            f"cells lie {distance:.3g} from their nodes on average, those of the map {trained:.3g}: other "
            "values (another layer, model or scale) or cells that the map has not seen",
            NimbusWarning,
            stacklevel=3,
        )
