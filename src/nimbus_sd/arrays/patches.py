"""Square patches around cells: where they lie, what reflection fills, and cutting many of them."""

from __future__ import annotations

import numpy as np

from nimbus_sd._core.errors import InputError


def corners(centers: np.ndarray, size: int) -> np.ndarray:
    """First px (y, x) of the patch around each centre; the centre's px is at ``size // 2`` in it.

    Parameters
    ----------
    centers
        Index coordinates (y, x), float ``(n, 2)``: a px's middle is a whole number.
    size
        Side in px.

    Returns
    -------
    int64 ``(n, 2)``, negative where the patch reaches beyond the image.
    """
    middle = np.floor(np.asarray(centers, np.float64).reshape(-1, 2) + 0.5)
    return middle.astype(np.int64) - size // 2


def beyond(corner: np.ndarray, size: int, shape: tuple[int, int]) -> np.ndarray:
    """Whether the patches at these corners reach beyond an image of `shape` (y, x): bool ``(n,)``."""
    outside: np.ndarray = (corner < 0) | (corner + size > np.array(shape))
    return np.asarray(outside.any(axis=1))


def reflected(start: int, stop: int, n: int) -> np.ndarray:
    """Px of an axis of length `n` that ``start..stop`` shows, mirrored at both ends.

    The border px is not repeated, as in :func:`numpy.pad` with ``mode="reflect"``.

    Raises
    ------
    InputError
        If the range reaches further beyond an end than the axis is long less one px.

    Examples
    --------
    >>> reflected(-2, 6, 5).tolist()
    [2, 1, 0, 1, 2, 3, 4, 3]
    """
    if start <= -n or stop >= 2 * n:
        msg = f"px {start} to {stop} can't be reflected in {n} px; take a smaller size="
        raise InputError(msg)
    index = np.abs(np.arange(start, stop))
    return np.where(index >= n, 2 * (n - 1) - index, index)


def cut(
    planes: np.ndarray,
    corner: np.ndarray,
    size: int,
    *,
    out: np.ndarray | None = None,
    at: np.ndarray | None = None,
) -> np.ndarray:
    """Copy the patches out of an image.

    Parameters
    ----------
    planes
        ``(c, y, x)``, any dtype.
    corner
        First px (y, x) of each patch, int ``(n, 2)``.
    size
        Side in px.
    out
        ``(m, c, size, size)`` to fill; None makes it.
    at
        Where in `out` each patch goes, int ``(n,)``; None fills it from the start.

    Returns
    -------
    `out`, or ``(n, c, size, size)`` of the dtype of `planes`.

    Raises
    ------
    InputError
        If a patch reaches beyond the image.

    Examples
    --------
    >>> image = np.arange(12).reshape(1, 3, 4)
    >>> cut(image, np.array([[0, 0], [1, 2]]), 2)[:, 0].tolist()
    [[[0, 1], [4, 5]], [[6, 7], [10, 11]]]
    """
    corner = np.asarray(corner).reshape(-1, 2)
    if beyond(corner, size, planes.shape[1:]).any():  # a slice would wrap around or come out short
        y, x = planes.shape[1:]
        msg = f"patches of {size} px reach beyond an image of {y} x {x} px; pad it by reflection first"
        raise InputError(msg)
    if out is None:
        out = np.empty((len(corner), len(planes), size, size), planes.dtype)
    # a slice copies rows; faster than one fancy index, which computes each px's place
    places = range(len(corner)) if at is None else at.tolist()
    for i, (y, x) in zip(places, corner.tolist(), strict=True):
        out[i] = planes[:, y : y + size, x : x + size]
    return out
