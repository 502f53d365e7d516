"""Labels for ``evaluate`` and ``calibrate``: a layer, a table of the store, or a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nimbus_sd._core.errors import InputError
from nimbus_sd.cli._options import check_table, open_store
from nimbus_sd.cli._tables import read_table

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

TRUTH = (
    "Labels 1, 0, NaN: a layer of the table, another table of the store, or a file "
    "(.csv with label,fov or obs_names first, .h5ad, STORE/tables/NAME)."
)


def find_truth(sdatas: Sequence[SpatialData], table: str, truth: str) -> str | pd.DataFrame | AnnData:
    """What ``--truth`` names, as :func:`nimbus_sd.tl.evaluate` takes it.

    Parameters
    ----------
    sdatas
        One object, or those of a cohort.
    table
        Whose cells are labelled.
    truth
        A layer of `table` in each, a table of each, or a file. ``tables/NAME`` and
        ``layers/NAME`` tell the first two apart where both are there.

    Raises
    ------
    InputError
        If it is none of them, or both a table and a layer.
    """
    kind, _, name = truth.rpartition("/")
    is_layer = kind in ("", "layers") and all(name in s[table].layers for s in sdatas)
    is_table = kind in ("", "tables") and all(name in s.tables and name != table for s in sdatas)
    if is_layer and is_table:
        msg = f"--truth {name} is a layer and a table; write layers/{name} or tables/{name}"
        raise InputError(msg)
    if is_layer:
        return name
    if is_table:
        return joined(sdatas, name)
    if Path(truth).exists():
        return _read_csv(Path(truth)) if truth.lower().endswith(".csv") else read_table("--truth", truth)
    layers = ", ".join(map(repr, sdatas[0][table].layers)) or "none"
    tables = ", ".join(repr(t) for t in sdatas[0].tables if t != table) or "none"
    msg = f"--truth {truth}: no such file, layer (there are: {layers}) or further table (there are: {tables})"
    raise InputError(msg)


def open_tables(stores: Sequence[str], table: str) -> list[SpatialData]:
    """Objects of stores that all have this table."""
    sdatas = [open_store(store) for store in stores]
    for sdata, store in zip(sdatas, stores, strict=True):
        check_table(sdata, table, store)
    return sdatas


def joined(sdatas: Sequence[SpatialData], table: str) -> AnnData:
    """The table, or of several objects those of all, whose cells then begin with the object's name."""
    if len(sdatas) == 1:
        return sdatas[0].tables[table]
    from nimbus_sd import tl

    return tl.concat_tables(sdatas, table=table)


def _read_csv(path: Path) -> pd.DataFrame | AnnData:
    """With columns ``label`` and ``fov`` the table that they name, else cells by the first column."""
    import pandas as pd

    from nimbus_sd import io

    columns = list(pd.read_csv(path, nrows=0).columns)
    if {"label", "fov"} <= set(columns):
        return io.read_cell_table(path)
    frame = pd.read_csv(path, index_col=0)
    return frame.set_axis(frame.index.astype(str))
