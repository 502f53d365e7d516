"""May a result be stored under this name? Asked before any work, so that bad input writes nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.persist_remote import remote_elements
from nimbus_sd._sdata.place import KINDS
from nimbus_sd._sdata.remote import store_behind
from nimbus_sd._sdata.table import existing_table
from nimbus_sd._sdata.writable import check_writable

_VALID = re.compile(r"(?!__)(?!\.{1,2}$)[\w.-]+")


def check_new_name(
    sdata: SpatialData, name: str, *, kind: str, argument: str, overwrite: bool, write: bool = False
) -> None:
    """Raise unless an element can be stored under `name`.

    Parameters
    ----------
    sdata
        The object.
    name
        Wanted name.
    kind
        ``"tables"``, ``"images"`` or ``"labels"``.
    argument
        What the caller calls the name, for messages.
    overwrite
        Whether an element of that kind may be replaced.
    write
        Whether it will be persisted: then the store's elements count too.

    Raises
    ------
    InputError
        For names that spatialdata does not allow, or that are taken.
    """
    if not isinstance(name, str) or not _VALID.fullmatch(name):
        msg = (
            f"{argument}={name!r} is not a valid element name; valid: letters, digits, '_', '-' and '.', "
            "not starting with '__'"
        )
        raise InputError(msg)
    taken = {element: k for k in KINDS for element in getattr(sdata, k)}
    if write:
        taken |= on_disk(sdata)
    for other, other_kind in taken.items():
        if other.casefold() != name.casefold():
            continue
        if other_kind != kind or other != name:
            msg = f"{other!r} is the name of another element, in {other_kind}; pass another {argument}="
            raise InputError(msg)
        if not overwrite:
            what = kind.removesuffix("s") if kind in ("images", "tables") else kind
            msg = f"{what} {name!r} exists; pass overwrite=True to replace it, or another {argument}="
            raise InputError(msg)


def on_disk(sdata: SpatialData) -> dict[str, str]:
    """Elements of the store behind an object: name to kind."""
    remote = store_behind(sdata)
    if remote is not None:
        return remote_elements(remote)
    store = Path(str(sdata.path))
    return {p.name: k for k in KINDS for p in (store / k).glob("[!.]*") if p.is_dir()}


def check_prediction_target(
    sdata: SpatialData, table: str, into: str | None, *, overwrite: bool, write: bool
) -> None:
    """Raise unless the scores can be stored where the caller wants them.

    Raises
    ------
    InputError
        If the table or layer exists without `overwrite`, the name can't be used, or
        `write` is asked of an object without a store, or with one that can only be read.
    ElementNotFoundError
        If `into` is no table.
    """
    if write and store_behind(sdata) is None and not (sdata.is_backed() and Path(str(sdata.path)).is_dir()):
        msg = (
            "write=True needs an object with a zarr store on a local disk, or one that was opened from a "
            "remote store; call sdata.write(path) first, or leave write out"
        )
        raise InputError(msg)
    if write:
        check_writable(sdata)
    if into is None:
        check_new_name(sdata, table, kind="tables", argument="table", overwrite=overwrite, write=write)
        return
    if "nimbus" in existing_table(sdata, into, []).layers and not overwrite:
        msg = f"table {into!r} has a layer 'nimbus' already; pass overwrite=True to replace it"
        raise InputError(msg)


def check_map_names(
    sdata: SpatialData, names: Sequence[str], *, table: str | None, overwrite: bool, write: bool
) -> None:
    """Raise unless score maps can be stored under `names`, beside the new `table`."""
    for name in names:
        check_new_name(sdata, name, kind="images", argument="maps", overwrite=overwrite, write=write)
        if table is not None and name.casefold() == table.casefold():
            msg = f"maps={name!r} is the table's name too; pass another maps= or table="
            raise InputError(msg)
