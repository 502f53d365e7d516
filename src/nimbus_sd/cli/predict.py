"""``nimbus-sd predict``: score one store or a cohort of them, and persist the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbus_sd._core.channels import NOT_MARKERS
from nimbus_sd._core.errors import InputError
from nimbus_sd.cli._answer import answer
from nimbus_sd.cli._cluster import connected
from nimbus_sd.cli._complete import one_of
from nimbus_sd.cli._options import (
    AsJson,
    Channels,
    CoordinateSystem,
    Device,
    DryRun,
    Exclude,
    Image,
    Labels,
    Model,
    Mpp,
    OutDir,
    Overwrite,
    Precision,
    Progress,
    Resume,
    Scheduler,
    Stores,
    Threads,
    channel_choice,
    image_choice,
    open_stores,
    split_names,
)
from nimbus_sd.cli._tables import check_ending, check_file, read_table, write_concatenated, write_csv

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from nimbus_sd.pp import Normalization


def predict(
    stores: Stores,
    image: Image = None,
    labels: Labels = None,
    channels: Channels = "auto",
    model: Model = "nimbus-sd-s",
    mpp: Mpp = None,
    normalization: Annotated[
        str | None,
        typer.Option(help="Take the scales of another run: its JSON file, or its table (STORE/tables/NAME)."),
    ] = None,
    quantile: Annotated[
        float | None, typer.Option(help="Normalisation quantile; the model's card says it when left out.")
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="Normalisation rule: dataset, fov_mean; likewise.",
            autocompletion=one_of("dataset", "fov_mean"),
        ),
    ] = None,
    views: Annotated[int, typer.Option(help="Test-time views: 1 or 8.")] = 1,
    score_std: Annotated[
        bool, typer.Option("--score-std", help="Also store the spread over the views, which must be 8.")
    ] = False,
    integrated_expression: Annotated[
        bool,
        typer.Option(
            " /--no-integrated-expression", help="Leave mean raw intensities out.", show_default=False
        ),
    ] = True,
    maps: Annotated[str | None, typer.Option(help="Also write score maps under this name.")] = None,
    maps_dtype: Annotated[
        str,
        typer.Option(help="Of the score maps: float16 or uint8.", autocompletion=one_of("float16", "uint8")),
    ] = "float16",
    table: Annotated[str, typer.Option(help="Table to write.")] = "nimbus",
    into: Annotated[
        str | None,
        typer.Option(
            help='Existing table of the same labels that gets the scores as layer "nimbus" instead.'
        ),
    ] = None,
    out_dir: OutDir = None,
    csv: Annotated[Path | None, typer.Option(help="Also write all cells as CSV.")] = None,
    concat: Annotated[
        Path | None, typer.Option(help="Also write one table of all cells, .h5ad or .zarr.")
    ] = None,
    overwrite: Overwrite = False,
    coordinate_system: CoordinateSystem = None,
    exclude: Exclude = NOT_MARKERS,
    context: Annotated[
        str | None,
        typer.Option(help="Table of another run that says what is dim and bright (with --normalization)."),
    ] = None,
    tile: Annotated[int | None, typer.Option("--tile", "--tile-size", help="Tile side in model px.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Markers per forward pass; by memory.")] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    n_threads: Threads = 2,
    memory: Annotated[
        str | None, typer.Option(help='What activations may take, such as "4 GiB"; a third of what is free.')
    ] = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="Compile the network first.")] = False,
    scheduler: Scheduler = None,
    resume: Resume = True,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    progress: Progress = True,
) -> None:
    """Score every cell and marker of each store and write a table into it."""
    check_ending("--concat", concat, ".h5ad", ".zarr")
    for option, path in (("--csv", csv), ("--concat", concat)):
        check_file(option, path, overwrite=overwrite)
    from nimbus_sd import tl
    from nimbus_sd.cli._predict_check import check

    objects = open_stores(stores)
    devices = split_names(device) or [device]
    elements: dict[str, Any] = {
        **{"image": image_choice(image), "labels": split_names(labels), "channels": channel_choice(channels)},
        **{"coordinate_system": coordinate_system, "mpp": mpp, "exclude": exclude},
    }
    shared: dict[str, Any] = {
        **elements,
        **{"model": model, "views": views, "tile": tile, "batch_size": batch_size, "precision": precision},
        **{"device": devices[0] if len(devices) == 1 else tuple(devices), "n_threads": n_threads},
        "memory": memory,
    }
    target: dict[str, Any] = {
        **{"maps": maps, "maps_dtype": maps_dtype, "table": table, "into": into, "overwrite": overwrite},
        **{"write": True if out_dir is None else out_dir, "quantile": quantile, "rule": rule},
        "context": None if context is None else read_table("--context", context),
    }
    fitted = None if normalization is None else _normalization(normalization, quantile, rule)
    if score_std and (views == 1 or into is not None):
        msg = "--score-std needs --views 8, for the spread over them, and a new table (no --into)"
        raise InputError(msg)
    places = _places(objects, stores, out_dir)
    final, layer = (table, None) if into is None else (into, "nimbus")
    facts: dict[str, Any] = {"stores": stores, "model": model, "csv": csv, "concat": concat}
    if dry_run:
        shared["channels"] = check(objects, elements, **target)
        with connected(scheduler):
            found = tl.estimate(objects, fit_normalization=fitted is None, **shared)
        would = [f"{place}/tables/{final}" for place in places]
        facts |= {**found.to_dict(), "dry_run": True, "would_write": would}
        answer(facts, [*found.lines(), f"would write {', '.join(would)}"], as_json=as_json)
        return
    with connected(scheduler) as client:
        tl.predict(
            objects,
            **shared,
            **target,
            normalization=fitted,
            score_std=score_std,
            integrated_expression=integrated_expression,
            compiled=compiled,
            client=client,
            resume=resume,
            progress=progress,
        )
    tables = _written(objects, final, layer, places)
    lines = [f"{t['n_cells']} cells x {t['n_markers']} markers -> {t['written']}" for t in tables]
    if csv is not None:
        write_csv(objects, csv, table=final, layer=layer)
        lines.append(f"cell table -> {csv}")
    if concat is not None:
        write_concatenated(objects, concat, table=final)
        lines.append(f"table of all cells -> {concat}")
    answer({**facts, "maps": maps, "tables": tables}, lines, as_json=as_json)


def _normalization(given: str, quantile: float | None, rule: str | None) -> Normalization:
    """Of a file that ``Normalization.save`` wrote, or of a table that was predicted."""
    import json

    from nimbus_sd.pp import Normalization

    if quantile is not None or rule is not None:
        msg = "--normalization is fitted already: leave --quantile and --rule out"
        raise InputError(msg)
    if Path(given).is_file() and not given.endswith(".h5ad"):
        return Normalization.load(given)
    record = read_table("--normalization", given).uns.get("nimbus", {})
    if "normalization" not in record:
        msg = f"--normalization {given}: this table holds none; pass one that predict wrote"
        raise InputError(msg)
    return Normalization.from_dict(json.loads(record["normalization"]))


def _places(
    objects: SpatialData | Sequence[SpatialData], stores: Sequence[str], out_dir: Path | None
) -> list[object]:
    """Where each object's results go."""
    if out_dir is None:
        return list(stores)
    from nimbus_sd._sdata.cohort import as_cohort
    from nimbus_sd._sdata.destination import destinations

    return [t.place for t in destinations(as_cohort(objects), out_dir).values()]


def _written(
    objects: SpatialData | Sequence[SpatialData], table: str, layer: str | None, places: Sequence[object]
) -> list[dict[str, Any]]:
    """What became of each object; one without a labelled pixel has no table."""
    from nimbus_sd._sdata.cohort import as_cohort

    found = []
    for sdata, place in zip(as_cohort(objects).values(), places, strict=True):
        if table in sdata.tables:
            result = sdata.tables[table]
            where = f"{place}/tables/{table}" + (f", layer {layer}" if layer else "")
            row = {"store": place, "table": table, "layer": layer, "n_cells": result.n_obs}
            found.append({**row, "n_markers": result.n_vars, "markers": result.var_names, "written": where})
    return found
