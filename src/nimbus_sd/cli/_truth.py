"""Labels for ``evaluate`` and ``calibrate``: a layer, a table of the store, or a file."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.layer_names import layer_names
from nimbus_sd.cli._options import check_table, open_store
from nimbus_sd.cli._tables import read_table

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

TRUTH = (
    "Labels 1, 0, NaN: a layer of the table, another table of the store, or a file "
    "(.csv with label,fov, of several stores STORE/fov, or with obs_names first; .h5ad; STORE/tables/NAME)."
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
        if not truth.lower().endswith(".csv"):
            return read_table("--truth", truth)
        return _read_csv(Path(truth), _regions(sdatas, table))
    layers = ", ".join(map(repr, layer_names(sdatas[0][table].layers))) or "none"
    tables = ", ".join(repr(t) for t in sdatas[0].tables if t != table) or "none"
    msg = f"--truth {truth}: no such file, layer (there are: {layers}) or further table (there are: {tables})"
    raise InputError(msg)


def open_tables(stores: Sequence[str], table: str, *, write: bool = False) -> list[SpatialData]:
    """Objects of stores that all have this table, which is to be written with `write`.

    Raises
    ------
    ElementNotFoundError
        If a store lacks it.
    InputError
        If a store comes twice, or can't be written where it is to be.
    """
    from nimbus_sd._sdata.cohort import as_cohort
    from nimbus_sd._sdata.writable import check_writable

    sdatas = [open_store(store) for store in stores]
    as_cohort(sdatas)
    for sdata, store in zip(sdatas, stores, strict=True):
        check_table(sdata, table, store)
        if write:
            check_writable(sdata)
    return sdatas


def joined(sdatas: Sequence[SpatialData], table: str) -> AnnData:
    """The table, or of several objects those of all, whose cells then begin with the object's name."""
    if len(sdatas) == 1:
        return sdatas[0].tables[table]
    from nimbus_sd import tl

    return tl.concat_tables(sdatas, table=table)


def _regions(sdatas: Sequence[SpatialData], table: str) -> set[str]:
    """Regions of the cells, as :func:`joined` calls them."""
    from nimbus_sd._sdata.cohort import as_cohort

    found = set[str]()
    for name, sdata in as_cohort(sdatas if len(sdatas) > 1 else sdatas[0]).items():
        adata = sdata.tables[table]
        key = adata.uns.get("spatialdata_attrs", {}).get("region_key")
        own = adata.obs[key].astype(str).unique() if key in adata.obs else []
        found |= {f"{name}_{region}" if name else region for region in own}
    return found


def _read_csv(path: Path, regions: Collection[str]) -> pd.DataFrame | AnnData:
    """With columns ``label`` and ``fov`` the table that they name, else cells by the first column."""
    import pandas as pd

    from nimbus_sd import io

    try:
        columns = list(pd.read_csv(path, nrows=0).columns)
        if not {"label", "fov"} <= set(columns):
            frame = pd.read_csv(path, index_col=0)
            return frame.set_axis(frame.index.astype(str))
    except ValueError as error:  # empty, ragged, not text
        msg = f"--truth {path} can't be read as CSV ({str(error).strip()}); give a comma-separated table"
        raise InputError(msg) from error
    return _by_region(io.read_cell_table(path), regions)


def _by_region(truth: AnnData, regions: Collection[str]) -> AnnData:
    """A CSV may name the region itself where others name the field, which lacks its ``_labels``."""
    suffix = "_labels"
    given = truth.obs["region"].astype(str)
    short = {r: r.removesuffix(suffix) for r in given.unique() if r not in regions}
    short = {r: s for r, s in short.items() if s in regions}
    if not short:
        return truth
    truth.obs["region"] = given.replace(short).astype("category")
    truth.obs_names = [f"{r}_{i}" for r, i in zip(truth.obs["region"], truth.obs["instance_id"], strict=True)]
    attrs = truth.uns["spatialdata_attrs"]
    truth.uns["spatialdata_attrs"] = {**attrs, "region": list(truth.obs["region"].cat.categories)}
    return truth
