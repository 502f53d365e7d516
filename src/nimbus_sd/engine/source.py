"""What the engine reads from: anything with a shape, chunks and a rectangular read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import Interval, LabelIndex, check_pixels


class LabelSource(Protocol):
    """Label ids of one image, read by rectangle."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) px."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the ids."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """Hash that changes when the stored ids do; None where that can't be told."""
        ...

    def read(self, y: Interval, x: Interval) -> np.ndarray:
        """Return ``(y, x)`` label ids."""
        ...


class ImageSource(Protocol):
    """Channels of one image, read by rectangle."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def channels(self) -> tuple[str, ...]:
        """One name per channel."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) px."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Pixel dtype."""
        ...

    @property
    def chunks(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Chunk sizes along c, y, x."""
        ...

    @property
    def fingerprint(self) -> str | None:
        """Hash that changes when the stored pixels do; None where that can't be told."""
        ...

    def read(self, channels: list[int], y: Interval, x: Interval) -> np.ndarray:
        """Return ``(len(channels), y, x)`` pixels."""
        ...


def check_planes(image: ImageSource, channels: list[int], planes: np.ndarray) -> None:
    """Raise :class:`InputError`, naming image and channel, unless all pixels are finite and ≥ 0."""
    for i, plane in zip(channels, planes, strict=True):
        try:
            check_pixels(plane)
        except InputError as error:
            msg = f"image {image.name!r}, channel {image.channels[i]!r}: {error}"
            raise InputError(msg) from error


@dataclass(frozen=True)
class ArrayImage:
    """An image in memory or memory-mapped, ``(c, y, x)``.

    Parameters
    ----------
    name
        For messages.
    array
        Anything that slices like a NumPy array.
    channels
        One name per channel.
    """

    name: str
    array: np.ndarray
    channels: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) px."""
        return self.array.shape[1], self.array.shape[2]

    @property
    def dtype(self) -> np.dtype:
        """Pixel dtype."""
        return self.array.dtype

    @property
    def chunks(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """One chunk per channel and 1024 rows."""
        rows = [1024] * (self.shape[0] // 1024) + ([self.shape[0] % 1024] if self.shape[0] % 1024 else [])
        return (1,) * len(self.channels), tuple(rows), (self.shape[1],)

    @property
    def fingerprint(self) -> None:
        """None: arrays in memory can't be recognised in another process."""
        return None

    def read(self, channels: list[int], y: Interval, x: Interval) -> np.ndarray:
        """Return ``(len(channels), y, x)`` pixels."""
        return self.array[channels, y.slice, x.slice]


@dataclass(frozen=True)
class ArrayLabels:
    """Labels in memory or memory-mapped, ``(y, x)`` integers."""

    name: str
    array: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) px."""
        return self.array.shape[0], self.array.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """Label dtype."""
        return self.array.dtype

    @property
    def fingerprint(self) -> None:
        """None: arrays in memory can't be recognised in another process."""
        return None

    def read(self, y: Interval, x: Interval) -> np.ndarray:
        """Return ``(y, x)`` label ids."""
        return self.array[y.slice, x.slice]


@dataclass(frozen=True)
class Sample:
    """One image with its labels on the same pixel grid.

    Attributes
    ----------
    region
        What messages call the labels; tells the samples of a run apart.
    mpp
        µm per px of that grid; None where nothing needs it.
    """

    region: str
    image: ImageSource
    labels: LabelSource
    mpp: float | None = None


def index_labels(array: np.ndarray, name: str) -> LabelIndex:
    """Index a rectangle of labels; errors name the labels it was read from."""
    try:
        return LabelIndex(array)
    except InputError as error:
        msg = f"labels {name!r}: {error}"
        raise InputError(msg) from error
