"""Choose the cells of :func:`nimbus_sd.pl.cell_gallery`: at random, or by how sure their scores are."""

from __future__ import annotations

import numpy as np

PICKS = ("random", "most_certain", "least_certain", "high", "low")
GROUP_PICKS = ("random", "most_certain", "least_certain", "representative")


def pick_by_score(score: np.ndarray, threshold: float, *, pick: str, n: int, seed: int) -> np.ndarray:
    """Rows of at most `n` cells by the score of one marker; NaN are never chosen.

    ``"most_certain"``: the highest scores in one half and the lowest in the other,
    ``"least_certain"``: nearest to the threshold first, ``"random"``: from the highest to
    the lowest of `n` drawn ones.

    Examples
    --------
    >>> score = np.array([0.0, 0.45, 1.0, np.nan, 0.9])
    >>> pick_by_score(score, 0.5, pick="least_certain", n=2, seed=0).tolist()
    [1, 4]
    >>> pick_by_score(score, 0.5, pick="most_certain", n=2, seed=0).tolist()
    [2, 0]
    """
    rows = np.flatnonzero(np.isfinite(score))
    known = score[rows]
    if pick == "random":
        drawn = np.random.default_rng(seed).choice(rows, min(n, rows.size), replace=False)
        return drawn[np.argsort(-score[drawn], kind="stable")]
    if pick == "least_certain":
        return rows[np.argsort(np.abs(known - threshold), kind="stable")[:n]]
    falling = rows[np.argsort(-known, kind="stable")]
    if pick == "low":
        return falling[::-1][:n]
    if pick == "high" or rows.size <= n:
        return falling[:n]
    return np.concatenate([falling[: n - n // 2], falling[rows.size - n // 2 :]])


def pick_by_certainty(certainty: np.ndarray, rows: np.ndarray, *, pick: str, n: int, seed: int) -> np.ndarray:
    """At most `n` of `rows`, the members of one group, by their certainty; NaN counts as least."""
    if pick == "random":
        return np.random.default_rng(seed).choice(rows, min(n, rows.size), replace=False)
    value = np.nan_to_num(certainty[rows], nan=-np.inf)
    sign = 1 if pick == "least_certain" else -1
    return rows[np.argsort(sign * value, kind="stable")[:n]]


def pick_nearest_to_mean(values: np.ndarray, rows: np.ndarray, *, n: int) -> np.ndarray:
    """At most `n` of `rows`, those nearest to their mean first.

    Parameters
    ----------
    values
        ``(n_obs, d)``; rows with NaN come last.
    rows
        Members of one group.

    Examples
    --------
    >>> pick_nearest_to_mean(np.array([[0.0], [9.0], [4.0], [5.0]]), np.array([0, 1, 3]), n=2).tolist()
    [3, 1]
    """
    own = np.asarray(values[rows], dtype=np.float64)
    known = np.isfinite(own).all(axis=1)
    distance = np.full(len(rows), np.inf)
    if known.any():
        distance[known] = np.linalg.norm(own[known] - own[known].mean(0), axis=1)
    return rows[np.argsort(distance, kind="stable")[:n]]


def group_margin(values: np.ndarray, codes: np.ndarray, n_groups: int) -> np.ndarray:
    """How much farther the nearest other group's mean is than the own group's, ``(n,)``; NaN without a group.

    Parameters
    ----------
    values
        ``(n, k)``; NaN count as 0.
    codes
        Group of each row, -1 none.
    n_groups
        Groups; with one alone the margin is minus the distance to its mean.

    Examples
    --------
    >>> group_margin(np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([0, 0, 1, 1]), 2).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    values = np.nan_to_num(values)
    own = np.full(len(values), np.nan)
    other = np.full(len(values), np.inf)
    for k in range(n_groups):
        member = codes == k
        if not member.any():
            continue
        distance = np.linalg.norm(values - values[member].mean(0), axis=1)
        own[member] = distance[member]
        other[~member] = np.minimum(other[~member], distance[~member])
    return np.where(np.isinf(other), -own, other - own)
