"""Labelled cells of tables, section by section: which may be used, whose they are, which are drawn."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata.models import TableModel

from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd._sdata.table import link_keys
from nimbus_sd._sdata.truth import check_adata, matrix
from nimbus_sd.engine.subtyping.sampling import (
    CellSample,
    check_labels,
    sample_balanced,
    sample_natural,
)

PATIENT, SECTION, REGISTERED, SPLIT, SAMPLED = "patient", "section", "registered", "split", "sampled"
_TEST = "test"
_DRAW = 23


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
        Column of ``obs``; without a ``"patient"``, every section is of a patient of its own.
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
    names = _sections(table, section)
    owners = _column(table, patient) if patient in table.obs or patient != PATIENT else None
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


def _sections(table: ad.AnnData, section: str | None) -> np.ndarray:
    if section is not None:
        return _column(table, section)
    if SECTION in table.obs:
        return _column(table, SECTION)
    if TableModel.ATTRS_KEY in table.uns:
        return _column(table, link_keys(table)[0])
    return np.full(table.n_obs, SECTION, dtype=object)


def _column(table: ad.AnnData, name: str) -> np.ndarray:
    """A column of obs as strings."""
    if name not in table.obs:
        msg = f"the table has no obs[{name!r}]; columns: {list(table.obs)[:12]}"
        raise ElementNotFoundError(msg)
    values = table.obs[name]
    if values.isna().any():
        msg = f"obs[{name!r}] is missing for {int(values.isna().sum())} of {len(values)} cells; fill it first"
        raise InputError(msg)
    return values.astype(str).to_numpy(dtype=object)


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
