"""Patches straight from the images of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nimbus_sd.engine.embedding.margins import MarginCache
from nimbus_sd.engine.embedding.patches import BlockPixels, PatchBlock, PatchSample, open_block, plan_blocks

Job = tuple[int, PatchBlock]

_GROUP = 2 * 1024  # px; blocks that start in the same square of this side are read in a row


@dataclass(frozen=True)
class OpenedBlock:
    """The cells of a block whose pixels were read."""

    sample: np.ndarray
    row: np.ndarray
    pixels: BlockPixels

    def fill(self, which: slice, out: np.ndarray, at: np.ndarray) -> None:
        """Copy some patches to the rows `at` of `out`."""
        self.pixels.cut(which, out=out, at=at)


class ImagePatches:
    """Cuts patches out of the samples' images.

    Parameters
    ----------
    samples
        Cells of each image.
    markers
        Channels, which every image has, in the order that is wanted.
    size
        Side of the patches in px.

    Raises
    ------
    InputError
        If an image is too small, or a centre lies outside it.
    """

    def __init__(self, samples: Sequence[PatchSample], markers: Sequence[str], size: int) -> None:
        self._samples, self._size = tuple(samples), size
        self._channels = [[s.image.channels.index(m) for m in markers] for s in self._samples]
        self._plans = [plan_blocks(s, size) for s in self._samples]

    def groups(self, *, shuffle: bool) -> list[list[Job]]:
        """Blocks by the square they start in, or for a pass in chunk order by the row they start in.

        Within a group, and from row to row, blocks find the margins of those before.
        """
        found: dict[tuple[int, ...], list[Job]] = {}
        for i, plan in enumerate(self._plans):
            for block in plan:
                y, x = block.y.start, block.x.start
                key = (i, y // _GROUP, x // _GROUP) if shuffle else (i, y)
                found.setdefault(key, []).append((i, block))
        return list(found.values())

    def reader(self, *, shuffle: bool) -> _Reader:
        """What a pass opens its blocks with."""
        return _Reader(self, MarginCache(self._size, in_order=not shuffle))

    def open(self, job: Job, margins: MarginCache) -> OpenedBlock:
        """Read a block."""
        i, block = job
        pixels = open_block(self._samples[i], self._channels[i], block, self._size, margins=margins)
        return OpenedBlock(np.full(len(block.rows), i), block.rows, pixels)


class _Reader:
    def __init__(self, source: ImagePatches, margins: MarginCache) -> None:
        self._source, self._margins = source, margins

    def __call__(self, job: Job) -> OpenedBlock:
        return self._source.open(job, self._margins)


def common_dtype(samples: Sequence[PatchSample]) -> np.dtype:
    """Dtype that holds the pixels of every image, in this machine's byte order."""
    return np.result_type(*(s.image.dtype.newbyteorder("=") for s in samples))
