"""``nimbus-sd predict``: score one store or a cohort of them, and persist the tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbus_sd._core.channels import NOT_MARKERS
from nimbus_sd._core.errors import InputError
from nimbus_sd.cli._cluster import connected
from nimbus_sd.cli._options import channel_choice, open_store, split_names
from nimbus_sd.cli._tables import check_file, write_concatenated, write_csv

if TYPE_CHECKING:
    from spatialdata import SpatialData


def predict(
    stores: Annotated[
        list[Path],
        typer.Argument(
            help="SpatialData zarr stores, folders or URLs; several are one cohort.", metavar="STORE..."
        ),
    ],
    image: Annotated[str | None, typer.Option(help="Image element.")] = None,
    labels: Annotated[str | None, typer.Option(help="Comma-separated labels elements.")] = None,
    channels: Annotated[str, typer.Option(help="auto, all, or comma-separated names.")] = "auto",
    model: Annotated[str, typer.Option(help="Registered name, folder or file.")] = "nimbus-sd-s",
    mpp: Annotated[float | None, typer.Option(help="µm per px, if the store does not say.")] = None,
    quantile: Annotated[
        float | None, typer.Option(help="Normalisation quantile; the model's card says it when left out.")
    ] = None,
    rule: Annotated[str | None, typer.Option(help="Normalisation rule: dataset, fov_mean; likewise.")] = None,
    views: Annotated[int, typer.Option(help="Test-time views: 1 or 8.")] = 1,
    score_std: Annotated[
        bool, typer.Option("--score-std", help="Also store the spread over the views, which must be 8.")
    ] = False,
    maps: Annotated[str | None, typer.Option(help="Also write score maps under this name.")] = None,
    maps_dtype: Annotated[str, typer.Option(help="Of the score maps: float16 or uint8.")] = "float16",
    table: Annotated[str, typer.Option(help="Table to write.")] = "nimbus",
    into: Annotated[
        str | None,
        typer.Option(
            help='Existing table of the same labels that gets the scores as layer "nimbus" instead.'
        ),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(help="Leave the stores as they are: one store per input, with the results, goes here."),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write all cells as CSV.")] = None,
    concat: Annotated[
        Path | None, typer.Option(help="Also write one table of all cells, .h5ad or .zarr.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace tables, layers or files that exist.")] = False,
    coordinate_system: Annotated[
        str | None, typer.Option(help="Where elements are compared and positions given.")
    ] = None,
    exclude: Annotated[
        str, typer.Option(help="Pattern of channels that --channels auto leaves out.", show_default=False)
    ] = NOT_MARKERS,
    tile: Annotated[int | None, typer.Option("--tile", "--tile-size", help="Tile side in model px.")] = None,
    device: Annotated[str, typer.Option(help="auto (all GPUs, else cpu), cpu, cuda:0, mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16.")] = "auto",
    n_threads: Annotated[int, typer.Option(help="Reader threads.")] = 2,
    memory: Annotated[
        str | None, typer.Option(help='What activations may take, such as "4 GiB"; a third of what is free.')
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a dask scheduler whose workers compute the tiles.")
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Go on where an interrupted run with the same settings stopped.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be computed, and how long it would take.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: as JSON.")] = False,
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Score every cell and marker of each store and write a table into it."""
    from nimbus_sd import tl
    from nimbus_sd._sdata.cohort import as_cohort
    from nimbus_sd._sdata.destination import destinations

    for option, path in (("--csv", csv), ("--concat", concat)):
        check_file(option, path, overwrite=overwrite)
    if concat is not None and concat.suffix not in (".h5ad", ".zarr"):
        msg = f"--concat {concat}: valid endings are .h5ad and .zarr"
        raise InputError(msg)
    sdatas = [open_store(store) for store in stores]
    objects = sdatas[0] if len(sdatas) == 1 else sdatas
    shared: dict[str, Any] = {
        "image": image,
        "labels": split_names(labels),
        "channels": channel_choice(channels),
        "model": model,
        "mpp": mpp,
        "views": views,
        "coordinate_system": coordinate_system,
        "exclude": exclude,
        "tile": tile,
        "device": device,
        "precision": precision,
        "n_threads": n_threads,
        "memory": memory,
    }
    if dry_run:
        found = tl.estimate(objects, **shared)
        typer.echo(json.dumps(found.to_dict()) if as_json else "\n".join(found.lines()))
        return
    with connected(scheduler) as client:
        tl.predict(
            objects,
            **shared,
            quantile=quantile,
            rule=rule,
            score_std=score_std,
            maps=maps,
            maps_dtype=maps_dtype,
            table=table,
            into=into,
            overwrite=overwrite,
            write=True if out_dir is None else out_dir,
            client=client,
            resume=resume,
            progress=progress,
        )
    final, layer = (table, None) if into is None else (into, "nimbus")
    places = (
        stores if out_dir is None else [t.place for t in destinations(as_cohort(objects), out_dir).values()]
    )
    _report(objects, final, layer, places)
    if csv is not None:
        write_csv(objects, csv, table=final, layer=layer)
        typer.echo(f"cell table -> {csv}")
    if concat is not None:
        write_concatenated(objects, concat, table=final)
        typer.echo(f"table of all cells -> {concat}")


def _report(
    objects: SpatialData | Sequence[SpatialData], table: str, layer: str | None, places: Sequence[object]
) -> None:
    from nimbus_sd._sdata.cohort import as_cohort

    for sdata, place in zip(as_cohort(objects).values(), places, strict=True):
        if table in sdata.tables:  # a store without a labelled pixel has none
            result = sdata.tables[table]
            where = f"{place}/tables/{table}" + (f", layer {layer}" if layer else "")
            typer.echo(f"{result.n_obs} cells x {result.n_vars} markers -> {where}")
