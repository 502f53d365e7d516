"""What does not fit into a word: configurations, networks and mappings, from a file or a line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nimbus_sd._core.errors import InputError

if TYPE_CHECKING:
    from nimbus_sd.engine.training.presets import Presets

    P = TypeVar("P", bound=Presets)

_ENDINGS = (".json", ".toml", ".csv")


def configuration(option: str, text: str, kind: type[P]) -> str | P:
    """A preset's name as it is, or the configuration that a TOML or JSON file holds.

    A file may begin with ``preset = "small"`` and change some keys; the ``config.json`` or
    ``config.toml`` of an earlier run does too.

    Raises
    ------
    InputError
        If it is neither, or the file holds unknown keys or invalid values.
    """
    if text in kind.PRESETS:
        return text
    path = Path(text)
    if not path.is_file():
        msg = f"{option} {text}: no preset ({', '.join(kind.PRESETS)}), and no such file (.toml, .json)"
        raise InputError(msg)
    values = _values(option, path)
    try:
        return kind.from_dict(values)
    except (InputError, TypeError) as error:
        msg = f"{option} {path}: {error}"
        raise InputError(msg) from error


def network(option: str, text: str | None) -> str | dict[str, Any] | None:
    """A name as it is, JSON as the dict it holds.

    Raises
    ------
    InputError
        If it begins like JSON and is none.
    """
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError as error:
        msg = f"{option} {text}: neither a name nor JSON ({error})"
        raise InputError(msg) from error
    return found


def mapping(option: str, text: str) -> dict[str, str]:
    """``a=b,c=d``, or a file: JSON, TOML, or CSV with two columns below a line of headings.

    Raises
    ------
    InputError
        If it is none of these, or a name comes twice.
    """
    pairs: list[tuple[str, Any]] = []
    if text.endswith(_ENDINGS):
        path = Path(text)
        if not path.is_file():
            msg = f"{option} {text}: there is no such file"
            raise InputError(msg)
        pairs = _rows(option, path) if text.endswith(".csv") else [*_values(option, path).items()]
    else:
        for part in text.split(","):
            name, equals, value = (word.strip() for word in part.partition("="))
            if not (name and equals and value):
                msg = f"{option} {text!r}: valid: name=value,name=value, or a file (.csv, .json, .toml)"
                raise InputError(msg)
            pairs.append((name, value))
    twice = sorted({n for n, _ in pairs if [m for m, _ in pairs].count(n) > 1})
    if twice or not pairs:
        msg = f"{option} {text}: {f'{twice[0]!r} comes twice' if twice else 'it names nothing'}"
        raise InputError(msg)
    return {str(name): str(value) for name, value in pairs}


def numbers(option: str, text: str) -> dict[str, float]:
    """A mapping to numbers, see :func:`mapping`.

    Raises
    ------
    InputError
        If a value is no number.
    """
    found = {}
    for name, value in mapping(option, text).items():
        try:
            found[name] = float(value)
        except ValueError:
            msg = f"{option}: {name}={value} must be a number"
            raise InputError(msg) from None
    return found


def _values(option: str, path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, UnicodeDecodeError) as error:  # of both parsers
        msg = f"{option} {path} is not {'JSON' if path.suffix == '.json' else 'TOML'} ({error})"
        raise InputError(msg) from error
    if not isinstance(found, dict):
        msg = f"{option} {path} holds no names and values"
        raise InputError(msg)
    return found


def _rows(option: str, path: Path) -> list[tuple[str, Any]]:
    import csv

    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    if any(len(row) != 2 for row in rows):
        msg = f"{option} {path}: each line must have two columns, below a line of headings"
        raise InputError(msg)
    return [(name.strip(), value.strip()) for name, value in rows[1:]]
