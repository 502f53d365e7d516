"""Blocks of an image on its chunks, and the margins of those read, kept for the blocks that follow."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Lock

import numpy as np

from nimbus_sd.arrays import Interval
from nimbus_sd.arrays.tiling import join_chunks
from nimbus_sd.engine.source import ImageSource

Rect = tuple[Interval, Interval]

_SIDE = 1024  # px; chunks are joined to blocks of at least this
_LONGEST = 2048  # px; longer chunks are read in parts
_BLOCKS = 128  # whose margins are kept at most; in chunk order none that a row of blocks has passed
_AHEAD = 16  # blocks that threads may have begun beyond the one that asks


def block_edges(chunks: Sequence[int]) -> np.ndarray:
    """Borders of the blocks along an axis: chunks joined from 1,024 px, those above 2,048 px divided.

    Examples
    --------
    >>> block_edges([256] * 9).tolist()
    [0, 1024, 2304]
    >>> block_edges([5000]).tolist()
    [0, 1666, 3333, 5000]
    """
    return np.array(join_chunks(chunks, least=_SIDE, longest=_LONGEST))


@dataclass(frozen=True)
class _Margin:
    """A strip along one side of a block."""

    rect: Rect
    planes: np.ndarray


@dataclass
class _Entry:
    """Margins of one block; waited for while a thread reads it."""

    image: ImageSource = field(repr=False)  # kept, so that no other image gets its id
    margins: Future[tuple[_Margin, ...]]
    counted: int = 0  # bytes of it in the cache's sum


class MarginCache:
    """Reads blocks whole and keeps their right and bottom margins.

    Patches of a block reach into those above and to the left. Where these were read
    before, in a pass in chunk order, their chunks are not decoded again; where not, that is
    done once for all three blocks that may ask. Threads share one.

    Parameters
    ----------
    size
        Px that a block may need of its neighbours: the side of the patches.
    limit
        Bytes to keep; the oldest margins go first. So do those of more than 128 blocks.
    in_order
        Whether blocks come in the order of the chunks. None that a row of blocks has passed is
        asked for then, and no more are kept, so that little memory is taken.
    """

    def __init__(self, size: int, *, limit: int = 512 << 20, in_order: bool = False) -> None:
        self._size, self._limit, self._held = size, limit, 0
        self._in_order = in_order
        self._entries: OrderedDict[tuple, _Entry] = OrderedDict()
        self._lock = Lock()

    def read(self, image: ImageSource, channels: list[int], block: Rect, rect: Rect) -> np.ndarray:
        """Return ``(len(channels), y, x)`` pixels of `rect`, the block and what surrounds it."""
        planes = self._read(image, channels, block)
        whole = _cut(_Margin(block, planes), rect)
        if whole is not None:
            return whole
        out = np.empty((len(channels), rect[0].size, rect[1].size), planes.dtype)
        for piece, owner in _pieces(image, rect):
            into = out[:, *_within(piece, rect)]
            into[...] = (
                _cut(_Margin(block, planes), piece)
                if owner == block
                else self._piece(image, channels, owner, piece)
            )
        return out

    def _read(self, image: ImageSource, channels: list[int], block: Rect) -> np.ndarray:
        """All of a block; its margins are kept."""
        key = (id(image), tuple(channels), block)
        entry = _Entry(image, Future())
        with self._lock:
            self._drop(key)
            self._entries[key] = entry
        try:
            planes = image.read(channels, *block)
        except BaseException:
            entry.margins.set_result(())  # who waits reads by itself, and gets the error itself
            raise
        entry.margins.set_result(tuple(self._margins(planes, block)))
        with self._lock:
            if self._entries.get(key) is entry:  # it may be the oldest already, and gone
                entry.counted = sum(m.planes.nbytes for m in entry.margins.result())
                self._held += entry.counted
            most = len(block_edges(image.chunks[2])) + _AHEAD if self._in_order else _BLOCKS
            while (self._held > self._limit or len(self._entries) > most) and len(self._entries) > 1:
                self._drop(next(iter(self._entries)))
        return planes

    def _piece(self, image: ImageSource, channels: list[int], owner: Rect, piece: Rect) -> np.ndarray:
        with self._lock:
            entry = self._entries.get((id(image), tuple(channels), owner))
        for margin in entry.margins.result() if entry else ():
            found = _cut(margin, piece)
            if found is not None:
                return found
        if entry is None and _chunks(image, piece) == _chunks(image, owner):
            # all of it is decoded anyhow, and other neighbours will ask for its margins too
            return self._read(image, channels, owner)[:, *_within(piece, owner)]
        return image.read(channels, *piece)

    def _margins(self, planes: np.ndarray, block: Rect) -> Iterator[_Margin]:
        for axis in (0, 1):
            side = block[axis]
            strip = Interval(max(side.stop - self._size, side.start), side.stop)
            rect = (strip, block[1]) if axis == 0 else (block[0], strip)
            yield _Margin(rect, planes[:, *_within(rect, block)].copy())

    def _drop(self, key: tuple) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._held -= entry.counted


def _within(piece: Rect, rect: Rect) -> tuple[slice, slice]:
    y, x = (slice(p.start - r.start, p.stop - r.start) for p, r in zip(piece, rect, strict=True))
    return y, x


def _cut(margin: _Margin, piece: Rect) -> np.ndarray | None:
    """The piece, if the margin holds all of it."""
    if any(p.start < r.start or p.stop > r.stop for p, r in zip(piece, margin.rect, strict=True)):
        return None
    return margin.planes[:, *_within(piece, margin.rect)]


def _chunks(image: ImageSource, rect: Rect) -> list[list[int]]:
    """First and last chunk that a rectangle touches, along y and x."""
    ends = [np.cumsum(sizes) for sizes in image.chunks[1:]]
    return [
        np.searchsorted(e, [r.start, r.stop - 1], "right").tolist() for e, r in zip(ends, rect, strict=True)
    ]


def _pieces(image: ImageSource, rect: Rect) -> Iterator[tuple[Rect, Rect]]:
    """A rectangle divided among the blocks it touches, each piece with its block."""
    sides = []
    for wanted, chunks in zip(rect, image.chunks[1:], strict=True):
        blocks = [Interval(int(a), int(b)) for a, b in pairwise(block_edges(chunks))]
        touched = [b for b in blocks if b.start < wanted.stop and b.stop > wanted.start]
        sides.append([(Interval(max(b.start, wanted.start), min(b.stop, wanted.stop)), b) for b in touched])
    for y, of_y in sides[0]:
        for x, of_x in sides[1]:
            yield (y, x), (of_y, of_x)
