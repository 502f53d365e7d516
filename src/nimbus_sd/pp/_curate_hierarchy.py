"""``nb.pp.curate_hierarchy``: labels that contradict the lineage become undefined."""

from __future__ import annotations

import json
from collections.abc import Mapping

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.hierarchy import HIERARCHY, MARKERS, contracted
from nimbus_sd._sdata.truth import truth_matrix
from nimbus_sd.arrays.hierarchy import curate, families, rules


def curate_hierarchy(
    adata: ad.AnnData,
    tree: Mapping[str, str] | None = None,
    *,
    layer: str = "gated",
    key_added: str | None = None,
) -> pd.DataFrame:
    """Make cells undefined that are positive for a marker and negative for one that it implies.

    A CD3e+ CD45- cell does not exist: one of the two labels is wrong, and which one can't be told.
    Such a cell becomes undefined for all markers that hang together in the tree (also the CD8a+
    that rests on the CD3e+); its labels for other markers stay. Rules reach over generations: CD8a+
    CD45- breaks one, whatever CD3e is. An undefined label contradicts nothing.

    Parameters
    ----------
    adata
        Table with labels, such as those of :func:`nimbus_sd.pp.gate`.
    tree
        Each marker to the one that it implies; None takes CD45 > CD3e > {CD4, CD8a}, over those of
        them that the table has: without CD3e, CD4 implies CD45.
    layer
        Layer with the labels: 1, 0, NaN.
    key_added
        Layer for the result; None replaces `layer`.

    Returns
    -------
    What was found, one row per rule (``"CD3e+ CD45-"``): ``marker``, ``implies``, ``n_cells`` that
    break it, ``share`` of the cells positive for the marker; and a last row ``"any"`` that counts
    each cell once, its ``share`` of the cells positive for any marker with a rule. Also writes

    - ``layers[key_added or layer]`` float32: 1, 0, NaN;
    - ``obs[f"{key}_inconsistent"]`` bool: the cells that broke a rule, now or in an earlier call
      on the same layer;
    - ``uns[f"{key}_hierarchy"]``: ``tree`` (JSON), ``rule``, ``n_cells`` and ``n_labels``, the
      labels that became undefined in this call.

    Raises
    ------
    InputError
        If the tree runs in a circle or names a marker that the table lacks, the table has none
        of the default's, or the layer holds anything but 1, 0, NaN. Nothing is written then.
    ElementNotFoundError
        If the layer does not exist.

    References
    ----------
    Pochet et al., *Lymphocytes subtyping on H&E slides with automatic labelling through
    same-tissue stained ImmunoFluorescence images* (labels curation).

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import nimbus_sd as nb
    >>> adata = ad.AnnData(np.zeros((2, 2)), var=pd.DataFrame(index=["CD45", "CD3e"]))
    >>> adata.layers["gated"] = np.float32([[1, 1], [0, 1]])
    >>> found = nb.pp.curate_hierarchy(adata, {"CD3e": "CD45"})
    >>> found["n_cells"].to_dict()
    {'CD3e+ CD45-': 1, 'any': 1}
    >>> adata.layers["gated"].tolist()
    [[1.0, 1.0], [nan, nan]]
    """
    before, markers = truth_matrix(adata, layer)
    tree = _default(markers) if tree is None else tree
    found, broken = curate(before, markers, tree=tree)
    key = layer if key_added is None else key_added
    if key in ("X", "integrated_expression", "nimbus", "") or "/" in key:
        msg = f"key_added={key!r} can't hold labels; name a layer that is neither scores nor intensities"
        raise InputError(msg)
    report = _report(before, broken, markers, tree)
    gone = broken.any(axis=1)
    flag = f"{key}_inconsistent"
    if key == layer and flag in adata.obs:
        gone = gone | adata.obs[flag].to_numpy(bool)
    record = {
        "tree": json.dumps(dict(tree)),
        "rule": report.index.to_numpy(str),
        "n_cells": report["n_cells"].to_numpy(),
        "n_labels": int((np.isnan(found) & ~np.isnan(before)).sum()),
    }
    adata.layers[key] = found
    adata.obs[flag] = gone
    adata.uns[f"{key}_hierarchy"] = record
    return report


def _default(markers: list[str]) -> dict[str, str]:
    if not set(MARKERS) & set(markers):
        msg = (
            f"the table has none of {', '.join(MARKERS)}; pass tree={{marker: the one it implies}}, of its "
            f"markers {', '.join(markers[:12])}"
        )
        raise InputError(msg)
    return contracted(HIERARCHY, markers)


def _report(
    labels: np.ndarray, broken: np.ndarray, markers: list[str], tree: Mapping[str, str]
) -> pd.DataFrame:
    pairs = rules(tree)
    positive = {m: labels[:, markers.index(m)] == 1 for family in families(tree) for m in family}
    every = np.any([positive[child] for child, _ in pairs] or [np.zeros(len(labels), bool)], axis=0)
    rows = [
        (child, above, int(n), int(positive[child].sum()))
        for (child, above), n in zip(pairs, broken.sum(0), strict=True)
    ]
    rows.append(("", "", int(broken.any(axis=1).sum()), int(every.sum())))
    names = [*(f"{child}+ {above}-" for child, above in pairs), "any"]
    out = pd.DataFrame(rows, pd.Index(names, name="rule"), ["marker", "implies", "n_cells", "share"])
    out["share"] = out["n_cells"] / out["share"].where(out["share"] > 0)
    return out
