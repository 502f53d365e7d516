"""Labelled cells of objects joined with their places on the H&E, in training and validation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata import labelled_sections as cells
from nimbus_sd._sdata.cell_request import CellRequest, labels_table
from nimbus_sd._sdata.labelled_markers import hierarchy_of, markers_of
from nimbus_sd._sdata.placed_cells import Lost, Placed, check_lost, check_once, place_cells
from nimbus_sd.engine.embedding.patches import PatchSample, check_size
from nimbus_sd.engine.subtyping.apart import split_by_place
from nimbus_sd.engine.subtyping.inputs import native_size
from nimbus_sd.engine.subtyping.sampling import PARTS, check_leaks, split_patients

TRAIN, VALIDATION = PARTS[:2]
DEFAULT_SPLIT = (25, 7, 9)
N_CELLS = 20_000


@dataclass(frozen=True)
class PlacedCells:
    """Cells of one part.

    Attributes
    ----------
    samples
        One per section, none of them empty.
    targets
        float32 ``(n, m)`` in the order of samples and their cells: 1, 0, NaN.
    """

    samples: tuple[PatchSample, ...]
    targets: np.ndarray


@dataclass(frozen=True)
class CellSplit:
    """What a run learns from and is judged on.

    Attributes
    ----------
    markers
        Columns of the targets.
    train, validation
        Cells.
    patients
        Names of the patients of each part, tests included.
    report
        See :func:`nimbus_sd.pp.sample_cells`; None where the cells had been chosen before.
    by_place
        Whether validation is another place of the same sections.
    split_before
        Whether the table says who is trained on.
    hierarchy
        Which marker implies which, child to parent, as the labels were curated.
    drawn
        What :func:`nimbus_sd.pp.sample_cells` recorded in the first table; empty where it did not.
    """

    markers: tuple[str, ...]
    train: PlacedCells
    validation: PlacedCells
    patients: Mapping[str, Sequence[str]]
    report: pd.DataFrame | None
    by_place: bool
    split_before: bool = False
    hierarchy: Mapping[str, str] = field(default_factory=dict)
    drawn: Mapping[str, Any] = field(default_factory=dict)


def cells_for(
    objects: Mapping[str, SpatialData], request: CellRequest, *, patch: int, mpp: float
) -> CellSplit:
    """Choose, divide and place the cells.

    Parameters
    ----------
    objects
        By name.
    request
        Which cells.
    patch, mpp
        Side in px and pixel size in µm of what the network sees.

    Raises
    ------
    ElementNotFoundError
        If a table, layer, column, marker or image does not exist.
    InputError
        If labels, split or images can't be used, or a part has no cell.
    """
    tables = {of: labels_table(sdata, of, request) for of, sdata in objects.items()}
    markers = markers_of(tables, request.markers, layer=request.layer)
    for of, table in tables.items():
        check_once(table, of=of)
    sections = cells.sections_in(
        tables, markers, layer=request.layer, patient=request.patient, section=request.section
    )
    parts = _parts(tables, sections, request)
    rows, report = _choose(tables, sections, parts, markers, request)
    by_part: dict[str, list[Placed]] = {TRAIN: [], VALIDATION: []}
    lost: list[Lost] = []
    for section, mine in zip(sections, rows, strict=True):
        if len(mine) and parts[section.patient] in by_part:
            placed, gone = place_cells(objects[section.of], tables[section.of], section, mine, request)
            by_part[parts[section.patient]] += placed
            lost += gone
    check_lost(lost, n_placed=sum(map(len, by_part.values())), stacklevel=6)
    by_place = not by_part[VALIDATION] and len({s.patient for s in sections}) == 1
    if by_place:
        by_part = _apart(by_part[TRAIN], patch, mpp)
    patients = {p: sorted(n for n, part in parts.items() if part == p) for p in PARTS}
    for part, placed in by_part.items():
        if not placed:
            told = ", ".join(f"{len(names)} {p}" for p, names in patients.items())
            msg = (
                f"no cell for {part} (patients: {told}); give a patient with labelled cells this part, in "
                f"obs[{cells.SPLIT!r}] or with split="
            )
            raise InputError(msg)
        for sample, _ in placed:
            check_size(sample, native_size(patch, mpp, sample.mpp or mpp))
    both = {
        part: PlacedCells(tuple(s for s, _ in placed), np.concatenate([t for _, t in placed]))
        for part, placed in by_part.items()
    }
    return CellSplit(
        tuple(markers),
        both[TRAIN],
        both[VALIDATION],
        patients,
        report,
        by_place,
        split_before=request.split is None and any(cells.SPLIT in t.obs for t in tables.values()),
        hierarchy=hierarchy_of(tables, markers, layer=request.layer),
        drawn=dict(next(iter(tables.values())).uns.get(cells.DRAWN, {})),
    )


def _parts(
    tables: Mapping[str, ad.AnnData], sections: Sequence[cells.TableSection], request: CellRequest
) -> dict[str, str]:
    """Part of every patient: given, as chosen before, or drawn."""
    owners = [s.patient for s in sections]
    having = [of for of, t in tables.items() if cells.SPLIT in t.obs]
    if request.split is not None or not having:
        return split_patients(owners, request.split or DEFAULT_SPLIT, seed=request.seed)
    if len(having) < len(tables):
        lacking = sorted(set(tables) - set(having))
        msg = (
            f"obs[{cells.SPLIT!r}] is in the tables of {having[:5]} and not of {lacking[:5]}; call "
            "nb.pp.sample_cells with all of them, or pass split="
        )
        raise InputError(msg)
    whose, of_part = [], []
    for section in sections:
        column = tables[section.of].obs[cells.SPLIT].iloc[section.rows]
        for part in column.dropna().astype(str).unique():
            whose.append(section.patient)
            of_part.append(part)
    check_leaks(whose, of_part)
    wrong = sorted(set(of_part) - set(PARTS))
    if wrong:
        msg = f"obs[{cells.SPLIT!r}] holds {wrong}; valid: {', '.join(PARTS)}"
        raise InputError(msg)
    # patients without a part are not used
    return dict.fromkeys(owners, "") | dict(zip(whose, of_part, strict=True))


def _choose(
    tables: Mapping[str, ad.AnnData],
    sections: Sequence[cells.TableSection],
    parts: Mapping[str, str],
    markers: Sequence[str],
    request: CellRequest,
) -> tuple[list[np.ndarray], pd.DataFrame | None]:
    """Positions among each section's cells that are used: chosen before, or drawn now."""
    before = all({cells.SAMPLED, cells.SPLIT} <= set(t.obs) for t in tables.values())
    if before and request.split is None and request.n_cells is None:
        _warn_of_other_labels(tables, markers, request)
        rows = []
        for section in sections:
            sampled = tables[section.of].obs[cells.SAMPLED].to_numpy(dtype=bool)[section.rows]
            known = ~np.isnan(section.labels).all(axis=1)
            rows.append(np.flatnonzero(sampled & section.usable & known))
        return rows, None
    n_cells = N_CELLS if request.n_cells is None else request.n_cells
    drawn = cells.draw_sections(sections, parts, n_cells=n_cells, seed=request.seed)
    report = cells.report_of(sections, drawn, parts, markers)
    cells.warn_of_missing(report, n_cells=n_cells, stacklevel=7)
    cells.warn_of_crowded(drawn, markers, stacklevel=7)
    return [d.rows for d in drawn], report


