"""How good a representation of cells is: a linear probe, and clusters named after known types."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler

import nimbus_sd as nb

STRENGTHS = (0.003, 0.03, 0.3)  # of scikit-learn: 1 / regularisation


def levelled(values: np.ndarray) -> np.ndarray:
    """Non-negative values, column by column: over the 99.9th percentile, clipped at 1, square root."""
    top = np.maximum(np.quantile(values, 0.999, axis=0), 1e-9)
    return np.sqrt(np.clip(values / top, 0, 1))


def linear_probe(
    forms: Sequence[Sequence[tuple[np.ndarray, float]]],
    types: np.ndarray,
    field: np.ndarray,
    held_out: np.ndarray,
) -> float:
    """Balanced accuracy of a logistic regression in the fields held out.

    Parameters
    ----------
    forms
        Each a list of blocks ``(n, k)`` with the weight that their z-scores get. Form and
        regularisation are chosen by cross-validation over the other fields (three parts).
    types, field
        ``(n,)`` names; ``""`` is unknown and left out.
    held_out
        ``(n,)`` bool.
    """
    training, measured = (types != "") & ~held_out, (types != "") & held_out
    part = np.unique(field, return_inverse=True)[1] % 3
    tried = []
    for i, form in enumerate(forms):
        for c in STRENGTHS:
            folds = [
                _fitted(form, types, training & (part != k), training & (part == k), c) for k in range(3)
            ]
            tried.append((float(np.mean(folds)), i, c))
    _, best, strength = max(tried)
    return _fitted(forms[best], types, training, measured, strength)


def _fitted(
    form: Sequence[tuple[np.ndarray, float]], types: np.ndarray, on: np.ndarray, rows: np.ndarray, c: float
) -> float:
    rows = rows & np.isin(types, np.unique(types[on]))
    blocks = []
    for values, weight in form:
        scaler = StandardScaler().fit(values[on])
        blocks.append([weight * scaler.transform(values[r]) for r in (on, rows)])
    x, test = (np.hstack([b[i] for b in blocks]) for i in (0, 1))
    model = LogisticRegression(C=c, class_weight="balanced", max_iter=200, tol=1e-3).fit(x, types[on])
    return float(balanced_accuracy_score(types[rows], model.predict(test)))


def clustered(values: np.ndarray, *, seed: int, resolution: float = 1.0) -> np.ndarray:
    """Clusters as the paper makes them, ``(n,)`` names; ``"-1"`` for rows with NaN (cells not found)."""
    found = np.isfinite(values).all(axis=1)
    cells = ad.AnnData(np.asarray(values[found], np.float32))
    nb.tl.phenograph(cells, use_rep=None, resolution=resolution, seed=seed)
    clusters = np.full(len(values), "-1", dtype=object)
    clusters[found] = cells.obs["phenograph"].astype(str).to_numpy()
    return clusters


def rediscovered(
    clusters: np.ndarray,
    types: np.ndarray,
    *,
    naming: np.ndarray | None = None,
    measured: np.ndarray | None = None,
) -> pd.DataFrame:
    """Rates of :func:`nb.tl.rediscovery`.

    Parameters
    ----------
    clusters, types
        ``(n,)`` names; type ``""`` is unknown and left out.
    naming, measured
        ``(n,)`` bool: cells whose types name the clusters (majority), cells that are counted; None
        takes all.
    """
    obs = pd.DataFrame({"type": pd.Series(types).replace("", np.nan), "cluster": clusters})
    obs.index = obs.index.astype(str)
    mapping = None
    if naming is not None:
        mapping = (
            pd.crosstab(obs.cluster[naming], obs.type[naming]).idxmax(axis=1).drop("-1", errors="ignore")
        )
    kept = obs if measured is None else obs[measured]
    if mapping is not None:
        mapping = {c: mapping.get(c, "unknown") for c in kept.cluster.unique() if c != "-1"}
    return nb.tl.rediscovery(ad.AnnData(obs=kept.astype("category")), "type", "cluster", mapping=mapping)


def own_rates(frame: pd.DataFrame) -> pd.Series:
    """Share of each type's cells that were found again as that type."""
    return pd.Series({t: frame.loc[t, t] if t in frame.columns else 0.0 for t in frame.index})
