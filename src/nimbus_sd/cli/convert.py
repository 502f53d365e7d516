"""``nimbus-sd convert``: TIFF folders to a SpatialData zarr store."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.place import as_url
from nimbus_sd.cli._answer import answer
from nimbus_sd.cli._options import AsJson, DryRun, is_store, split_names

if TYPE_CHECKING:
    from spatialdata import SpatialData


def convert(
    images: Annotated[
        Path, typer.Argument(help="Folder with one folder or OME-TIFF per field of view.", metavar="IMAGES")
    ],
    out: Annotated[Path, typer.Argument(help="Zarr store to write.", metavar="OUT")],
    labels: Annotated[str | None, typer.Option(help="Folder of label images.")] = None,
    labels_pattern: Annotated[str | None, typer.Option(help='Their names, such as "{fov}_mask".')] = None,
    mpp: Annotated[
        float | None, typer.Option(help="µm per px; read from OME metadata when left out.")
    ] = None,
    channels: Annotated[
        str | None, typer.Option(help="Comma-separated channels, in order; all when left out.")
    ] = None,
    fovs: Annotated[str | None, typer.Option(help="Comma-separated fields of view; likewise.")] = None,
    chunks: Annotated[int, typer.Option(help="Side of the store's chunks in px, about.")] = 1024,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a zarr store that exists.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
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
        chunks=chunks,
    )
    facts: dict[str, Any] = {"out": out, "n_fields": len(sdata.images), "fields": _fields(sdata)}
    facts["channels"] = facts["fields"][0]["channels"] if facts["fields"] else []
    if dry_run:
        answer({**facts, "dry_run": True}, _shown(facts), as_json=as_json)
        return
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
    lines = [f"wrote {n} field{'s' if n != 1 else ''} of view to {out}", f"next: nimbus-sd predict {out}"]
    answer(facts, lines, as_json=as_json)


def _fields(sdata: SpatialData) -> list[dict[str, Any]]:
    """One row per field of view, from metadata."""
    from spatialdata.transformations import get_transformation

    rows = []
    for name, image in sdata.images.items():
        labels = name.removesuffix("_image") + "_labels"
        scale = get_transformation(image, "microns").to_affine_matrix(("x",), ("x",))
        rows.append(
            {
                "image": name,
                "labels": labels if labels in sdata.labels else None,
                "channels": image.c.values,
                "shape": image.shape,
                "dtype": str(image.dtype),
                "bytes": image.nbytes,
                "mpp": float(scale[0, 0]),
            }
        )
    return rows


def _shown(facts: Mapping[str, Any]) -> list[str]:
    rows = facts["fields"]
    width = max(len(r["image"]) for r in rows)
    lines = [
        f"{r['image']:<{width}}  {' x '.join(map(str, r['shape']))} {r['dtype']}, {r['mpp']:g} µm/px, "
        f"labels: {r['labels'] or 'none'}"
        for r in rows
    ]
    size = sum(r["bytes"] for r in rows) / 1e9
    names = ", ".join(map(str, facts["channels"]))
    return [*lines, f"channels: {names}", f"would write {len(rows)} fields ({size:.2f} GB) to {facts['out']}"]


def _check_target(out: Path, images: Path, labels: str | None, *, overwrite: bool) -> None:
    """Refuse to touch anything but a new path or a zarr store that may be replaced."""
    if (url := as_url(out)) is not None:
        msg = f"{url} is a URL; convert writes to a local disk: give a folder, and copy it there afterwards"
        raise InputError(msg)
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
