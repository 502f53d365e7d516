"""Signal of one cell in the outline of the next: how usual a cell's share of its bright neighbour is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays.cell_context import nearest_cells

POSITIVE = 0.5
MIN_CELLS = 20
_ROOM = 0.01  # added to both shares, so that neither side is ever certain
_FAR = 4.0  # times the median distance to the nearest cell


def bright_neighbour(
    points: np.ndarray,
    scores: np.ndarray,
    intensity: np.ndarray,
    *,
    n_neighbors: int = 4,
    max_distance: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Intensity and score of the neighbour that could spill most, its score times its intensity largest.

    Parameters
    ----------
    points
        ``(n, 2)`` centroids of one field, any unit.
    scores, intensity
        ``(n, k)``; in [0, 1], and ≥ 0 in any unit.
    n_neighbors
        So many nearest cells are looked at.
    max_distance
        Cells farther away, in the unit of `points`, are not; None takes four times the
        median distance to the nearest cell.

    Returns
    -------
    Two float64 ``(n, k)``, zeros for a cell without neighbours.

    Raises
    ------
    InputError
        If points are not finite.

    Examples
    --------
    >>> points = np.array([[0, 0], [1, 0], [9, 0]])
    >>> near = bright_neighbour(points, np.array([[0.6], [0.9], [0.1]]), np.array([[2.0], [8.0], [1.0]]))
    >>> near[0].ravel().tolist(), near[1].ravel().tolist()
    ([8.0, 2.0, 0.0], [0.9, 0.6, 0.0])
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        msg = f"points {points.shape} must be finite (n, 2)"
        raise InputError(msg)
    near = nearest_cells(points, k=n_neighbors)
    distance = np.sqrt(((points[near] - points[:, None]) ** 2).sum(-1))
    if max_distance is None:
        max_distance = _FAR * float(np.median(distance.min(1))) if distance.size else 0.0
    weight = np.asarray(scores, dtype=np.float64) * intensity
    best, light, score = (np.zeros(weight.shape) for _ in range(3))
    for j in range(near.shape[1]):
        other = near[:, j]
        better = (weight[other] > best) & (distance[:, j] <= max_distance)[:, None]
        for out, values in ((best, weight), (light, intensity), (score, scores)):
            out[better] = values[other][better]
    return light, score


def log_ratio(intensity: np.ndarray, neighbour: np.ndarray) -> np.ndarray:
    """Log of a cell's intensity over its neighbour's, both plus 5 % of the marker's mean: ``(n, k)``."""
    room = 0.05 * np.asarray(intensity, dtype=np.float64).mean(0)
    room = np.where(room > 0, room, 1.0)
    return np.log(intensity + room) - np.log(neighbour + room)


def spill_suspicion(ratio: np.ndarray, scores: np.ndarray, neighbour_scores: np.ndarray) -> np.ndarray:
    """Suspicion that cells of one marker owe their intensity to the neighbour.

    Cells that are negative beside a positive neighbour show how much spills: `a` is their
    share with at least this cell's ratio. `b` is the share of positive cells whose
    ratio is at most this cell's. Suspicion is ``(a + 0.01) / (a + b + 0.02)`` times the
    neighbour's score.

    Parameters
    ----------
    ratio
        ``(n,)`` from :func:`log_ratio`.
    scores, neighbour_scores
        ``(n,)`` in [0, 1].

    Returns
    -------
    float64 ``(n,)`` in [0, 1], 0 for cells that are not positive, and for all where either
    group has fewer than :data:`MIN_CELLS` cells.

    Examples
    --------
    >>> ratio = np.repeat([-2.0, 0.0], 20)
    >>> scores = np.repeat([0.1, 0.9], 20)
    >>> ratio[-1] = -2
    >>> spill_suspicion(ratio, scores, np.ones(40))[-2:].round(2).tolist()
    [0.01, 0.94]
    """
    positive = scores > POSITIVE
    beside = np.sort(ratio[reference(scores, neighbour_scores)])
    own = np.sort(ratio[positive])
    if min(beside.size, own.size) < MIN_CELLS:
        return np.zeros(ratio.shape)
    a = 1 - np.searchsorted(beside, ratio, side="left") / beside.size
    b = np.searchsorted(own, ratio, side="right") / own.size
    return np.where(positive, (a + _ROOM) / (a + b + 2 * _ROOM) * neighbour_scores, 0)


def reference(scores: np.ndarray, neighbour_scores: np.ndarray) -> np.ndarray:
    """Cells that are negative beside a positive neighbour, bool of the scores' shape."""
    return (scores <= POSITIVE) & (neighbour_scores > POSITIVE)


def exclusive_suspicion(
    ratio: np.ndarray, scores: np.ndarray, pairs: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Score of the marker that a cell can't have as well, if the cell itself shines more in that one.

    Parameters
    ----------
    ratio
        ``(n, k)`` from :func:`log_ratio`.
    scores
        ``(n, k)`` in [0, 1].
    pairs
        Columns that exclude each other.

    Returns
    -------
    float64 ``(n, k)`` in [0, 1]: the largest over a marker's partners, 0 for cells that are
    not positive for both.

    Examples
    --------
    >>> ratio, scores = np.array([[-1.0, 1.0]]), np.array([[0.6, 0.9]])
    >>> exclusive_suspicion(ratio, scores, [(0, 1)]).tolist()
    [[0.9, 0.0]]
    """
    out = np.zeros(np.shape(scores))
    for pair in pairs:
        for own, other in (pair, pair[::-1]):
            both = (scores[:, own] > POSITIVE) & (scores[:, other] > POSITIVE)
            value = np.where(both & (ratio[:, other] > ratio[:, own]), scores[:, other], 0)
            np.maximum(out[:, own], value, out=out[:, own])
    return out
