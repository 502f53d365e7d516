"""Tables in object stores, which can't rename: a new one appears whole, an old one is never touched."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import zarr
from zarr.storage import FsspecStore

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata.remote import url_of
from nimbus_sd._sdata.zarr_source import blocking

_KINDS = ("images", "labels", "points", "shapes", "tables")


def remote_elements(store: FsspecStore) -> dict[str, str]:
    """Name to kind of every element that lies in a store, listed now."""
    fs, root = _files(store)
    return {
        name: kind
        for kind in _KINDS
        for entry in _listed(fs, f"{root}/{kind}")
        if not (name := entry.rstrip("/").rsplit("/", 1)[-1]).startswith(".") and name != "zarr.json"
    }


def free_name(name: str, taken: dict[str, str], *, overwrite: bool, where: str) -> str:
    """Return `name`, or its next version where a table of that name is there already.

    Raises
    ------
    InputError
        If it is there and `overwrite` is False, or if it is another element's name.

    Examples
    --------
    >>> free_name("nimbus", {"nimbus": "tables", "nimbus_v2": "tables"}, overwrite=True, where="s3://b/a")
    'nimbus_v3'
    """
    if name not in taken:
        return name
    if taken[name] != "tables":
        msg = f"{where}: {name!r} is an element of {taken[name]} already. Give the table another name."
        raise InputError(msg)
    if not overwrite:
        msg = (
            f"{where}: table {name!r} is there already. Give overwrite=True to write a new version "
            "beside it, or another name."
        )
        raise InputError(msg)
    base = re.sub(r"_v\d+$", "", name)
    versions = [int(m[1]) for other in taken if (m := re.fullmatch(re.escape(base) + r"_v(\d+)", other))]
    return f"{base}_v{max([1, *versions]) + 1}"


def persist_remote(
    table: ad.AnnData,
    name: str,
    store: FsspecStore,
    *,
    overwrite: bool,
    write_alone: Callable[[ad.AnnData, str, Path], Path],
    compare: Callable[[ad.AnnData, ad.AnnData, str], None],
) -> str:
    """Write a table into a remote store and return the name it got.

    It is written to the local temporary folder first. Then its files go up, what makes
    it a zarr group last; it is read back and compared; the store's consolidated
    metadata, which tell readers of it, are refreshed at the end. What fails on the way
    is deleted again.

    Parameters
    ----------
    table
        The table.
    name
        Its name, see :func:`free_name`.
    store
        Where to.
    overwrite
        Whether a new version may be written where the name is taken.
    write_alone
        Writes a table of a name into a local folder and returns the group's folder.
    compare
        Raises unless the second table is the first.

    Raises
    ------
    InputError
        If the name can't be used, or what was written reads back differently.
    """
    where = url_of(store)
    fs, root = _files(store)
    final = free_name(name, remote_elements(store), overwrite=overwrite, where=where)
    group = zarr.open_group(store, mode="r+")
    consolidated = group.metadata.consolidated_metadata is not None
    prefix = f"{root}/tables/{final}"
    with tempfile.TemporaryDirectory(prefix="nimbus-sd-") as folder:
        alone = write_alone(table, final, Path(folder))
        try:
            zarr.open_group(store, mode="r+", use_consolidated=False).require_group("tables")
            _upload(fs, alone, prefix)
            found = zarr.open_group(store, path=f"tables/{final}", mode="r", use_consolidated=False)
            compare(table, ad.read_zarr(found), f"{where}: table {final!r}")
            blocking(store.fs)  # forget the old listing
            if consolidated:
                _consolidate(store)
        except BaseException:
            _remove(fs, prefix)
            raise
    if final != name:
        warnings.warn(
            f"{where}: table {name!r} is there already and stays; the new one is {final!r}, as object "
            "stores can't exchange two tables in one step",
            NimbusWarning,
            stacklevel=4,
        )
    return final


def _files(store: FsspecStore) -> tuple[Any, str]:
    return blocking(store.fs), store.path.rstrip("/")


def _listed(fs: Any, prefix: str) -> list[str]:
    try:
        return list(fs.ls(prefix, detail=False))
    except FileNotFoundError:
        return []


def _upload(fs: Any, folder: Path, prefix: str) -> None:
    """Upload a zarr group's files, its own metadata last: until then it is no group."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    own = [file for file in files if file.parent == folder]
    for part in ([file for file in files if file.parent != folder], own):
        fs.put([str(file) for file in part], [f"{prefix}/{f.relative_to(folder).as_posix()}" for f in part])


def _consolidate(store: FsspecStore) -> None:
    with warnings.catch_warnings():
        # points and shapes are parquet files in zarr groups: nothing to consolidate there
        warnings.filterwarnings("ignore", category=zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(store)


def _remove(fs: Any, prefix: str) -> None:
    fs.invalidate_cache()
    for file in fs.find(prefix):  # one by one: fs.rm takes a name with [ ] or * as a pattern
        fs.rm_file(file)
