"""Self-organising maps once they are trained: the nearest node of each cell, nodes' means, grids; NumPy."""

from __future__ import annotations

from math import isqrt

import numpy as np

from nimbus_sd._core.errors import InputError

_BLOCK_VALUES = 1 << 19  # distances held at a time, float64: 4 MiB
_LONGEST = 3  # sides of a grid, long over short


def block_rows(n_nodes: int) -> int:
    """Rows to look up at a time, so that their distances to all nodes stay in cache."""
    return max(_BLOCK_VALUES // n_nodes, 1)


def nearest_nodes(rows: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest node of every row, by Euclidean distance.

    Parameters
    ----------
    rows
        ``(n, k)`` cells x markers; float64 ``(n, n_nodes)`` is allocated.
    codes
        ``(n_nodes, k)`` nodes.

    Returns
    -------
    int32 ``(n,)`` place of the nearest node (the first of several) and float64 ``(n,)``
    distance to it.

    Examples
    --------
    >>> codes = np.array([[0.0, 0.0], [1.0, 1.0]])
    >>> node, distance = nearest_nodes(np.array([[0.9, 1.0], [0.0, 0.3]]), codes)
    >>> node.tolist(), distance.round(3).tolist()
    ([1, 0], [0.1, 0.3])
    """
    codes = np.asarray(codes, dtype=np.float64)
    centre = codes.mean(0)  # squares of far-off values would drown small distances
    codes = codes - centre
    rows = np.asarray(rows, dtype=np.float64) - centre
    gap = rows @ (-2 * codes.T)
    gap += np.einsum("ij,ij->i", codes, codes)
    node = gap.argmin(1)
    square = gap[np.arange(len(rows)), node] + np.einsum("ij,ij->i", rows, rows)
    return node.astype(np.int32), np.sqrt(np.maximum(square, 0))


def add_node_sums(sums: np.ndarray, rows: np.ndarray, node: np.ndarray) -> None:
    """Add rows to the sums of their nodes, in place.

    Parameters
    ----------
    sums
        float64 ``(n_nodes, k)``.
    rows, node
        ``(n, k)`` values and the node of each, ``(n,)``.

    Examples
    --------
    >>> sums = np.zeros((2, 1))
    >>> add_node_sums(sums, np.array([[1.0], [2.0], [4.0]]), np.array([0, 1, 1]))
    >>> sums.ravel().tolist()
    [1.0, 6.0]
    """
    for i in range(sums.shape[1]):
        sums[:, i] += np.bincount(node, weights=rows[:, i], minlength=len(sums))


def grid_sides(n_nodes: int) -> tuple[int, int]:
    """Sides of the grid of so many nodes that is nearest to a square.

    Raises
    ------
    InputError
        If there is none whose longer side is at most three times the shorter.

    Examples
    --------
    >>> grid_sides(225), grid_sides(200)
    ((15, 15), (10, 20))
    """
    sides = _sides(n_nodes) if n_nodes >= 1 else None
    if sides is None:
        near = (n for step in range(1, n_nodes + 4) for n in (n_nodes - step, n_nodes + step) if n >= 4)
        valid = [n for n in near if _sides(n)][:2] if n_nodes >= 1 else [100, 225]
        msg = (
            f"n_nodes={n_nodes} makes no grid with sides at most {_LONGEST} : 1; "
            f"valid, for example: {', '.join(map(str, sorted(valid)))}"
        )
        raise InputError(msg)
    return sides


def _sides(n_nodes: int) -> tuple[int, int] | None:
    short = next(side for side in range(isqrt(n_nodes), 0, -1) if n_nodes % side == 0)
    return (short, n_nodes // short) if n_nodes // short <= _LONGEST * short else None
