"""What ``nimbus-sd cluster`` says of each cluster: its size and the markers that set it apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData

_N_SHOWN = 3  # markers per cluster
_THRESHOLD = 0.5


def described(adata: AnnData, key: str, layer: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    """One row per cluster, and the same as lines.

    Rows hold ``cluster``, ``n_cells``, ``highest``: up to three markers, and ``means``: what the cluster's
    cells have of them on average. Markers are ordered by how far the cluster lies above all cells.
    Of scores only those whose mean is above the marker's threshold count: that a marker is less
    absent than elsewhere names no cell type. Other values have no such floor.
    """
    import numpy as np

    from nimbus_sd._sdata.truth import matrix

    values = matrix(adata, layer)
    floor = _floor(adata, layer, values)
    spread = np.nanstd(values, axis=0)
    center = np.nanmean(values, axis=0)
    column, rows = adata.obs[key], []
    for name in column.cat.categories:
        cells = (column == name).to_numpy()
        if not cells.any():
            continue
        mean = np.nanmean(values[cells], axis=0)
        raised = (mean - center) / np.where(spread > 0, spread, np.inf)
        supported = raised > 0 if floor is None else mean > floor
        top = [i for i in np.argsort(-raised, kind="stable") if supported[i]][:_N_SHOWN]
        row = {"cluster": str(name), "n_cells": int(cells.sum())}
        row |= {"highest": [str(adata.var_names[i]) for i in top], "means": [float(mean[i]) for i in top]}
        rows.append(row)
    return rows, _lines(rows, key, floor)


def _floor(adata: AnnData, layer: str | None, values: np.ndarray) -> np.ndarray | None:
    """The score above which each marker's cells are positive; None where the values are no scores."""
    import numpy as np

    known = values[np.isfinite(values)]
    inside = not known.size or (known.min() >= 0 and known.max() <= 1)
    if not inside or layer == "integrated_expression" or "nimbus_embedding" in adata.uns:
        return None
    if "threshold" not in adata.var or layer not in (None, "X", "nimbus"):
        return np.full(adata.n_vars, _THRESHOLD)
    return adata.var["threshold"].astype(float).fillna(_THRESHOLD).to_numpy()


def _lines(rows: Sequence[dict[str, Any]], key: str, floor: np.ndarray | None) -> list[str]:
    width = max([len(key), *(len(r["cluster"]) for r in rows)])
    none, what = "-", "mean"
    if floor is not None:
        what = "mean score"
        none = f"none above {floor[0]:g}" if (floor == floor[0]).all() else "none above its threshold"
    body = []
    for row in rows:
        pairs = zip(row["highest"], row["means"], strict=True)
        told = ", ".join(f"{name} {mean:.3g}" for name, mean in pairs) or none
        body.append(f"{row['cluster']:<{width}}  {row['n_cells']:>9,}  {told}")
    return [f"{key:<{width}}  {'cells':>9}  highest markers ({what})", *body]
