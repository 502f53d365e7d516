"""Markers that tables have labels for, and the hierarchy that these labels were held to."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence

import anndata as ad
import numpy as np

from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd._core.hierarchy import HIERARCHY, MARKERS, contracted
from nimbus_sd._sdata.truth import matrix

log = logging.getLogger("nimbus_sd")


def markers_of(
    tables: Mapping[str, ad.AnnData], markers: Sequence[str] | str | None, *, layer: str
) -> list[str]:
    """The markers asked for, or those of the lymphocyte sub-types that all tables have, with labels in any.

    Parameters
    ----------
    tables
        By name, which is empty where there is but one.
    markers
        Asked for.
    layer
        Layer with the labels: 1, 0, NaN.

    Raises
    ------
    InputError
        If there is none, one comes twice, or one that is asked for has no label.
    ElementNotFoundError
        If one, or the layer, is not in a table.
    """
    if markers is None:
        return _default(tables, layer)
    names = [markers] if isinstance(markers, str) else list(markers)
    for of, table in tables.items():
        missing = [m for m in names if m not in table.var_names]
        if missing:
            msg = f"{_title(of)} has no marker {missing}; valid: {', '.join(table.var_names[:12])}"
            raise ElementNotFoundError(msg)
    if not names or len(set(names)) < len(names):
        msg = f"markers={names}: name at least one, and each once"
        raise InputError(msg)
    known = _labelled(tables, names, layer)
    ungated = [m for m in names if m not in known]
    if ungated:
        msg = (
            f"{', '.join(ungated)}: no cell has a label in layer {layer!r} (all NaN); give thresholds with "
            "nb.pp.gate, or leave out of markers="
        )
        raise InputError(msg)
    return names


def hierarchy_of(tables: Mapping[str, ad.AnnData], markers: Sequence[str], *, layer: str) -> dict[str, str]:
    """The tree that :func:`nimbus_sd.pp.curate_hierarchy` held a layer to, else the usual one.

    Of tables that were curated by different trees only the rules that all of them have are kept.

    Parameters
    ----------
    tables
        By name.
    markers
        Those that are learnt; the tree is one over them.
    layer
        Layer with the labels.

    Warns
    -----
    NimbusWarning
        If trees differ.
    """
    records = [table.uns.get(f"{layer}_hierarchy") for table in tables.values()]
    trees = [
        contracted(json.loads(record["tree"]), markers)
        for record in records
        if isinstance(record, Mapping) and "tree" in record
    ]
    if not trees:
        return contracted(HIERARCHY, markers)
    shared = {child: above for child, above in trees[0].items() if all(t.get(child) == above for t in trees)}
    if any(tree != shared for tree in trees):
        told = ", ".join(f"{above} > {child}" for child, above in shared.items()) or "none"
        warnings.warn(
            f"labels in layer {layer!r} were curated by different hierarchies; the model gets the rules that "
            f"all of them have ({told})",
            NimbusWarning,
            stacklevel=6,
        )
    return shared


def _default(tables: Mapping[str, ad.AnnData], layer: str) -> list[str]:
    for of, table in tables.items():
        if not any(m in table.var_names for m in MARKERS):
            msg = (
                f"{_title(of)} has none of {', '.join(MARKERS)}; name its markers with markers=, for "
                f"instance {list(table.var_names[:4])}"
            )
            raise InputError(msg)
    there = [m for m in MARKERS if any(m in t.var_names for t in tables.values())]
    common = [m for m in there if all(m in t.var_names for t in tables.values())]
    known = _labelled(tables, common, layer)
    found = [m for m in common if m in known]
    if not found:
        msg = (
            f"no cell has a label for {', '.join(common or there)} in layer {layer!r}: give thresholds with "
            "nb.pp.gate, or name other markers with markers="
        )
        raise InputError(msg)
    lost = [m for m in there if m not in found]
    if lost:
        log.warning("markers: %s; without labels in layer %r: %s", ", ".join(found), layer, ", ".join(lost))
    return found


def _labelled(tables: Mapping[str, ad.AnnData], markers: Sequence[str], layer: str) -> set[str]:
    """Those with a label in any table, all of which have them as columns."""
    found = np.zeros(len(markers), bool)
    for table in tables.values():
        found |= ~np.isnan(matrix(table, layer)[:, table.var_names.get_indexer(list(markers))]).all(axis=0)
    return {m for m, there in zip(markers, found, strict=True) if there}


def _title(of: str) -> str:
    return f"the table of {of!r}" if of else "the table"
