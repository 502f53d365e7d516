"""Rules for phenotypes from what users have: a table as scimap's, a dict, or a CSV, YAML or JSON file."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from io import StringIO
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays.phenotypes import ROOT, Rule, Tree, rule_tree

_SIGNS = {
    "pos": "pos", "positive": "pos", "allpos": "pos", "+": "pos",
    "neg": "neg", "negative": "neg", "allneg": "neg", "-": "neg",
    "anypos": "anypos", "anyneg": "anyneg",
}  # fmt: skip
_NOTHING = ("", "any", "nan")
_VALID = "valid: pos, neg, allpos, allneg, anypos, anyneg, or empty"


def as_tree(given: object) -> Tree:
    """Rules as a tree; formats as :func:`nimbus_sd.tl.phenotype` says.

    Raises
    ------
    InputError
        If it is none of the formats, a file can't be read, or rules don't fit together.
    """
    if isinstance(given, pd.DataFrame):
        header = [_plain(name) for name in given.columns]
        rows = [[_plain(value) for value in row] for row in given.itertuples(index=False)]
        return rule_tree(_from_table(header, rows, "the rules"))
    if isinstance(given, Mapping):
        return rule_tree(_from_mapping(given, ROOT, "the rules"))
    if isinstance(given, str | PathLike):
        return _from_file(Path(given))
    msg = f"rules are a DataFrame, a dict or the path of a .csv, .yaml or .json file, not {_kind(given)}"
    raise InputError(msg)


def _from_file(path: Path) -> Tree:
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".yaml", ".yml", ".json"):
        msg = f"{path}: unknown suffix {path.suffix!r}; valid: .csv, .yaml, .yml, .json"
        raise InputError(msg)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: can't be read as text ({error})"
        raise InputError(msg) from error
    try:
        if suffix == ".csv":
            lines = [line for line in csv.reader(StringIO(text, newline="")) if any(map(str.strip, line))]
            rows = [[value.strip() for value in line] for line in lines]
            return rule_tree(_from_table(rows[0] if rows else [], rows[1:], "the table"))
        content = _from_yaml(text)  # of which JSON is a part
        if not isinstance(content, Mapping):
            msg = f"holds a {_kind(content)}; give {{phenotype: {{pos: [markers], ...}}}}"
            raise InputError(msg)
        return rule_tree(_from_mapping(content, ROOT, "the rules"))
    except RecursionError as error:
        msg = f"{path}: a phenotype is within itself; write its rules out"
        raise InputError(msg) from error
    except InputError as error:
        msg = f"{path}: {error}"
        raise InputError(msg) from error


def _from_table(header: list[str], rows: list[list[str]], what: str) -> list[Rule]:
    """Parent, phenotype, then a column per marker; the first two need no header."""
    markers = header[2:]
    if not markers:
        msg = f"{what}: {len(header)} columns; give parent, phenotype, and one column per marker"
        raise InputError(msg)
    twice = sorted({m for m in markers if markers.count(m) > 1})
    if twice:
        msg = f"{what}: the column {twice[0]!r} comes twice; merge both"
        raise InputError(msg)
    rules = []
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            msg = f"{what}, row {number}: {len(row)} values for {len(header)} columns; give each a value"
            raise InputError(msg)
        found: dict[str, list[str]] = {}
        for marker, value in zip(markers, row[2:], strict=True):
            sign = value.lower().replace("_", "")
            if sign in _NOTHING:
                continue
            if sign not in _SIGNS:
                msg = f"{what}, row {number} ({row[1]}): {marker} is {value!r}; {_VALID}"
                raise InputError(msg)
            found.setdefault(_SIGNS[sign], []).append(marker)
        rules.append(_rule(row[0] or ROOT, row[1], found))
    return rules


def _from_mapping(given: Mapping[Any, Any], parent: str, what: str) -> list[Rule]:
    """``{phenotype: {"pos": [...], "parent": ..., "children": {...}}}``, children below their parent."""
    rules = []
    for key, content in given.items():
        name = _name(key, what)
        if not isinstance(content, Mapping):
            msg = f"{what}: {name!r} is {content!r}; give {{'pos': [markers], 'parent': ..., ...}}"
            raise InputError(msg)
        found: dict[str, list[str]] = {}
        children: Mapping[Any, Any] = {}
        parents = [parent]
        for word, value in content.items():
            sign = str(word).lower().replace("_", "")
            if word == "children" and isinstance(value, Mapping):
                children = value
            elif word == "parent" and parent == ROOT:
                parents = _names(value, f"{what}: parent of {name!r}")
            elif sign in _SIGNS:
                found.setdefault(_SIGNS[sign], []).extend(_names(value, f"{what}: {word} of {name!r}"))
            else:
                also = "" if parent == ROOT else f" (its parent is {parent!r}, whose child it is)"
                msg = (
                    f"{what}: {name!r} has {word!r}: {value!r}{also}; valid: pos, neg, anypos, anyneg "
                    "(markers), parent (a name), children (a dict)"
                )
                raise InputError(msg)
        rules += [_rule(above, name, found) for above in parents]
        rules += _from_mapping(children, name, what)
    return rules


def _rule(parent: str, name: str, found: Mapping[str, list[str]]) -> Rule:
    parent = ROOT if parent.lower() == ROOT else parent
    return Rule(parent, name, **{sign: tuple(markers) for sign, markers in found.items()})


def _names(value: object, what: str) -> list[str]:
    if value is None:
        return []
    given: Iterable[object] = value if isinstance(value, list | tuple) else [value]
    return [_name(each, what) for each in given]


def _name(value: object, what: str) -> str:
    """Text of a name; YAML makes yes, no, on, off and dates into something else."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        msg = f"{what}: {value!r} ({_kind(value)}) is no name; put names in quotes"
        raise InputError(msg)
    return str(value).strip()


def _plain(value: object) -> str:
    if value is None or value is pd.NA or value != value:
        return ""
    text = str(value).strip()
    return "" if text.startswith("Unnamed: ") else text


def _kind(value: object) -> str:
    return type(value).__name__


def _from_yaml(text: str) -> object:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses keys that come twice, of which YAML would keep the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for i, key in enumerate(keys):
                if key in keys[:i]:
                    line = node.value[i][0].start_mark.line + 1
                    msg = f"line {line}: {key!r} comes twice; merge both, or rename one"
                    raise InputError(msg)
            return super().construct_mapping(node, deep=deep)

    try:
        return yaml.load(text, Loader=Loader)  # noqa: S506 a SafeLoader
    except yaml.YAMLError as error:
        msg = f"no YAML ({error})"
        raise InputError(msg) from error
