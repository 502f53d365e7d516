"""Which cells of one table are those of another: by element and instance id, else by name."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import InputError

SAME_CELLS = 0.5  # with fewer of its cells found, a frame belongs to another segmentation


def of_same_elements(adata: ad.AnnData, source: ad.AnnData) -> tuple[ad.AnnData, pd.Index]:
    """Cells of `source` in elements that both annotate, and what `adata` calls them.

    By region and instance id; where the tables share no element all cells, by their own names.
    """
    mine, theirs = (_instances(t) for t in (adata, source))
    if mine is None or theirs is None:
        return source, source.obs_names
    shared = theirs.get_level_values(0).isin(mine.get_level_values(0).unique())
    if not shared.any() or not mine.is_unique or not theirs.is_unique:
        return source, source.obs_names
    theirs = theirs[shared]
    at = mine.get_indexer(theirs)
    names = adata.obs_names.to_numpy(object)
    # a cell that is not there must not be taken for another of the same name
    index = [names[a] if a >= 0 else f"{r} {i}" for a, (r, i) in zip(at, theirs, strict=True)]
    return source[shared], pd.Index(index)


def _instances(table: ad.AnnData) -> pd.MultiIndex | None:
    attrs = table.uns.get("spatialdata_attrs", {})
    keys = [attrs.get("region_key"), attrs.get("instance_key")]
    if not all(k in table.obs for k in keys):
        return None
    return pd.MultiIndex.from_arrays([table.obs[keys[0]].astype(str), table.obs[keys[1]]])


def check_areas(adata: ad.AnnData, source: ad.AnnData, index: pd.Index, what: str) -> None:
    """Raise :class:`InputError` if areas differ: ids of two segmentations may coincide, areas don't.

    Parameters
    ----------
    adata, source
        Tables.
    index
        What `adata` calls the cells of `source`.
    what
        Name of `source`, for the message.
    """
    if "area_px" not in adata.obs or "area_px" not in source.obs:
        return
    common = adata.obs_names.intersection(index)
    if len(common) < 2:
        return
    areas = source.obs["area_px"].set_axis(index)
    mine, theirs = (a.loc[common].to_numpy(np.float64) for a in (adata.obs["area_px"], areas))
    differ = float((mine != theirs).mean())
    if differ > SAME_CELLS:
        msg = (
            f"{what}: {differ:.0%} of the cells with equal names differ in area_px: labels of another "
            "segmentation; carry them over to these cells first"
        )
        raise InputError(msg)
