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

STRENGTHS = (0.001, 0.01, 0.1)  # of scikit-learn: 1 / regularisation


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
        regularisation are chosen on a fifth of the other fields.
    types, field
        ``(n,)`` names; ``""`` is unknown and left out.
    held_out
        ``(n,)`` bool.
    """
    known, training = types != "", (types != "") & ~held_out
    choosing = training & np.isin(field, sorted(set(field[~held_out]))[2::5])
    rest = training & ~choosing
    tried = [
        (_fitted(form, types, rest, choosing, strength), i, strength)
        for i, form in enumerate(forms)
        for strength in STRENGTHS
    ]
    _, best, strength = max(tried)
    return _fitted(forms[best], types, training, known & held_out, strength)


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


def rediscovered(
    values: np.ndarray, types: np.ndarray, *, seed: int, resolution: float = 1.0
) -> pd.DataFrame:
    """Cluster as the paper does, name clusters by majority; what :func:`nb.tl.rediscovery` returns.

    Parameters
    ----------
    values
        ``(n, k)``; a row of NaN is a cell that was not found: it counts as unknown.
    types
        ``(n,)`` names; ``""`` is unknown and left out of the rates.
    """
    found = np.isfinite(values).all(axis=1)
    cells = ad.AnnData(np.asarray(values[found], np.float32))
    nb.tl.phenograph(cells, use_rep=None, resolution=resolution, seed=seed)
    clusters = np.full(len(values), "-1", dtype=object)
    clusters[found] = cells.obs["phenograph"].astype(str).to_numpy()
    obs = pd.DataFrame({"type": pd.Series(types).replace("", np.nan), "phenograph": clusters})
    obs.index = obs.index.astype(str)
    whole = ad.AnnData(obs=obs.astype("category"))
    return nb.tl.rediscovery(whole, "type", "phenograph")


def own_rates(frame: pd.DataFrame) -> pd.Series:
    """Share of each type's cells that were found again as that type."""
    return pd.Series({t: frame.loc[t, t] if t in frame.columns else 0.0 for t in frame.index})
