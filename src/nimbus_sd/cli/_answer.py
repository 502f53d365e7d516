"""What a command says at its end: lines for people, or one JSON object for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import typer


def answer(facts: Mapping[str, Any], lines: Sequence[str] | str, *, as_json: bool) -> None:
    """Print the result of a command on stdout, once, at its end.

    Parameters
    ----------
    facts
        What was written where, counts, metrics; see :func:`plain` for the values it may hold.
    lines
        The same for people.
    as_json
        Print `facts` as one JSON object instead of `lines`.
    """
    if as_json:
        typer.echo(json.dumps(plain(facts), allow_nan=False, ensure_ascii=False))
        return
    text = lines if isinstance(lines, str) else "\n".join(lines)
    if text:
        typer.echo(text)


def say(line: str, *, as_json: bool) -> None:
    """Print a line while a command is at work: on stderr where stdout is to hold JSON only."""
    typer.echo(line, err=as_json)


def plain(value: Any) -> Any:
    """The value as JSON has it.

    Not-a-number and infinities become None, paths text, NumPy's scalars and arrays Python's numbers
    and lists, a pandas frame a list of its rows, any other object its text.

    Examples
    --------
    >>> from pathlib import Path
    >>> plain({"out": Path("a.zarr"), "f1": float("nan"), 3: (1, True, None)})
    {'out': 'a.zarr', 'f1': None, '3': [1, True, None]}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        return plain(value.to_dict(orient="records"))
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Sequence | set | frozenset):
        return [plain(v) for v in value]
    return str(value)
