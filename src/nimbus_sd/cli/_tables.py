"""Tables in files beside the stores: checked before the work, written whole, read back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nimbus_sd._core.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def check_file(option: str, path: Path | None, *, overwrite: bool) -> None:
    """Raise unless `path` can be written.

    Raises
    ------
    InputError
        If it exists without `overwrite`, or its folder does not.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        msg = f"{option} {path}: there is no folder {path.parent}; make it first"
        raise InputError(msg)
    if path.exists() and not overwrite:
        msg = f"{option} {path} exists; pass --overwrite to replace it, or another path"
        raise InputError(msg)
    if path.is_dir() and not (path.suffix == ".zarr" and _is_table(path)):
        msg = f"{option} {path} is a folder that holds no table, and is left alone; pass another path"
        raise InputError(msg)


def _is_table(folder: Path) -> bool:
    import zarr

    try:
        return zarr.open_group(folder, mode="r").attrs.get("encoding-type") == "anndata"
    except FileNotFoundError:
        return False


def check_ending(option: str, path: Path | None, *endings: str) -> None:
    """Raise unless a file's name ends in one of these."""
    if path is not None and path.suffix.lower() not in endings:
        msg = f"{option} {path}: valid endings are {' and '.join(endings)}"
        raise InputError(msg)


def read_table(option: str, path: str | Path) -> AnnData:
    """Read a table from ``.h5ad``, or from a zarr folder such as ``store.zarr/tables/nimbus``.

    Raises
    ------
    InputError
        If there is none.
    """
    import anndata as ad

    from nimbus_sd._sdata.place import as_local

    place = as_local(path)
    if place.is_dir() and _is_table(place):
        return ad.read_zarr(place)
    if place.is_file() and place.suffix.lower() == ".h5ad":
        return ad.read_h5ad(place)
    msg = f"{option} {path}: there is no table; valid: a .h5ad file, or a folder such as STORE/tables/nimbus"
    raise InputError(msg)


def write_csv(
    objects: SpatialData | Sequence[SpatialData], path: Path, *, table: str, layer: str | None
) -> None:
    """Write all cells as CSV; with several objects, ``fov`` begins with the object's name."""
    from nimbus_sd import io

    io.write_cell_table(_whole(objects, table, tell_apart=True), path, layer=layer, overwrite=True)


def write_concatenated(objects: SpatialData | Sequence[SpatialData], path: Path, *, table: str) -> None:
    """Write one table of all cells as ``.h5ad`` or ``.zarr``."""
    import anndata as ad
    import zarr

    from nimbus_sd._sdata.swap import put_in_place

    whole = _whole(objects, table)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.suffix == ".h5ad":
            whole.write_h5ad(partial)
        else:
            ad.io.write_elem(zarr.open_group(partial, mode="w"), "/", whole)
        put_in_place(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)


def _whole(objects: SpatialData | Sequence[SpatialData], table: str, *, tell_apart: bool = False) -> AnnData:
    from nimbus_sd import tl

    if not isinstance(objects, Sequence):
        return objects.tables[table]
    whole = tl.concat_tables(objects, table=table)
    if tell_apart:
        whole.obs["region"] = whole.obs["sample"].astype(str) + "/" + whole.obs["region"].astype(str)
    return whole
