"""Where a reviewed table lies, where its log goes, and whether others have written the table since."""

from __future__ import annotations

import hashlib
from pathlib import Path

from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.cohort import location_of
from nimbus_sd.models.hub import cache_folder


def log_path(sdata: SpatialData, table: str, log: str | Path | None) -> Path | None:
    """Where the log goes: `log`, else beside the local store, or in the cache for one behind a URL.

    None for an object in memory.

    Raises
    ------
    InputError
        If the folder of `log` does not exist, or it would lie in the store, or the cache
        can't be written.
    """
    store = location_of(sdata)
    if log is None:
        if isinstance(store, Path):
            return store.with_name(f"{store.name}.{table}.review.jsonl")
        return None if store is None else _in_cache(store, table)
    path = Path(log).expanduser().absolute()
    if not path.parent.is_dir() or path.is_dir():
        msg = f"log={str(log)!r}: {path.parent} is no folder, or the path is one; pass the path of a file"
        raise InputError(msg)
    if isinstance(store, Path) and store.resolve() in path.resolve().parents:
        msg = f"log={str(log)!r} lies in the store {store}, whose tables are replaced whole; choose another"
        raise InputError(msg)
    return path


def state_on_disk(sdata: SpatialData, table: str) -> str | None:
    """Hash of names, sizes and times of the files of a table in a local store; None if there are none.

    Stores behind a URL have none either: there a table that is written never takes the place of another.
    """
    store = location_of(sdata)
    if not isinstance(store, Path):
        return None
    folder = store / "tables" / table
    digest, n = hashlib.blake2b(digest_size=16), 0
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            about = path.stat()
            digest.update(f"{path.relative_to(folder)}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
            n += 1
    return digest.hexdigest() if n else None


def _in_cache(url: str, table: str) -> Path:
    folder = cache_folder() / "reviews"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"the log of a store behind a URL goes to {folder}, which can't be made ({error}); pass log="
        raise InputError(msg) from error
    return folder / f"{hashlib.blake2b(url.encode(), digest_size=8).hexdigest()}.{table}.jsonl"
