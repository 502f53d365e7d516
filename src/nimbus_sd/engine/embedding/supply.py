"""Raw patches for training, batch by batch in an order that the seed and the step decide."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol

import numpy as np

from nimbus_sd.engine.embedding.image_source import common_dtype
from nimbus_sd.engine.embedding.patches import PatchBlock, PatchSample, blocks_of, read_block
from nimbus_sd.engine.readahead import read_ahead

_ORDER = 12


class PatchSupply(Protocol):
    """What a run draws its batches from."""

    def __len__(self) -> int:
        """Cells."""
        ...

    @property
    def order(self) -> str:
        """What decides the order of the cells besides the seed."""
        ...

    def batches(self, first: int, end: int, *, part: int = 0, parts: int = 1) -> Iterator[np.ndarray]:
        """Raw ``(b / parts, c, S, S)`` of the steps `first` to `end` - 1; a process takes its part."""
        ...

    def numbered(
        self, first: int, end: int, *, part: int = 0, parts: int = 1
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same with the cells they are of: int64 ``(b / parts,)``, counted over all samples."""
        ...


def place(step: int, n: int, batch: int) -> tuple[int, int]:
    """Pass over the data that a step belongs to, and its place there; the rest of a pass is left out."""
    return divmod(step, max(n // batch, 1))


def share(batch: int, *, part: int, parts: int) -> slice:
    """A process's share of a batch."""
    each = batch // parts
    return slice(part * each, (part + 1) * each)


@dataclass(frozen=True)
class MemorySupply:
    """Patches that lie in memory, drawn without replacement in every pass.

    Parameters
    ----------
    patches
        Raw ``(n, c, S, S)``.
    batch
        Patches per step, at most n.
    seed
        Decides the order of each pass.
    n_threads
        Threads that gather ahead.
    """

    patches: np.ndarray
    batch: int
    seed: int
    n_threads: int = 1
    # pass and its order, of the pass that was asked for last
    _kept: list[tuple[int, np.ndarray]] = field(default_factory=list, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.patches)

    @property
    def order(self) -> str:
        """What decides the order besides the seed."""
        return "memory"

    def rows(self, step: int) -> np.ndarray:
        """Cells of a step, int64 ``(batch,)``."""
        turn, at = place(step, len(self), self.batch)
        return self._pass(turn)[at * self.batch : (at + 1) * self.batch]

    def _pass(self, turn: int) -> np.ndarray:
        """Order of all cells in a pass; threads share the one of the current pass."""
        for known, order in self._kept:
            if known == turn:
                return order
        order = np.random.default_rng((self.seed, _ORDER, turn)).permutation(len(self))
        self._kept[:] = [(turn, order)]
        return order

    def batches(self, first: int, end: int, *, part: int = 0, parts: int = 1) -> Iterator[np.ndarray]:
        """See :class:`PatchSupply`."""
        for _, raw in self.numbered(first, end, part=part, parts=parts):
            yield raw

    def numbered(
        self, first: int, end: int, *, part: int = 0, parts: int = 1
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See :class:`PatchSupply`."""
        mine = share(self.batch, part=part, parts=parts)

        def draw(step: int) -> tuple[np.ndarray, np.ndarray]:
            rows = self.rows(step)[mine]
            return rows, self.patches[rows]

        return read_ahead(draw, range(first, end), n_threads=self.n_threads)


def positions_of(samples: Sequence[PatchSample], markers: Sequence[str]) -> list[list[int]]:
    """Where each sample's image has the markers, found by name."""
    return [[s.image.channels.index(m) for m in markers] for s in samples]


def nbytes(samples: Sequence[PatchSample], n_markers: int, size: int) -> int:
    """Bytes of all patches in memory."""
    return sum(len(s) for s in samples) * n_markers * size * size * common_dtype(samples).itemsize


def load_patches(
    samples: Sequence[PatchSample],
    markers: Sequence[str],
    size: int,
    *,
    n_threads: int = 2,
    on_progress: Callable[[int], None] = lambda n: None,
) -> np.ndarray:
    """Patches of all cells, in the order of samples and rows: ``(n, c, size, size)``.

    Parameters
    ----------
    samples
        Cells.
    markers
        Channels by name, in the order that is wanted.
    size
        Side in px.
    n_threads
        Reader threads.
    on_progress
        Called with the number of patches read since the last call.
    """
    samples = [s for s in samples if len(s)]
    at = positions_of(samples, markers)
    first = np.cumsum([0, *(len(s) for s in samples)])
    out = np.empty((int(first[-1]), len(markers), size, size), common_dtype(samples))

    def read(job: tuple[int, PatchBlock]) -> tuple[np.ndarray, np.ndarray]:
        i, block = job
        return first[i] + block.rows, read_block(samples[i], at[i], block, size)

    for rows, patches in read_ahead(read, blocks_of(samples, size), n_threads=n_threads):
        out[rows] = patches
        on_progress(len(rows))
    return out


def subset(samples: Sequence[PatchSample], rows: np.ndarray) -> list[PatchSample]:
    """Some of the cells, `rows` counted over all samples and ascending; samples without one stay, empty."""
    first = np.cumsum([0, *(len(s) for s in samples)])
    mine = [rows[(rows >= a) & (rows < b)] - a for a, b in pairwise(first)]
    return [replace(s, ids=s.ids[r], centers=s.centers[r]) for s, r in zip(samples, mine, strict=True)]


def fingerprint(samples: Sequence[PatchSample], markers: Sequence[str], scale: np.ndarray) -> str:
    """Hash of cells, images, where these have the markers, and scales: a run is not continued with others.

    Pixels count where an image's own fingerprint tells of them, which is to say that it lies in files.
    """
    digest = hashlib.sha256(repr((list(markers), np.asarray(scale, float).tolist())).encode())
    for sample in samples:
        where = [sample.image.channels.index(m) for m in markers]
        image = sample.image
        told = (sample.region, image.name, image.shape, image.fingerprint, where)
        digest.update(repr(told).encode())
        digest.update(np.ascontiguousarray(sample.ids, np.int64).tobytes())
        digest.update(np.ascontiguousarray(sample.centers, np.float64).tobytes())
    return digest.hexdigest()[:16]
