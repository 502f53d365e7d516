"""A bounded sample of an image's pixels, for histograms."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from nimbus_sd._sdata.elements import ElementImage
from nimbus_sd.arrays import Interval

_SIDE = 512
_PER_IMAGE = 2
_IMAGES = 16


def pixel_sample(images: Sequence[ElementImage], markers: Sequence[str], *, seed: int) -> np.ndarray:
    """Pixels of `markers` in squares of 512 px, within two chunks of each of at most 16 images.

    Returns
    -------
    float32 ``(len(markers), n)``.
    """
    rng = np.random.default_rng(seed)
    chosen = np.linspace(0, len(images) - 1, min(_IMAGES, len(images))).round().astype(int)
    parts = []
    for image in (images[i] for i in chosen):
        channels = [image.channels.index(m) for m in markers]
        for y, x in _squares(image, rng):
            pixels = np.stack([image.read([c], y, x)[0] for c in channels])
            parts.append(pixels.reshape(len(markers), -1).astype(np.float32))
    return np.concatenate(parts, axis=1)


def _squares(image: ElementImage, rng: np.random.Generator) -> list[tuple[Interval, Interval]]:
    """A square within each of two chunks: to read one, no more than its chunk is decoded."""
    rows, columns = (
        [Interval(stop - n, stop) for stop, n in zip(accumulate(sizes), sizes, strict=True)]
        for sizes in image.chunks[1:]
    )
    total = len(rows) * len(columns)
    drawn = np.sort(rng.choice(total, min(_PER_IMAGE, total), replace=False))
    return [(_within(rows[k // len(columns)], rng), _within(columns[k % len(columns)], rng)) for k in drawn]


def _within(chunk: Interval, rng: np.random.Generator) -> Interval:
    size = min(_SIDE, chunk.size)
    start = chunk.start + int(rng.integers(chunk.size - size + 1))
    return Interval(start, start + size)
