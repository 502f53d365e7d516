"""Tables of thresholds per marker and section, and the cells and intensities that they are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata.models import TableModel

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata.csv_table import read_csv
from nimbus_sd._sdata.truth import matrix
from nimbus_sd.arrays.gating import THRESHOLDS

Thresholds: TypeAlias = pd.DataFrame | Mapping[Any, Any] | str | Path

MARKER, SECTION = "marker", "section"
INTENSITY = "integrated_expression"
_MAX_NAMED = 8


def intensities(adata: ad.AnnData, layer: str | None) -> tuple[np.ndarray, str]:
    """``(n_obs, n_vars)`` float64 and what it was: `layer`, else integrated expression, else ``"X"``.

    Raises
    ------
    ElementNotFoundError
        If there is no such layer.
    """
    if layer is None:
        layer = INTENSITY if INTENSITY in adata.layers else "X"
    return matrix(adata, layer), layer


def cell_sections(adata: ad.AnnData, section: str | None) -> tuple[np.ndarray, str]:
    """Section of every cell, and the column it comes from.

    Parameters
    ----------
    adata
        Table.
    section
        Column of ``obs``; None takes ``"section"``, else the regions that the table annotates.

    Returns
    -------
    str ``(n_obs,)``; ``""`` twice over if the table knows no sections.

    Raises
    ------
    ElementNotFoundError
        If there is no such column.
    InputError
        If cells have no section.
    """
    if section is None:
        region = adata.uns.get(TableModel.ATTRS_KEY, {}).get(TableModel.REGION_KEY_KEY)
        section = next((c for c in (SECTION, region) if c in adata.obs), None)
        if section is None:
            return np.full(adata.n_obs, ""), ""
    return names_in(adata, section, argument="section").astype(str), section


def names_in(adata: ad.AnnData, column: str, *, argument: str) -> np.ndarray:
    """A column of ``obs`` that an argument names, as strings, object ``(n_obs,)``.

    Raises
    ------
    ElementNotFoundError
        If there is no such column.
    InputError
        If cells have no value in it.
    """
    if column not in adata.obs:
        valid = ", ".join(map(repr, adata.obs)) or "none"
        msg = f"the table has no obs[{column!r}]; valid for {argument}=: {valid}"
        raise ElementNotFoundError(msg)
    values = adata.obs[column]
    if values.isna().any():
        n = int(values.isna().sum())
        msg = f"obs[{column!r}] is missing for {n} of {len(values)} cells; fill it first"
        raise InputError(msg)
    codes, found = pd.factorize(values)  # far fewer than cells
    return np.array([str(v) for v in found], object)[codes]


def read_thresholds(thresholds: Thresholds) -> pd.DataFrame:
    """Bring thresholds into one form and check them.

    Parameters
    ----------
    thresholds
        Frame indexed by marker, or by marker and section, or with columns of these names; path of
        a CSV with such columns; or a mapping from a marker, or (marker, section), to three numbers
        or a mapping with their names. Other columns are passed over.

    Returns
    -------
    float64 columns ``negative``, ``positive``, ``overexposed``; index ``marker``, or ``marker`` and
    ``section`` where there are thresholds per section.

    Raises
    ------
    InputError
        If columns are missing, or thresholds are no numbers, out of order or given twice.
    """
    frame = _keyed(_frame(thresholds))
    missing = [c for c in THRESHOLDS if c not in frame]
    if missing or frame.empty:
        what = f"the columns {missing} are missing" if missing else "there are none"
        msg = f"thresholds: {what}; give each marker {', '.join(THRESHOLDS)}"
        raise InputError(msg)
    try:
        frame = frame[list(THRESHOLDS)].astype(np.float64)
    except (TypeError, ValueError) as error:
        msg = f"thresholds: {', '.join(THRESHOLDS)} must be numbers ({error})"
        raise InputError(msg) from error
    twice = frame.index[frame.index.duplicated()]
    if len(twice):
        msg = f"thresholds of {_some(twice)} are given twice; keep one row of each"
        raise InputError(msg)
    gone = frame.isna().any(axis=1)
    if gone.any():
        msg = (
            f"thresholds of {_some(frame.index[gone])} are not all given; where nothing is over-exposed "
            "write inf; to leave a marker undefined give -inf, inf, inf, or drop its row"
        )
        raise InputError(msg)
    low, high, over = (frame[c] for c in THRESHOLDS)
    wrong = ~((low <= high) & (high <= over))
    if wrong.any():
        first = frame[wrong].iloc[0]
        msg = (
            f"thresholds of {_some(frame.index[wrong])} are out of order (the first: "
            f"{', '.join(f'{c} {first[c]:g}' for c in THRESHOLDS)}); valid: negative ≤ positive ≤ overexposed"
        )
        raise InputError(msg)
    return frame


def check_thresholds(frame: pd.DataFrame, markers: Sequence[str], sections: Sequence[str]) -> None:
    """Raise :class:`InputError` unless all markers are there and every section has its thresholds.

    Parameters
    ----------
    frame
        From :func:`read_thresholds`.
    markers, sections
        Of the table; sections ``[""]`` if it knows none.
    """
    given = list(dict.fromkeys(frame.index.get_level_values(0)))
    unknown = [m for m in given if m not in set(markers)]
    if unknown:
        msg = f"thresholds name {', '.join(unknown)}, which the table lacks; valid: {', '.join(markers)}"
        raise InputError(msg)
    if frame.index.nlevels == 1:
        return
    theirs = sorted(set(frame.index.get_level_values(1)))
    if list(sections) == [""]:
        msg = f"thresholds are for sections {_some(theirs)}; name the column of obs that has them: section="
        raise InputError(msg)
    missing = [(m, s) for m in given for s in sections if (m, s) not in frame.index]
    if missing:
        msg = (
            f"thresholds lack {_some(missing)}; sections with thresholds: {_some(theirs)}. Give each marker "
            "a row per section (-inf, inf, inf leaves it undefined there)"
        )
        raise InputError(msg)


def limits(frame: pd.DataFrame, markers: Sequence[str], sections: Sequence[str]) -> np.ndarray:
    """``(len(sections), len(markers), 3)`` float64 of checked thresholds; NaN for markers without."""
    out = np.full((len(sections), len(markers), 3), np.nan)
    for i, section in enumerate(sections):
        part = frame if frame.index.nlevels == 1 else frame.xs(section, level=1)
        out[i] = part.reindex(list(markers)).to_numpy()
    return out


def to_record(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Thresholds as arrays for ``uns``; section ``""`` stands for all."""
    whole = frame.index.nlevels == 1
    sections = [""] * len(frame) if whole else frame.index.get_level_values(1)
    record = {MARKER: np.array(frame.index.get_level_values(0), str), SECTION: np.array(sections, str)}
    return record | {c: frame[c].to_numpy() for c in THRESHOLDS}


