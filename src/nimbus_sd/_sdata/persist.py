"""Tables on disk: replace one in its own zarr store so that a crash leaves the old or the new, never half."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import zarr
from scipy import sparse
from spatialdata import SpatialData
from zarr.abc.store import Store

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata.persist_remote import persist_remote
from nimbus_sd._sdata.remote import store_behind

_ELEMENTS = ("images", "labels", "points", "shapes")
_MARK = "nimbus-tmp"  # ends the names of our siblings; spatialdata skips names that start with a dot


def persist_table(sdata: SpatialData, name: str, overwrite: bool) -> str:
    """Write ``sdata.tables[name]`` into the store that backs `sdata` and return the name it has there.

    The table is written with spatialdata's own writer into a hidden sibling, read
    back and compared; then old and new trade places (in one step where the system
    can), the consolidated metadata are refreshed, and the old one is removed. An error
    before the last step puts the old one back. For remote stores see
    :func:`~nimbus_sd._sdata.persist_remote.persist_remote`.

    Parameters
    ----------
    sdata
        Backed by a zarr store on a local disk, or opened from a remote one.
    name
        Table to write.
    overwrite
        Whether a table of this name on disk may be replaced.

    Raises
    ------
    ElementNotFoundError, InputError
        See :func:`nimbus_sd.io.write_table`.
    """
    if name not in sdata.tables:
        msg = f"no table {name!r} in the object; it has: {', '.join(sdata.tables) or '(none)'}"
        raise ElementNotFoundError(msg)
    remote = store_behind(sdata)
    if remote is None:
        _persist_local(sdata, name, overwrite)
        return name

    def write_alone(table: ad.AnnData, final: str, folder: Path) -> Path:
        return _write_sibling(table, final, folder, like=remote)

    return persist_remote(
        sdata.tables[name], name, remote, overwrite=overwrite, write_alone=write_alone, compare=_compare
    )


def _persist_local(sdata: SpatialData, name: str, overwrite: bool) -> None:
    store = _local_store(sdata, name)
    elsewhere = [kind for kind in _ELEMENTS if (store / kind / name).exists()]
    if elsewhere:
        msg = f"{store}: {name!r} is an element of {elsewhere[0]} already. Give the table another name."
        raise InputError(msg)
    tables = _tables_folder(store)
    target = tables / name
    _clean_up(tables, name)
    if target.exists() and not overwrite:
        msg = (
            f"{store}: table {name!r} is on disk already. Give overwrite=True to replace it, or another name."
        )
        raise InputError(msg)

    sibling = tables / f".{name}.{uuid.uuid4().hex}.{_MARK}"
    try:
        new = _write_sibling(sdata.tables[name], name, sibling, like=store)
        _compare(sdata.tables[name], ad.read_zarr(new), f"{store}: table {name!r}")
        replaced = put_in_place(new, target)
        try:
            if sdata.has_consolidated_metadata():
                sdata.write_consolidated_metadata()
        except BaseException:
            _take_back(new, target, replaced=replaced)
            raise
    finally:
        shutil.rmtree(sibling, ignore_errors=True)


def _local_store(sdata: SpatialData, name: str) -> Path:
    if sdata.path is None:
        msg = (
            f"the object is not backed by a zarr store, so table {name!r} has no place to go. "
            "Write the object first: sdata.write('data.zarr')."
        )
        raise InputError(msg)
    store = Path(sdata.path)
    if not store.is_dir():
        msg = (
            f"{sdata.path}: not a folder on a local disk, nor the URL of a remote store. "
            "Write the object first: sdata.write('data.zarr')."
        )
        raise InputError(msg)
    return store


def _tables_folder(store: Path) -> Path:
    root = zarr.open_group(store, mode="r+", use_consolidated=False)
    root.require_group("tables")
    return store / "tables"


def _write_sibling(table: ad.AnnData, name: str, sibling: Path, *, like: Path | Store) -> Path:
    """Write the table alone as a whole store of its own, in the zarr format of the store it is for.

    That store lies in a folder that is no zarr group, so that it never gets into
    consolidated metadata.
    """
    alone_in = sibling / "store.zarr"
    zarr_format = zarr.open_group(like, mode="r", use_consolidated=False).metadata.zarr_format
    with warnings.catch_warnings():
        # The sibling holds no labels, so spatialdata says that the annotated ones are missing.
        warnings.filterwarnings("ignore", message=".*annotat.*", category=UserWarning)
        alone = SpatialData(tables={name: _with_missing_text(table)})
        if zarr_format == 2:
            from spatialdata._io.format import SpatialDataContainerFormatV01

            alone.write(alone_in, sdata_formats=SpatialDataContainerFormatV01(), consolidate_metadata=False)
        else:
            alone.write(alone_in, consolidate_metadata=False)
    return alone_in / "tables" / name


def _with_missing_text(table: ad.AnnData) -> ad.AnnData:
    """Make text columns with missing values categorical, without copying arrays.

    anndata's ``write_zarr`` does so too; spatialdata's writer stores the word "None".
    """
    frames = {"obs": table.obs.copy(), "var": table.var.copy()}
    changed = False
    for frame in frames.values():
        for key in frame:
            if frame[key].dtype == object and frame[key].isna().any():
                frame[key] = frame[key].astype("category")
                changed = True
    if not changed:
        return table
    parts = ("layers", "obsm", "varm", "obsp", "varp", "uns")
    return ad.AnnData(
        table.X, **frames, **{part: dict(getattr(table, part)) for part in parts}, raw=table.raw
    )


def put_in_place(new: Path, target: Path) -> bool:
    """Move `new` to `target`; what was there ends up at `new`. Return whether there was something."""
    if not target.exists():
        new.rename(target)
        return False
    if not _exchange(new, target):
        aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.old.{_MARK}")
        target.rename(aside)
        try:
            new.rename(target)
            aside.rename(new)
        except BaseException:
            if target.exists():
                target.rename(new)
            aside.rename(target)
            raise
    return True


def _take_back(new: Path, target: Path, *, replaced: bool) -> None:
    if replaced:
        put_in_place(new, target)
    else:
        target.rename(new)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths trade places in one step; False where the system or file system can't."""
    calls = {"linux": ("renameat2", -100), "darwin": ("renameatx_np", -2)}  # and their AT_FDCWD
    if sys.platform not in calls:
        return False
    name, here = calls[sys.platform]
    try:
        rename = getattr(ctypes.CDLL(None), name)
    except AttributeError:
        return False
    trade = 2  # RENAME_EXCHANGE, RENAME_SWAP
    return rename(here, os.fsencode(one.absolute()), here, os.fsencode(other.absolute()), trade) == 0


