"""May anything be written there at all? Asked before any work, of stores and of folders for models."""

from __future__ import annotations

import os
from pathlib import Path

from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.place import as_url
from nimbus_sd._sdata.remote import store_behind, url_of

_READ_ONLY = frozenset({"http", "https", "github"})  # kinds of URL that fsspec reads and can't write


def check_writable(sdata: SpatialData, kind: str = "tables") -> None:
    """Raise unless something can be written into the store behind an object; nothing is tried.

    Parameters
    ----------
    sdata
        The object; one without a store passes.
    kind
        What would be written: ``"tables"``, ``"images"``, ``"labels"``, ``"points"`` or ``"shapes"``.

    Raises
    ------
    InputError
        If the store is behind a URL of a kind that can only be read, or may not be changed.
    """
    remote = store_behind(sdata)
    if remote is not None:
        url = url_of(remote)
        if url.partition(":")[0].lower() in _READ_ONLY:
            msg = f"{url} can be read but not written to; {_OTHERWISE}"
            raise InputError(msg)
        return
    store = None if sdata.path is None else Path(str(sdata.path))
    if store is None or not store.is_dir():
        return
    # elements appear in the group of their kind; a first one makes that group
    within = store / kind if (store / kind).is_dir() else store
    for folder in dict.fromkeys((store, within)):
        if not os.access(folder, os.W_OK | os.X_OK):
            msg = f"{folder} may not be changed by this user; {_OTHERWISE}"
            raise InputError(msg)


_OTHERWISE = (
    "give the results a folder of their own where that can be chosen (write=<folder>, or --out-dir), "
    "or work on a copy of the store"
)


def check_model_folder(out: Path | None) -> None:
    """Raise if a folder for a model is a URL, a zarr store, or lies within one.

    Raises
    ------
    InputError
        In these cases.
    """
    if out is None:
        return
    if (url := as_url(out)) is not None:
        msg = f"out={url!r} is a URL; models are written to a local disk: give a folder"
        raise InputError(msg)
    whole = out.absolute()
    for folder in (whole, *whole.parents):
        if (folder / "zarr.json").is_file() or (folder / ".zgroup").is_file():
            where = "is" if folder == whole else f"lies in {folder}, which is"
            msg = f"out={str(out)!r} {where} a zarr store; give a folder outside of it"
            raise InputError(msg)
