"""``nimbus-sd cluster``: groups of cells alike, in one store or over a cohort."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd.cli._answer import answer
from nimbus_sd.cli._cluster_methods import COLUMNS, OPTIONS, check, chosen, find_clusters
from nimbus_sd.cli._complete import one_of
from nimbus_sd.cli._options import AsJson, DryRun, Overwrite, Stores, Table, split_names
from nimbus_sd.cli._tables import check_file
from nimbus_sd.cli._truth import joined, open_tables

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_N_SHOWN = 3  # markers per cluster


def cluster(
    stores: Stores,
    method: Annotated[
        str,
        typer.Option(
            help="leiden, flowsom, phenograph; keep: only rename those there are.",
            autocompletion=one_of(*OPTIONS),
        ),
    ] = "leiden",
    table: Table = "nimbus",
    layer: Annotated[str | None, typer.Option(help="Layer to cluster by; X when left out.")] = None,
    channels: Annotated[
        str | None, typer.Option(help="Comma-separated markers to cluster by; all when left out.")
    ] = None,
    use_rep: Annotated[
        str | None, typer.Option(help="obsm to cluster by, such as X_nextchannel (leiden, phenograph).")
    ] = None,
    k: Annotated[int | None, typer.Option(help="Neighbours (leiden: 15, phenograph: 8).")] = None,
    resolution: Annotated[
        float | None, typer.Option(help="Larger gives more clusters (leiden, phenograph: 1).")
    ] = None,
    communities: Annotated[str | None, typer.Option(help="leiden, louvain (phenograph).")] = None,
    metric: Annotated[str | None, typer.Option(help="euclidean, cosine (phenograph).")] = None,
    min_cells: Annotated[
        int | None, typer.Option(help="Smaller clusters become -1 (phenograph: 50).")
    ] = None,
    n_nodes: Annotated[int | None, typer.Option(help="Nodes of the map (flowsom: 225).")] = None,
    n_metaclusters: Annotated[int | None, typer.Option(help="Groups of nodes (flowsom: 20).")] = None,
    grouping: Annotated[str | None, typer.Option(help="hierarchical, consensus (flowsom).")] = None,
    linkage: Annotated[str | None, typer.Option(help="ward, average, complete (flowsom).")] = None,
    n_train: Annotated[int | None, typer.Option(help="Cells to train the map on (flowsom).")] = None,
    key_node: Annotated[str | None, typer.Option(help="Column for the nodes (flowsom: som_node).")] = None,
    key_added: Annotated[
        str | None,
        typer.Option(help="Column for the clusters: leiden, metacluster or phenograph when left out."),
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(help="CSV or JSON of cluster and name: those with one name are merged."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw mean scores per cluster, .png or .pdf.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides draws, map and communities.")] = None,
    n_jobs: Annotated[int | None, typer.Option(help="Threads of the search (phenograph).")] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Cluster the cells of a table, of several stores together, and write the clusters into it."""
    names = None if channels == "all" else split_names(channels)
    options = chosen(
        method,
        {
            **{"layer": layer, "channels": names, "use_rep": use_rep, "k": k, "resolution": resolution},
            **{"communities": communities, "metric": metric, "min_cells": min_cells, "n_nodes": n_nodes},
            **{"n_metaclusters": n_metaclusters, "grouping": grouping, "linkage": linkage},
            **{"n_train": n_train, "key_node": key_node, "seed": seed, "n_jobs": n_jobs},
        },
    )
    if method == "keep" and mapping is None:
        msg = "--method keep renames clusters that are there: give --mapping, or another method"
        raise InputError(msg)
    for option, path in (("--mapping", mapping), ("--plot", plot)):
        _check_path(option, path, overwrite=overwrite)
    key = key_added or COLUMNS[method]
    sdatas = open_tables(stores, table)
    for sdata, store in zip(sdatas, stores, strict=True):
        if method != "keep":
            _check_free(sdata.tables[table], key, store, overwrite=overwrite)
    adata = joined(sdatas, table)
    check(adata, method, options, key)
    facts: dict[str, Any] = {"stores": stores, "table": table, "method": method, "key": key}
    facts |= {"n_cells": adata.n_obs, "options": options}
    if dry_run:
        told = f"would cluster {adata.n_obs} cells by {method} and write obs {key!r} into {', '.join(stores)}"
        answer({**facts, "dry_run": True}, told, as_json=as_json)
        return
    find_clusters(adata, method, options, key)
    if mapping is not None:
        from nimbus_sd import tl

        tl.merge_clusters(adata, mapping, key, **({} if key_node is None else {"node_key": key_node}))
    columns = (key, key_node or "som_node", f"{key}_before_edits")
    uns = (key, "flowsom", "phenograph", "cluster_edits", f"{key}_colors")
    tables = _hand_back(adata, sdatas, table, columns, uns)
    facts |= {"tables": [f"{s}/tables/{t}" for s, t in zip(stores, tables, strict=True)], "plot": plot}
    rows = _sizes(adata, key, layer)
    facts |= {"n_clusters": len(rows), "clusters": rows}
    lines = [*_shown(rows, key), *(f"obs {key!r} of {adata.n_obs} cells -> {t}" for t in facts["tables"])]
    if plot is not None:
        _draw(adata, key, layer, plot)
        lines.append(f"mean scores per cluster -> {plot}")
    answer(facts, lines, as_json=as_json)


