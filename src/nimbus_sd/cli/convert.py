"""``nimbus-sd convert``: TIFF folders to a SpatialData zarr store."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Annotated

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd.cli._options import is_store, split_names


def convert(
    images: Annotated[Path, typer.Argument(help="Folder with one folder or OME-TIFF per field of view.")],
    out: Annotated[Path, typer.Argument(help="Zarr store to write.")],
    labels: Annotated[str | None, typer.Option(help="Folder of label images.")] = None,
    labels_pattern: Annotated[str | None, typer.Option(help='Their names, such as "{fov}_mask".')] = None,
    mpp: Annotated[
        float | None, typer.Option(help="µm per px; read from OME metadata when left out.")
    ] = None,
    channels: Annotated[str | None, typer.Option(help="Comma-separated channels, in order.")] = None,
    fovs: Annotated[str | None, typer.Option(help="Comma-separated fields of view.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a zarr store that exists.")] = False,
) -> None:
    """Convert TIFF images and label images into one zarr store."""
    _check_target(out, images, labels, overwrite=overwrite)
    from nimbus_sd import io

    sdata = io.read_fovs(
        images,
        labels=labels,
        labels_pattern=labels_pattern,
        mpp=mpp,
        channels=split_names(channels),
        fovs=split_names(fovs),
    )
    # write beside and rename: a failed conversion leaves what was there
    token = uuid.uuid4().hex[:8]
    new, old = (out.with_name(f".{out.name}.{token}.{what}") for what in ("new", "old"))
    try:
        sdata.write(new)
        if out.exists():
            out.rename(old)
        new.rename(out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    n = len(sdata.images)
    typer.echo(f"wrote {n} field{'s' if n != 1 else ''} of view to {out}\nnext: nimbus-sd predict {out}")


def _check_target(out: Path, images: Path, labels: str | None, *, overwrite: bool) -> None:
    """Refuse to touch anything but a new path or a zarr store that may be replaced."""
    target = out.resolve()
    sources = [images, *([Path(labels), images.parent / labels] if labels else [])]
    for source in (s.resolve() for s in sources if s.exists()):
        if target == source or target in source.parents or source in target.parents:
            msg = (
                f"{out} and the source folder {source} lie within each other; write the store somewhere else"
            )
            raise InputError(msg)
    if not out.exists():
        return
    if not is_store(out):
        msg = f"{out} exists and is not a zarr store: it is left alone; choose another path"
        raise InputError(msg)
    if not overwrite:
        msg = f"{out} exists; pass --overwrite to replace it, or another path"
        raise InputError(msg)
