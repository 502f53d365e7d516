"""One table of all cells of a cohort."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import anndata as ad
import pandas as pd
from spatialdata import SpatialData
from spatialdata.models import TableModel

from nimbus_sd._core.errors import ElementNotFoundError, NimbusWarning
from nimbus_sd._sdata.cohort import as_cohort


def concat_tables(
    sdatas: Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    table: str = "nimbus",
    sample_key: str = "sample",
) -> ad.AnnData:
    """Put the tables of a cohort below one another, for clustering all cells together.

    Parameters
    ----------
    sdatas
        Objects that :func:`nimbus_sd.tl.predict` has scored: a list, then called by their
        stores, or ``{name: object}``.
    table
        Name of the table in each; objects without it are left out with a warning.
    sample_key
        Column of ``obs`` that gets the name of the object.

    Returns
    -------
    AnnData ``(n_cells, n_markers)`` of the markers that all tables have, with their common layers
    and ``obsm``, and of ``uns`` what is the same in all. It annotates no object, so it is no
    element of one; ``obs_names`` begin with the sample.

    Raises
    ------
    ElementNotFoundError
        If no object has such a table.

    Warns
    -----
    NimbusWarning
        For objects without the table, and for markers that not all have.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdatas = [nb.datasets.simulated_tissue(n_fovs=1, shape=(96, 96), seed=i) for i in range(2)]
    >>> nb.tl.predict(sdatas, channels=["CD3", "CD20"], progress=False)
    >>> nb.tl.concat_tables(sdatas).obs["sample"].cat.categories.tolist()
    ['object0', 'object1']
    """
    objects = as_cohort(sdatas)
    tables = {name: each.tables[table] for name, each in objects.items() if table in each.tables}
    if not tables:
        msg = f"no table {table!r} in any of {', '.join(map(repr, objects))}; run nb.tl.predict on them first"
        raise ElementNotFoundError(msg)
    missing = [name for name in objects if name not in tables]
    if missing:
        warnings.warn(f"no table {table!r} in {', '.join(missing)}: left out", NimbusWarning, stacklevel=2)
    named = {name: _renamed(each, name) for name, each in tables.items()}
    whole = ad.concat(named, join="inner", merge="same", uns_merge="same", label=sample_key)
    lost = sorted({v for t in tables.values() for v in t.var_names} - set(whole.var_names))
    if lost:
        warnings.warn(f"not in every table, left out: {', '.join(lost)}", NimbusWarning, stacklevel=2)
    return whole


def _renamed(table: ad.AnnData, sample: str) -> ad.AnnData:
    """A shallow copy with its own names, without what ties it to one object."""
    names = pd.Index([f"{sample}_{name}" for name in table.obs_names])
    return ad.AnnData(
        table.X,
        obs=table.obs.set_axis(names),
        var=table.var,
        layers=dict(table.layers),
        # frames, such as those of nb.pp.gate, have names of their own
        obsm={k: v.set_axis(names) if isinstance(v, pd.DataFrame) else v for k, v in table.obsm.items()},
        uns={k: v for k, v in table.uns.items() if k != TableModel.ATTRS_KEY},
    )
