"""Histograms of images, chunk by chunk: what a normalisation is fitted to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import IntensityHistogram, Interval
from nimbus_sd.engine.readahead import read_ahead
from nimbus_sd.engine.source import ImageSource

_PART = 16 << 20  # pixels; many more than a histogram has bins, so that little travels


class ChunkJob(NamedTuple):
    """Channels and a rectangle that are read at once."""

    channels: list[int]
    y: Interval
    x: Interval

    @property
    def n_pixels(self) -> int:
        """Of all channels."""
        return len(self.channels) * self.y.size * self.x.size


@dataclass(frozen=True)
class Part:
    """Some chunks of one image: what one task counts.

    Attributes
    ----------
    image
        Its position among all images.
    jobs
        The chunks.
    """

    image: int
    jobs: tuple[ChunkJob, ...]

    @property
    def n_pixels(self) -> int:
        """Of all channels."""
        return sum(job.n_pixels for job in self.jobs)


def positions(image: ImageSource, channels: Sequence[str]) -> list[int]:
    """Where `channels` lie in an image."""
    position = {name: i for i, name in enumerate(image.channels)}
    return [position[c] for c in channels]


def chunk_jobs(image: ImageSource, channels: Sequence[int]) -> Iterator[ChunkJob]:
    """Channel groups and rectangles that follow the image's chunks, so that each is read once."""
    wanted = set(channels)
    in_c, in_y, in_x = (
        [Interval(b - n, b) for b, n in zip(accumulate(s), s, strict=True)] for s in image.chunks
    )
    for c in in_c:
        group = [i for i in range(c.start, c.stop) if i in wanted]
        if group:
            yield from (ChunkJob(group, y, x) for y in in_y for x in in_x)


def parts_of(index: int, image: ImageSource, channels: Sequence[int]) -> Iterator[Part]:
    """Cut the work on an image into parts of about 16 million pixels."""
    jobs: list[ChunkJob] = []
    n_pixels = 0
    for job in chunk_jobs(image, channels):
        jobs.append(job)
        n_pixels += job.n_pixels
        if n_pixels >= _PART:
            yield Part(index, tuple(jobs))
            jobs, n_pixels = [], 0
    if jobs:
        yield Part(index, tuple(jobs))


def count_chunks(
    image: ImageSource,
    jobs: Iterable[ChunkJob],
    *,
    n_threads: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> dict[int, IntensityHistogram]:
    """Read chunks and count their pixels.

    Parameters
    ----------
    image
        Where they lie.
    jobs
        Which, as :func:`chunk_jobs` gives them.
    n_threads
        Reader threads; 0 reads in the caller's.
    on_progress
        Called with the number of pixels read since the last call.

    Returns
    -------
    Histograms by the channel's position. Those of several parts add up to those of the
    whole: counts are integers, so the order makes no difference.

    Raises
    ------
    InputError
        Naming image and channel, for pixels that are negative, NaN or infinite.
    """
    out: dict[int, IntensityHistogram] = {}

    def read(job: ChunkJob) -> tuple[list[int], np.ndarray]:
        return job.channels, image.read(*job)

    for group, pixels in read_ahead(read, jobs, n_threads=n_threads):
        for i, plane in zip(group, pixels, strict=True):
            try:
                out.setdefault(i, IntensityHistogram(image.dtype)).update(plane)
            except InputError as error:
                msg = f"image {image.name!r}, channel {image.channels[i]!r}: {error}"
                raise InputError(msg) from error
        if on_progress:
            on_progress(pixels.size)
    return out


def count_image(
    image: ImageSource, channels: Sequence[str], n_threads: int, on_progress: Callable[[int], None] | None
) -> list[IntensityHistogram]:
    """Histograms of an image's channels, counted in this process."""
    wanted = positions(image, channels)
    found = count_chunks(image, chunk_jobs(image, wanted), n_threads=n_threads, on_progress=on_progress)
    return [found.get(i) or IntensityHistogram(image.dtype) for i in wanted]
