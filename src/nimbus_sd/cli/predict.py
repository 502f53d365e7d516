"""``nimbus-sd predict``: score a store and persist the table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nimbus_sd._core.channels import NOT_MARKERS
from nimbus_sd._core.errors import InputError
from nimbus_sd.cli._cluster import connected
from nimbus_sd.cli._options import channel_choice, open_store, split_names


def predict(
    store: Annotated[Path, typer.Argument(help="SpatialData zarr store: a folder or a URL.")],
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
    csv: Annotated[Path | None, typer.Option(help="Also write the cell table as CSV.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a table, layer or CSV that exists.")] = False,
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
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Score every cell and marker of a store and write the table into it."""
    from nimbus_sd import io, tl
    from nimbus_sd.arrays import VIEWS

    if csv is not None and not csv.parent.is_dir():
        msg = f"--csv {csv}: there is no folder {csv.parent}; make it first"
        raise InputError(msg)
    if csv is not None and csv.exists() and not overwrite:
        msg = f"--csv {csv} exists; pass --overwrite to replace it, or another path"
        raise InputError(msg)
    sdata = open_store(store)
    if dry_run:
        found = tl.estimate(
            sdata,
            image=image,
            labels=split_names(labels),
            channels=channel_choice(channels),
            model=model,
            mpp=mpp,
            views=tuple(VIEWS)[:views],
            coordinate_system=coordinate_system,
            exclude=exclude,
            tile=tile,
            device=device,
            precision=precision,
            n_threads=n_threads,
            memory=memory,
        )
        typer.echo("\n".join(found.lines()))
        return
    with connected(scheduler) as client:
        tl.predict(
            sdata,
            image=image,
            labels=split_names(labels),
            channels=channel_choice(channels),
            model=model,
            mpp=mpp,
            quantile=quantile,
            rule=rule,
            views=views,
            score_std=score_std,
            maps=maps,
            maps_dtype=maps_dtype,
            table=table,
            into=into,
            overwrite=overwrite,
            write=True,
            coordinate_system=coordinate_system,
            exclude=exclude,
            tile=tile,
            device=device,
            precision=precision,
            n_threads=n_threads,
            memory=memory,
            client=client,
            resume=resume,
            progress=progress,
        )
    layer = None if into is None else "nimbus"
    result = sdata.tables[into or table]
    where = f"{store}/tables/{into or table}" + (f", layer {layer}" if layer else "")
    typer.echo(f"{result.n_obs} cells x {result.n_vars} markers -> {where}")
    if csv is not None:
        io.write_cell_table(result, csv, layer=layer, overwrite=overwrite)
        typer.echo(f"cell table -> {csv}")
