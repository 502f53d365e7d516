"""Cells of ORION sections from their CSV: which columns are markers, and one table of all sections."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata.models import TableModel

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd.io._cell_columns import floats, integers, read_csv
from nimbus_sd.io._names import listing

ID, POSITION, AREA = "CellID", ("X_centroid", "Y_centroid"), "Area"
#: Columns of the table's own: the CSV's can't have these names, nor another case of them in a store.
_OWN = ("region", "instance_id", "section", "patient")
_SUFFIX = "_csv"
#: Whole names of columns that are no marker's, suffixes apart.
_SHAPE = re.compile(
    r"CellID|[XY]_centroid|(row|column)_centroid|Area|(Major|Minor)AxisLength|Eccentricity|Solidity|Extent|"
    r"Orientation|Perimeter",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class OrionCells:
    """Cells of one section.

    Attributes
    ----------
    source
        The CSV.
    ids
        int64 ``(n,)``.
    xy
        Centroids in px, the first pixel's middle at 0.5, float64 ``(n, 2)``.
    intensity
        Marker to mean intensity, float32 ``(n,)``, in the CSV's order.
    other
        All other columns.
    """

    source: Path
    ids: np.ndarray
    xy: np.ndarray
    intensity: dict[str, np.ndarray]
    other: pd.DataFrame


def read_cells(source: Path, *, labels: str) -> OrionCells:
    """Read the CSV of a section.

    Parameters
    ----------
    source
        With the columns ``CellID, X_centroid, Y_centroid``, and one per marker.
    labels
        Name of the label image: of columns ``CD45_cellRingMask``, ``CD45_nucleiRingMask`` the
        one that ends with it is the marker's.

    Raises
    ------
    InputError
        If a column is missing or holds no numbers, a cell is named twice, or there is no marker.
    """
    frame = read_csv(source, (ID, *POSITION), why="They name the cells and say where they are.")
    ids = integers(frame[ID], ID, source)
    if len(np.unique(ids)) < len(ids) or ids.min() < 1:
        twice = pd.Series(ids)[pd.Series(ids).duplicated()].unique()
        wrong = f"cells {listing(twice)} twice" if len(twice) else f"the cell id {ids.min()}"
        msg = f"{source}: column {ID!r} holds {wrong}; valid: whole numbers from 1, each once."
        raise InputError(msg)
    markers = _markers(frame, f"_{labels}")
    if not markers:
        msg = f"{source}: no column of numbers that could be a marker's; it has: {listing(frame)}."
        raise InputError(msg)
    xy = np.stack([floats(frame[name], source) for name in POSITION], axis=1)
    if not np.isfinite(xy).all():
        bad = int((~np.isfinite(xy).all(axis=1)).sum())
        msg = f"{source}: {bad} of {len(frame)} cells have no finite {' and '.join(POSITION)}. Remove them."
        raise InputError(msg)
    used = {ID, *POSITION, *markers.values()}
    return OrionCells(
        source=source,
        ids=ids,
        xy=xy + 0.5,  # the CSV counts from the first pixel's middle
        intensity={m: floats(frame[c], source).astype(np.float32) for m, c in markers.items()},
        other=frame[[c for c in frame if c not in used]],
    )


def _markers(frame: pd.DataFrame, suffix: str) -> dict[str, str]:
    """Marker to column."""
    numbers = [str(c) for c in frame if pd.api.types.is_numeric_dtype(frame[c])]
    named = [c for c in numbers if c.endswith(suffix) and not _SHAPE.fullmatch(c.removesuffix(suffix))]
    if named:
        return {c.removesuffix(suffix): c for c in named}
    return {c: c for c in numbers if not _SHAPE.fullmatch(c) and c.casefold() not in _OWN}


def choose_patients(
    patients: Mapping[str, str] | str | PathLike[str] | None, sections: Sequence[str]
) -> dict[str, str]:
    """Section to patient; each its own where nothing is given.

    Raises
    ------
    InputError
        If a section is missing or, in a CSV, there twice.
    """
    if patients is None:
        return {name: name for name in sections}
    if isinstance(patients, Mapping):
        known, where = {str(k): str(v) for k, v in patients.items()}, "patients="
    else:
        source = Path(patients)
        columns = ("section", "patient")
        frame = read_csv(source, columns, why="They say whose each section is.", text=columns)
        if frame["section"].duplicated().any():
            twice = listing(frame["section"][frame["section"].duplicated()].unique())
            msg = f"{source}: the sections {twice} have more than one row. Keep one each."
            raise InputError(msg)
        known, where = dict(zip(frame["section"], frame["patient"], strict=True)), str(source)
    missing = [name for name in sections if not known.get(name, "").strip()]
    if missing:
        msg = f"{where} has no patient for the sections {listing(missing)}; it has: {listing(known)}."
        raise InputError(msg)
    return {name: known[name] for name in sections}


def cell_table(
    cells: Mapping[str, OrionCells],
    *,
    regions: Mapping[str, str],
    channels: Mapping[str, Sequence[str]],
    patients: Mapping[str, str],
) -> ad.AnnData:
    """One annotating table of all sections; see :func:`nimbus_sd.io.read_orion`.

    Parameters
    ----------
    cells
        By section.
    regions
        Section to the element that its cells are in.
    channels
        Section to the channels of its image: columns of these names are the markers.
    patients
        By section.
    """
    markers = _common_markers({name: _of_image(c, channels.get(name, ())) for name, c in cells.items()})
    names = _new_names(
        [c for each in cells.values() for c in (*each.other, *each.intensity) if c not in markers]
    )
    rows = []
    for name, each in cells.items():
        obs = pd.DataFrame(
            {"region": regions[name], "instance_id": each.ids, "section": name, "patient": patients[name]},
            index=[f"{regions[name]}_{i}" for i in each.ids],
        )
        rest = {c: values for c, values in each.intensity.items() if c not in markers}
        for column, values in {**each.other, **rest}.items():
            obs[names.get(column, column)] = np.asarray(values)
        rows.append(obs)
    obs = pd.concat(rows)
    for key in ("region", "section", "patient"):
        obs[key] = pd.Categorical(obs[key], categories=list(dict.fromkeys(obs[key])))
    x = np.concatenate([np.stack([c.intensity[m] for m in markers], axis=1) for c in cells.values()])
    table = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=pd.Index(markers, dtype=object)))
    table.layers["integrated_expression"] = x.copy()
    table.obsm["spatial"] = np.concatenate([c.xy for c in cells.values()])
    return TableModel.parse(
        table, region=list(obs["region"].cat.categories), region_key="region", instance_key="instance_id"
    )


def _new_names(columns: Sequence[str]) -> dict[str, str]:
    """Column of a CSV to that of the table, where it is another; warns of those that would collide."""
    out = {AREA: "area_px"} if AREA in columns else {}
    own = {*_OWN, *out.values()}
    taken = own | {c.casefold() for c in columns}
    renamed: dict[str, str] = {}
    for column in dict.fromkeys(columns):
        if column.casefold() not in own:
            continue
        new = column + _SUFFIX
        while new.casefold() in taken:
            new += _SUFFIX
        taken.add(new.casefold())
        renamed[column] = new
    if renamed:
        told = ", ".join(f"{old!r} is {new!r}" for old, new in renamed.items())
        warnings.warn(
            f"{len(renamed)} columns of the CSVs have names of the table's own: {told}",
            NimbusWarning,
            stacklevel=4,
        )
    return out | renamed


def _of_image(cells: OrionCells, channels: Sequence[str]) -> list[str]:
    """The image's channels if the CSV has them all, in their order, else all that the CSV has."""
    return list(channels) if channels and set(channels) <= set(cells.intensity) else list(cells.intensity)


def _common_markers(markers: Mapping[str, Sequence[str]]) -> list[str]:
    first, *rest = markers.values()
    common = [m for m in first if all(m in other for other in rest)]
    odd = [name for name, mine in markers.items() if set(mine) != set(common)]
    if not common:
        msg = f"the sections {listing(markers)} have no marker in common; read them one by one with sections="
        raise InputError(msg)
    if odd:
        lost = sorted({m for mine in markers.values() for m in mine} - set(common))
        warnings.warn(
            f"{len(odd)} of {len(markers)} sections have markers that others lack ({listing(lost)}); "
            f"the table has the {len(common)} that all have",
            NimbusWarning,
            stacklevel=4,
        )
    return common
