"""Mappings of clusters in files: two columns, the remapping CSV of Pixie, or JSON."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from os import PathLike
from pathlib import Path

from nimbus_sd._core.errors import InputError

_PIXIE = re.compile(r"(?P<kind>\w+)_som_cluster")
_WHOLE = re.compile(r"(-?\d+)\.0+")  # whole numbers in a column that pandas made float
_VALID = (
    "valid: a CSV of two columns (cluster, name), Pixie's (cell_som_cluster, cell_meta_cluster, "
    "cell_meta_cluster_rename), or JSON {cluster: name}"
)


@dataclass(frozen=True)
class ClusterMapping:
    """What a file says.

    Parameters
    ----------
    names
        Cluster or node to the name of its new cluster.
    of_nodes
        Whether it is for the nodes of a map rather than for clusters.
    renamed
        For nodes, metacluster to its name where the file has both.
    """

    names: dict[str, str]
    of_nodes: bool = False
    renamed: dict[str, str] = field(default_factory=dict)


def as_mapping(given: object) -> ClusterMapping:
    """Mapping from a dict or a file.

    Parameters
    ----------
    given
        ``{cluster: name}``, ``{name: [clusters]}``, or the path of a ``.csv`` or ``.json`` file.

    Raises
    ------
    InputError
        If the file can't be read or is none of the formats, or a cluster gets two names.
    """
    if isinstance(given, Mapping):
        return ClusterMapping(_flat(given, "the mapping"))
    if not isinstance(given, str | PathLike):
        msg = f"a mapping is a dict or the path of a file, not {type(given).__name__}"
        raise InputError(msg)
    path = Path(given)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: can't be read as text ({error}); {_VALID}"
        raise InputError(msg) from error
    if path.suffix.lower() == ".json":
        return _from_json(text, path)
    if path.suffix.lower() == ".csv":
        return _from_csv(text, path)
    msg = f"{path}: unknown suffix {path.suffix!r}; valid: '.csv', '.json'"
    raise InputError(msg)


def to_csv(mapping: ClusterMapping) -> str:
    """Text of the file: Pixie's columns for nodes, else ``cluster,name``."""
    if not mapping.of_nodes:
        return _csv([("cluster", "name"), *mapping.names.items()])
    number = {name: i for i, name in enumerate(dict.fromkeys(mapping.names.values()), start=1)}
    rows = [(node, str(number[name]), name) for node, name in mapping.names.items()]
    return _csv([("cell_som_cluster", "cell_meta_cluster", "cell_meta_cluster_rename"), *rows])


def to_json(mapping: ClusterMapping) -> str:
    """Text of the file: ``{cluster: name}``, for nodes below ``"nodes"``."""
    content: object = {"nodes": mapping.names} if mapping.of_nodes else mapping.names
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _csv(rows: list[tuple[str, ...]]) -> str:
    out = StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _flat(given: Mapping[object, object], what: str) -> dict[str, str]:
    """Text to text; ``{name: [clusters]}`` turned round."""
    pairs: list[tuple[str, str]] = []
    for key, value in given.items():
        if isinstance(value, list | tuple | set | frozenset):
            pairs += [(_text(cluster), _text(key)) for cluster in value]
        elif isinstance(value, Mapping) or value is None:
            msg = f"{what}: {key!r} maps to {value!r}; give {{cluster: name}} or {{name: [clusters]}}"
            raise InputError(msg)
        else:
            pairs.append((_text(key), _text(value)))
    return _unique(pairs, what)


def _unique(pairs: list[tuple[str, str]], what: str) -> dict[str, str]:
    out: dict[str, str] = {}
    for cluster, name in pairs:
        if out.setdefault(cluster, name) != name:
            msg = f"{what}: {cluster!r} gets two names, {out[cluster]!r} and {name!r}; give it one"
            raise InputError(msg)
    return out


def _text(value: object) -> str:
    text = str(value).strip()
    whole = _WHOLE.fullmatch(text)
    return whole.group(1) if whole else text


def _from_json(text: str, path: Path) -> ClusterMapping:
    try:
        content = json.loads(text)
    except ValueError as error:
        msg = f"{path}: no JSON ({error}); {_VALID}"
        raise InputError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path}: holds a {type(content).__name__}; {_VALID}"
        raise InputError(msg)
    if list(content) == ["nodes"] and isinstance(content["nodes"], dict):
        return ClusterMapping(_flat(content["nodes"], str(path)), of_nodes=True)
    return ClusterMapping(_flat(content, str(path)))


def _from_csv(text: str, path: Path) -> ClusterMapping:
    lines = list(csv.reader(StringIO(text, newline="")))
    header = [name.strip() for name in lines[0]] if lines else []
    rows = [[_text(value) for value in row] for row in lines[1:] if row]
    ragged = [i for i, row in enumerate(rows, start=2) if len(row) != len(header)]
    if not rows or ragged:
        msg = f"{path}: {f'line {ragged[0]} has another number of values' if ragged else 'no rows'}; {_VALID}"
        raise InputError(msg)
    som = [i for i, name in enumerate(header) if _PIXIE.fullmatch(name)]
    if len(som) == 1:
        kind = header[som[0]].removesuffix("_som_cluster")
        wanted = (f"{kind}_meta_cluster", f"{kind}_meta_cluster_rename")
        return _pixie(rows, header, (header[som[0]], *wanted), path)
    if {"cluster", "metacluster"} <= set(header):  # as Pixie's notebook named them at first
        return _pixie(rows, header, ("cluster", "metacluster", "mc_name"), path)
    if len(header) != 2 or som:
        msg = f"{path}: the columns are {', '.join(header)}; {_VALID}"
        raise InputError(msg)
    return ClusterMapping(_unique([(row[0], row[1]) for row in rows], str(path)))


def _pixie(
    rows: list[list[str]], header: list[str], names: tuple[str, str, str], path: Path
) -> ClusterMapping:
    if names[1] not in header:
        msg = f"{path}: lacks the column {names[1]!r}; the columns are {', '.join(header)}"
        raise InputError(msg)
    node, meta = header.index(names[0]), header.index(names[1])
    name = header.index(names[2]) if names[2] in header else meta
    empty = next((i for i, row in enumerate(rows, start=2) if not row[node] or not row[name]), None)
    if empty is not None:
        msg = f"{path}: line {empty} names no cluster or gives it an empty name; fill it in"
        raise InputError(msg)
    mapping = _unique([(row[node], row[name]) for row in rows], str(path))
    renamed = _unique([(row[meta], row[name]) for row in rows], f"{path}, {names[1]}")
    return ClusterMapping(mapping, of_nodes=True, renamed=renamed if names[2] in header else {})
