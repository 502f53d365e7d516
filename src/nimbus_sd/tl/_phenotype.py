"""Name cells by rules on their scores."""

from __future__ import annotations

import difflib
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd._sdata.cluster_edits import check_new_column, forget_edits
from nimbus_sd._sdata.truth import check_adata
from nimbus_sd.arrays.phenotypes import (
    ROOT,
    Tree,
    deepest,
    exclusive_pairs,
    parts_below,
    rule_probabilities,
)
from nimbus_sd.tl._cluster_rows import Rows, table_rows
from nimbus_sd.tl._phenotype_rules import as_tree

_BLOCK = 1 << 16
_POSITIVE = 0.5  # scores above count for contradictions
log = logging.getLogger("nimbus_sd")


def phenotype(
    adata: ad.AnnData,
    rules: pd.DataFrame | Mapping[str, Any] | str | PathLike[str],
    *,
    key_added: str = "phenotype",
    layer: str | None = None,
    threshold: float = 0.3,
    contradictions: Sequence[tuple[str, str]] | None = None,
    unassigned: str = "unassigned",
) -> None:
    """Name cells by hierarchical rules on the scores.

    Scores are taken as probabilities, independent of each other. A rule's conditions
    multiply: p for a positive marker, 1 - p for a negative one, the largest p (1 - p) of
    ``anypos`` (``anyneg``). The parts of a group exclude each other, so the probability q of
    each is taken given that at most one of them fits: ``o / (1 + sum of o)`` with the odds
    ``o = q / (1 - q)`` of all parts. A part whose conditions are among another's means the
    cells that are not that other one (CD3 next to CD3, CD4). This is multiplied by the
    probability of the group, and summed where a phenotype is a part of several groups.

    A cell goes down the tree, to the likeliest part as long as that reaches `threshold`: one
    that is surely a T cell but neither of its parts is called a T cell, one that reaches no
    part of ``"all"`` is `unassigned`. Long lists of markers make all products small: name
    what tells siblings apart.

    Products of scores that are a little too cautious understate, so that a threshold below
    0.5 finds more. Simulated ion counts and fluorescence (11 types, 4 levels), macro-F1 and
    share unassigned, of whom 9 % are of a type without a rule: 0.2: 0.74, 13 % and 0.81, 12 %; 0.3:
    0.70, 17 % and 0.78, 15 %; 0.5: 0.61, 27 % and 0.70, 20 %. MIBI breast DCIS, earlier
    weights: 0.3 leaves 15 %, 0.5 28 %. The default was chosen on these.

    Parameters
    ----------
    adata
        Table with scores in [0, 1].
    rules
        Table or CSV file in the format of scimap: parent (``"all"`` at the top), phenotype,
        and one column per marker with pos, neg, allpos, allneg, anypos, anyneg or nothing. Or
        a dict, YAML or JSON file ``{phenotype: {"parent": name, "pos": [markers], "neg":
        ..., "anypos": ..., "anyneg": ..., "children": {...}}}``. ``pos`` and ``allpos``
        are the same here. A phenotype may come below several parents, once each; the
        parent ``"T cells-rest"`` is the T cells that are none of the other parts.
    key_added
        Column for the names.
    layer
        Layer with the scores; None takes ``X``.
    threshold
        Lowest probability of a name, in (0, 1]; from 0.5 on every name is likelier than not.
    contradictions
        Pairs of markers to count cells positive (above 0.5) for both, such as ``("CD3",
        "CD20")``; None takes those that two parts of one group require, one each, and no
        phenotype requires together.
    unassigned
        What cells without a phenotype are called.

    Returns
    -------
    None; writes ``obs[key_added]`` (categorical), ``obs[f"{key_added}_probability"]``
    float32 (of the name; for unassigned cells of the likeliest top phenotype),
    ``obs[f"{key_added}_contradictory"]`` bool, and ``uns[key_added]``: ``rules`` (JSON),
    ``names`` and ``n_cells`` per name, ``share_unassigned``, ``n_undefined`` and
    ``contradictions`` (``first``, ``second``, ``n_cells``, ``n_first``, ``n_second``).
    Cells with a NaN in a marker of the rules are unassigned, with probability NaN.

    Raises
    ------
    ElementNotFoundError
        If the layer or a marker does not exist.
    InputError
        If rules are empty, come twice, form a circle or lack a parent, scores leave [0, 1] or
        a marker is NaN throughout, or a parameter is out of range. Nothing is written then.

    References
    ----------
    Format of the table: Nirmal and Sorger (2024), *SCIMAP*, JOSS. Probabilities are not
    scimap's.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import nimbus_sd as nb
    >>> scores = np.array([[0.9, 0.9, 0.1], [0.9, 0.2, 0.9], [0.1, 0.1, 0.1]], "float32")
    >>> adata = ad.AnnData(scores, var=pd.DataFrame(index=["CD45", "CD3", "CD20"]))
    >>> rules = {
    ...     "immune": {"pos": ["CD45"]},
    ...     "T": {"parent": "immune", "pos": ["CD3"]},
    ...     "B": {"parent": "immune", "pos": ["CD20"]},
    ... }
    >>> nb.tl.phenotype(adata, rules)
    >>> adata.obs["phenotype"].tolist()
    ['T', 'B', 'unassigned']
    """
    check_adata(adata)
    _check_parameters(adata, key_added, threshold)
    tree = as_tree(rules)
    if unassigned in tree.names or not unassigned:
        msg = f"unassigned={unassigned!r} is empty or one of the phenotypes; choose another word"
        raise InputError(msg)
    pairs = _checked_pairs(contradictions, tree)
    markers = list(dict.fromkeys([*tree.markers, *(m for pair in pairs for m in pair)]))
    _check_known(adata, markers)
    rows = table_rows(adata, layer, markers)
    _check_scores(rows, tree)
    place, probability, both, contradictory = _named(rows, tree, pairs, threshold)
    n_undefined = int(np.isnan(probability).sum())
    if n_undefined:
        warnings.warn(
            f"{n_undefined} of {adata.n_obs} cells have NaN in a marker of the rules and are {unassigned}",
            NimbusWarning,
            stacklevel=2,
        )
    names = [*tree.names, unassigned]
    values = pd.Categorical.from_codes(np.where(place < 0, len(tree.names), place), categories=names)
    counts = np.bincount(values.codes, minlength=len(names))
    share = float(counts[-1] / max(adata.n_obs, 1))
    forget_edits(adata, key_added)
    adata.obs[key_added] = values.remove_unused_categories()
    adata.obs[f"{key_added}_probability"] = probability
    adata.obs[f"{key_added}_contradictory"] = contradictory
    adata.uns[key_added] = {
        "rules": json.dumps([asdict(rule) for rule in tree.rules]),
        "layer": layer or "X",
        "threshold": float(threshold),
        "unassigned": unassigned,
        "names": np.array(names, dtype=object),
        "n_cells": counts,
        "share_unassigned": share,
        "n_undefined": n_undefined,
        "contradictions": _report(both, pairs, markers),
    }
    log.info(
        "%s: %.2f %% of %d cells unassigned, %d with contradictory markers",
        key_added, 100 * share, adata.n_obs, int(contradictory.sum()),
    )  # fmt: skip


