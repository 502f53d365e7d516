"""Means per cell from the partials of many blocks, in the memory of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from nimbus_sd.arrays.reduce import Partials

_EXACT = ("position", "n_tiles")  # kept in float64: coordinates of a slide need more than 24 bits
_TOTAL = ("n_tiles",)  # stays a sum


@dataclass(frozen=True)
class Cells:
    """One row per label of a sample.

    Attributes
    ----------
    ids
        int64 ``(n,)``, ascending, without 0.
    count
        Pixels per label, int64 ``(n,)``.
    means
        Quantity name to ``(n, …)`` means over the label's pixels: float32, but float64 for
        ``position`` (y, x); ``n_tiles`` is the number of blocks that the label lies in.
    """

    ids: np.ndarray
    count: np.ndarray
    means: dict[str, np.ndarray]

    def __len__(self) -> int:
        return self.ids.size


def gather_cells(blocks: Callable[[], Iterable[Partials]]) -> Cells:
    """Add the partials of all blocks by label id and divide by the pixels.

    Two passes: the first counts pixels, the second fills the result. A label that lies in
    one block is divided at once; sums of those that cross blocks are added in float64. So
    the peak is the result, one block, and the labels on borders.

    Parameters
    ----------
    blocks
        Called twice; yields the blocks in the same order each time.

    Examples
    --------
    >>> a = Partials(np.array([1, 5]), np.array([2, 1]), {"score": np.array([[1.0], [0.5]])})
    >>> b = Partials(np.array([5]), np.array([4]), {"score": np.array([[2.0]])})
    >>> cells = gather_cells(lambda: [a, b])
    >>> cells.ids.tolist(), cells.count.tolist(), cells.means["score"].tolist()
    ([1, 5], [2, 5], [[0.5], [0.5]])
    """
    seen = [(part.ids, part.count) for part in blocks()]
    if not seen:
        return Cells(np.empty(0, np.int64), np.empty(0, np.int64), {})
    ids, rows = np.unique(np.concatenate([i for i, _ in seen]), return_inverse=True)
    count = np.zeros(ids.size, np.int64)
    np.add.at(count, rows, np.concatenate([c for _, c in seen]))
    crossing = np.flatnonzero(np.bincount(rows, minlength=ids.size) > 1)
    del seen, rows
    means: dict[str, np.ndarray] = {}
    added: dict[str, np.ndarray] = {}
    for part in blocks():
        at = np.searchsorted(ids, part.ids)
        whole = count[at] == part.count
        on_border = np.searchsorted(crossing, at[~whole])
        for name, sums in part.sums.items():
            if name not in means:
                dtype = np.float64 if name in _EXACT else np.float32
                means[name] = np.zeros((ids.size, *sums.shape[1:]), dtype)
                added[name] = np.zeros((crossing.size, *sums.shape[1:]))
            means[name][at[whole]] = _divide(name, sums[whole], part.count[whole])
            added[name][on_border] += sums[~whole]
    for name, sums in added.items():
        means[name][crossing] = _divide(name, sums, count[crossing])
    return Cells(ids, count, means)


def _divide(name: str, sums: np.ndarray, count: np.ndarray) -> np.ndarray:
    if name in _TOTAL:
        return sums
    return sums / count.reshape(-1, *[1] * (sums.ndim - 1))
