"""``nimbus-sd subtype``: which markers each cell of an H&E has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbus_sd.cli._answer import answer
from nimbus_sd.cli._cluster import connected
from nimbus_sd.cli._files import mapping, numbers
from nimbus_sd.cli._options import (
    AsJson,
    CoordinateSystem,
    Device,
    DryRun,
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

if TYPE_CHECKING:
    from distributed import Client


def subtype(
    stores: Stores,
    model: Annotated[Path, typer.Option(help="Folder that train-subtyper wrote.")],
    image: Annotated[
        str | None, typer.Option(help="Name of the H&E; the one that overlaps the cells when left out.")
    ] = None,
    centers: Annotated[
        str | None, typer.Option(help="Comma-separated labels, points or shapes; labels when left out.")
    ] = None,
    table: Table = "subtypes",
    hierarchy: Annotated[
        str, typer.Option(help="model, none, or which marker implies which: CD3e=CD45,CD4=CD3e, or a file.")
    ] = "model",
    thresholds: Annotated[
        str | None,
        typer.Option(help="Probability above which a cell is positive: 0.4, CD45=0.5,CD4=0.4, or a file."),
    ] = None,
    out_dir: OutDir = None,
    overwrite: Overwrite = False,
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
    """Predict lymphocyte sub-types on H&E and write a table into each store."""
    from nimbus_sd import tl

    where: dict[str, Any] = {
        **{"model": model, "image": image_choice(image), "centers": split_names(centers), "table": table},
        **{"hierarchy": _hierarchy(hierarchy), "thresholds": _thresholds(thresholds)},
        **{"overwrite": overwrite, "write": destination_of(out_dir)},
        **{"mpp": mpp, "coordinate_system": coordinate_system},
    }
    how: dict[str, Any] = {
        **{"batch_size": batch_size, "device": device, "precision": precision},
        **{"n_threads": n_threads, "memory": memory},
    }
    objects = open_stores(stores)
    facts: dict[str, Any] = {"stores": stores, "model": model, "table": table}
    with connected(scheduler) as client:
        if dry_run:
            told, lines = _plan(objects, where, how, client)
            answer({**facts, "dry_run": True, **told}, lines, as_json=as_json)
            return
        tl.predict_subtypes(objects, **where, **how, client=client, resume=resume, progress=progress)
    tables, lines = tables_of(objects, stores, out_dir, table)
    positive, inconsistent, n = _called(objects, table)
    shares = ", ".join(f"{marker} {share:.1%}" for marker, share in positive.items())
    lines.append(
        f"positive: {shares}; {inconsistent} of {n} cells contradict the hierarchy and are undefined"
        if n
        else "there is no cell to look at: no table was written"
    )
    facts |= {"tables": tables, "positive": positive, "n_inconsistent": inconsistent}
    answer(facts, lines, as_json=as_json)


def _hierarchy(text: str) -> bool | dict[str, str]:
    if text in ("model", "none"):
        return text == "model"
    return mapping("--hierarchy", text)


def _thresholds(text: str | None) -> float | dict[str, float] | None:
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return numbers("--thresholds", text)


def _called(objects: Any, table: str) -> tuple[dict[str, float], int, int]:
    """Share of the cells positive by marker, cells that contradict the hierarchy, and all cells."""
    import numpy as np

    from nimbus_sd._sdata.cohort import as_cohort

    found = [s.tables[table] for s in as_cohort(objects).values() if table in s.tables]
    n = sum(t.n_obs for t in found)
    if n == 0:
        return {}, 0, 0
    positive = np.sum([(np.asarray(t.layers["positive"]) == 1).sum(axis=0) for t in found], axis=0)
    shares = dict(zip(found[0].var_names, (positive / n).tolist(), strict=True))
    return shares, sum(int(t.uns["nimbus_subtypes"]["n_inconsistent"]) for t in found), n


def _plan(
    objects: Any, where: dict[str, Any], how: dict[str, Any], client: Client | None
) -> tuple[dict[str, Any], list[str]]:
    """Check everything, and say which cells would be looked at."""
    from nimbus_sd._sdata.identity import active_client
    from nimbus_sd._sdata.patch_run import patch_config, warn_of_empty
    from nimbus_sd._sdata.subtype_plan import plan_subtypes
    from nimbus_sd.engine.subtyping.run import SubtypeRunner

    config = patch_config(**how)
    plan = plan_subtypes(objects, **where)
    warn_of_empty(plan.centers)
    runner = SubtypeRunner.make(plan.model, config, active_client(client))
    samples, card = samples_of(plan.centers), plan.model.card
    places = [str(t.store) for t in plan.targets.values()]
    cut = dict(zip(card.markers, plan.decision.thresholds.tolist(), strict=True))
    told = {
        **{"samples": samples, "n_cells": len(plan.centers), "markers": card.markers, "thresholds": cut},
        **{"hierarchy": plan.decision.tree, "devices": runner.devices, "precision": runner.config.precision},
        "places": places,
    }
    lines = [
        f"would look at {len(plan.centers)} cells with {card.name} ({', '.join(card.markers)}; patches of "
        f"{card.patch * card.mpp:.4g} µm) on {', '.join(runner.devices)}",
        *sample_lines(samples),
        *(f"would write {place}/tables/{where['table']}" for place in places),
    ]
    return told, lines
