"""Spill-over matrices: read from CSV, matched to the channels of an image by name, and checked."""

from __future__ import annotations

import csv
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd

from nimbus_sd._core.errors import InputError, NimbusWarning

_WORST = 1e6  # condition number; beyond it noise drowns what is left


def load_matrix(path: str | PathLike[str]) -> pd.DataFrame:
    """See :func:`nimbus_sd.io.read_spillover`."""
    source = Path(path)
    rows = _rows(source)
    if len(rows) < 2 or len(rows[1]) < 2:
        msg = f"{source}: no matrix; give names in the first line and in the first column, numbers between"
        raise InputError(msg)
    # R leaves the corner out unless told otherwise
    header = rows[0] if len(rows[0]) == len(rows[1]) - 1 else rows[0][1:]
    receiving, emitting = [name.strip() for name in header], [row[0].strip() for row in rows[1:]]
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(receiving) + 1:
            msg = f"{source}: line {line} does not hold one name and {len(receiving)} numbers; complete it"
            raise InputError(msg)
    values = [[_number(field, source, line) for field in row[1:]] for line, row in enumerate(rows[1:], 2)]
    frame = pd.DataFrame(np.array(values, dtype=np.float64), index=emitting, columns=receiving)
    _check_names(frame, str(source))
    return frame


def _rows(source: Path) -> list[list[str]]:
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{source}: can't be read as CSV ({error}); give a text file in UTF-8"
        raise InputError(msg) from error
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    return [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(map(str.strip, row))]


def _number(field: str, source: Path, line: int) -> float:
    if not field.strip():
        return 0.0
    try:
        return float(field)
    except ValueError as error:
        msg = f"{source}: line {line} holds {field!r}, which is no number; correct it"
        raise InputError(msg) from error


def matrix_of(
    spillover: pd.DataFrame | str | PathLike[str] | np.ndarray, channels: Sequence[str] | None
) -> pd.DataFrame:
    """Bring any form of a spill-over matrix to a checked table ``(emitting, receiving)``.

    Parameters
    ----------
    spillover
        Table, path of a CSV, or square array.
    channels
        Names of an array's rows and columns.

    Raises
    ------
    InputError
        If names are missing or there twice, or values are not shares with 1 where both
        names are the same.
    """
    if isinstance(spillover, str | PathLike):
        frame = load_matrix(spillover)
    elif isinstance(spillover, pd.DataFrame):
        frame = spillover.copy()
        frame.index, frame.columns = frame.index.astype(str), frame.columns.astype(str)
    else:
        frame = _named(np.asarray(spillover), channels)
        channels = None
    if channels is not None:
        msg = (
            "channels= names the rows and columns of an array; a table or CSV brings its names: leave it out"
        )
        raise InputError(msg)
    _check_names(frame, "the spill-over matrix")
    try:
        frame = frame.astype(np.float64)
    except (TypeError, ValueError) as error:
        msg = f"the spill-over matrix holds something that is no number ({error})"
        raise InputError(msg) from error
    _check_values(frame)
    return frame


def _named(array: np.ndarray, channels: Sequence[str] | None) -> pd.DataFrame:
    if channels is None:
        msg = "an array has no names; pass channels=, the names of its rows and columns, or give a DataFrame"
        raise InputError(msg)
    names = [str(name) for name in channels]
    if array.shape != (len(names), len(names)):
        msg = f"the spill-over matrix is {array.shape}; {len(names)} channels need {(len(names),) * 2}"
        raise InputError(msg)
    return pd.DataFrame(array, index=names, columns=names)


def _check_names(frame: pd.DataFrame, where: str) -> None:
    for told, names in (("rows", frame.index), ("columns", frame.columns)):
        twice = [name for name, n in Counter(names).items() if n > 1 or not name]
        if twice:
            msg = f"{where}: {told} without a name, or with the same: {twice}; make the names unique"
            raise InputError(msg)


