"""Patches from a source through a bounded buffer: each comes out once, in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Opened(Protocol):
    """Patches that can be copied now: of one block of an image, or one chunk of a store."""

    @property
    def sample(self) -> np.ndarray:
        """Position of each patch's sample, int64 ``(n,)``."""
        ...

    @property
    def row(self) -> np.ndarray:
        """Position of each patch's cell in its sample, int64 ``(n,)``."""
        ...

    def fill(self, which: slice, out: np.ndarray, at: np.ndarray) -> None:
        """Copy some patches to the rows `at` of ``out (m, c, y, x)``."""
        ...


@dataclass(frozen=True)
class Drawn:
    """Patches that leave the buffer together; valid until the next are drawn.

    Attributes
    ----------
    buffer
        Raw ``(m, c, y, x)``.
    at
        Rows of the buffer that are meant, in order.
    sample, row
        Which cells they are, int64 ``(n,)``.
    """

    buffer: np.ndarray
    at: np.ndarray
    sample: np.ndarray
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.at)


def draw(
    opened: Iterable[Opened],
    *,
    shape: tuple[int, int, int],
    dtype: np.dtype,
    capacity: int,
    batch_size: int,
    rng: np.random.Generator | None,
) -> Iterator[Drawn]:
    """Yield batches of `batch_size` (the last may be smaller).

    Parameters
    ----------
    opened
        Consumed lazily.
    shape
        (c, y, x) of a patch.
    dtype
        Of the buffer; holds all that comes.
    capacity
        Patches the buffer holds. Once it is full, batches are drawn at random from all of them.
    batch_size
        At most `capacity`.
    rng
        Decides the order; None keeps that of the source, and the buffer needs to hold but a batch.
    """
    buffer = np.empty((capacity, *shape), dtype)
    sample, row = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
    held = np.empty(0, np.int64)  # rows of the buffer that are in use, the oldest first
    free = np.arange(capacity)

    def take(n: int) -> Drawn:
        nonlocal held, free
        if rng is None:
            at, held = held[:n], held[n:]
        else:
            order = rng.permutation(held)
            at, held = order[:n], order[n:]
        free = np.concatenate([free, at])
        return Drawn(buffer, at, sample[at], row[at])

    for part in opened:
        done, total = 0, len(part.row)
        while done < total:
            n = min(total - done, len(free))
            at, free = free[:n], free[n:]
            which = slice(done, done + n)
            part.fill(which, buffer, at)
            sample[at], row[at] = part.sample[which], part.row[which]
            held, done = np.concatenate([held, at]), done + n
            if not len(free):
                yield take(batch_size)
        del part  # its pixels, before the next block is waited for
    while len(held):
        yield take(min(batch_size, len(held)))
