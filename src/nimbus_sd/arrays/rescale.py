"""One map between full-resolution and model pixels, so that every crop samples the same points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nimbus_sd._core.errors import InputError

_SNAP = 0.1


def scale_factor(image_mpp: float, model_mpp: float) -> float:
    """Full-resolution pixels per model pixel.

    A ratio within 10 % of an integer, or of one over an integer, becomes that:
    0.488 µm images and a 1 µm model give exactly 2.

    Parameters
    ----------
    image_mpp, model_mpp
        Pixel sizes in µm.

    Examples
    --------
    >>> scale_factor(0.488, 1.0), scale_factor(0.65, 1.0), scale_factor(2.0, 1.0)
    (2.0, 1.5384615384615383, 0.5)
    """
    for name, value in (("image", image_mpp), ("model", model_mpp)):
        if not (np.isfinite(value) and value > 0):
            msg = f"the {name}'s pixel size is {value!r} µm; it must be a positive number, such as 0.5"
            raise InputError(msg)
    ratio = model_mpp / image_mpp
    coarse = ratio if ratio >= 1 else 1 / ratio
    nearest = float(round(coarse))
    if abs(coarse - nearest) <= _SNAP * nearest:
        coarse = nearest
    return coarse if ratio >= 1 else 1 / coarse


@dataclass(frozen=True)
class AxisMap:
    """How one axis of `size` full-resolution px maps to `model_size` model px.

    The axis is padded at its end (reflect; edge where it is too short) until the
    model sees a multiple of `stride`, at least `minimum` px.

    Parameters
    ----------
    size
        Full-resolution px.
    factor
        Full-resolution px per model px, from :func:`scale_factor`.
    stride, minimum
        Model px.
    """

    size: int
    factor: float
    stride: int = 16
    minimum: int = 32

    def __post_init__(self) -> None:
        if self.size < 1:
            msg = "an image side has no pixels; give an image with at least one"
            raise InputError(msg)

    @property
    def model_size(self) -> int:
        """Model px of the padded axis."""
        needed = max(int(np.ceil(self.size / self.factor - 1e-9)), self.minimum)
        return -(-needed // self.stride) * self.stride

    @property
    def padded_size(self) -> int:
        """Full-resolution px of the padded axis."""
        return max(int(np.ceil(self.model_size * self.factor - 1e-9)), self.size)

    def source(self, index: np.ndarray) -> np.ndarray:
        """Fold indices of the padded axis (int64) back to pixels that exist."""
        index = np.clip(index, 0, self.padded_size - 1)
        if self.padded_size - self.size >= self.size:
            return np.minimum(index, self.size - 1)
        return np.where(index < self.size, index, 2 * (self.size - 1) - index)

    def linear(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lower pixel, upper pixel (int64) and upper weight (float32) of model px ``start..stop``.

        Model px i samples full-resolution position ``(i + 0.5) * factor - 0.5``.
        """
        position = (np.arange(start, stop) + 0.5) * self.factor - 0.5
        position = np.clip(position, 0, self.padded_size - 1)
        lower = np.floor(position).astype(np.int64)
        weight = (position - lower).astype(np.float32)
        # a px that has no weight is not read
        return self.source(lower), self.source(lower + (weight > 0)), weight

    def nearest(self, start: int, stop: int) -> np.ndarray:
        """Pixel (int64) that model px ``start..stop`` take their mask from: ``floor(i * factor)``."""
        return self.source(np.floor(np.arange(start, stop) * self.factor + 1e-9).astype(np.int64))

    def model_index(self, start: int, stop: int) -> np.ndarray:
        """Model px (int64) that full-resolution px ``start..stop`` take their probability from."""
        index = np.floor((np.arange(start, stop) + 0.5) / self.factor + 1e-9).astype(np.int64)
        return np.minimum(index, self.model_size - 1)

    def owned(self, start: int, stop: int) -> tuple[int, int]:
        """Full-resolution px whose :meth:`model_index` lies in ``start..stop``; intervals tile the axis."""
        low, high = (int(np.ceil(edge * self.factor - 0.5 - 1e-9)) for edge in (start, stop))
        if stop >= self.model_size:
            high = self.size
        return min(max(low, 0), self.size), min(max(high, 0), self.size)


def resample_axis(
    x: np.ndarray, lower: np.ndarray, upper: np.ndarray, weight: np.ndarray, *, axis: int
) -> np.ndarray:
    """Linear interpolation along one axis: ``x[lower] * (1 - weight) + x[upper] * weight``.

    Parameters
    ----------
    x
        Any shape, float32.
    lower, upper
        Indices into `x` along `axis`, int64 ``(n,)``.
    weight
        Float32 ``(n,)`` in [0, 1].
    axis
        Axis to resample, negative.
    """
    low = _pick(x, lower, axis)
    if not weight.any():
        return low
    shape = [1] * x.ndim
    shape[axis] = -1
    w = weight.reshape(shape)
    return low + (_pick(x, upper, axis) - low) * w


def _pick(x: np.ndarray, index: np.ndarray, axis: int) -> np.ndarray:
    """``np.take``, as a view where the indices are evenly spaced (they mostly are)."""
    if index.size > 1:
        step = int(index[1] - index[0])
        if step > 0 and np.all(np.diff(index) == step):
            where = [slice(None)] * x.ndim
            where[axis] = slice(int(index[0]), int(index[-1]) + 1, step)
            return x[tuple(where)]
    return np.take(x, index, axis=axis)
