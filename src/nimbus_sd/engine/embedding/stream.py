"""Patches for training that do not fit into memory: read again in every pass, shuffled through a buffer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from nimbus_sd.engine.embedding.dataset import PatchSource, PatchStream, StreamSettings
from nimbus_sd.engine.embedding.image_source import ImagePatches, common_dtype
from nimbus_sd.engine.embedding.patches import PatchSample
from nimbus_sd.engine.embedding.supply import place, share

_BUFFER = 8192


class StreamSupply:
    """Patches straight from the images, in an order that the seed and the pass decide.

    A run that goes on within a pass reads the pass from its beginning. Of several
    processes each reads everything and takes its share of every batch.

    Parameters
    ----------
    samples
        Cells.
    markers
        Channels by name.
    size
        Side of the patches in px.
    batch
        Patches per step.
    seed
        Decides the order of each pass.
    nbytes
        Bytes that the buffer may take; it holds two batches at least and 8,192 patches at most.
    n_threads
        Reader threads.
    source
        Where the patches of these cells are read from; None cuts them out of the images.
    """

    def __init__(
        self,
        samples: Sequence[PatchSample],
        markers: Sequence[str],
        size: int,
        *,
        batch: int,
        seed: int,
        nbytes: int,
        n_threads: int = 2,
        source: PatchSource | None = None,
    ) -> None:
        samples = tuple(s for s in samples if len(s))
        each = len(markers) * size * size * common_dtype(samples).itemsize
        self.batch, self.buffer = batch, min(max(nbytes // each, 2 * batch), _BUFFER)
        settings = StreamSettings(
            size=size, batch_size=batch, buffer=self.buffer, seed=seed, n_threads=n_threads
        )
        source = ImagePatches(samples, markers, size) if source is None else source
        self._stream = PatchStream(source, samples, markers, settings=settings, scale=None)

    def __len__(self) -> int:
        return len(self._stream)

    @property
    def order(self) -> str:
        """What decides the order besides the seed."""
        return f"stream through {self.buffer} patches"

    def batches(self, first: int, end: int, *, part: int = 0, parts: int = 1) -> Iterator[np.ndarray]:
        """See :class:`~nimbus_sd.engine.embedding.supply.PatchSupply`."""
        for _, raw in self.numbered(first, end, part=part, parts=parts):
            yield raw

    def numbered(
        self, first: int, end: int, *, part: int = 0, parts: int = 1
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See :class:`~nimbus_sd.engine.embedding.supply.PatchSupply`."""
        mine, step = share(self.batch, part=part, parts=parts), first
        while step < end:
            turn, at = place(step, len(self), self.batch)
            self._stream.set_epoch(turn)
            for i, (rows, raw) in enumerate(self._stream.numbered(self.batch, drop_last=True)):
                if i >= at:
                    yield rows[mine], raw[mine]
                    step += 1
                if step == end:
                    return
