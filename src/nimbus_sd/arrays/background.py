"""Which counts stand alone: counts within a disc around each pixel, exact at borders and across blocks."""

from __future__ import annotations

import numpy as np

from nimbus_sd.arrays.tiling import Interval


def disc_rows(radius: float) -> list[tuple[int, int]]:
    """Rows of a disc: offset along y, and half-width along x; px at a distance of at most `radius`.

    Examples
    --------
    >>> disc_rows(1.5)
    [(-1, 1), (0, 1), (1, 1)]
    """
    r = int(radius)
    return [(dy, int(np.sqrt(radius**2 - dy**2))) for dy in range(-r, r + 1)]


def disc_sums(counts: np.ndarray, *, radius: float) -> np.ndarray:
    """Sum over the disc around each pixel; beyond the borders there is nothing.

    Parameters
    ----------
    counts
        ``(c, y, x)`` whole numbers of any dtype.
    radius
        px.

    Returns
    -------
    Of the same shape, int64 (float64 for floats), exact.

    Examples
    --------
    >>> disc_sums(np.array([[[0, 3, 0, 1]]]), radius=1).tolist()
    [[[3, 3, 4, 1]]]
    """
    wide = np.float64 if counts.dtype.kind == "f" else np.int64
    out = np.zeros(counts.shape, dtype=wide)
    height, width = counts.shape[1:]
    r = int(radius)
    for plane, sums in zip(counts, out, strict=True):
        if not plane.any():
            continue
        # counts left of each pixel, that many px further on either side: windows are differences of slices
        narrow = wide is np.int64 and plane.sum(dtype=np.int64) < 2**31
        running = np.zeros((height, width + 2 * r + 1), dtype=np.int32 if narrow else wide)
        np.cumsum(plane, axis=1, dtype=running.dtype, out=running[:, r + 1 : r + 1 + width])
        running[:, r + 1 + width :] = running[:, r + width, None]
        for dy, half in disc_rows(radius):
            if not 0 <= dy < height:
                continue
            row = running[:, r + half + 1 : r + half + 1 + width] - running[:, r - half : r - half + width]
            sums[: height - dy] += row[dy:]
            if dy:
                sums[dy:] += row[: height - dy]
    return out


def disc_areas(shape: tuple[int, int], *, radius: float, y: Interval, x: Interval) -> np.ndarray:
    """How many px of each pixel's disc lie in the image: int64 ``(y, x)`` for a rectangle of it.

    Parameters
    ----------
    shape
        (y, x) px of the image.
    radius
        px.
    y, x
        The rectangle.

    Examples
    --------
    >>> disc_areas((9, 9), radius=1, y=Interval(0, 2), x=Interval(0, 3)).tolist()
    [[3, 4, 4], [4, 5, 5]]
    """
    rows, columns = np.arange(y.start, y.stop), np.arange(x.start, x.stop)
    out = np.zeros((y.size, x.size), dtype=np.int64)
    for dy, half in disc_rows(radius):
        there = (rows + dy >= 0) & (rows + dy < shape[0])
        width = np.minimum(columns + half, shape[1] - 1) - np.maximum(columns - half, 0) + 1
        out += there[:, None] * width[None, :]
    return out


def box_sums(plane: np.ndarray, *, side: int, start: tuple[int, int], out: np.ndarray) -> None:
    """Add a rectangle's px to the boxes that tile an image; boxes cut off at its far borders are left out.

    Parameters
    ----------
    plane
        ``(y, x)`` whole numbers: a rectangle of the image.
    side
        Of a box, px.
    start
        Where the rectangle begins in the image, (y, x) px.
    out
        int64 ``(Y // side, X // side)`` of an image of ``(Y, X)`` px; changed in place.

    Examples
    --------
    >>> out = np.zeros((2, 1), dtype=np.int64)
    >>> box_sums(np.ones((3, 3), np.uint8), side=2, start=(1, 0), out=out)
    >>> out.tolist()
    [[2], [4]]
    """
    y, x = (slice(s, min(s + n, m * side)) for s, n, m in zip(start, plane.shape, out.shape, strict=True))
    if y.start >= y.stop or x.start >= x.stop:
        return
    part = plane[: y.stop - y.start, : x.stop - x.start]
    part = np.add.reduceat(part, _starts(y, side), axis=0, dtype=np.int64)
    part = np.add.reduceat(part, _starts(x, side), axis=1)
    rows, columns = (slice(s.start // side, (s.stop - 1) // side + 1) for s in (y, x))
    out[rows, columns] += part


def _starts(span: slice, side: int) -> np.ndarray:
    """Where new boxes begin within a span, its first px included."""
    borders = np.arange(-(-(span.start + 1) // side) * side, span.stop, side)
    return np.concatenate([[0], borders - span.start])


def noise_bound(histogram: np.ndarray) -> int:
    """Counts per box that scattered noise alone hardly reaches.

    Parameters
    ----------
    histogram
        Number of boxes with 0, 1, 2, … counts.

    Returns
    -------
    Smallest whole number from ``m + 3 sqrt(m)`` on, where `m` is the first quartile of the
    boxes that hold anything; at least 3.

    Examples
    --------
    >>> noise_bound(np.array([50, 0, 0, 0, 9, 3, 2, 1]))
    10
    >>> noise_bound(np.array([9]))
    3
    """
    filled = np.cumsum(histogram[1:])
    if not filled.size or filled[-1] == 0:
        return 3
    level = int(np.searchsorted(filled, 0.25 * filled[-1])) + 1
    return max(int(np.ceil(level + 3 * np.sqrt(level))), 3)
