"""Persist a table in the object's own zarr store, whole or not at all."""

from __future__ import annotations

from spatialdata import SpatialData

from nimbus_sd._sdata.persist import persist_table


def write_table(sdata: SpatialData, name: str = "nimbus", *, overwrite: bool = True) -> str:
    """Write a table of `sdata` into the zarr store that backs `sdata`.

    Unlike ``sdata.write_element``, this replaces a table that is on disk already. The
    new one is written beside it, read back and compared, and only then takes its
    place: whatever fails on the way, the store holds the old table or the new one.
    One process at a time may write a table.

    Object stores (``s3://`` and such) can't exchange two tables in one step. There the
    new table becomes visible when it is complete; where its name is taken, it gets the
    next free one (``"nimbus_v2"``, ``"nimbus_v3"``, …) with a
    :class:`NimbusWarning`, and the old one stays as it is.

    Parameters
    ----------
    sdata
        Object that was read from, or written to, a zarr store on a local disk, or that
        was opened from a remote store.
    name
        Name of the table in ``sdata.tables``.
    overwrite
        Replace a table of this name on disk; False raises instead.

    Returns
    -------
    str
        The name of the table in the store.

    Raises
    ------
    ElementNotFoundError
        If `sdata` has no such table.
    InputError
        If `sdata` is not backed by a store, if the table is on disk and
        `overwrite` is False, or if what was written reads back differently.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import anndata as ad, numpy as np, spatialdata as sd
    >>> import nimbus_sd as nb
    >>> sdata = sd.SpatialData(tables={"nimbus": ad.AnnData(np.float32([[0.5], [1.0]]))})
    >>> store = Path(tempfile.mkdtemp()) / "data.zarr"
    >>> sdata.write(store)
    >>> sdata["nimbus"].obs["cluster"] = ["1", "2"]
    >>> nb.io.write_table(sdata)
    'nimbus'
    >>> sd.read_zarr(store)["nimbus"].obs["cluster"].tolist()
    ['1', '2']
    """
    return persist_table(sdata, name, overwrite)
