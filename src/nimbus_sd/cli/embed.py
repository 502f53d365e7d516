"""``nimbus-sd embed``: cells as a trained network sees them, and what each marker adds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbus_sd.cli._answer import answer
from nimbus_sd.cli._cluster import connected
from nimbus_sd.cli._options import (
    AsJson,
    CoordinateSystem,
    Device,
    DryRun,
    Image,
    Mpp,
    OutDir,
    Overwrite,
    Precision,
    Progress,
    Resume,
    Scheduler,
    Stores,
    Table,
    Threads,
    image_choice,
    open_stores,
    split_names,
)
from nimbus_sd.cli._places import destination_of, sample_lines, samples_of, tables_of
from nimbus_sd.cli.train_embedding import read_normalization

if TYPE_CHECKING:
    from distributed import Client


def embed(
    stores: Stores,
    model: Annotated[Path, typer.Option(help="Folder that train-embedding wrote.")],
    image: Image = None,
    centers: Annotated[
        str | None, typer.Option(help="Comma-separated labels, points or shapes; labels when left out.")
    ] = None,
    table: Table = "embedding",
    key_added: Annotated[str, typer.Option(help="Where the embedding goes in the table's obsm.")] = (
        "X_nextchannel"
    ),
    attribution: Annotated[
        str | None,
        typer.Option(
            help="Also attribute embeddings to markers: occlusion, gradient_x_input, or both with a comma. "
            "Where all tables are there already, only that is done."
        ),
    ] = None,
    out_dir: OutDir = None,
    overwrite: Overwrite = False,
    normalization: Annotated[
        Path | None, typer.Option(help="JSON of Normalization.save; the model's scales when left out.")
    ] = None,
    mpp: Mpp = None,
    coordinate_system: CoordinateSystem = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Patches per forward pass; found from memory when left out.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    n_threads: Threads = 2,
    memory: Annotated[
        str | None, typer.Option(help='What activations may take, such as "4 GiB"; a third of what is free.')
    ] = None,
    scheduler: Scheduler = None,
    resume: Resume = True,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    progress: Progress = True,
) -> None:
    """Embed every cell by the patch around it and write a table into each store."""
    from nimbus_sd import tl
    from nimbus_sd.tl._channel_attribution import methods_of

    methods = None if attribution is None else methods_of(split_names(attribution) or [])
    where: dict[str, Any] = {
        **{"model": model, "image": image_choice(image), "centers": split_names(centers), "table": table},
        **{"overwrite": overwrite, "write": destination_of(out_dir), "mpp": mpp},
        **{"normalization": read_normalization(normalization), "coordinate_system": coordinate_system},
    }
    how: dict[str, Any] = {
        **{"batch_size": batch_size, "device": device, "precision": precision},
        **{"n_threads": n_threads, "memory": memory},
    }
    objects = open_stores(stores)
    there = methods is not None and out_dir is None and not overwrite and _all_have(objects, table)
    facts: dict[str, Any] = {"stores": stores, "model": model, "table": table, "attribution": methods}
    with connected(scheduler) as client:
        if dry_run:
            told, lines = (
                _plan_attribution(objects, where, methods or ())
                if there
                else _plan(objects, where, how, key_added, client)
            )
            answer({**facts, "dry_run": True, **told}, lines, as_json=as_json)
            return
        how |= {"client": client, "resume": resume, "progress": progress}
        if not there:
            tl.embed(objects, **where, key_added=key_added, **how)
        agreement = {} if methods is None else _attribute(objects, where, methods, how)
    tables, lines = tables_of(objects, stores, out_dir, table)
    if not there:
        tables = [{**each, "obsm": key_added} for each in tables]
    lines += [f"{name}: Spearman's correlation with X, by cell: {v:.3f}" for name, v in agreement.items()]
    answer({**facts, "tables": tables, "spearman_cells": agreement}, lines, as_json=as_json)


def _all_have(objects: Any, table: str) -> bool:
    from nimbus_sd._sdata.cohort import as_cohort

    return all(table in sdata.tables for sdata in as_cohort(objects).values())


def _attribute(objects: Any, where: dict[str, Any], methods: tuple[str, ...], how: dict[str, Any]) -> Any:
    """Write attributions beside the embeddings; how far each method agrees with the activations."""
    import numpy as np

    from nimbus_sd import tl
    from nimbus_sd._sdata.cohort import as_cohort
    from nimbus_sd._sdata.destination import destinations
    from nimbus_sd.tl._predict_table import keep

    table, found = where["table"], []
    cohort = as_cohort(objects)
    targets = destinations(cohort, where["write"])
    for name, sdata in cohort.items():
        if table not in sdata.tables:
            continue
        own = targets[name].own
        tl.channel_attribution(sdata, model=where["model"], table=table, method=methods, write=own, **how)
        if not own:
            keep(targets[name], table, None, sdata.tables[table], {}, {})
        found.append(sdata.tables[table].uns["channel_attribution"])
    if not found:  # no store has a cell
        return {}
    return {m: float(np.nanmean([each[m]["spearman_cells"] for each in found])) for m in methods}


def _plan(
    objects: Any, where: dict[str, Any], how: dict[str, Any], key_added: str, client: Client | None
) -> tuple[dict[str, Any], list[str]]:
    """Check everything, and say which cells would be embedded."""
    from nimbus_sd._sdata.embedding_plan import plan_embedding
    from nimbus_sd._sdata.embedding_run import warn_of_mpp
    from nimbus_sd._sdata.identity import active_client
    from nimbus_sd._sdata.patch_run import patch_config, warn_of_empty
    from nimbus_sd.engine.embedding.run import EmbedRunner
    from nimbus_sd.tl._embed import check_key

    check_key(key_added)
    config = patch_config(**how)
    plan = plan_embedding(objects, **where)
    warn_of_empty(plan.centers)
    warn_of_mpp(plan.model, plan.centers)
    runner = EmbedRunner.make(plan.model, config, active_client(client))
    samples = samples_of(plan.centers)
    places = [str(t.store) for t in plan.targets.values()]
    told = {
        **{"samples": samples, "n_cells": len(plan.centers), "markers": plan.model.markers},
        **{"devices": runner.devices, "precision": config.precision, "places": places},
    }
    card = plan.model.card
    lines = [
        f"would embed {len(plan.centers)} cells by {card.name} ({len(card.markers)} markers, patches of "
        f"{card.crop} px) on {', '.join(runner.devices)}",
        *sample_lines(samples),
        *(f"would write {place}/tables/{where['table']}" for place in places),
    ]
    return told, lines


def _plan_attribution(
    objects: Any, where: dict[str, Any], methods: tuple[str, ...]
) -> tuple[dict[str, Any], list[str]]:
    """Check tables that are there already, and say how many cells would be attributed."""
    from nimbus_sd._sdata.cohort import as_cohort
    from nimbus_sd.models import load_embedding
    from nimbus_sd.tl._channel_attribution import rows_to_ask

    model, table, n = load_embedding(where["model"]), where["table"], 0
    for sdata in as_cohort(objects).values():
        rows = rows_to_ask(sdata, model, table=table, methods=methods, overwrite=False, write=True)
        n += rows.table.n_obs
    lines = [f"would attribute the embeddings of {n} cells in table {table!r} by {' and '.join(methods)}"]
    return {"n_cells": n, "markers": model.markers}, lines
