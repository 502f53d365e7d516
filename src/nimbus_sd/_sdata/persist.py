"""Tables and score maps from an object into the store that it came from, wherever that is."""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import spatialdata as sd
import zarr
from spatialdata import SpatialData

from nimbus_sd._core.errors import ElementNotFoundError
from nimbus_sd._sdata.maps import with_map
from nimbus_sd._sdata.persist_remote import upload
from nimbus_sd._sdata.read_back import compare_tables
from nimbus_sd._sdata.remote import raster_of, store_behind
from nimbus_sd._sdata.swap import swap_in
from nimbus_sd._sdata.writable import check_writable


def persist_table(sdata: SpatialData, name: str, overwrite: bool, *, table: ad.AnnData | None = None) -> str:
    """Write a table into the store that backs `sdata`, whole or not at all; return the name it has there.

    What was written is read back and compared before readers of the store find it. See
    :func:`~nimbus_sd._sdata.swap.swap_in` and :func:`~nimbus_sd._sdata.persist_remote.upload`.

    Parameters
    ----------
    sdata
        Backed by a zarr store on a local disk, or opened from a remote one; stays as it is.
    name
        Name of the table.
    overwrite
        Whether a table of this name in the store may be replaced (in a remote one: get a
        new version beside it).
    table
        What to write; None takes ``sdata.tables[name]``.

    Raises
    ------
    ElementNotFoundError, InputError
        See :func:`nimbus_sd.io.write_table`.
    """
    if table is None and name not in sdata.tables:
        msg = f"no table {name!r} in the object; it has: {', '.join(sdata.tables) or '(none)'}"
        raise ElementNotFoundError(msg)
    check_writable(sdata)
    wanted = sdata.tables[name] if table is None else table

    def check(group: zarr.Group, what: str) -> None:
        compare_tables(wanted, ad.read_zarr(group), what)

    remote = store_behind(sdata)
    if remote is not None:
        return upload(remote, "tables", name, wanted, overwrite=overwrite, check=check)
    swap_in(sdata, "tables", name, wanted, overwrite=overwrite, check=check)
    return name


def persist_map(sdata: SpatialData, name: str, element: Any) -> Any:
    """Write a score map into the store that backs `sdata`, whole or not at all; return it as read from there.

    The store's attributes say from then on that this image is a score map. The element
    returned reads from the store, so that what `element` reads from can go.

    Parameters
    ----------
    sdata
        Backed by a zarr store on a local disk, or opened from a remote one; stays as it is.
    name
        Name of the map; a local one of that name is replaced, beside a remote one comes a
        new version.
    element
        The image.

    Raises
    ------
    InputError
        If there is no store, or another element has that name.
    """
    check_writable(sdata, "images")
    remote = store_behind(sdata)
    if remote is not None:
        final = upload(remote, "images", name, element, overwrite=True, attrs=with_map)
        return raster_of(zarr.open_group(remote, path=f"images/{final}", mode="r", use_consolidated=False))
    store = swap_in(sdata, "images", name, element, overwrite=True, attrs=with_map)
    with warnings.catch_warnings():
        # who opened the object was told of its format then
        warnings.filterwarnings("ignore", message=".*most current format", category=UserWarning)
        return sd.read_zarr(store, selection=("images",)).images[name]
