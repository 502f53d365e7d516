"""The slide's own grid: another pixel size, a turn, and registration that is never perfect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from nimbus_sd._core.errors import InputError
from nimbus_sd.simulation._types import AnyArray, FloatArray
from nimbus_sd.simulation.noise import smooth_noise

_REACH = 60.0  # µm over which the local error changes


@dataclass(frozen=True)
class Placement:
    """Where the H&E lies.

    Parameters
    ----------
    mpp
        µm per px of the H&E; None takes that of the immunofluorescence.
    turn
        Degrees by which the slide lies turned; known to the registration.
    error
        Root mean square length in µm of the local registration error, a smooth field.
    offset
        ``(y, x)`` µm by which the registration is wrong everywhere.
    """

    mpp: float | None = None
    turn: float = 0.0
    error: float = 0.5
    offset: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.mpp is not None and not 0.1 <= self.mpp <= 4:
            msg = f"Placement.mpp must lie in [0.1, 4] µm per px, got {self.mpp!r}"
            raise InputError(msg)
        if not 0 <= self.error <= 100:
            msg = f"Placement.error must lie in [0, 100] µm, got {self.error!r}"
            raise InputError(msg)
        if not -360 <= self.turn <= 360:
            msg = f"Placement.turn must lie in [-360, 360] degrees, got {self.turn!r}"
            raise InputError(msg)
        if len(self.offset) != 2 or not all(abs(o) <= 1000 for o in self.offset):
            msg = f"Placement.offset must be (y, x) in µm, at most 1000 each, got {self.offset!r}"
            raise InputError(msg)


def local_error(
    rng: np.random.Generator, shape: tuple[int, int], placement: Placement, mpp: float
) -> FloatArray:
    """By how much tissue lies off on the slide: ``(y, x, 2)`` float32 µm."""
    parts = [smooth_noise(rng, shape, _REACH / mpp) for _ in range(2)]
    field = np.stack(parts, -1) * np.float32(placement.error / np.sqrt(2))
    return field + np.asarray(placement.offset, np.float32)


def slide_matrix(shape: tuple[int, int], placement: Placement, mpp: float) -> FloatArray:
    """3 x 3 from (x, y) of the slide's px to (x, y) of the section's, pixel corners as coordinates."""
    scale = (placement.mpp or mpp) / mpp
    if not placement.turn:
        return np.diag([scale, scale, 1.0])
    linear = scale * _rotation(placement)
    middle, slide_middle = (np.array(s[::-1]) / 2 for s in (shape, slide_shape(shape, placement, mpp)))
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = middle - linear @ slide_middle
    return matrix


def slide_shape(shape: tuple[int, int], placement: Placement, mpp: float) -> tuple[int, int]:
    """``(y, x)`` of the slide's grid, on which the whole section lies."""
    width, height = np.abs(_rotation(placement)).T @ np.array(shape[::-1]) * mpp / (placement.mpp or mpp)
    # what rounding errors add is no px
    return int(np.ceil(height - 1e-6)), int(np.ceil(width - 1e-6))


def _rotation(placement: Placement) -> FloatArray:
    angle = np.deg2rad(placement.turn)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def to_slide(
    rng: np.random.Generator, dyes: FloatArray, placement: Placement, mpp: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Lay a section on its slide.

    Parameters
    ----------
    rng
        Source of randomness.
    dyes
        ``(y, x, k)`` on the section's grid.
    placement
        Where it comes to lie.
    mpp
        µm per px of the section's grid.

    Returns
    -------
    Dyes on the slide's grid ``(y', x', k)`` float32, 0 where there is no tissue; the matrix of
    :func:`slide_matrix`; the error in µm on the section's grid ``(y, x, 2)``.
    """
    shape = (dyes.shape[0], dyes.shape[1])
    error = local_error(rng, shape, placement, mpp)
    matrix = slide_matrix(shape, placement, mpp)
    if placement.error == 0 and not any(placement.offset) and np.array_equal(matrix, np.eye(3)):
        return dyes, matrix, error
    rows, columns = (np.arange(n) + 0.5 for n in slide_shape(shape, placement, mpp))
    x = matrix[0, 0] * columns[None] + matrix[0, 1] * rows[:, None] + matrix[0, 2]
    y = matrix[1, 0] * columns[None] + matrix[1, 1] * rows[:, None] + matrix[1, 2]
    where = np.stack([y, x]) - 0.5
    # the error changes so slowly that reading it where tissue came to lie is as good as where it was
    off = [ndimage.map_coordinates(error[..., k], where, order=1, mode="nearest") for k in range(2)]
    source = where - np.stack(off) / mpp
    last = np.array(shape).reshape(2, 1, 1) - 1
    beyond = np.maximum(-source, source - last)
    # what the error brings in from beyond the field is like what lies within
    near = np.clip(last - np.abs(last - np.abs(source)), 0, last)
    margin = np.abs(placement.offset).max() + 4 * placement.error + mpp
    lost: AnyArray = beyond.max(0) * mpp > margin
    moved = [
        np.where(lost, 0, ndimage.map_coordinates(dyes[..., k], near, order=1)) for k in range(dyes.shape[2])
    ]
    return np.stack(moved, -1).astype(np.float32), matrix, error