def _named(
    rows: Rows, tree: Tree, pairs: Sequence[tuple[str, str]], threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Place of each cell's name, its probability, cells positive for two markers, cells of a pair."""
    place = np.empty(len(rows), np.int64)
    probability = np.empty(len(rows), np.float32)
    contradictory = np.zeros(len(rows), bool)
    both = np.zeros((len(rows.markers), len(rows.markers)), np.int64)
    top = parts_below(tree, ROOT)
    where = [(rows.markers.index(a), rows.markers.index(b)) for a, b in pairs]
    for part, block in rows.blocks(_BLOCK):
        found = rule_probabilities(block, rows.markers, tree)
        place[part] = here = deepest(found, tree, threshold)
        of_name = found[np.arange(len(found)), here]
        probability[part] = np.where(here < 0, found[:, top].max(1), of_name)
        positive = block > _POSITIVE
        both += positive.T.astype(np.int64) @ positive
        for a, b in where:
            contradictory[part] |= positive[:, a] & positive[:, b]
    return place, probability, both, contradictory


def _report(
    both: np.ndarray, pairs: Sequence[tuple[str, str]], markers: Sequence[str]
) -> dict[str, np.ndarray]:
    first, second = ([markers.index(pair[i]) for pair in pairs] for i in (0, 1))
    order = np.argsort(-both[first, second], kind="stable")
    a, b = np.array(first, np.int64)[order], np.array(second, np.int64)[order]
    names = np.array(markers, dtype=object)
    return {
        "first": names[a],
        "second": names[b],
        "n_cells": both[a, b],
        "n_first": both[a, a],
        "n_second": both[b, b],
    }


def _check_parameters(adata: ad.AnnData, key: str, threshold: float) -> None:
    check_new_column(adata, key)
    record = adata.uns.get(key)
    if record is not None and not (isinstance(record, Mapping) and "share_unassigned" in record):
        msg = f"uns[{key!r}] holds something else that would be lost; choose another key_added="
        raise InputError(msg)
    if not 0 < threshold <= 1:
        msg = f"threshold={threshold}; valid: in (0, 1]"
        raise InputError(msg)


def _checked_pairs(given: Sequence[tuple[str, str]] | None, tree: Tree) -> list[tuple[str, str]]:
    if given is None:
        return exclusive_pairs(tree)
    pairs = [tuple(pair) for pair in given if not isinstance(pair, str)]
    if len(pairs) < len(given) or any(len(pair) != 2 or pair[0] == pair[1] for pair in pairs):
        msg = f"contradictions={given!r}; valid: pairs of two markers, such as [('CD3', 'CD20')]"
        raise InputError(msg)
    return [(str(a), str(b)) for a, b in pairs]


def _check_known(adata: ad.AnnData, markers: Sequence[str]) -> None:
    names = list(map(str, adata.var_names))
    missing = [m for m in markers if m not in names]
    if not missing:
        return
    near = {m: difflib.get_close_matches(m.lower(), [n.lower() for n in names], 1) for m in missing}
    told = [m + (f" (did you mean {_as_written(near[m][0], names)}?)" if near[m] else "") for m in missing]
    msg = f"the rules name markers that the table lacks: {', '.join(told)}; valid: {', '.join(names)}"
    raise ElementNotFoundError(msg)


def _as_written(lower: str, names: Sequence[str]) -> str:
    return next(name for name in names if name.lower() == lower)


def _check_scores(rows: Rows, tree: Tree) -> None:
    known = np.zeros(len(rows.markers), np.int64)
    for _, block in rows.blocks(_BLOCK):
        finite = ~np.isnan(block)
        known += finite.sum(0)
        if ((block < 0) | (block > 1)).any():
            bad = rows.markers[int(np.flatnonzero(((block < 0) | (block > 1)).any(0))[0])]
            msg = f"{rows.where}: {bad} leaves [0, 1]; rules need scores, name their layer with layer="
            raise InputError(msg)
    empty = [m for m, n in zip(rows.markers, known, strict=True) if not n and m in tree.markers]
    if empty and len(rows):
        msg = f"{rows.where}: {', '.join(empty)} is NaN in all cells; drop it from the rules or score it"
        raise InputError(msg)
