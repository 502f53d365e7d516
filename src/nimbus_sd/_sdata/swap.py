"""Put an element into a local zarr store so that a crash leaves the old or the new, never half."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zarr
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.alone import write_alone
from nimbus_sd._sdata.place import KINDS

ROOT_FILES = ("zarr.json", ".zattrs", ".zmetadata")  # what a change of attributes or elements rewrites
GROUP_FILES = {"zarr.json", ".zgroup", ".zattrs"}  # all that a group without members has

Check = Callable[[zarr.Group, str], None]
"""Raises unless a group that was written holds what it should; gets words for the message too."""
ChangeAttrs = Callable[[dict[str, Any], str], dict[str, Any]]
"""From a store's attributes and the name of its new element to new attributes."""

_MARK = "nimbus-tmp"  # ends the names of our siblings; spatialdata skips names that start with a dot


def swap_in(
    sdata: SpatialData,
    kind: str,
    name: str,
    element: Any,
    *,
    overwrite: bool,
    check: Check | None = None,
    attrs: ChangeAttrs | None = None,
) -> Path:
    """Write an element into the local store that backs `sdata`; return the path of the store.

    It is written into a hidden sibling and checked; then old and new trade places (in one
    step where the system can), the store's attributes and consolidated metadata are
    refreshed, and the old one is removed. An error before the last step puts everything
    back. The object in memory stays as it is. For remote stores see
    :func:`~nimbus_sd._sdata.persist_remote.upload`.

    Parameters
    ----------
    sdata
        Backed by a zarr store on a local disk.
    kind
        ``"images"`` or ``"tables"``.
    name
        Name in the store.
    element
        What to write.
    overwrite
        Whether an element of that kind and name may be replaced.
    check
        Called with what was written, before it takes the old one's place.
    attrs
        Makes the store's attributes fit the new element.

    Raises
    ------
    InputError
        If the object has no local store, or the name is taken.
    """
    store = _local_store(sdata, kind, name)
    target = store / kind / name
    word = kind.removesuffix("s")
    elsewhere = [other for other in KINDS if other != kind and (store / other / name).exists()]
    if elsewhere:
        msg = f"{store}: {name!r} is an element of {elsewhere[0]} already. Give the {word} another name."
        raise InputError(msg)
    first = not target.parent.exists()
    if not first:
        _clean_up(target)
    if target.exists() and not overwrite:
        msg = (
            f"{store}: {word} {name!r} is on disk already. Give overwrite=True to replace it, or another "
            "name."
        )
        raise InputError(msg)

    sibling = target.with_name(f".{name}.{uuid.uuid4().hex}.{_MARK}")
    try:
        zarr.open_group(store, mode="r+", use_consolidated=False).require_group(kind)
        new = write_alone(element, kind, name, sibling, like=store)
        if check is not None:
            check(zarr.open_group(new, mode="r", use_consolidated=False), f"{store}: {word} {name!r}")
        _trade(sdata, store, new, target, attrs)
    except BaseException:
        _remove_after_late_writes(sibling)
        if first:
            _drop_empty(target.parent)
        raise
    shutil.rmtree(sibling, ignore_errors=True)
    return store


def _remove_after_late_writes(folder: Path) -> None:
    """Remove what a failed write left; zarr's threads may go on with other files of it for a while."""
    absent = 0
    for _ in range(40):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
        absent = 0 if folder.exists() else absent + 1
        if absent == 2:
            return


def _drop_empty(folder: Path) -> None:
    """Remove a zarr group that has no members."""
    entries = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if entries <= GROUP_FILES:
        shutil.rmtree(folder, ignore_errors=True)


def _trade(
    sdata: SpatialData, store: Path, new: Path, target: Path, change_attrs: ChangeAttrs | None
) -> None:
    """Put the new element in place and let the store's metadata follow, all or nothing."""
    consolidated = sdata.has_consolidated_metadata()
    # copied before, so that to put them back takes no space on the disk
    before = {store / file: new.parent / f"before{file}" for file in ROOT_FILES if (store / file).exists()}
    for file, kept in before.items():
        shutil.copy2(file, kept)
    replaced = put_in_place(new, target)
    try:
        if change_attrs is not None:
            root = zarr.open_group(store, mode="r+")
            root.attrs.put(change_attrs(root.attrs.asdict(), target.name))
        if consolidated:
            sdata.write_consolidated_metadata()
    except BaseException:
        _take_back(new, target, replaced=replaced)
        for file, kept in before.items():
            kept.replace(file)
        raise


def _local_store(sdata: SpatialData, kind: str, name: str) -> Path:
    if sdata.path is None:
        msg = (
            f"the object is not backed by a zarr store, so {kind.removesuffix('s')} {name!r} has no place to "
            "go. Write the object first: sdata.write('data.zarr')."
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


def _clean_up(target: Path) -> None:
    """Remove what a crash left behind; an old element that had been moved aside goes back first."""
    left = sorted(entry for entry in target.parent.iterdir() if _is_ours(entry.name, target.name))
    for entry in left:
        if entry.name.endswith(f".old.{_MARK}") and not target.exists():
            entry.rename(target)
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
