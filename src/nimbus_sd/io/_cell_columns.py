"""Tables of cells in CSV: the columns that are not channels, and reading columns as what they should be."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nimbus_sd._core.errors import InputError
from nimbus_sd.io._names import duplicates, listing

LABEL, FOV = "label", "fov"
AREA_PX, AREA_UM2 = "area_px", "area_um2"
POSITION = ("x", "y")
RESERVED = (LABEL, FOV, AREA_PX, AREA_UM2, *POSITION)
SUFFIX = "_labels"


def read_csv(source: Path, required: Sequence[str], *, why: str, text: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV with unique column names; an unnamed first column (an index) is ignored.

    Parameters
    ----------
    source
        The file.
    required
        Columns that it must have.
    why
        What they are for, a sentence for the message.
    text
        Columns that stay as they are written.

    Raises
    ------
    InputError
        If it can't be read, lacks a column, has one twice, or has no rows.
    """
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"{source}: can't be read as CSV ({error}). Give a comma-separated text file in UTF-8."
        raise InputError(msg) from error
    if header and not header[0]:
        header[0] = "\0index"  # a name that no column of the file has
    lacking = [name for name in required if name not in header]
    if lacking:
        msg = f"{source}: lacks the columns {listing(lacking)}; it has: {listing(header)}. {why}"
        raise InputError(msg)
    twice = [*duplicates(header), *(["(unnamed)"] if "" in header else [])]
    if twice:
        msg = (
            f"{source}: the columns {listing(twice)} are there twice or have no name. Rename or remove them."
        )
        raise InputError(msg)
    try:
        frame = pd.read_csv(
            source,
            header=0,
            names=header,
            index_col=False,
            converters=dict.fromkeys(text, str),
            float_precision="round_trip",
            encoding="utf-8-sig",
        )
    except (ValueError, pd.errors.ParserError) as error:
        msg = f"{source}: can't be read as CSV ({error}). Give a comma-separated text file in UTF-8."
        raise InputError(msg) from error
    if frame.empty:
        msg = f"{source}: has no rows. Give a table with at least one cell."
        raise InputError(msg)
    return frame.drop(columns="\0index", errors="ignore")


def floats(column: pd.Series, source: Path) -> np.ndarray:
    """Values of a column, float64.

    Raises
    ------
    InputError
        If they are no numbers.
    """
    try:
        return column.to_numpy(dtype=np.float64)
    except (ValueError, TypeError) as error:
        msg = f"{source}: column {column.name!r} does not hold numbers ({error}). Correct it."
        raise InputError(msg) from error


def integers(column: pd.Series, name: str, source: Path) -> np.ndarray:
    """Values of a column, int64.

    Raises
    ------
    InputError
        If they are no whole numbers.
    """
    if pd.api.types.is_integer_dtype(column):
        return column.to_numpy(dtype=np.int64)
    values = floats(column, source)
    if not np.all(np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) < 2.0**53)):
        msg = f"{source}: column {name!r} holds values that are not whole numbers. Correct them."
        raise InputError(msg)
    return values.astype(np.int64)
