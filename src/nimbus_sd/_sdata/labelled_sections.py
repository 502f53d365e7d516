"""Labelled cells of tables, section by section: which may be used, whose they are, which are drawn."""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata.gates import cell_sections, names_in
from nimbus_sd._sdata.truth import check_adata, matrix
from nimbus_sd.engine.subtyping.sampling import (
    CellSample,
    check_labels,
    sample_balanced,
    sample_natural,
)

PATIENT, SECTION, REGISTERED, SPLIT, SAMPLED = "patient", "section", "registered", "split", "sampled"
DRAWN = "sample_cells"  # in uns: what cells were drawn for
_TEST = "test"
_DRAW = 23
_WHOLE = re.compile(r"^([+-]?\d+)\.0*$")


@dataclass(frozen=True)
class TableSection:
    """Cells of one section in one table.

    Attributes
    ----------
    of
        Name of the table or its object; empty where there is but one.
    name
        The section.
    patient
        Whose it is.
    rows
        Positions in the table, int64 ``(n,)``.
    labels
        float32 ``(n, m)``: 1, 0, NaN.
    usable
        bool ``(n,)``: not badly registered.
    """

    of: str
    name: str
    patient: str
    rows: np.ndarray
    labels: np.ndarray
    usable: np.ndarray

    @property
    def title(self) -> str:
        """What messages and the draw call it."""
        return f"{self.of}/{self.name}" if self.of else self.name


def sections_in(
    tables: Mapping[str, ad.AnnData],
    markers: Sequence[str],
    *,
    layer: str,
    patient: str = PATIENT,
    section: str | None = None,
) -> list[TableSection]:
    """Divide the cells of all tables by section; see :func:`sections_of`.

    Raises
    ------
    InputError
        As there; or if some tables say whose their cells are, and others do not.
    """
    having = [of for of, table in tables.items() if patient in table.obs]
    lacking = [of for of in tables if of not in having]
    if having and lacking:
        msg = (
            f"obs[{patient!r}] is in the tables of {having[:5]} and not of {lacking[:5]}: whose are those "
            "cells? Add the column to all tables, or remove it from all (each section is of a patient of its "
            "own then)"
        )
        raise InputError(msg)
    return [
        each
        for of, table in tables.items()
        for each in sections_of(table, markers, layer=layer, patient=patient, section=section, of=of)
    ]


def sections_of(
    table: ad.AnnData,
    markers: Sequence[str],
    *,
    layer: str,
    patient: str = PATIENT,
    section: str | None = None,
    of: str = "",
) -> list[TableSection]:
    """Divide a table's cells by section.

    Parameters
    ----------
    table
        With labels in a layer.
    markers
        Columns of the labels, in this order.
    layer
        Its name.
    patient
        Column of ``obs``, in which 1, 1.0 and "1" are the same; without a ``"patient"``, every section
        is of a patient of its own.
    section
        Column of ``obs``; None takes ``"section"``, else the element that the rows annotate,
        else all rows are of one section.
    of
        Name of the table.

    Raises
    ------
    ElementNotFoundError
        If a column or the layer does not exist.
    InputError
        If labels are not 1, 0, NaN; values of a column are missing; or a section is of several patients.
    """
    check_adata(table, what=of or "the table")
    labels = check_labels(matrix(table, layer)[:, table.var_names.get_indexer(list(markers))])
    usable = _registered(table)
    names, column = cell_sections(table, section)
    if not column:
        names = np.full(table.n_obs, SECTION)
    owners = _patients(table, patient) if patient in table.obs or patient != PATIENT else None
    found = []
    for name in sorted(set(names)):
        rows = np.flatnonzero(names == name)
        title = f"{of}/{name}" if of else str(name)
        whose = {title} if owners is None else set(owners[rows])
        if len(whose) > 1:
            msg = (
                f"section {title!r} has cells of several patients ({', '.join(sorted(whose)[:5])}); name the "
                "column that tells sections apart with section=, and that of the patients with patient="
            )
            raise InputError(msg)
        found.append(TableSection(of, str(name), whose.pop(), rows, labels[rows], usable[rows]))
    return found


def _registered(table: ad.AnnData) -> np.ndarray:
    if REGISTERED not in table.obs:
        return np.ones(table.n_obs, bool)
    values = table.obs[REGISTERED]
    if values.dtype != bool:
        msg = f"obs[{REGISTERED!r}] has dtype {values.dtype}; it must be True or False for every cell"
        raise InputError(msg)
    return values.to_numpy()


def _patients(table: ad.AnnData, column: str) -> np.ndarray:
    """Whose cells are; whole numbers are the same whatever the dtype, or a file, makes of them."""
    codes, found = pd.factorize(names_in(table, column, argument="patient"))
    return np.array([_WHOLE.sub(r"\1", name) for name in found], object)[codes]