def from_record(record: Mapping[str, Any]) -> pd.DataFrame:
    """The inverse of :func:`to_record`."""
    frame = pd.DataFrame({c: np.asarray(record[c]) for c in (MARKER, SECTION, *THRESHOLDS)})
    return read_thresholds(frame.drop(columns=SECTION) if (frame[SECTION] == "").all() else frame)


def _frame(thresholds: Thresholds) -> pd.DataFrame:
    if isinstance(thresholds, pd.DataFrame):
        return thresholds
    if isinstance(thresholds, str | Path):
        names = {MARKER: str, SECTION: str}  # a marker may be called NA, a section 007
        frame = read_csv(
            thresholds, dtype=names, keep_default_na=False, na_values={c: [""] for c in THRESHOLDS}
        )
        if MARKER not in frame:
            msg = f"{thresholds}: column {MARKER!r} is needed, there are {', '.join(map(repr, frame))}"
            raise InputError(msg)
        return frame
    if not isinstance(thresholds, Mapping):
        kind = type(thresholds).__name__
        msg = f"thresholds is a {kind}; pass a DataFrame, the path of a CSV, or a mapping"
        raise InputError(msg)
    rows = {key: _row(key, value) for key, value in thresholds.items()}
    pairs = [isinstance(key, tuple) and len(key) == 2 for key in rows]
    if any(pairs) != all(pairs):
        msg = "thresholds: keys must all be markers, or all be (marker, section)"
        raise InputError(msg)
    index = pd.MultiIndex.from_tuples(rows) if any(pairs) else pd.Index(rows)
    return pd.DataFrame(list(rows.values()), index=index)


def _row(key: object, value: object) -> dict[str, Any]:
    if isinstance(value, Mapping | pd.Series):
        return dict(value)
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray) or len(value) != 3:
        msg = f"thresholds of {key!r}: {value!r}; valid: three numbers ({', '.join(THRESHOLDS)})"
        raise InputError(msg)
    return dict(zip(THRESHOLDS, value, strict=True))


def _keyed(frame: pd.DataFrame) -> pd.DataFrame:
    """Marker, or marker and section, as index."""
    keys = [c for c in (MARKER, SECTION) if c in frame.columns]
    if MARKER in keys:
        frame = frame.set_index(keys)
    elif keys:  # sections beside an index of markers
        frame = frame.set_index(SECTION, append=True)
    if frame.index.nlevels > 2:
        msg = f"thresholds have {frame.index.nlevels} levels of index; valid: marker, or marker and section"
        raise InputError(msg)
    if frame.index.nlevels == 1:
        return frame.set_axis(pd.Index(frame.index.astype(str), name=MARKER))
    if frame.index.names[0] == SECTION:
        frame = frame.swaplevel()
    if frame.index.get_level_values(1).isin(["", np.nan]).any():
        msg = "thresholds: rows without a section beside rows with one; name it in each, or drop the column"
        raise InputError(msg)
    arrays = [frame.index.get_level_values(i).astype(str) for i in range(2)]
    return frame.set_axis(pd.MultiIndex.from_arrays(arrays, names=[MARKER, SECTION]))


def _some(keys: Sequence[Any] | pd.Index) -> str:
    names = [" in ".join(k) if isinstance(k, tuple) else str(k) for k in keys[:_MAX_NAMED]]
    more = f", ... ({len(keys)} in all)" if len(keys) > _MAX_NAMED else ""
    return ", ".join(names) + more