def _warn_of_other_labels(
    tables: Mapping[str, ad.AnnData], markers: Sequence[str], request: CellRequest
) -> None:
    """Cells that were chosen before need not be balanced for these labels."""
    for of, table in tables.items():
        record = table.uns.get(cells.DRAWN, {})
        theirs = [str(m) for m in np.atleast_1d(record.get("markers", markers))]
        layer = record.get("layer", request.layer)
        if layer == request.layer and set(markers) <= set(theirs):
            continue
        where = f" of {of!r}" if of else ""
        warnings.warn(
            f"obs[{cells.SAMPLED!r}]{where} was drawn for layer {layer!r} and {', '.join(theirs)}, not for "
            f"layer {request.layer!r} and {', '.join(markers)}, whose classes it need not balance; call "
            "nb.pp.sample_cells again, or pass n_cells= to draw now",
            NimbusWarning,
            stacklevel=7,
        )
        return


def _apart(placed: Sequence[Placed], patch: int, mpp: float) -> dict[str, list[Placed]]:
    """Divide every section of the only patient by place."""
    warnings.warn(
        "all cells are of one patient: validation is another place of the same section, a patch apart, and "
        "its figures are better than those of another patient would be. Train with several patients",
        NimbusWarning,
        stacklevel=7,
    )
    out: dict[str, list[Placed]] = {TRAIN: [], VALIDATION: []}
    for sample, targets in placed:
        size = native_size(patch, mpp, sample.mpp or mpp)
        for part, rows in zip(out, split_by_place(sample.centers, targets, size=size), strict=True):
            if len(rows):
                some = replace(sample, ids=sample.ids[rows], centers=sample.centers[rows])
                out[part].append((some, targets[rows]))
    return out
