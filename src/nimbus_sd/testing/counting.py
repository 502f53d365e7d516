"""Laziness is a count: an array that knows how often each of its chunks was read."""

from __future__ import annotations

from collections import Counter
from threading import Lock
from uuid import uuid4

import dask.array as da
import numpy as np
from dask.array.core import normalize_chunks


class CountedArray:
    """Wrap an array as a dask array that counts the reads of every chunk.

    Parameters
    ----------
    array
        Any shape.
    chunks
        As for :func:`dask.array.from_array`.

    Attributes
    ----------
    reads
        Chunk position to number of reads.

    Examples
    --------
    >>> import numpy as np
    >>> counted = CountedArray(np.zeros((4, 6)), chunks=(2, 3))
    >>> _ = counted.dask[:2, :4].compute()
    >>> sorted(counted.reads.items())
    [((0, 0), 1), ((0, 1), 1)]
    """

    def __init__(self, array: np.ndarray, chunks: object) -> None:
        self.array = array
        self.chunks = normalize_chunks(chunks, shape=array.shape, dtype=array.dtype)
        self.reads: Counter[tuple[int, ...]] = Counter()
        self._starts = [np.concatenate([[0], np.cumsum(c)]) for c in self.chunks]
        self._lock = Lock()
        self._name = f"counted-{uuid4().hex}"

    @property
    def n_chunks(self) -> int:
        """Number of chunks."""
        return int(np.prod([len(c) for c in self.chunks]))

    @property
    def dask(self) -> da.Array:
        """The lazy array."""
        return da.map_blocks(
            self._read,
            chunks=self.chunks,
            dtype=self.array.dtype,
            meta=np.empty((0,) * self.array.ndim, self.array.dtype),
            name=self._name,
        )

    def _read(self, block_id: tuple[int, ...] | None = None) -> np.ndarray:
        assert block_id is not None  # noqa: S101 - dask always gives it; None marks it as optional
        with self._lock:
            self.reads[block_id] += 1
        where = (slice(s[i], s[i + 1]) for s, i in zip(self._starts, block_id, strict=True))
        return self.array[tuple(where)]