def draw_sections(
    sections: Sequence[TableSection], parts: Mapping[str, str], *, n_cells: int, seed: int
) -> list[CellSample]:
    """Draw cells of every section: balanced, or for tests as they are.

    Parameters
    ----------
    sections
        The draw of each depends on its name, not on the others.
    parts
        Part of each patient.
    n_cells
        Per section.
    seed
        Decides the draw.

    Returns
    -------
    One per section; rows are positions among the section's cells.
    """
    drawn = []
    for each in sections:
        rng = np.random.default_rng((seed, _DRAW, zlib.crc32(each.title.encode())))
        draw = sample_natural if parts[each.patient] == _TEST else sample_balanced
        usable = np.flatnonzero(each.usable)
        found = draw(each.labels[usable], n_cells=n_cells, rng=rng)
        drawn.append(CellSample(**{**vars(found), "rows": usable[found.rows]}))
    return drawn


def report_of(
    sections: Sequence[TableSection],
    samples: Sequence[CellSample],
    parts: Mapping[str, str],
    markers: Sequence[str],
) -> pd.DataFrame:
    """One row per section: its part, what was drawn, the ratios, what is missing."""
    rows = []
    for each, sample in zip(sections, samples, strict=True):
        labels = each.labels[sample.rows]
        row: dict[str, object] = {
            "section": each.title,
            "patient": each.patient,
            "split": parts[each.patient],
            "n_cells": len(each.rows),
            "n_usable": int(each.usable.sum()),
            "n_sampled": len(sample.rows),
            "n_negative": sample.negative,
            "n_positive": sample.positive,
        }
        for marker, column in zip(markers, labels.T, strict=True):
            positive, negative = int((column == 1).sum()), int((column == 0).sum())
            row[f"n_{marker}"] = positive
            row[f"ratio_{marker}"] = positive / negative if negative else float("nan")
        rows.append({**row, "missing": missing(sample, markers)})
    return pd.DataFrame(rows)


def missing(sample: CellSample, markers: Sequence[str]) -> str:
    """What a section had too few of, in words; empty if nothing."""
    halves = [
        f"{n} {what}"
        for n, what in ((sample.short_negative, "negative"), (sample.short_positive, "positive"))
        if n
    ]
    short = [f"{n} {m}+" for m, n in zip(markers, sample.short_marker.tolist(), strict=True) if n]
    return ", ".join(halves + short)


def warn_of_missing(report: pd.DataFrame, *, n_cells: int, stacklevel: int = 3) -> None:
    """Say once how many sections had fewer cells than asked for, and of what.

    Raises
    ------
    InputError
        If nothing was drawn to train on.
    """
    _check_drawn(report[report["split"] == "train"])
    short = report[report["missing"] != ""]
    if not len(short):
        return
    given = short["n_sampled"][short["n_sampled"] > 0]
    range_ = " to ".join(map(str, dict.fromkeys([given.min(), given.max()]))) if len(given) else "none"
    each = f" ({range_} instead of {n_cells})"
    empty = int((short["n_sampled"] == 0).sum())
    left_out = ""
    if empty:
        verbs = "has no positive cell and is" if empty == 1 else "have no positive cell and are"
        left_out = f" {empty} of them {verbs} left out."
    shown = "; ".join(f"{r.section}: {r.missing} too few" for r in short[:5].itertuples())
    more = "; …" if len(short) > 5 else ""
    warnings.warn(
        f"{len(short)} of {len(report)} sections {'has' if len(short) == 1 else 'have'} too few cells for "
        f"n_cells={n_cells}: all that fit are taken, with no more negative than positive cells{each}."
        f"{left_out} {shown}{more}",
        NimbusWarning,
        stacklevel=stacklevel,
    )


def warn_of_crowded(drawn: Sequence[CellSample], markers: Sequence[str], *, stacklevel: int = 3) -> None:
    """Say once which of many markers got less than a quarter, with cells enough, for want of room."""
    concerned = [d for d in drawn if d.crowded.any()]
    if not concerned:
        return
    share = np.sum([d.per_marker for d in concerned], axis=0) / sum(d.positive for d in concerned)
    less = np.sum([d.crowded for d in concerned], axis=0) > 0
    told = ", ".join(f"{m} ({s:.0%})" for m, s, few in zip(markers, share, less, strict=True) if few)
    warnings.warn(
        f"{len(markers)} markers leave no room for a quarter of the positive cells for each: {told}. Name "
        "fewer with markers= if that is too little",
        NimbusWarning,
        stacklevel=stacklevel,
    )


def _check_drawn(trained: pd.DataFrame) -> None:
    if trained["n_sampled"].sum():
        return
    told = ", ".join(f"{r.section} ({r.n_usable} of {r.n_cells} usable)" for r in trained[:5].itertuples())
    msg = f"no cell to train on: in the sections for training, {told}, "
    if trained["n_usable"].sum():
        msg += "no usable cell is positive for any marker; check the thresholds of the gates"
    else:
        msg += (
            f"obs[{REGISTERED!r}] is False for every cell: correct how the H&E lies on the fluorescence "
            "(nb.pp.register_landmarks, then nb.pp.registration_qc again), or delete the column"
        )
    raise InputError(msg)
