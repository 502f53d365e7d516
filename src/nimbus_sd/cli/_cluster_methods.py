"""The ways in which ``nimbus-sd cluster`` finds clusters, and the options that each of them has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._core.lazy import require

if TYPE_CHECKING:
    from anndata import AnnData

# None: the option is not given, and the function's own default holds
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "leiden": ("layer", "channels", "use_rep", "k", "resolution", "seed"),
    "flowsom": (
        *("layer", "channels", "n_nodes", "n_metaclusters", "grouping", "linkage", "n_train", "seed"),
        "key_node",
    ),
    "phenograph": ("use_rep", "k", "resolution", "communities", "metric", "min_cells", "seed", "n_jobs"),
    "keep": (),
}
COLUMNS = {"leiden": "leiden", "flowsom": "metacluster", "phenograph": "phenograph", "keep": "metacluster"}
_NEIGHBOURS = 15
_NEEDS = {
    "leiden": ("igraph", "leiden"),
    "phenograph": ("igraph", "leiden"),
    "flowsom": ("flowsom", "flowsom"),
}


def chosen(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that were given, all of them the method's.

    Raises
    ------
    InputError
        For an unknown method, or an option of another one.
    MissingExtraError
        If the method's package is not installed.
    """
    if method not in OPTIONS:
        msg = f"--method {method!r}; valid: {', '.join(OPTIONS)}"
        raise InputError(msg)
    found = {name: value for name, value in given.items() if value is not None}
    for name in found:
        if name not in OPTIONS[method]:
            option = "--" + name.replace("_", "-")
            valid = ", ".join(m for m, names in OPTIONS.items() if name in names)
            msg = f"{option} is for --method {valid}, not {method}; leave it out"
            raise InputError(msg)
    if method in _NEEDS:
        module, extra = _NEEDS[method]
        require(module, extra=extra)
    return found


def check(adata: AnnData, method: str, options: Mapping[str, Any], key: str) -> None:
    """Raise unless the table has what the options name."""
    from nimbus_sd._sdata.cluster_edits import labels_of
    from nimbus_sd._sdata.truth import check_adata
    from nimbus_sd.tl._cluster_rows import table_rows

    check_adata(adata)
    if method == "keep":
        labels_of(adata, key)
        return
    if method != "phenograph":
        table_rows(adata, options.get("layer"), options.get("channels"))
    rep = options.get("use_rep")
    if rep not in (None, "X", *adata.obsm):
        known = ", ".join(map(repr, ["X", *adata.obsm]))
        msg = f"the table has no obsm {rep!r}; valid: {known} (--use-rep)"
        raise ElementNotFoundError(msg)


def find_clusters(adata: AnnData, method: str, options: Mapping[str, Any], key: str) -> None:
    """Write ``obs[key]``; see the functions of :mod:`nimbus_sd.tl` and scanpy's Leiden."""
    from nimbus_sd import tl

    if method == "flowsom":
        told = {("method" if k == "grouping" else k): v for k, v in options.items()}
        tl.flowsom(adata, key_added=key, **told)
    elif method == "phenograph":
        told = {("method" if k == "communities" else k): v for k, v in options.items()}
        # scores and intensities lie in X, activations of an embedding beside it
        told.setdefault("use_rep", "X_nextchannel" if "X_nextchannel" in adata.obsm else "X")
        tl.phenograph(adata, key_added=key, **told)
    elif method == "leiden":
        _leiden(adata, key, **options)


def _leiden(
    adata: AnnData,
    key: str,
    *,
    layer: str | None = None,
    channels: list[str] | None = None,
    use_rep: str | None = None,
    k: int = _NEIGHBOURS,
    resolution: float = 1.0,
    seed: int = 0,
) -> None:
    """Scanpy's neighbours of these values and Leiden on them, in a copy: its graph is not kept."""
    import anndata as ad
    import numpy as np
    import pandas as pd
    import scanpy as sc

    from nimbus_sd._sdata.cluster_edits import forget_edits
    from nimbus_sd.tl._cluster_rows import check_rows, table_rows

    if use_rep in (None, "X"):
        rows = table_rows(adata, layer, channels)
        check_rows(rows, vary=False)
        values = rows.take(slice(None))
    elif layer or channels:
        msg = "--use-rep takes the place of --layer and --channels; leave them out"
        raise InputError(msg)
    else:
        values = np.asarray(adata.obsm[use_rep], np.float32)
    if not 2 <= k < adata.n_obs:
        msg = f"--k {k}; valid: 2 to fewer than the table's {adata.n_obs} cells"
        raise InputError(msg)
    graph = ad.AnnData(obsm={"values": values}, obs=pd.DataFrame(index=adata.obs_names))
    sc.pp.neighbors(graph, n_neighbors=k, use_rep="values", random_state=seed)
    sc.tl.leiden(
        graph, resolution=resolution, flavor="igraph", n_iterations=2, random_state=seed, key_added=key
    )
    order = graph.obs[key].value_counts().index  # "0" is to be the largest, as for the other methods
    names = [str(i) for i in range(len(order))]
    adata.obs[key] = pd.Categorical.from_codes(order.get_indexer(graph.obs[key]), names)
    forget_edits(adata, key)
    adata.uns[key] = {"params": {"resolution": resolution, "n_neighbors": k, "random_state": seed}}
