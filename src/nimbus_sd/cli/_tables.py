"""Files of all cells beside the stores: checked before the work, whole or not there."""

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