def _clean_up(tables: Path, name: str) -> None:
    """Remove what a crash left behind; an old table that had been moved aside goes back first."""
    left = sorted(entry for entry in tables.iterdir() if _is_ours(entry.name, name))
    for entry in left:
        if entry.name.endswith(f".old.{_MARK}") and not (tables / name).exists():
            entry.rename(tables / name)
        else:
            shutil.rmtree(entry, ignore_errors=True)


def _is_ours(entry: str, name: str) -> bool:
    middle = entry.removeprefix(f".{name}.").removesuffix(f".{_MARK}").removesuffix(".old")
    return (
        entry.startswith(f".{name}.")
        and entry.endswith(f".{_MARK}")
        and len(middle) == 32
        and middle.isalnum()
    )


def _compare(wanted: ad.AnnData, found: ad.AnnData, what: str) -> None:
    """Raise if what was read back is not what was to be written."""
    wrong = [
        part
        for part, same in {
            "shape": wanted.shape == found.shape,
            "X": _same(wanted.X, found.X),
            "obs": _same_frame(wanted.obs, found.obs),
            "var": _same_frame(wanted.var, found.var),
            "layers": _same_arrays(wanted.layers, found.layers),
            "obsm": _same_arrays(wanted.obsm, found.obsm),
            "uns": set(wanted.uns) == set(found.uns),
        }.items()
        if not same
    ]
    if wrong:
        msg = f"{what}: {', '.join(wrong)} read back differently; nothing was replaced. Check the disk."
        raise InputError(msg)


def _same_arrays(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    return set(wanted) == set(found) and all(_same(wanted[key], found[key]) for key in wanted)


def _same_frame(wanted: pd.DataFrame, found: pd.DataFrame) -> bool:
    return (
        wanted.index.astype(str).equals(found.index.astype(str))
        and wanted.columns.tolist() == found.columns.tolist()
        and all(_same(wanted[key].to_numpy(), found[key].to_numpy()) for key in wanted)
    )


def _same(wanted: Any, found: Any) -> bool:
    if wanted is None or found is None:
        return wanted is found
    if isinstance(wanted, pd.DataFrame):
        return isinstance(found, pd.DataFrame) and _same_frame(wanted, found)
    if sparse.issparse(wanted) and sparse.issparse(found):
        first, second = wanted.tocsr().sorted_indices(), found.tocsr().sorted_indices()
        parts = ("indptr", "indices", "data")
        return first.shape == second.shape and all(
            _same(getattr(first, p), getattr(second, p)) for p in parts
        )
    one, other = (item.toarray() if sparse.issparse(item) else np.asarray(item) for item in (wanted, found))
    if one.shape != other.shape:
        return False
    if one.dtype.kind in "biufc" and other.dtype.kind in "biufc":
        return bool(np.array_equal(one, other, equal_nan=one.dtype.kind in "fc" and other.dtype.kind in "fc"))
    missing, lost = pd.isna(one), pd.isna(other)
    return bool(
        np.array_equal(missing, lost) and (one[~missing].astype(str) == other[~lost].astype(str)).all()
    )
