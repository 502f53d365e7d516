"""Classes of cells from a table's column, for judging an embedding while it is trained."""

from __future__ import annotations

from collections.abc import Mapping

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata import SpatialData
from spatialdata.models import TableModel

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata.centers import CenterSample, CenterSet
from nimbus_sd._sdata.table import link_keys, named_table

FEWEST = 4  # held-out cells; with fewer there is nothing to judge by


def classes_of(
    objects: Mapping[str, SpatialData], found: CenterSet, column: str, table: str | None
) -> np.ndarray:
    """Class of every cell, joined on region and instance id.

    Parameters
    ----------
    objects
        By name.
    found
        Their cells.
    column
        Of the table's obs.
    table
        Its name; None takes the one table that annotates the cells and has the column.

    Returns
    -------
    int64 ``(n,)`` in the order of the samples; -1 where a cell has no class.

    Raises
    ------
    ElementNotFoundError
        If there is no such table or column.
    InputError
        If several tables would do, or the cells have fewer than two classes.
    """
    named = np.concatenate([_names(objects[s.of], s, column, table) for s in found.samples])
    codes, classes = pd.factorize(named, sort=True)
    if len(classes) < 2:
        what = f"only {classes[0]!r}" if len(classes) else "no value"
        msg = f"probe={column!r}: the cells have {what} there; name a column with at least two classes"
        raise InputError(msg)
    return codes.astype(np.int64)


def with_class(held: np.ndarray, classes: np.ndarray, column: str | None) -> np.ndarray:
    """Those of the held-out rows that have a class.

    Raises
    ------
    InputError
        If they are too few to judge by, or of one class.
    """
    found = held[classes[held] >= 0]
    if len(found) < FEWEST or len(np.unique(classes[found])) < 2:
        msg = (
            f"probe={column!r}: of {len(held)} held-out cells {len(found)} have a class there, too few or "
            "of one class only; label more cells, or leave probe= out"
        )
        raise InputError(msg)
    return found


def _names(sdata: SpatialData, sample: CenterSample, column: str, table: str | None) -> np.ndarray:
    """Values of one sample's cells as strings, None where there is none."""
    source = _table(sdata, sample, column, table)
    region, instance = link_keys(source)
    mine = source.obs[source.obs[region].astype(str) == sample.region]
    values = mine[column].astype(object).where(mine[column].notna(), None)
    by_id = dict(zip(mine[instance].to_numpy(), values.to_numpy(), strict=True))
    found = [by_id.get(i) for i in sample.ids]
    return np.array([None if v is None else str(v) for v in found], dtype=object)


def _annotates(table: ad.AnnData, region: str) -> bool:
    return TableModel.ATTRS_KEY in table.uns and region in set(table.obs[link_keys(table)[0]].astype(str))


def _table(sdata: SpatialData, sample: CenterSample, column: str, table: str | None) -> ad.AnnData:
    where = f"{sample.kind} {sample.region!r}"
    if table is not None:
        source = named_table(sdata, table)
        if not _annotates(source, sample.region):
            msg = f"table {table!r} does not annotate {where}; name one that does with table="
            raise InputError(msg)
        if column not in source.obs:
            msg = f"table {table!r} has no obs[{column!r}]; columns: {list(source.obs)[:12]}"
            raise ElementNotFoundError(msg)
        return source
    candidates = {n: t for n, t in sdata.tables.items() if _annotates(t, sample.region)}
    having = [n for n, t in candidates.items() if column in t.obs]
    if len(having) == 1:
        return candidates[having[0]]
    if having:
        msg = f"probe={column!r}: several tables of {where} have it ({', '.join(having)}); pass table="
        raise InputError(msg)
    known = sorted({c for t in candidates.values() for c in t.obs})
    msg = f"probe={column!r}: no table that annotates {where} has this column; columns there: {known[:12]}"
    raise ElementNotFoundError(msg)
