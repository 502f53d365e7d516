"""Histograms of images on the workers of a dask cluster: parts of images go out, counts come back."""

from __future__ import annotations

import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice

import numpy as np
from distributed import Client, Future
from distributed.scheduler import KilledWorker

from nimbus_sd._core.errors import ClusterError
from nimbus_sd.arrays import IntensityHistogram
from nimbus_sd.engine.cluster_tools import share, workers_of
from nimbus_sd.engine.pixel_counts import Part, count_chunks, count_image, parts_of, positions
from nimbus_sd.engine.source import ImageSource

Counts = dict[int, IntensityHistogram]

_AHEAD = 2  # parts in flight per thread of a worker: one is counted, the next waits there


def count_on_cluster(
    images: Sequence[ImageSource],
    channels: Sequence[str],
    client: Client,
    *,
    n_threads: int,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[list[IntensityHistogram]]:
    """Count the pixels of images on a cluster's workers.

    Parameters
    ----------
    images
        They lie where every worker can read them; those that hold their pixels are
        counted in this process, as sending them would cost more.
    channels
        Markers, in every image.
    client
        Of the cluster.
    n_threads
        Reader threads in this process.
    on_progress
        Called with the number of pixels counted since the last call.

    Yields
    ------
    Per image, in order, the histograms of `channels`. What waits for its turn waits on
    the workers, so that this process holds the histograms of one image at a time.

    Raises
    ------
    ClusterError
        If there are no workers, or a part takes down one after the other.
    InputError, DataError
        As in one process.
    """
    sent = {i: image for i, image in enumerate(images) if _travels(image)}
    todo = (part for i, image in sent.items() for part in parts_of(i, image, positions(image, channels)))
    counted = groupby(_in_order(client, sent, todo), key=lambda pair: pair[0].image)
    for i, image in enumerate(images):
        if i not in sent:
            yield count_image(image, channels, n_threads, on_progress)
            continue
        total: Counts = {}
        for part, counts in next(counted)[1]:
            for c, histogram in counts.items():
                total[c] = total[c] + histogram if c in total else histogram
            if on_progress:
                on_progress(part.n_pixels)
        yield [total[c] for c in positions(image, channels)]


def _in_order(
    client: Client, images: dict[int, ImageSource], parts: Iterable[Part]
) -> Iterator[tuple[Part, Counts]]:
    """Counts of parts in the order of the parts, of which only a few are on the cluster."""
    if not images:
        return
    window = _AHEAD * sum(worker["nthreads"] for worker in workers_of(client).values())
    shared = share(images, client, f"nimbus-images-{os.urandom(8).hex()}")
    todo = iter(parts)
    pending: deque[tuple[Part, Future]] = deque()
    try:
        while True:
            for part in islice(todo, window - len(pending)):
                pending.append((part, client.submit(_count, shared, part, pure=False)))
            if not pending:
                return
            part, future = pending[0]
            try:
                counts = future.result()
            except (KilledWorker, MemoryError) as error:
                raise ClusterError(_no_memory(images[part.image], part)) from error
            del future  # with the next line the worker may forget it
            pending.popleft()
            yield part, counts
    finally:
        client.cancel([future for _, future in pending], force=True)


def _count(images: dict[int, ImageSource], part: Part) -> Counts:
    """Run on a worker."""
    return count_chunks(images[part.image], part.jobs)


def _travels(image: ImageSource) -> bool:
    """Whether an image can be sent, and is smaller than its pixels."""
    held: list[pickle.PickleBuffer] = []  # arrays are not copied to be measured
    try:
        rest = pickle.dumps(image, protocol=5, buffer_callback=held.append)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    size = len(rest) + sum(buffer.raw().nbytes for buffer in held)
    n_bytes = len(image.channels) * int(np.prod(image.shape)) * image.dtype.itemsize
    return 2 * size < n_bytes


def _no_memory(image: ImageSource, part: Part) -> str:
    first, last = part.jobs[0], part.jobs[-1]
    names = sorted({image.channels[c] for job in part.jobs for c in job.channels})
    return (
        f"image {image.name!r}, channels {names}, from y {first.y.start}, x {first.x.start} to "
        f"y {last.y.stop}, x {last.x.stop}: the workers that read it died one by one, or have no memory for "
        "it. Give them more memory, store the image in smaller chunks, or fit in this process: "
        "nb.pp.normalization(..., client=False)"
    )
