"""Per-label sums that are exact across blocks, for any label ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from nimbus_sd._core.errors import InputError

_DENSE_RANGE = 1 << 22  # ids within so wide a range are compacted by a lookup, others by sorting


@dataclass(frozen=True)
class Partials:
    """Sums of one block (or of many, merged), one row per label.

    Attributes
    ----------
    ids
        int64 ``(n,)``, ascending, without 0.
    count
        Pixels per label, int64 ``(n,)``.
    sums
        Quantity name to float64 ``(n, k)`` sums.
    """

    ids: np.ndarray
    count: np.ndarray
    sums: dict[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.ids.nbytes + self.count.nbytes + sum(s.nbytes for s in self.sums.values())


class LabelIndex:
    """The labels of one block, compacted: which pixels belong to which row.

    A ``bincount`` over ids up to 4e9 would ask for 30 GiB, so ids are mapped to
    ``0..n-1`` first.

    Parameters
    ----------
    labels
        ``(y, x)`` integers, 0 = background.

    Raises
    ------
    InputError
        For labels that are not integers or are negative.

    Examples
    --------
    >>> index = LabelIndex(np.array([[0, 4_000_000_000], [7, 7]], dtype=np.uint32))
    >>> index.ids.tolist(), index.count.tolist()
    ([7, 4000000000], [2, 1])
    >>> index.sum(np.ones((3, 2, 2), np.float32)).tolist()
    [[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]]
    """

    def __init__(self, labels: np.ndarray) -> None:
        check_label_dtype(labels.dtype)
        self.shape = labels.shape
        flat = labels.reshape(-1)
        self.pixels = np.flatnonzero(flat)
        inside = flat[self.pixels]
        if inside.size and inside.min() < 0:
            msg = f"label ids must be ≥ 0, found {inside.min()}; relabel the segmentation first"
            raise InputError(msg)
        if inside.size and int(inside.max()) > np.iinfo(np.int64).max:
            msg = f"label ids must fit int64, found {inside.max()}; relabel the segmentation first"
            raise InputError(msg)
        self.ids, self.rows = _compact(inside)
        self.count = np.bincount(self.rows, minlength=self.ids.size).astype(np.int64)

    @property
    def centroid_sums(self) -> np.ndarray:
        """Sum of pixel indices (y, x) within the block, float64 ``(n, 2)``."""
        y, x = np.divmod(self.pixels, self.shape[1])
        n = self.ids.size
        return np.stack([np.bincount(self.rows, weights=v, minlength=n) for v in (y, x)], axis=1)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum `values` ``(k, y, x)`` over every label: float64 ``(n, k)``."""
        out = np.empty((self.ids.size, len(values)))
        for k, plane in enumerate(values):
            out[:, k] = np.bincount(
                self.rows, weights=plane.reshape(-1)[self.pixels], minlength=self.ids.size
            )
        return out

    def gather(self, y: np.ndarray, x: np.ndarray, width: int) -> sparse.csr_array:
        """Matrix that sums a coarser grid over the labels.

        Parameters
        ----------
        y, x
            For every row and column of the block, the row and column of the coarse
            grid that it takes its value from.
        width
            Columns of the coarse grid.

        Returns
        -------
        ``(n, coarse pixels)`` float64; times a ``(coarse pixels, k)`` array of
        probabilities it gives the sums that they would have at full resolution.
        """
        row, column = np.divmod(self.pixels, self.shape[1])
        coarse = y[row] * width + x[column]
        size = (self.ids.size, int(coarse.max(initial=-1)) + 1)
        return sparse.csr_array((np.ones(coarse.size), (self.rows, coarse)), shape=size)


def check_label_dtype(dtype: np.dtype) -> None:
    """Raise :class:`InputError` unless `dtype` is an integer or bool dtype."""
    if dtype.kind not in "uib":
        msg = (
            f"labels have dtype {dtype}; valid: integers (0 = background). Cast them, e.g. .astype('uint32')"
        )
        raise InputError(msg)


def _compact(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending ids (int64) and the row of each pixel."""
    if inside.size == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if inside.dtype == bool:
        inside = inside.astype(np.uint8)
    low, high = int(inside.min()), int(inside.max())
    if high - low >= _DENSE_RANGE:
        ids, rows = np.unique(inside, return_inverse=True)
        return ids.astype(np.int64), rows.astype(np.int64)
    offset = (inside - inside.dtype.type(low)).astype(np.int64)
    present = np.zeros(high - low + 1, dtype=bool)
    present[offset] = True
    ids = np.flatnonzero(present) + low
    return ids, (np.cumsum(present) - 1)[offset]


def merge_partials(parts: Iterable[Partials]) -> Partials:
    """Add partials by label id; labels that cross blocks come together.

    Parameters
    ----------
    parts
        Partials with the same quantities, in any order.

    Examples
    --------
    >>> a = Partials(np.array([1, 5]), np.array([2, 1]), {"s": np.array([[1.0], [2.0]])})
    >>> b = Partials(np.array([5]), np.array([4]), {"s": np.array([[3.0]])})
    >>> m = merge_partials([a, b])
    >>> m.ids.tolist(), m.count.tolist(), m.sums["s"].tolist()
    ([1, 5], [2, 5], [[1.0], [5.0]])
    """
    parts = list(parts)
    if not parts:
        return Partials(np.empty(0, np.int64), np.empty(0, np.int64), {})
    ids, rows = np.unique(np.concatenate([p.ids for p in parts]), return_inverse=True)
    count = np.zeros(ids.size, np.int64)
    np.add.at(count, rows, np.concatenate([p.count for p in parts]))
    sums = {}
    for name in parts[0].sums:
        sums[name] = np.zeros((ids.size, *parts[0].sums[name].shape[1:]))
        np.add.at(sums[name], rows, np.concatenate([p.sums[name] for p in parts]))
    return Partials(ids, count, sums)
