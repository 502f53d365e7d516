"""Which cells of a table lie in well registered blocks of an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.center_elements import find_element
from nimbus_sd._sdata.centers import resolve_centers
from nimbus_sd._sdata.table import existing_table, link_keys

COLUMN, KEY = "registered", "registration"


def regions_of(sdata: SpatialData, table: str, image: str, system: str) -> list[str]:
    """Elements that a table annotates and that overlap an image.

    Raises
    ------
    ElementNotFoundError
        If there is no such table, or it annotates an element that is not there.
    InputError
        If none overlaps.
    """
    region = existing_table(sdata, table, []).obs[link_keys(sdata.tables[table])[0]].astype(str)
    names = list(dict.fromkeys(region))
    found = [n for n in names if find_element(sdata, n).overlapping(sdata, image, system)]
    if not found:
        msg = (
            f"table {table!r} annotates {names}, none of which overlaps image {image!r} in {system!r}; name "
            "the table of its cells"
        )
        raise InputError(msg)
    return found


def well_registered(
    sdata: SpatialData, table: str, image: str, *, system: str, edges: np.ndarray, ok: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a table that an image says something of, and what.

    Cells join by region and instance id; those without a pixel in the labels are not registered.

    Parameters
    ----------
    sdata, table, image, system
        The table annotates elements that overlap the image in the system.
    edges
        Of blocks that tile the image, ``(n, 4)``: y0, y1, x0, x1.
    ok
        bool ``(n,)``.

    Returns
    -------
    Row numbers ``(m,)`` and bool ``(m,)``.
    """
    adata = sdata.tables[table]
    region_key, instance_key = link_keys(adata)
    region = adata.obs[region_key].astype(str).to_numpy()
    names = regions_of(sdata, table, image, system)
    found = resolve_centers(sdata, image=dict.fromkeys(names, image), channels=None, coordinate_system=system)
    rows, good = [], []
    for sample in found.samples:
        mine = np.flatnonzero(region == sample.region)
        place = pd.Index(sample.ids).get_indexer(adata.obs[instance_key].iloc[mine])
        rows.append(mine)
        good.append(np.where(place >= 0, ok[_block_of(sample.centers, edges)][place], False))
    return np.concatenate(rows), np.concatenate(good)


def _block_of(centers: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Block that holds each centre, int64 ``(n,)``."""
    tops, lefts = np.unique(edges[:, 0]), np.unique(edges[:, 2])
    lookup = np.zeros((len(tops), len(lefts)), dtype=np.int64)
    lookup[np.searchsorted(tops, edges[:, 0]), np.searchsorted(lefts, edges[:, 2])] = np.arange(len(edges))
    at = np.maximum(np.floor(centers + 0.5), 0)
    row = np.searchsorted(tops, at[:, 0], side="right") - 1
    column = np.searchsorted(lefts, at[:, 1], side="right") - 1
    return lookup[row, column]


def note(adata: Any, rows: np.ndarray, good: np.ndarray, facts: dict[str, Any]) -> None:
    """Write ``obs["registered"]`` of some rows and what was found; rows never looked at count as registered.

    `facts` go to ``uns["registration"]`` under the H&E's name, ``facts["he"]``.
    """
    old = adata.obs[COLUMN].to_numpy(dtype=bool) if COLUMN in adata.obs else np.ones(adata.n_obs, dtype=bool)
    new = old.copy()
    new[rows] = good
    adata.obs[COLUMN] = new
    adata.uns[KEY] = {**adata.uns.get(KEY, {}), facts["he"]: facts}
