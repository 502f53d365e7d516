"""Columns of ``obs`` that cells are told apart by: the table's own, else those of its labels' table."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import ElementNotFoundError
from nimbus_sd._sdata.same_cells import of_same_elements
from nimbus_sd._sdata.truth import Frame


def cell_columns(adata: ad.AnnData, truth: Frame, names: Sequence[str]) -> tuple[pd.DataFrame, np.ndarray]:
    """Columns of the table's cells; what its ``obs`` lacks is joined from a truth that is a table.

    Parameters
    ----------
    adata
        The table.
    truth
        Labels that :func:`~nimbus_sd._sdata.truth.truth_matrix` has taken.
    names
        Columns.

    Returns
    -------
    One row per cell; and which cells the columns can know of, bool ``(n_obs,)``: all, or those that
    the truth has.

    Raises
    ------
    ElementNotFoundError
        If neither has a column.
    """
    known = np.ones(adata.n_obs, bool)
    columns = {n: adata.obs[n].reset_index(drop=True) for n in names if n in adata.obs}
    lacking = [n for n in names if n not in columns]
    if lacking:
        of_truth = truth.obs if isinstance(truth, ad.AnnData) else pd.DataFrame()
        _check(lacking, adata.obs, of_truth, joined=isinstance(truth, ad.AnnData))
        source, index = of_same_elements(adata, truth)
        known = adata.obs_names.isin(index)
        joined = source.obs[lacking].set_axis(index).reindex(adata.obs_names)
        columns |= {n: joined[n].reset_index(drop=True) for n in lacking}
    return pd.DataFrame({n: columns[n] for n in names}, index=range(adata.n_obs)), known


def _check(names: Sequence[str], ours: pd.DataFrame, theirs: pd.DataFrame, *, joined: bool) -> None:
    missing = next((n for n in names if n not in theirs), None)
    if missing is None:
        return
    valid = ", ".join(map(repr, dict.fromkeys([*ours, *theirs])))
    where = ", nor has that of the truth" if joined else ""
    msg = f"obs has no column {missing!r}{where}; valid: 'marker', {valid}"
    raise ElementNotFoundError(msg)
