"""Chosen cells on their H&E, by element and instance id; those that lie nowhere are left out and counted."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata.cell_request import CellRequest
from nimbus_sd._sdata.centers import CenterSample
from nimbus_sd._sdata.he import he_centers
from nimbus_sd._sdata.labelled_sections import TableSection
from nimbus_sd._sdata.table import link_keys
from nimbus_sd.engine.embedding.patches import PatchSample

Placed = tuple[PatchSample, np.ndarray]
_SHOWN = 5


@dataclass(frozen=True)
class Lost:
    """Labelled cells of an element that have no place on its H&E.

    Attributes
    ----------
    region
        The element.
    n, of
        How many they are, of how many.
    outside
        How many centres of the element lie outside the H&E, labelled or not.
    """

    region: str
    n: int
    of: int
    outside: int

    def __str__(self) -> str:
        where = "lie outside their H&E, or are not there" if self.outside else "are not there"
        return f"{self.n} of {self.of} labelled cells of {self.region!r} {where}"


def check_once(table: ad.AnnData, *, of: str) -> None:
    """Raise :class:`InputError` if a cell has several rows in the table of object `of`."""
    obs = table.obs[list(link_keys(table))]
    twice = obs[obs.duplicated()].drop_duplicates()
    if len(twice):
        named = ", ".join(f"{region} {i}" for region, i in twice[:_SHOWN].itertuples(index=False))
        more = ", …" if len(twice) > _SHOWN else ""
        where = f" of object {of!r}" if of else ""
        msg = (
            f"{len(twice)} cells come twice in the table{where} with the labels ({' and '.join(obs)} are the "
            f"same): {named}{more}; keep one row of each"
        )
        raise InputError(msg)


def place_cells(
    sdata: SpatialData, table: ad.AnnData, section: TableSection, mine: np.ndarray, request: CellRequest
) -> tuple[list[Placed], list[Lost]]:
    """Centres on the H&E of a section's chosen cells.

    Parameters
    ----------
    sdata, table
        Object and its table.
    section
        Of the table.
    mine
        Positions among the section's cells.
    request
        Which H&E, and its pixel size.

    Returns
    -------
    Cells of each element with their labels ``(n, m)``, in the order of the element's; and what is left out.
    """
    region_key, instance_key = link_keys(table)
    # first the rows: conversions of a whole table take a second for each of its sections
    obs = table.obs[[region_key, instance_key]].iloc[section.rows[mine]]
    region, instance = obs[region_key].astype(str).to_numpy(), obs[instance_key].to_numpy()
    found, lost = [], []
    for name in sorted(set(region)):
        centers = _centers(sdata, section.of, name, request)
        here = region == name
        at = pd.Index(centers.ids).get_indexer(instance[here])
        there = np.flatnonzero(at >= 0)
        there = there[np.argsort(at[there], kind="stable")]
        if len(there) < len(at):
            lost.append(Lost(centers.patches.region, len(at) - len(there), len(at), centers.outside))
        if len(there):
            at = at[there]
            sample = replace(centers.patches, ids=centers.ids[at], centers=centers.centers[at])
            found.append((sample, section.labels[mine][here][there]))
    return found, lost


def _centers(sdata: SpatialData, of: str, region: str, request: CellRequest) -> CenterSample:
    image = request.image
    if isinstance(image, Mapping):
        if region not in image:
            msg = f"image= names no H&E for {region!r}; it has {sorted(image)[:8]}"
            raise InputError(msg)
        image = {region: image[region]}
    return he_centers(
        {of: sdata},
        image=image,
        centers=None if isinstance(image, Mapping) else [region],
        coordinate_system=request.coordinate_system,
        mpp=request.mpp,
        strict=False,
    ).samples[0]


def check_lost(lost: Sequence[Lost], *, n_placed: int, stacklevel: int) -> None:
    """Say once which cells are left out.

    Raises
    ------
    InputError
        If no cell has a place.
    """
    if not lost:
        return
    shown = "; ".join(map(str, lost[:_SHOWN])) + ("; …" if len(lost) > _SHOWN else "")
    if not n_placed:
        msg = (
            f"none of the {sum(x.of for x in lost)} labelled cells lies on its H&E: {shown}. Is the table of "
            "another segmentation? Else check the transformations"
        )
        raise InputError(msg)
    advice = "Is the table of another segmentation?"
    if any(x.outside for x in lost):
        advice = "nb.pp.registration_qc(table=) marks cells beside the H&E; sample_cells draws others then"
    warnings.warn(f"{shown}: they are left out. {advice}", NimbusWarning, stacklevel=stacklevel)
