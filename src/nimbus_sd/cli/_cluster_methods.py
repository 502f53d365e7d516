"""The ways in which ``nimbus-sd cluster`` finds clusters, and the options that each of them has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._core.lazy import require

if TYPE_CHECKING:
    import numpy as np
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
    """Raise whatever :func:`find_clusters` would before it begins."""
    from nimbus_sd._sdata.cluster_edits import labels_of
    from nimbus_sd._sdata.truth import check_adata

    check_adata(adata)
    if method == "keep":
        labels_of(adata, key)
        return
    rep = options.get("use_rep")
    if rep not in (None, "X", *adata.obsm):
        known = ", ".join(map(repr, ["X", *adata.obsm]))
        msg = f"the table has no obsm {rep!r}; valid: {known} (--use-rep)"
        raise ElementNotFoundError(msg)
    checks: dict[str, Callable[..., object]] = {
        "leiden": _leiden_values,
        "flowsom": _check_flowsom,
        "phenograph": _check_phenograph,
    }
    checks[method](adata, **_complete(adata, method, options))


def check_mapping(
    adata: AnnData, path: Path, method: str, options: Mapping[str, Any], key: str, node: str
) -> None:
    """Raise unless the file can be read and, as far as they are known yet, the clusters exist.

    Raises
    ------
    ElementNotFoundError
        If it names clusters or nodes that there won't be.
    InputError
        If it is no mapping.
    """
    from nimbus_sd._sdata.cluster_edits import Edit, check_edit
    from nimbus_sd._sdata.cluster_files import as_mapping

    found = as_mapping(path)
    if method == "keep":
        check_edit(adata, key, Edit("merge", node if found.of_nodes else None, found.names))
    elif method == "flowsom":
        what = "n_nodes" if found.of_nodes else "n_metaclusters"
        n = _complete(adata, method, options)[what]
        strange = sorted(set(found.names) - {str(i) for i in range(n)})
        if strange:
            kind = "nodes" if found.of_nodes else "metaclusters"
            msg = f"--mapping {path} names {', '.join(strange[:8])}; valid: the {kind} 0 to {n - 1}"
            raise ElementNotFoundError(msg)


def _complete(adata: AnnData, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The function's own arguments, with its defaults for those that are not given."""
    from inspect import signature

    from nimbus_sd import tl

    renamed = {"flowsom": "grouping", "phenograph": "communities"}.get(method)
    told = {("method" if k == renamed else k): v for k, v in options.items()}
    if method == "phenograph":
        # scores and intensities lie in X, activations of an embedding beside it
        told.setdefault("use_rep", "X_nextchannel" if "X_nextchannel" in adata.obsm else "X")
    functions: dict[str, Callable[..., None]] = {
        "flowsom": tl.flowsom,
        "phenograph": tl.phenograph,
        "leiden": _leiden,
    }
    defaults = {name: p.default for name, p in signature(functions[method]).parameters.items()}
    return {k: v for k, v in {**defaults, **told}.items() if k not in ("adata", "key", "key_added")}


def _check_flowsom(
    adata: AnnData,
    *,
    layer: str | None,
    channels: list[str] | None,
    n_train: int | None,
    key_node: str,
    **settings: Any,
) -> None:
    from nimbus_sd._sdata.cluster_edits import check_new_column
    from nimbus_sd.tl._cluster_rows import check_rows, table_rows
    from nimbus_sd.tl._flowsom import check_settings, train_size

    check_new_column(adata, key_node)
    rows = table_rows(adata, layer, channels)
    train_size(len(rows), settings["n_nodes"], n_train)
    check_settings(**settings)
    check_rows(rows, vary=True)


def _check_phenograph(adata: AnnData, *, use_rep: str, n_jobs: int | None, **settings: Any) -> None:
    from nimbus_sd.tl._neighbour_graph import GraphSettings, check_threads, representation

    k = GraphSettings(**settings).k
    check_threads(n_jobs)
    representation(adata, use_rep)
    if adata.n_obs <= k:
        msg = f"--k {k}; valid: fewer than the table's {adata.n_obs} cells"
        raise InputError(msg)


def find_clusters(adata: AnnData, method: str, options: Mapping[str, Any], key: str) -> None:
    """Write ``obs[key]``; see the functions of :mod:`nimbus_sd.tl` and scanpy's Leiden."""
    from nimbus_sd import tl

    told = _complete(adata, method, options) if method != "keep" else {}
    if method == "flowsom":
        tl.flowsom(adata, key_added=key, **told)
    elif method == "phenograph":
        tl.phenograph(adata, key_added=key, **told)
    elif method == "leiden":
        _leiden(adata, key, **told)


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
    import pandas as pd
    import scanpy as sc

    from nimbus_sd._sdata.cluster_edits import forget_edits

    values = _leiden_values(
        adata, layer=layer, channels=channels, use_rep=use_rep, k=k, resolution=resolution, seed=seed
    )
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


def _leiden_values(
    adata: AnnData,
    *,
    layer: str | None,
    channels: list[str] | None,
    use_rep: str | None,
    k: int,
    resolution: float,
    seed: int,
) -> np.ndarray:
    """float32 ``(n_obs, d)`` to find neighbours by; InputError if that or a setting can't be used."""
    from nimbus_sd.tl._cluster_rows import check_rows, table_rows
    from nimbus_sd.tl._neighbour_graph import representation

    if not 2 <= k < adata.n_obs:
        msg = f"--k {k}; valid: 2 to fewer than the table's {adata.n_obs} cells"
        raise InputError(msg)
    if not 0 < resolution < math.inf or not 0 <= seed < 2**32:
        msg = f"--resolution {resolution} --seed {seed}; valid: a number above 0, and 0 to 2**32 - 1"
        raise InputError(msg)
    if use_rep not in (None, "X"):
        if layer or channels:
            msg = "--use-rep takes the place of --layer and --channels; leave them out"
            raise InputError(msg)
        return representation(adata, use_rep)
    rows = table_rows(adata, layer, channels)
    check_rows(rows, vary=False)
    return rows.take(slice(None))
