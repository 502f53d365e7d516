"""Edits of a column of clusters: merged or named by a mapping, replayed from the start to undo the last.

The column as it was before the first edit stays in ``obs``, so that the history survives when cells are
dropped; the edits themselves are one JSON string in ``uns``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import ElementNotFoundError, InputError

_HISTORY = "cluster_edits"  # in uns: column to JSON
_BEFORE = "_before_edits"  # ends the name of the column that keeps the clusters as they were
_MEASURED = frozenset({"area_px", "area_um2", "n_tiles"})  # of every cell, by nb.tl.predict
_MAX_NAMES = 20


@dataclass(frozen=True)
class Edit:
    """One edit.

    Parameters
    ----------
    kind
        ``"merge"`` or ``"name"``.
    by
        Column of ``obs`` whose values the mapping is for (nodes of a map); None is for
        the clusters themselves, and those that it leaves out stay as they are.
    mapping
        Value to name of its cluster.
    """

    kind: str
    by: str | None
    mapping: dict[str, str]


@dataclass(frozen=True)
class _State:
    """Clusters with what hangs on them: colours by name, metacluster of each node (None: unknown)."""

    values: pd.Categorical
    colors: dict[str, str]
    nodes: list[str] | None


def check_new_column(adata: ad.AnnData, *keys: str) -> None:
    """Raise InputError unless these columns of ``obs`` may be written."""
    attrs = adata.uns.get("spatialdata_attrs", {})
    taken = {attrs.get("region_key"), attrs.get("instance_key"), *_MEASURED}
    for key in keys:
        if not isinstance(key, str) or not key or "/" in key or key in taken or keys.count(key) > 1:
            msg = (
                f"{key!r} can't be the name of a new column of obs; valid: a name of its own without '/', "
                "none of those that tie the table to its labels or that were measured (areas, n_tiles)"
            )
            raise InputError(msg)


def labels_of(adata: ad.AnnData, key: str) -> pd.Categorical:
    """Clusters in ``obs[key]``, categories as text.

    Raises
    ------
    ElementNotFoundError
        If there is no such column.
    """
    if key not in adata.obs:
        msg = f"obs has no column {key!r}; valid: {', '.join(map(repr, adata.obs))}"
        raise ElementNotFoundError(msg)
    return _as_text(adata.obs[key])


def clusters_before(adata: ad.AnnData, key: str) -> pd.Categorical:
    """Clusters in ``obs[key]`` as they were before the first edit."""
    return _as_text(adata.obs[key + _BEFORE]) if edits_of(adata, key) else labels_of(adata, key)


def edits_of(adata: ad.AnnData, key: str) -> list[Edit]:
    """Edits of ``obs[key]`` that can be undone, the oldest first."""
    record = _record(adata, key)
    return [Edit(**edit) for edit in record["edits"]] if record else []


def forget_edits(adata: ad.AnnData, key: str) -> None:
    """Drop the history and colours of a column that holds something new."""
    if key + _BEFORE in adata.obs:
        del adata.obs[key + _BEFORE]
    adata.uns.pop(f"{key}_colors", None)
    _write_record(adata, key, None)


def apply_edit(adata: ad.AnnData, key: str, edit: Edit) -> None:
    """Edit ``obs[key]`` and remember how to undo it; see :func:`check_edit` for what is checked before.

    A column that was changed by others since the last edit starts a new history.
    """
    check_edit(adata, key, edit)
    record = _record(adata, key)
    state = _replayed(adata, key, record) if record else None
    if record is None or state is None or not _same(state.values, labels_of(adata, key)):
        start = _State(labels_of(adata, key), _colors(adata, key), _nodes(adata, key))
        record, state = {"colors": start.colors, "nodes": start.nodes, "edits": []}, start
        adata.obs[key + _BEFORE] = adata.obs[key].copy()
    record["edits"].append(asdict(edit))
    _write_state(adata, key, _edited(adata, state, edit))
    _write_record(adata, key, record)


def undo(adata: ad.AnnData, key: str, steps: int) -> None:
    """Take the last edits of ``obs[key]`` back.

    Raises
    ------
    ElementNotFoundError
        If there is no such column.
    InputError
        If there are fewer edits, or the column was changed by others since.
    """
    labels = labels_of(adata, key)
    record = _record(adata, key)
    known = len(record["edits"]) if record else 0
    if record is None or not 1 <= steps <= known:
        msg = f"{key!r} has {known} edits to undo, steps={steps}" if known else f"no edits of {key!r} to undo"
        raise InputError(msg)
    now = _replayed(adata, key, record)
    if now is None or not _same(now.values, labels):
        msg = (
            f"obs[{key!r}] was changed by something else since its last edit, which undoing would lose; "
            f"the clusters before all edits are in obs[{key + _BEFORE!r}]"
        )
        raise InputError(msg)
    left = record | {"edits": record["edits"][: known - steps]}
    state = _replayed(adata, key, left)
    if state is None:  # it could be replayed whole, so it can be in part
        msg = f"the edits of obs[{key!r}] can't be replayed"
        raise InputError(msg)
    _write_state(adata, key, state)
    if left["edits"]:
        _write_record(adata, key, left)
        return
    adata.obs[key] = adata.obs[key + _BEFORE]  # with the data type it had
    del adata.obs[key + _BEFORE]
    _write_record(adata, key, None)


def check_edit(adata: ad.AnnData, key: str, edit: Edit) -> None:
    """Raise unless the edit names clusters that exist.

    Raises
    ------
    ElementNotFoundError
        If a column, cluster or node does not exist.
    InputError
        If the mapping is empty, gives no name, or leaves out a node that has cells.
    """
    labels = labels_of(adata, key)
    if not edit.mapping or not all(name.strip() for name in edit.mapping.values()):
        msg = "the mapping is empty or gives a cluster an empty name; give {cluster: name, ...}"
        raise InputError(msg)
    if edit.by is None:
        _check_known(edit.mapping, list(labels.categories), f"clusters of {key!r}")
        return
    nodes = labels_of(adata, edit.by)
    flowsom = _flowsom(adata, key)
    if flowsom is not None and edit.by != str(flowsom["key_node"]):
        nodes_in = str(flowsom["key_node"])
        msg = f"{key!r} groups the nodes in {nodes_in!r}, not in {edit.by!r}; pass node_key={nodes_in!r}"
        raise InputError(msg)
    there = list(nodes.categories[np.unique(nodes.codes[nodes.codes >= 0])])
    known = there if flowsom is None else [str(i) for i in range(len(flowsom["node_metacluster"]))]
    _check_known(edit.mapping, known, f"nodes of {edit.by!r}")
    left = [node for node in there if node not in edit.mapping]
    if left:
        msg = f"the mapping leaves out nodes of {edit.by!r} that have cells: {_some(left)}; give all of them"
        raise InputError(msg)


def _check_known(mapping: Mapping[str, str], known: list[str], what: str) -> None:
    missing = sorted(set(mapping) - set(known))
    if missing:
        msg = f"the mapping names {_some(missing)}, which are not among the {what}; valid: {_some(known)}"
        raise ElementNotFoundError(msg)


def _as_text(column: pd.Series) -> pd.Categorical:
    values = column.astype("category").array
    return pd.Categorical.from_codes(values.codes, categories=[str(name) for name in values.categories])


def _edited(adata: ad.AnnData, state: _State, edit: Edit) -> _State:
    old = list(state.values.categories)
    if edit.by is not None:
        return _by_node(adata, state, edit)
    new = [edit.mapping.get(name, name) for name in old]
    # a cluster that others are merged into keeps its place and colour
    first = {name: old.index(name) if _stays(name, old, new) else new.index(name) for name in set(new)}
    order = sorted(first, key=lambda name: first[name])
    places = np.array([order.index(name) for name in new], dtype=np.int64)
    codes = np.append(places, -1)[state.values.codes]
    colors = {name: state.colors[old[i]] for name, i in first.items() if old[i] in state.colors}
    nodes = None if state.nodes is None else [edit.mapping.get(name, name) for name in state.nodes]
    return _State(pd.Categorical.from_codes(codes, categories=order), colors, nodes)


def _stays(name: str, old: list[str], new: list[str]) -> bool:
    return name in old and new[old.index(name)] == name


def _by_node(adata: ad.AnnData, state: _State, edit: Edit) -> _State:
    values = labels_of(adata, str(edit.by))
    new = [edit.mapping.get(node) for node in values.categories]
    kept = [name for name in state.values.categories if name in new]
    order = list(dict.fromkeys([*kept, *(name for name in edit.mapping.values() if name in new)]))
    places = np.array([-1 if name is None else order.index(name) for name in new], dtype=np.int64)
    codes = np.append(places, -1)[values.codes]
    nodes = state.nodes
    if nodes is not None:
        nodes = [edit.mapping.get(str(i), name) for i, name in enumerate(nodes)]
    return _State(pd.Categorical.from_codes(codes, categories=order), state.colors, nodes)


def _replayed(adata: ad.AnnData, key: str, record: Mapping[str, Any]) -> _State | None:
    """State after these edits; None if the columns that it takes are gone."""
    edits = [Edit(**edit) for edit in record["edits"]]
    if any(name not in adata.obs for name in (key + _BEFORE, *(e.by for e in edits if e.by is not None))):
        return None
    state = _State(_as_text(adata.obs[key + _BEFORE]), record["colors"], record["nodes"])
    for edit in edits:
        state = _edited(adata, state, edit)
    return state


def _same(one: pd.Categorical, other: pd.Categorical) -> bool:
    """Whether all cells have equal names; categories without cells and their order don't count."""
    place = {name: i for i, name in enumerate(other.categories)}
    codes = np.array([place.get(name, -2) for name in one.categories] + [-1])
    return len(one) == len(other) and bool((codes[one.codes] == other.codes).all())


