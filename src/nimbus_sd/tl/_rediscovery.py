"""How well clusters find known cell types again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata.cluster_edits import check_new_column, forget_edits, labels_of
from nimbus_sd._sdata.cluster_files import as_mapping
from nimbus_sd._sdata.truth import check_adata
from nimbus_sd.arrays.rediscovery import count_pairs, majority, row_shares

_NONE = "-1"  # what phenograph and, behind a comma, subcluster call cells of no cluster


def rediscovery(
    adata: ad.AnnData,
    reference_key: str,
    cluster_key: str = "phenograph",
    *,
    mapping: Mapping[Any, Any] | str | PathLike[str] | None = None,
    ignore: Sequence[str] = ("-1",),
    unknown: str = "unknown",
    key_added: str | None = None,
) -> pd.DataFrame:
    """Name clusters by known cell types and measure how many cells of each type are found again.

    Without a mapping a cluster is named after the type that most of its cells have; a tie goes to
    the type that has fewer cells in all clusters, then to the first category. Cells without a
    reference count nowhere, but get the name of their cluster.

    Parameters
    ----------
    adata
        Table with both columns.
    reference_key
        Column of ``obs`` with the known types; missing values are cells without one.
    cluster_key
        Column of ``obs`` with the clusters, those of :func:`nimbus_sd.tl.phenograph` or others.
    mapping
        ``{cluster: type}``, ``{type: [clusters]}`` or a file of these, as
        :func:`nimbus_sd.tl.merge_clusters` takes; clusters that it leaves out are unknown.
    ignore
        Clusters that are none: unknown, unless the mapping names them. With ``"-1"`` also the
        small parts that :func:`nimbus_sd.tl.subcluster` calls ``"3,-1"``.
    unknown
        What to call cells of no type.
    key_added
        Column of ``obs`` to write; None takes ``f"{cluster_key}_phenotype"``.

    Returns
    -------
    Frame of reference types (rows, those that have cells) x assigned types (columns: the same
    types, further ones of the mapping, `unknown`), float64: the share of the row's cells, so a row
    sums to 1. The diagonal is the rediscovery rate; a type that no cluster is named after has 0
    there. ``attrs``: ``"balanced"`` mean of the diagonal, ``"accuracy"`` share of all cells on it,
    ``"cells"`` of each row. Also writes ``obs[key_added]`` categorical, and ``uns["rediscovery"]``:
    ``counts`` int64, ``reference`` and ``assigned`` (names of its rows and columns), ``mapping``
    (JSON, cluster to type), ``balanced``, ``accuracy`` and the keys. Edits of ``obs[key_added]``
    are forgotten.

    Raises
    ------
    ElementNotFoundError
        If a column does not exist, or the mapping names unknown clusters.
    InputError
        If no cell has a reference and a cluster, the reference has a type called as `unknown`, or
        the mapping is for nodes of a map.

    References
    ----------
    Gutwein et al. (2024), *Interpretable embeddings for segmentation-free single-cell analysis
    in multiplex imaging*, figure 4. There the benchmark's types are the columns; here they are
    rows.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import nimbus_sd as nb
    >>> columns = {"cell_type": list("TTTBB"), "phenograph": list("00110")}
    >>> obs = pd.DataFrame(columns, index=list("abcde"), dtype="category")
    >>> adata = ad.AnnData(np.zeros((5, 1), "float32"), obs=obs)
    >>> found = nb.tl.rediscovery(adata, "cell_type")
    >>> found.round(2).loc["T"].to_dict(), round(found.attrs["balanced"], 2)
    ({'B': 0.33, 'T': 0.67, 'unknown': 0.0}, 0.58)
    """
    check_adata(adata)
    reference, clusters = labels_of(adata, reference_key), labels_of(adata, cluster_key)
    key = f"{cluster_key}_phenotype" if key_added is None else key_added
    check_new_column(adata, key)
    if key in (reference_key, cluster_key):
        msg = f"key_added={key!r} would overwrite what is compared; give another name"
        raise InputError(msg)
    known = _Types.of(reference, clusters, reference_key, cluster_key, unknown)
    names = _named(known, mapping, _as_names(ignore), unknown)

    columns = [*known.types, *(n for n in dict.fromkeys(names) if n not in (*known.types, unknown)), unknown]
    of_cluster = np.array([columns.index(n) for n in names] + [len(columns) - 1], dtype=np.int64)
    assigned = of_cluster[clusters.codes]  # code -1, no cluster, is the last: unknown
    counts = count_pairs(known.reference, assigned, (len(known.types), len(columns)))
    shares = row_shares(counts)
    found = np.diagonal(counts)
    frame = pd.DataFrame(
        shares, index=pd.Index(known.types, name=reference_key), columns=pd.Index(columns, name=key)
    )
    frame.attrs = {
        "balanced": float(np.diagonal(shares).mean()),
        "accuracy": float(found.sum() / counts.sum()),
        "cells": dict(zip(known.types, counts.sum(1).tolist(), strict=True)),
    }
    adata.obs[key] = pd.Categorical.from_codes(assigned, columns).remove_unused_categories()
    forget_edits(adata, key)
    adata.uns["rediscovery"] = {
        "reference_key": reference_key, "cluster_key": cluster_key, "key_added": key, "unknown": unknown,
        "reference": np.array(known.types, dtype=object), "assigned": np.array(columns, dtype=object),
        "counts": counts, "balanced": frame.attrs["balanced"], "accuracy": frame.attrs["accuracy"],
        "mapping": json.dumps(dict(zip(known.clusters, names, strict=True)), ensure_ascii=False),
        "given": mapping is not None,
    }  # fmt: skip
    return frame


@dataclass(frozen=True)
class _Types:
    """Reference types that have cells, clusters, and how many cells have both."""

    types: list[str]
    clusters: list[str]
    reference: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(
        cls,
        reference: pd.Categorical,
        clusters: pd.Categorical,
        reference_key: str,
        cluster_key: str,
        unknown: str,
    ) -> _Types:
        used = reference.remove_unused_categories()
        types, names = list(used.categories), list(clusters.categories)
        if unknown in types:
            msg = (
                f"obs[{reference_key!r}] has a type {unknown!r}, which is also what cells of no type are "
                "called; set these cells to NaN, or give another word with unknown="
            )
            raise InputError(msg)
        counts = count_pairs(clusters.codes, used.codes, (len(names), len(types)))
        if not counts.sum():
            msg = f"no cell has both a type in obs[{reference_key!r}] and a cluster in obs[{cluster_key!r}]"
            raise InputError(msg)
        return cls(types, names, used.codes, counts)


def _as_names(ignore: Sequence[str]) -> set[str]:
    return {ignore} if isinstance(ignore, str) else set(map(str, ignore))


def _is_none(name: str, ignore: set[str]) -> bool:
    """Whether a cluster is ignored itself, or as the small parts of one that was split."""
    return name in ignore or (_NONE in ignore and name.endswith(f",{_NONE}"))


def _named(
    known: _Types, mapping: Mapping[Any, Any] | str | PathLike[str] | None, ignore: set[str], unknown: str
) -> list[str]:
    """Name of every cluster."""
    if mapping is None:
        winner = majority(known.counts)
        return [
            unknown if i < 0 or _is_none(name, ignore) else known.types[i]
            for name, i in zip(known.clusters, winner, strict=True)
        ]
    given = as_mapping(mapping)
    if given.of_nodes:
        msg = "the mapping is for nodes of a map; give {cluster: type}, {type: [clusters]} or a CSV of these"
        raise InputError(msg)
    missing = sorted(set(given.names) - set(known.clusters))
    if missing or not given.names:
        valid = ", ".join(known.clusters)
        msg = f"the mapping names {', '.join(missing) or 'no cluster'}; clusters: {valid}"
        raise ElementNotFoundError(msg)
    empty = [name for name, told in given.names.items() if not told.strip()]
    if empty:
        msg = f"the mapping gives {', '.join(empty)} an empty name; leave a cluster out, or name its type"
        raise InputError(msg)
    return [given.names.get(name, unknown) for name in known.clusters]
