"""How dense the scattered counts of each channel are, over whole images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import Interval
from nimbus_sd.arrays.background import box_sums, noise_bound
from nimbus_sd.engine.pixel_counts import ChunkJob, chunk_jobs, positions
from nimbus_sd.engine.readahead import read_ahead
from nimbus_sd.engine.source import ImageSource, check_planes

NOT_WHOLE = (
    "pixels are not whole numbers; the density filter is for ion counts. Pass probability= for other "
    "images, or leave the channel out"
)
_MOST = 1 << 20  # counts per box that are told apart


def noise_bounds(
    images: Sequence[ImageSource],
    channels: Sequence[str],
    *,
    area: int,
    n_threads: int = 2,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """For each channel, the counts in an area that noise alone hardly reaches in any of the images.

    Each chunk is read once; the result does not depend on the chunks. Boxes of one row of
    chunks at a time are in memory.

    Parameters
    ----------
    images
        Of ion counts.
    channels
        Names, in every image.
    area
        px; counted in square boxes of that area, rounded.
    n_threads
        Reader threads.
    on_progress
        Called with the number of pixels read since the last call.

    Raises
    ------
    InputError
        Naming image and channel, for pixels that are no whole numbers ≥ 0.
    """
    side = max(round(np.sqrt(area)), 1)
    found = {channel: np.zeros(1, dtype=np.int64) for channel in channels}
    for image in images:
        for i, histogram in _box_histograms(image, positions(image, channels), side, n_threads, on_progress):
            found[image.channels[i]] = _added(found[image.channels[i]], histogram)
    # a box is not quite as large as the area
    return {c: max(int(np.ceil(noise_bound(h) * area / side**2)), 3) for c, h in found.items()}


def _box_histograms(image, channels, side, n_threads, on_progress):  # type: ignore[no-untyped-def]
    """Yield channel and histogram of its boxes, channel group by channel group."""
    boxes: dict[int, _Boxes] = {}

    def read(job: ChunkJob) -> tuple[ChunkJob, np.ndarray]:
        return job, image.read(*job)

    for job, planes in read_ahead(read, chunk_jobs(image, channels), n_threads=n_threads):
        _check_counts(image, job.channels, planes)
        for i in [i for i in boxes if i not in job.channels]:  # that group is done
            yield i, boxes.pop(i).finish()
        for i, plane in zip(job.channels, planes, strict=True):
            boxes.setdefault(i, _Boxes(image.shape, side)).add(plane, job.y, job.x)
        if on_progress:
            on_progress(planes.size)
    yield from ((i, each.finish()) for i, each in boxes.items())


class _Boxes:
    """Boxes of one channel: those of the current row of chunks, and a histogram of all above."""

    def __init__(self, shape: tuple[int, int], side: int) -> None:
        self._side, (self._rows, columns) = side, (n // side for n in shape)
        self._first, self._open = 0, np.zeros((0, columns), dtype=np.int64)
        self._histogram = np.zeros(1, dtype=np.int64)

    def add(self, plane: np.ndarray, y: Interval, x: Interval) -> None:
        """Add a rectangle; none may begin above one that was added before."""
        self._move(min(y.start // self._side, self._rows), min(-(-y.stop // self._side), self._rows))
        box_sums(plane, side=self._side, start=(y.start - self._first * self._side, x.start), out=self._open)

    def finish(self) -> np.ndarray:
        """Histogram of all boxes."""
        self._move(self._rows, self._rows)
        return self._histogram

    def _move(self, first: int, stop: int) -> None:
        """Count the rows of boxes above `first`, and make room for those before `stop`."""
        done = first - self._first
        if done:
            counts = np.minimum(self._open[:done], _MOST)
            self._histogram = _added(self._histogram, np.bincount(counts.ravel(), minlength=1))
            self._open, self._first = self._open[done:].copy(), first
        more = stop - first - len(self._open)
        if more > 0:
            self._open = np.pad(self._open, [(0, more), (0, 0)])


def _check_counts(image: ImageSource, channels: list[int], planes: np.ndarray) -> None:
    check_planes(image, channels, planes)
    for i, plane in zip(channels, planes, strict=True):
        if not are_whole(plane):
            msg = f"image {image.name!r}, channel {image.channels[i]!r}: {NOT_WHOLE}"
            raise InputError(msg)


def are_whole(pixels: np.ndarray) -> bool:
    """Whether all pixels are whole numbers, whatever their dtype."""
    return pixels.dtype.kind != "f" or bool((pixels == np.floor(pixels)).all())


def _added(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    out = np.zeros(max(a.size, b.size), dtype=np.int64)
    out[: a.size] += a
    out[: b.size] += b
    return out