def _check_path(option: str, path: Path | None, *, overwrite: bool) -> None:
    if path is None:
        return
    if option == "--plot":
        check_file(option, path, overwrite=overwrite)
    elif not path.is_file():
        msg = f"{option} {path}: there is no such file"
        raise InputError(msg)


def _check_free(adata: AnnData, key: str, store: str, *, overwrite: bool) -> None:
    from nimbus_sd._sdata.cluster_edits import check_new_column

    check_new_column(adata, key)
    if key in adata.obs and not overwrite:
        msg = (
            f"{store}: the table has a column {key!r}; pass --overwrite to replace it, or another --key-added"
        )
        raise InputError(msg)


def _hand_back(
    adata: AnnData, sdatas: Sequence[SpatialData], table: str, columns: Sequence[str], uns: Sequence[str]
) -> list[str]:
    """Give each object its rows of the joint table's clusters, and persist them."""
    from nimbus_sd import io

    start = 0
    for sdata in sdatas if len(sdatas) > 1 else ():
        own = sdata.tables[table]
        rows = slice(start, start := start + own.n_obs)
        for name in columns:
            own.obs.drop(columns=name, errors="ignore", inplace=True)
            if name in adata.obs:
                own.obs[name] = adata.obs[name].iloc[rows].set_axis(own.obs_names)
        for name in uns:
            own.uns.pop(name, None)
            if name in adata.uns:
                own.uns[name] = adata.uns[name]
    return [io.write_table(sdata, table) for sdata in sdatas]


def _sizes(adata: AnnData, key: str, layer: str | None) -> list[dict[str, Any]]:
    """Cells of each cluster, and the markers that are highest in it against all cells."""
    import numpy as np

    from nimbus_sd._sdata.truth import matrix

    values = matrix(adata, layer)
    spread = np.nanstd(values, axis=0)
    raised = (values - np.nanmean(values, axis=0)) / np.where(spread > 0, spread, np.inf)
    column, rows = adata.obs[key], []
    for name in column.cat.categories:
        cells = (column == name).to_numpy()
        if cells.any():
            mean = np.nanmean(raised[cells], axis=0)
            top = [i for i in np.argsort(-mean)[:_N_SHOWN] if mean[i] > 0]
            markers = [str(adata.var_names[i]) for i in top]
            rows.append({"cluster": str(name), "n_cells": int(cells.sum()), "highest": markers})
    return rows


def _shown(rows: Sequence[dict[str, Any]], key: str) -> list[str]:
    width = max([len(key), *(len(r["cluster"]) for r in rows)])
    body = [f"{r['cluster']:<{width}}  {r['n_cells']:>9,}  {', '.join(r['highest'])}" for r in rows]
    return [f"{key:<{width}}  {'cells':>9}  highest markers", *body]


def _draw(adata: AnnData, key: str, layer: str | None, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from nimbus_sd import pl

    pl.marker_heatmap(adata, key, layer=layer, save=path, show=False)
