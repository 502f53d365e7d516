"""Bring an image and its labels onto one pixel grid when their transformations differ."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from nimbus_sd.arrays import Interval
from nimbus_sd.engine.source import ImageSource, LabelSource


def _corners(shape: tuple[int, int]) -> np.ndarray:
    """Indices (y, x, 1) of a grid's four corner pixels, ``(3, 4)``."""
    return np.array([[a, b, 1.0] for a in (0, shape[0] - 1) for b in (0, shape[1] - 1)]).T


def is_identity(matrix: np.ndarray, shape: tuple[int, int]) -> bool:
    """Whether a (y, x) pixel map moves no pixel of a grid of `shape` by more than a hundredth of a px."""
    corners = _corners(shape)
    return bool(np.abs(matrix @ corners - corners).max() < 0.01)


def overhang(matrix: np.ndarray, shape: tuple[int, int], target: tuple[int, int]) -> float:
    """Px by which a grid of `shape`, mapped by `matrix`, reaches beyond a `target` grid; 0 if it does not."""
    mapped = (matrix @ _corners(shape))[:2]
    last = np.array(target)[:, None] - 1
    return float(max(-mapped.min(), (mapped - last).max(), 0.0))


def pixel_map(to_world_from: np.ndarray, to_world_to: np.ndarray) -> np.ndarray:
    """3 x 3 map of (y, x, 1) pixel *indices* from one grid to another.

    Transformations act on (x, y) coordinates in which pixel 0 spans 0 to 1, so
    half a px is added before and taken off after.
    """
    swap = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    centre = np.array([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = np.linalg.inv(to_world_to) @ to_world_from
    return np.linalg.inv(centre) @ swap @ matrix @ swap @ centre


def _source_rect(
    matrix: np.ndarray, y: Interval, x: Interval, shape: tuple[int, int]
) -> tuple[Interval, Interval]:
    corners = np.array([[a, b, 1.0] for a in (y.start, y.stop - 1) for b in (x.start, x.stop - 1)]).T
    mapped = (matrix @ corners)[:2]
    rect = []
    for low, high, n in zip(np.floor(mapped.min(1)) - 1, np.ceil(mapped.max(1)) + 2, shape, strict=True):
        start = int(np.clip(low, 0, n - 1))
        rect.append(Interval(start, int(np.clip(high, start + 1, n))))
    return rect[0], rect[1]


def _warp(
    plane: np.ndarray, matrix: np.ndarray, out: tuple[Interval, Interval], origin: np.ndarray
) -> np.ndarray:
    """Bilinear; a position in the outer half of a border px takes that px."""
    offset = matrix[:2] @ np.array([out[0].start, out[1].start, 1.0]) - origin
    shape = (out[0].size, out[1].size)
    return ndimage.affine_transform(
        plane, matrix[:2, :2], offset, output_shape=shape, order=1, mode="nearest"
    )


def _nearest(
    matrix: np.ndarray, y: Interval, x: Interval, shape: tuple[int, int]
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Pixels (row, column) under the new grid's pixels and whether they exist; the same in every crop."""
    rows, columns = np.arange(y.start, y.stop)[:, None], np.arange(x.start, x.stop)[None]
    # from global indices, and ties to one side in spite of rounding
    row, column = (
        np.floor(m[0] * rows + m[1] * columns + m[2] + 0.5 + 1e-6).astype(np.int64) for m in matrix[:2]
    )
    return (row, column), (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])


def _fingerprint(inner: str | None, matrix: np.ndarray, shape: tuple[int, int]) -> str | None:
    if inner is None:
        return None
    what = f"{inner} {np.asarray(matrix, np.float64).tolist()} {tuple(map(int, shape))}"
    return hashlib.blake2b(what.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class WarpedImage:
    """An image seen on another grid (bilinear; 0 outside), read by rectangle.

    Parameters
    ----------
    source
        Image on its own grid.
    matrix
        From indices of the new grid to indices of the image's.
    shape
        (y, x) of the new grid.
    """

    source: ImageSource
    matrix: np.ndarray
    shape: tuple[int, int]

    @property
    def name(self) -> str:
        """The image's name."""
        return self.source.name

    @property
    def channels(self) -> tuple[str, ...]:
        """The image's channels."""
        return self.source.channels

    @property
    def dtype(self) -> np.dtype:
        """Interpolated pixels are floats."""
        return np.dtype(np.float32)

    @property
    def chunks(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Chunks of the image's own grid."""
        return self.source.chunks

    @cached_property
    def fingerprint(self) -> str | None:
        """Hash of the source's fingerprint and the way it is warped."""
        return _fingerprint(self.source.fingerprint, self.matrix, self.shape)

    def read(self, channels: list[int], y: Interval, x: Interval) -> np.ndarray:
        """Return ``(len(channels), y, x)`` pixels of the new grid."""
        rect = _source_rect(self.matrix, y, x, self.source.shape)
        raw = self.source.read(channels, *rect).astype(np.float32)
        origin = np.array([rect[0].start, rect[1].start])
        _, inside = _nearest(self.matrix, y, x, self.source.shape)
        return np.stack([_warp(plane, self.matrix, (y, x), origin) * inside for plane in raw])


@dataclass(frozen=True)
class WarpedLabels:
    """Labels seen on another grid (nearest; background outside), read by rectangle."""

    source: LabelSource
    matrix: np.ndarray
    shape: tuple[int, int]

    @property
    def name(self) -> str:
        """The labels' name."""
        return self.source.name

    @property
    def dtype(self) -> np.dtype:
        """The labels' dtype."""
        return self.source.dtype

    @cached_property
    def fingerprint(self) -> str | None:
        """Hash of the source's fingerprint and the way it is warped."""
        return _fingerprint(self.source.fingerprint, self.matrix, self.shape)

    def read(self, y: Interval, x: Interval) -> np.ndarray:
        """Return ``(y, x)`` label ids of the new grid."""
        rect = _source_rect(self.matrix, y, x, self.source.shape)
        raw = self.source.read(*rect)
        (row, column), inside = _nearest(self.matrix, y, x, self.source.shape)
        row, column = row[inside] - rect[0].start, column[inside] - rect[1].start
        out = np.zeros((y.size, x.size), raw.dtype)
        out[inside] = raw[row, column]
        return out
