"""Do two measurements order things alike? Rank correlations of whole matrices."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

_ROWS = 1 << 16


def spearman_columns(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each column of `a` with that of `b`.

    Parameters
    ----------
    a, b
        ``(n, k)``; ties get their mean rank.

    Returns
    -------
    float64 ``(k,)``; NaN where a column is constant or there are fewer than two rows.

    Examples
    --------
    >>> a = np.array([[1.0, 1.0], [2.0, 1.0], [9.0, 1.0]])
    >>> spearman_columns(a, a[::-1]).tolist()
    [-1.0, nan]
    """
    out = np.full(a.shape[1], np.nan)
    for c in range(a.shape[1]):  # one at a time: the ranks of all would take as much memory again
        out[c] = _pearson(rankdata(a[:, c])[None], rankdata(b[:, c])[None])[0]
    return out


def spearman_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """As :func:`spearman_columns`, of each row: float64 ``(n,)``."""
    parts = [
        _pearson(rankdata(a[i : i + _ROWS], axis=1), rankdata(b[i : i + _ROWS], axis=1))
        for i in range(0, len(a), _ROWS)
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation along the last axis; NaN where there is no spread."""
    if not a.shape[-1]:
        return np.full(len(a), np.nan)
    a, b = (v - v.mean(axis=-1, keepdims=True) for v in (a, b))
    spread = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    out = np.full(len(a), np.nan)
    np.divide((a * b).sum(axis=-1), spread, out=out, where=spread > 0)
    return out
