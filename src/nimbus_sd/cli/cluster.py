"""``nimbus-sd cluster``: groups of cells alike, in one store or over a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd.cli._answer import answer
from nimbus_sd.cli._cluster_markers import described
from nimbus_sd.cli._cluster_methods import COLUMNS, OPTIONS, check, check_mapping, chosen, find_clusters
from nimbus_sd.cli._complete import one_of
from nimbus_sd.cli._joint_clusters import edit_each, hand_back, without_parts
from nimbus_sd.cli._options import AsJson, DryRun, Overwrite, Stores, Table, split_names
from nimbus_sd.cli._places import check_key
from nimbus_sd.cli._tables import check_ending, check_file
from nimbus_sd.cli._truth import joined, open_tables

if TYPE_CHECKING:
    from anndata import AnnData


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
        Path | None, typer.Option(help="Also draw mean scores per cluster, .png, .pdf or .svg.")
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
    key, node = key_added or COLUMNS[method], key_node or "som_node"
    sdatas = open_tables(stores, table, write=True)
    for sdata, store in zip(sdatas, stores, strict=True):
        if method != "keep":
            _check_free(sdata.tables[table], key, store, overwrite=overwrite)
        if method == "flowsom":
            check_key("--key-node", node, sdata.tables[table].obs)
    adata = without_parts(joined(sdatas, table))
    check(adata, method, options, key)
    if mapping is not None:
        check_mapping(adata, mapping, method, options, key, node)
    facts: dict[str, Any] = {"stores": stores, "table": table, "method": method, "key": key}
    facts |= {"n_cells": adata.n_obs, "options": options}
    if dry_run:
        told = f"would cluster {adata.n_obs} cells by {method} and write obs {key!r} into {', '.join(stores)}"
        answer({**facts, "dry_run": True}, told, as_json=as_json)
        return
    from nimbus_sd import io, tl

    find_clusters(adata, method, options, key)
    if mapping is not None:
        tl.merge_clusters(adata, mapping, key, node_key=node)
    if len(sdatas) > 1 and method != "keep":
        hand_back(adata, sdatas, table, method=method, key=key, node=node)
    elif len(sdatas) > 1 and mapping is not None:
        edit_each(sdatas, table, mapping, key, node)
    tables = [io.write_table(sdata, table) for sdata in sdatas]
    facts |= {"tables": [f"{s}/tables/{t}" for s, t in zip(stores, tables, strict=True)], "plot": plot}
    rows, shown = described(adata, key, layer)
    facts |= {"n_clusters": len(rows), "clusters": rows}
    lines = [*shown, *(f"obs {key!r} of {adata.n_obs} cells -> {t}" for t in facts["tables"])]
    if plot is not None:
        _draw(adata, key, layer, plot)
        lines.append(f"mean scores per cluster -> {plot}")
    answer(facts, lines, as_json=as_json)


def _check_path(option: str, path: Path | None, *, overwrite: bool) -> None:
    if path is None:
        return
    if option == "--plot":
        check_ending(option, path, ".png", ".pdf", ".svg")
        check_file(option, path, overwrite=overwrite)
    elif not path.is_file():
        msg = f"{option} {path}: there is no such file"
        raise InputError(msg)


def _check_free(adata: AnnData, key: str, store: str, *, overwrite: bool) -> None:
    from nimbus_sd._sdata.cluster_edits import check_new_column

    check_new_column(adata, key)
    check_key("--key-added", key, adata.obs)
    if key in adata.obs and adata.obs[key].dtype.kind == "f":
        msg = f"{store}: the column {key!r} holds measurements, no clusters; choose another --key-added"
        raise InputError(msg)
    if key in adata.obs and not overwrite:
        msg = (
            f"{store}: the table has a column {key!r}; pass --overwrite to replace it, or another --key-added"
        )
        raise InputError(msg)


def _draw(adata: AnnData, key: str, layer: str | None, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from nimbus_sd import pl

    pl.marker_heatmap(adata, key, layer=layer, save=path, show=False)
