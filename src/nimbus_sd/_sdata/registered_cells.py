"""Which cells of a table lie in well registered blocks of an image."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata.center_elements import find_element
from nimbus_sd._sdata.centers import resolve_centers
from nimbus_sd._sdata.image_pair import ImagePair
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


class Marks(NamedTuple):
    """Rows of a table that an image says something of, and what.

    Attributes
    ----------
    rows
        int64 ``(n,)``.
    good
        Whether they are well registered, bool ``(n,)``.
    bad, outside
        How many cells lie in a block that is not ok; and in one that is, but outside the H&E.
    empty
        Elements without a cell, and how many rows name each.
    """

    rows: np.ndarray
    good: np.ndarray
    bad: int
    outside: int
    empty: dict[str, int]


def well_registered(
    sdata: SpatialData, table: str, pair: ImagePair, *, edges: np.ndarray, ok: np.ndarray
) -> Marks:
    """Which rows of a table that an image says something of are well registered.

    Cells join by region and instance id; those without a pixel in the labels, or outside one of
    the images, are not registered.

    Parameters
    ----------
    sdata, table
        The table annotates elements that overlap the pair's image.
    pair
        The image and the H&E.
    edges
        Of blocks that tile the image, ``(n, 4)``: y0, y1, x0, x1.
    ok
        bool ``(n,)``.
    """
    adata = sdata.tables[table]
    region_key, instance_key = link_keys(adata)
    region = adata.obs[region_key].astype(str).to_numpy()
    names = regions_of(sdata, table, pair.image.name, pair.system)
    found = resolve_centers(
        sdata,
        image=dict.fromkeys(names, pair.image.name),
        channels=None,
        coordinate_system=pair.system,
        strict=False,
    )
    rows, good, bad, outside, empty = [], [], 0, 0, {}
    for sample in found.samples:
        mine = np.flatnonzero(region == sample.region)
        place = pd.Index(sample.ids).get_indexer(adata.obs[instance_key].iloc[mine])
        in_block, shown = ok[_block_of(sample.centers, edges)], pair.covered(sample.centers)
        answers = np.zeros(len(mine), dtype=bool)
        there = place[place >= 0]
        answers[place >= 0] = (in_block & shown)[there]
        bad += int((~in_block)[there].sum())
        outside += int((in_block & ~shown)[there].sum())
        rows.append(mine)
        good.append(answers)
        if not len(sample) and not sample.outside:
            empty[sample.region] = len(mine)
    return Marks(np.concatenate(rows), np.concatenate(good), bad, outside, empty)


def warn_of_cells(table: str, marks: Mapping[str, Marks]) -> None:
    """Count cells that lie outside their H&E, and rows whose element holds no cell; `marks` by H&E."""
    empty = {name: n for mark in marks.values() for name, n in mark.empty.items()}
    if empty:
        named = ", ".join(map(repr, list(empty)[:5])) + (f", … ({len(empty)})" if len(empty) > 5 else "")
        warnings.warn(
            f"no cell in {named}: {sum(empty.values())} rows of table {table!r} that name cells there are "
            f"left out (obs[{COLUMN!r}]); check the segmentation",
            NimbusWarning,
            stacklevel=3,
        )
    outside = {he: mark.outside for he, mark in marks.items() if mark.outside}
    if outside:
        told = ", ".join(f"{n} of {he!r}" for he, n in list(outside.items())[:5])
        warnings.warn(
            f"{sum(outside.values())} cells in well registered blocks lie outside the H&E and are left out "
            f"(obs[{COLUMN!r}]): {told}{', …' if len(outside) > 5 else ''}",
            NimbusWarning,
            stacklevel=3,
        )


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
