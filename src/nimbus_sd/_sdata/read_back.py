"""Whether a table that was read back is the one that was to be written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from nimbus_sd._core.errors import InputError


def compare_tables(wanted: ad.AnnData, found: ad.AnnData, what: str) -> None:
    """Raise unless a table that was read back is the one that was to be written.

    Parameters
    ----------
    wanted, found
        The two.
    what
        The table, as the message should name it.

    Raises
    ------
    InputError
        If they differ; it says in which parts.
    """
    wrong = [
        part
        for part, same in {
            "shape": wanted.shape == found.shape,
            "X": _same(wanted.X, found.X),
            "obs": _same_frame(wanted.obs, found.obs),
            "var": _same_frame(wanted.var, found.var),
            **{
                part: _same_arrays(getattr(wanted, part), getattr(found, part))
                for part in ("layers", "obsm", "varm", "obsp", "varp")
            },
            "uns": _same_nested(dict(wanted.uns), dict(found.uns)),
            "raw": _same_raw(wanted.raw, found.raw),
        }.items()
        if not same
    ]
    if wrong:
        msg = f"{what}: {', '.join(wrong)} read back differently; nothing was replaced. Check the disk."
        raise InputError(msg)


def _same_arrays(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    return set(wanted) == set(found) and all(_same(wanted[key], found[key]) for key in wanted)


def _same_nested(wanted: Any, found: Any) -> bool:
    if isinstance(wanted, Mapping):
        return (
            isinstance(found, Mapping)
            and {str(k) for k in wanted} == {str(k) for k in found}
            and all(_same_nested(wanted[key], found[str(key)]) for key in wanted)
        )
    try:
        return _same(wanted, found)
    except (TypeError, ValueError):  # something that can't be compared, such as ragged lists
        return True


def _same_raw(wanted: Any, found: Any) -> bool:
    if wanted is None or found is None:
        return wanted is found
    return wanted.shape == found.shape and _same(wanted.X, found.X) and _same_frame(wanted.var, found.var)


def _same_frame(wanted: pd.DataFrame, found: pd.DataFrame) -> bool:
    return (
        wanted.index.astype(str).equals(found.index.astype(str))
        and wanted.columns.tolist() == found.columns.tolist()
        and all(_same(wanted[key].to_numpy(), found[key].to_numpy()) for key in wanted)
    )


def _same(wanted: Any, found: Any) -> bool:
    if wanted is None or found is None:
        return wanted is found
    if isinstance(wanted, pd.DataFrame):
        return isinstance(found, pd.DataFrame) and _same_frame(wanted, found)
    if sparse.issparse(wanted) and sparse.issparse(found):
        first, second = wanted.tocsr().sorted_indices(), found.tocsr().sorted_indices()
        parts = ("indptr", "indices", "data")
        return first.shape == second.shape and all(
            _same(getattr(first, p), getattr(second, p)) for p in parts
        )
    one, other = (item.toarray() if sparse.issparse(item) else np.asarray(item) for item in (wanted, found))
    if one.dtype.names:
        return one.dtype.names == other.dtype.names and all(_same(one[n], other[n]) for n in one.dtype.names)
    if one.shape != other.shape:
        return False
    if one.dtype.kind in "biufc" and other.dtype.kind in "biufc":
        return bool(np.array_equal(one, other, equal_nan=one.dtype.kind in "fc" and other.dtype.kind in "fc"))
    missing, lost = pd.isna(one), pd.isna(other)
    return bool(
        np.array_equal(missing, lost) and (one[~missing].astype(str) == other[~lost].astype(str)).all()
    )
