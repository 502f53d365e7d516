"""Elements in object stores, which can't rename: a new one appears whole, an old one is never touched."""

from __future__ import annotations

import re
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import zarr
from zarr.storage import FsspecStore

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata.alone import write_alone
from nimbus_sd._sdata.place import KINDS
from nimbus_sd._sdata.remote import url_of
from nimbus_sd._sdata.swap import GROUP_FILES, ROOT_FILES, ChangeAttrs, Check
from nimbus_sd._sdata.zarr_source import blocking


def remote_elements(store: FsspecStore) -> dict[str, str]:
    """Name to kind of every element that lies in a store, listed now.

    What has no metadata of its own is none: a killed upload left it, and the next one removes it.
    """
    fs, root = _files(store)
    return {
        name: kind
        for kind in KINDS
        for entry in _listed(fs, f"{root}/{kind}")
        if not (name := entry.rstrip("/").rsplit("/", 1)[-1]).startswith(".")
        and name != "zarr.json"
        and any(file.endswith(("/zarr.json", "/.zgroup")) for file in _listed(fs, entry))
    }


def free_name(name: str, taken: dict[str, str], *, overwrite: bool, where: str, kind: str = "tables") -> str:
    """Return `name`, or its next version where an element of that kind and name is there already.

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
    word = kind.removesuffix("s")
    if taken[name] != kind:
        msg = f"{where}: {name!r} is an element of {taken[name]} already. Give the {word} another name."
        raise InputError(msg)
    if not overwrite:
        msg = (
            f"{where}: {word} {name!r} is there already. Give overwrite=True to write a new version "
            "beside it, or another name."
        )
        raise InputError(msg)
    base = re.sub(r"_v\d+$", "", name)
    versions = [int(m[1]) for other in taken if (m := re.fullmatch(re.escape(base) + r"_v(\d+)", other))]
    return f"{base}_v{max([1, *versions]) + 1}"


def upload(
    store: FsspecStore,
    kind: str,
    name: str,
    element: Any,
    *,
    overwrite: bool,
    check: Check | None = None,
    attrs: ChangeAttrs | None = None,
) -> str:
    """Write an element into a remote store and return the name it got.

    It is written to the local temporary folder first. Then its files go up, what makes
    it a zarr group last; their sizes are compared, and what was written is checked; the
    store's attributes and consolidated metadata, which tell readers of it, are refreshed at
    the end. What fails on the way is deleted again. For local stores see
    :func:`~nimbus_sd._sdata.swap.swap_in`.

    Parameters
    ----------
    store
        Where to.
    kind
        ``"images"`` or ``"tables"``.
    name
        Wanted name, see :func:`free_name`.
    element
        What to write.
    overwrite
        Whether a new version may be written where the name is taken.
    check
        Called with what was written, before readers are told of it.
    attrs
        Makes the store's attributes fit the new element.

    Raises
    ------
    InputError
        If the name can't be used, or what was written is there differently.
    """
    where = url_of(store)
    fs, root = _files(store)
    final = free_name(name, remote_elements(store), kind=kind, overwrite=overwrite, where=where)
    what, prefix = f"{where}: {kind.removesuffix('s')} {final!r}", f"{root}/{kind}/{final}"
    before, first = _root_files(fs, root), not _listed(fs, f"{root}/{kind}")
    with tempfile.TemporaryDirectory(prefix="nimbus-sd-", ignore_cleanup_errors=True) as folder:
        alone = write_alone(element, kind, final, Path(folder), like=store)
        try:
            zarr.open_group(store, mode="r+", use_consolidated=False).require_group(kind)
            _remove(fs, prefix)  # what a killed upload left there
            _upload(fs, alone, prefix)
            _check_sizes(fs, alone, prefix, what)
            if check is not None:
                check(zarr.open_group(store, path=f"{kind}/{final}", mode="r", use_consolidated=False), what)
            blocking(store.fs)  # forget the old listing
            _tell(store, final, attrs)
        except BaseException:
            _remove(fs, prefix)
            if first:
                _remove_empty(fs, f"{root}/{kind}")
            _put_back(fs, root, before)
            raise
    if final != name:
        word = kind.removesuffix("s")
        warnings.warn(
            f"{where}: {word} {name!r} is there already and stays; the new one is {final!r}, as object "
            f"stores can't exchange two {kind} in one step",
            NimbusWarning,
            stacklevel=4,
        )
    return final


def _tell(store: FsspecStore, name: str, change_attrs: ChangeAttrs | None) -> None:
    """Let attributes and consolidated metadata follow; attributes first, as readers go by the latter."""
    root = zarr.open_group(store, mode="r+")
    if change_attrs is not None:
        root.attrs.put(change_attrs(root.attrs.asdict(), name))
    if root.metadata.consolidated_metadata is not None:
        _consolidate(store)


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


def _check_sizes(fs: Any, folder: Path, prefix: str, what: str) -> None:
    fs.invalidate_cache()
    there = {name.removeprefix(prefix): info["size"] for name, info in fs.find(prefix, detail=True).items()}
    here = {
        f"/{file.relative_to(folder).as_posix()}": file.stat().st_size
        for file in folder.rglob("*")
        if file.is_file()
    }
    wrong = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    if wrong:
        msg = (
            f"{what}: {len(wrong)} of {len(here)} files did not arrive whole, such as {wrong[0]}; nothing "
            "was kept. Run again."
        )
        raise InputError(msg)


def _root_files(fs: Any, root: str) -> dict[str, bytes]:
    found = {}
    for name in ROOT_FILES:  # one by one: fs.cat takes a name with [ ] or * as a pattern
        with suppress(FileNotFoundError):
            found[f"{root}/{name}"] = bytes(fs.cat_file(f"{root}/{name}"))
    return found


def _put_back(fs: Any, root: str, before: dict[str, bytes]) -> None:
    now = _root_files(fs, root)
    for name, content in before.items():
        if now.get(name) != content:
            fs.pipe_file(name, content)


def _consolidate(store: FsspecStore) -> None:
    with warnings.catch_warnings():
        # points and shapes are parquet files in zarr groups: nothing to consolidate there
        warnings.filterwarnings("ignore", category=zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(store)


def _remove_empty(fs: Any, group: str) -> None:
    """Remove a zarr group that has no members."""
    if {name.rsplit("/", 1)[-1] for name in _listed(fs, group)} <= GROUP_FILES:
        _remove(fs, group)


def _remove(fs: Any, prefix: str) -> None:
    fs.invalidate_cache()
    for file in fs.find(prefix):  # one by one: fs.rm takes a name with [ ] or * as a pattern
        fs.rm_file(file)
    fs.invalidate_cache()
