"""Bright blobs of one size: responses that peak at their middles, and the peaks."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import correlate1d, maximum_filter

METHODS = ("log", "local_maxima")
_TRUNCATE = 4.0  # sigmas, where the kernels end
_AT_ONCE = 1 << 22  # neighbours looked at in one go
_LEAST = 1e-3  # noise of a pixel that is always assumed: rounding alone makes about as much of 8 bits
_AROUND = 4.0  # px; sigma of the least area whose noise is averaged: fewer px would not tell it well
_FINE = np.array([1, -2, 1]) / np.sqrt(6)  # along both axes: answers to noise, hardly to anything smooth


def reach(sigma: float) -> int:
    """Px beyond a rectangle that its responses depend on."""
    return int(np.ceil(_TRUNCATE * sigma))


def noise_reach(sigma: float) -> int:
    """Px beyond a rectangle that its :func:`response_noise` depends on."""
    return reach(max(sigma, _AROUND)) + 1


def blob_response(plane: np.ndarray, *, sigma: float, method: str = "log") -> np.ndarray:
    """Response of every pixel to blobs of one size.

    ``"log"`` is the scale-normalised negative Laplacian of a Gaussian,
    ``-sigma² (d²/dy² + d²/dx²) (G * plane)``: largest in the middle of discs of
    diameter ``2 sqrt(2) sigma``, zero on flat or evenly rising ground. ``"local_maxima"``
    is the plane smoothed with the Gaussian.

    Parameters
    ----------
    plane
        ``(y, x)``; beyond its borders it is mirrored, border px repeated.
    sigma
        Of the Gaussian, px.
    method
        One of :data:`METHODS`.

    Returns
    -------
    float32 ``(y, x)``, in the plane's unit. A pixel's value depends on the px within
    :func:`reach` of it and on nothing else, to the last bit.

    References
    ----------
    Lindeberg (1998), *Feature detection with automatic scale selection*, Int. J. Comput. Vis. 30:79.

    Examples
    --------
    >>> y, x = np.ogrid[:41, :41]
    >>> disc = ((y - 20) ** 2 + (x - 18) ** 2 <= 36).astype(np.float32)
    >>> response = blob_response(disc, sigma=6 / np.sqrt(2))
    >>> np.unravel_index(response.argmax(), response.shape) == (np.int64(20), np.int64(18))
    True
    """
    plane = np.asarray(plane, dtype=np.float32)
    smooth, second = _kernels(sigma)

    def along(source: np.ndarray, kernel: np.ndarray, axis: int) -> np.ndarray:
        return correlate1d(source, kernel, axis=axis, mode="reflect")

    down = along(plane, smooth, 0)
    if method == "local_maxima":
        return along(down, smooth, 1)
    across = along(along(plane, second, 0), smooth, 1)
    return (across + along(down, second, 1)) * np.float32(-(sigma**2))


def _kernels(sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """A Gaussian of sum 1; its second derivative, which makes 0 of a plane and 1 of x²/2."""
    r = reach(sigma)
    x = np.arange(-r, r + 1, dtype=np.float64)
    smooth = np.exp(-0.5 * (x / sigma) ** 2)
    smooth /= smooth.sum()
    second = (x**2 / sigma**2 - 1) * smooth
    second -= second.sum() * smooth  # cut off, it would answer to flat ground
    return smooth, second * (2 / (second * x**2).sum())


def response_noise(plane: np.ndarray, *, sigma: float) -> np.ndarray:
    """How much the noise around each pixel moves its Laplacian response: the standard deviation.

    The noise is what changes from pixel to pixel, averaged over a Gaussian of the size of the
    blobs (4 px at least), so that dark and bright parts have each their own. Noise that was smoothed (by
    resampling, say) is taken for less than it is.

    Parameters
    ----------
    plane
        ``(y, x)`` of values from 0 to 1; a thousandth is the least noise assumed.
    sigma
        Of the Gaussian, px.

    Returns
    -------
    float32 ``(y, x)``. A pixel's value depends on the px within :func:`noise_reach` of it
    and on nothing else, to the last bit.

    Examples
    --------
    >>> plane = np.random.default_rng(0).normal(0.5, 0.1, (200, 200))
    >>> float(blob_response(plane, sigma=3).std() / response_noise(plane, sigma=3).mean()).__round__(1)
    1.0
    """
    fine = np.asarray(plane, dtype=np.float32)
    for axis in (0, 1):
        fine = correlate1d(fine, _FINE, axis=axis, mode="reflect")
    around, _ = _kernels(max(sigma, _AROUND))
    power = fine * fine
    for axis in (0, 1):
        power = correlate1d(power, around, axis=axis, mode="reflect")
    smooth, second = _kernels(sigma)
    gain = sigma**2 * np.sqrt(2 * (smooth @ smooth) * (second @ second) + 2 * (smooth @ second) ** 2)
    return np.sqrt(power + np.float32(_LEAST**2)) * np.float32(gain)


def local_peaks(
    response: np.ndarray, *, min_distance: float, threshold: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels that no pixel within `min_distance` exceeds.

    Where several of those lie within `min_distance` of each other, on a plateau, the
    ones with an earlier one near them, by row and then by column, are left out. So two
    peaks are always farther apart than that, and whether a pixel is one depends on the px
    within twice `min_distance` alone.

    Parameters
    ----------
    response
        ``(y, x)``.
    min_distance
        px, at least 1.
    threshold
        Peaks are larger than this.

    Returns
    -------
    Rows and columns of the peaks, int64, in the order of rows.

    Examples
    --------
    >>> response = np.zeros((5, 9))
    >>> response[2, [1, 2, 6, 8]] = 3, 3, 5, 4
    >>> [part.tolist() for part in local_peaks(response, min_distance=2)]
    [[2, 2], [1, 6]]
    """
    r = int(min_distance)
    y, x = np.mgrid[-r : r + 1, -r : r + 1].reshape(2, -1)
    near = (y**2 + x**2 <= min_distance**2) & ((y != 0) | (x != 0))
    y, x = y[near], x[near]
    # few pixels are left after a look at the eight around each, which is fast
    rows, columns = np.nonzero((response > threshold) & (response == maximum_filter(response, size=3)))
    padded = np.pad(response, r, constant_values=-np.inf)
    own = response[rows, columns][:, None]
    top = _for_all(padded, rows + r, columns + r, (y, x), lambda part, i: part <= own[i])
    rows, columns = rows[top], columns[top]
    earlier = (y < 0) | ((y == 0) & (x < 0))
    taken = np.zeros(padded.shape, dtype=bool)
    taken[rows + r, columns + r] = True
    first = _for_all(taken, rows + r, columns + r, (y[earlier], x[earlier]), lambda part, _: ~part)
    return rows[first], columns[first]


