"""Divide the cells of one section so that training and validation share no px."""

from __future__ import annotations

import numpy as np

from nimbus_sd.arrays.patches import corners


def split_by_place(
    centers: np.ndarray, labels: np.ndarray, *, size: int, share: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a strip off one side of a section; cells whose patches would reach across are left out.

    Of the four sides the one is taken whose strip has nearest to its share of every class, so
    that there is something to judge by.

    Parameters
    ----------
    centers
        Index coordinates (y, x), ``(n, 2)``.
    labels
        ``(n, m)``: 1, 0, NaN.
    size
        Side of the patches in px.
    share
        Of the cells, for the strip.

    Returns
    -------
    Rows of both, int64, ascending: outside the strip and in it. No patch of one overlaps one of
    the other.
    """
    corner = corners(centers, size)
    sides = []
    for values in (corner[:, 1], -corner[:, 1], corner[:, 0], -corner[:, 0]):
        edge = np.quantile(values, 1 - share, method="higher") if len(values) else 0
        sides.append((values <= edge - size, values >= edge))
    rest, strip = min(sides, key=lambda side: _unfairness(labels, side[1], share))
    return np.flatnonzero(rest), np.flatnonzero(strip)


def _unfairness(labels: np.ndarray, strip: np.ndarray, share: float) -> float:
    """How far the strip's share of any class is from what it should be."""
    counts = [(labels == value).sum(axis=0) for value in (0, 1)]
    inside = [(labels[strip] == value).sum(axis=0) for value in (0, 1)]
    total, part = np.concatenate(counts), np.concatenate(inside)
    there = total > 0
    return float(np.abs(part[there] / total[there] - share).max()) if there.any() else 0.0
