"""``nimbus-sd convert``: TIFF folders to a SpatialData zarr store."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd.cli._options import split_names


def convert(
    images: Annotated[Path, typer.Argument(help="Folder with one folder or OME-TIFF per field of view.")],
    out: Annotated[Path, typer.Argument(help="Zarr store to write.")],
    labels: Annotated[str, typer.Option(help="Folder of label images.")],
    mpp: Annotated[
        float | None, typer.Option(help="µm per px; read from OME metadata when left out.")
    ] = None,
    channels: Annotated[str | None, typer.Option(help="Comma-separated channels, in order.")] = None,
    fovs: Annotated[str | None, typer.Option(help="Comma-separated fields of view.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a store that exists.")] = False,
) -> None:
    """Convert TIFF images and label images into one zarr store."""
    from nimbus_sd import io

    if out.exists() and not overwrite:
        msg = f"{out} exists; pass --overwrite to replace it, or another path"
        raise InputError(msg)
    sdata = io.read_fovs(
        images, labels=labels, mpp=mpp, channels=split_names(channels), fovs=split_names(fovs)
    )
    # write beside and rename: a failed conversion leaves what was there
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    sdata.write(partial)
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    n = len(sdata.images)
    typer.echo(f"wrote {n} field{'s' if n != 1 else ''} of view to {out}\nnext: nimbus-sd predict {out}")