def _for_all(array, rows, columns, offsets, holds) -> np.ndarray:  # type: ignore[no-untyped-def]
    """For each place whether something holds at all offsets from it; in slabs, as plateaus have many."""
    out = np.ones(rows.size, dtype=bool)
    step = max(_AT_ONCE // max(offsets[0].size, 1), 1)
    for start in range(0, rows.size, step):
        part = slice(start, start + step)
        around = array[rows[part, None] + offsets[0], columns[part, None] + offsets[1]]
        out[part] = holds(around, part).all(axis=1)
    return out


def peak_offsets(response: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """How far from its pixel the top of each peak is: of the parabola through three px along each axis.

    Parameters
    ----------
    response
        ``(y, x)``.
    rows, columns
        Of the peaks, ``(n,)``.

    Returns
    -------
    float64 ``(n, 2)`` (y, x) px, at most half a px; 0 at a border of the array and on
    plateaus.

    Examples
    --------
    >>> y, x = np.ogrid[:9, :9]
    >>> response = 50 - (y - 4.25) ** 2 - (x - 3.9) ** 2
    >>> peak_offsets(response, np.array([4]), np.array([4])).round(3).tolist()
    [[0.25, -0.1]]
    """
    middle = response[rows, columns].astype(np.float64)
    out = np.empty((rows.size, 2))
    for axis, (place, size) in enumerate(zip((rows, columns), response.shape, strict=True)):
        step = np.eye(2, dtype=np.int64)[axis]
        inner = (place > 0) & (place < size - 1)
        dy, dx = (np.where(inner, s, 0) for s in step)
        before = response[rows - dy, columns - dx].astype(np.float64)
        after = response[rows + dy, columns + dx].astype(np.float64)
        bend = before + after - 2 * middle
        bent = bend < 0
        shift = np.where(bent, (before - after) / np.where(bent, 2 * bend, 1), 0)
        out[:, axis] = np.clip(shift, -0.5, 0.5)
    return out