def _check_values(frame: pd.DataFrame) -> None:
    values = frame.to_numpy()
    pairs = [(e, r) for e in frame.index for r in frame.columns]
    wrong = [p for p, v in zip(pairs, values.ravel(), strict=True) if not 0 <= v <= 1]
    diagonal = [n for n in frame.index if n in frame.columns and not np.isclose(frame.loc[n, n], 1)]
    if wrong or diagonal:
        percent = " (in percent? divide it by 100)" if np.isclose(np.nanmax(values), 100) else ""
        first = wrong[0] if wrong else (diagonal[0],) * 2
        msg = (
            f"the spill-over matrix{percent} has {frame.loc[first]} from {first[0]!r} to {first[1]!r}; "
            "valid: shares from 0 to 1 of the emitted signal, and 1 from a channel to itself"
        )
        raise InputError(msg)


def match_channels(frame: pd.DataFrame, channels: Sequence[str], *, image: str) -> np.ndarray:
    """The matrix for the channels of one image.

    Names fit with and without the ``Di`` that mass cytometers append. Channels that the matrix
    lacks neither emit nor receive; what the image lacks is left out; both are told in a warning.

    Parameters
    ----------
    frame
        From :func:`matrix_of`.
    channels
        Of the image.
    image
        Its name, for messages.

    Returns
    -------
    float64 ``(c, c)``, rows emit.

    Raises
    ------
    InputError
        If no name fits, or the result is (nearly) singular.
    """
    known = list(dict.fromkeys([*frame.index, *frame.columns]))
    to_channel = _fit(known, channels)
    if not to_channel:
        msg = (
            f"image {image!r}: no channel is named as in the spill-over matrix ({', '.join(known)}); pass "
            f"rename={{name in the matrix: channel}}. Channels: {', '.join(channels)}"
        )
        raise InputError(msg)
    out = np.eye(len(channels))
    place = {name: channels.index(channel) for name, channel in to_channel.items()}
    rows, columns = ([name for name in names if name in place] for names in (frame.index, frame.columns))
    to = np.ix_([place[n] for n in rows], [place[n] for n in columns])
    out[to] = frame.loc[rows, columns].to_numpy()
    np.fill_diagonal(out, 1)
    if np.linalg.cond(out) > _WORST:
        msg = f"image {image!r}: the spill-over matrix is singular: some channels can't be told apart by it"
        raise InputError(msg)
    _warn_of_missing(known, channels, to_channel, image)
    return out


def _fit(known: Sequence[str], channels: Sequence[str]) -> dict[str, str]:
    bare = {name.removesuffix("Di"): name for name in known}
    fits = {name: name for name in known if name in channels}
    for channel in channels:
        name = bare.get(channel.removesuffix("Di"))
        if channel not in fits.values() and name is not None and name not in fits:
            fits[name] = channel
    return fits


def _warn_of_missing(
    known: Sequence[str], channels: Sequence[str], to_channel: Mapping[str, str], image: str
) -> None:
    lacking = [c for c in channels if c not in to_channel.values()]
    unused = [n for n in known if n not in to_channel]
    parts = []
    if lacking:
        parts.append(f"left as they are, since the spill-over matrix lacks them: {', '.join(lacking)}")
    if unused:
        parts.append(f"in the matrix only: {', '.join(unused)}")
    if parts:
        warnings.warn(f"image {image!r}: channels {'; '.join(parts)}", NimbusWarning, stacklevel=4)


def renamed(frame: pd.DataFrame, rename: Mapping[str, str] | None) -> pd.DataFrame:
    """The matrix with other names.

    Raises
    ------
    InputError
        If a name is not in it, or two become one.
    """
    if rename is None:
        return frame
    unknown = [name for name in rename if name not in frame.index and name not in frame.columns]
    if unknown:
        known = list(dict.fromkeys([*frame.index, *frame.columns]))
        msg = f"rename= has {unknown}, which the spill-over matrix lacks; it has: {', '.join(known)}"
        raise InputError(msg)
    out = frame.rename(index=dict(rename), columns=dict(rename))
    _check_names(out, "the spill-over matrix, renamed")
    return out