def _write_state(adata: ad.AnnData, key: str, state: _State) -> None:
    names = list(state.values.categories)
    adata.obs[key] = state.values
    adata.uns.pop(f"{key}_colors", None)
    if names and all(name in state.colors for name in names):
        adata.uns[f"{key}_colors"] = np.array([state.colors[name] for name in names], dtype=object)
    flowsom = _flowsom(adata, key)  # none if a later map groups its nodes in another column
    if state.nodes is not None and flowsom is not None:
        adata.uns["flowsom"] = dict(flowsom) | {"node_metacluster": np.array(state.nodes, dtype=object)}


def _colors(adata: ad.AnnData, key: str) -> dict[str, str]:
    colors: Sequence[Any] = adata.uns.get(f"{key}_colors", [])
    names = labels_of(adata, key).categories
    return dict(zip(names, map(str, colors), strict=True)) if len(colors) == len(names) else {}


def _flowsom(adata: ad.AnnData, key: str) -> Mapping[str, Any] | None:
    found = adata.uns.get("flowsom", {})
    return found if str(found.get("key_metacluster")) == key else None


def _nodes(adata: ad.AnnData, key: str) -> list[str] | None:
    found = _flowsom(adata, key)
    return None if found is None else [str(name) for name in found["node_metacluster"]]


def _record(adata: ad.AnnData, key: str) -> dict[str, Any] | None:
    text = adata.uns.get(_HISTORY, {}).get(key)
    return json.loads(str(text)) if text is not None and key + _BEFORE in adata.obs else None


def _write_record(adata: ad.AnnData, key: str, record: Mapping[str, Any] | None) -> None:
    history = {name: text for name, text in adata.uns.get(_HISTORY, {}).items() if name != key}
    if record is not None:
        history[key] = json.dumps(record)
    if history:
        adata.uns[_HISTORY] = history
    else:
        adata.uns.pop(_HISTORY, None)


def _some(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > _MAX_NAMES else ""
    return ", ".join(map(str, names[:_MAX_NAMES])) + more
