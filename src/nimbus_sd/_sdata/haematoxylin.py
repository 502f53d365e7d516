"""The haematoxylin of an H&E element as an image of one channel, unmixed where it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.derived import source_images
from nimbus_sd._sdata.elements import ElementImage, channel_names, get_image
from nimbus_sd._sdata.he import check_he, looks_like_he
from nimbus_sd.arrays import Interval
from nimbus_sd.arrays.haematoxylin import haematoxylin
from nimbus_sd.engine.source import ImageSource

HAEMATOXYLIN = "haematoxylin"


@dataclass(frozen=True)
class HaematoxylinImage:
    """An :class:`~nimbus_sd.engine.source.ImageSource` of one float32 channel, ≥ 0.

    Parameters
    ----------
    rgb
        The H&E.

    Raises
    ------
    InputError
        If it has not three channels of 8 bit.
    """

    rgb: ImageSource

    def __post_init__(self) -> None:
        check_he(self.rgb)

    @property
    def name(self) -> str:
        """Of the H&E."""
        return self.rgb.name

    @property
    def channels(self) -> tuple[str, ...]:
        """The one channel."""
        return (HAEMATOXYLIN,)

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) px."""
        return self.rgb.shape

    @property
    def dtype(self) -> np.dtype:
        """float32."""
        return np.dtype(np.float32)

    @property
    def chunks(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Chunk sizes along c, y, x."""
        _, y, x = self.rgb.chunks
        return (1,), y, x

    @property
    def fingerprint(self) -> str | None:
        """Of the H&E."""
        return self.rgb.fingerprint

    def read(self, channels: list[int], y: Interval, x: Interval) -> np.ndarray:
        """Return ``(len(channels), y, x)`` amounts."""
        found = haematoxylin(self.rgb.read([0, 1, 2], y, x))
        return np.repeat(found[None], len(channels), axis=0)


def check_stain(stain: str | None, channel: str | Sequence[str] | None) -> None:
    """Raise :class:`InputError` for an unknown stain, or one beside channels."""
    if stain not in (None, HAEMATOXYLIN):
        msg = f"stain={stain!r}; valid: {HAEMATOXYLIN!r} for H&E, or None"
        raise InputError(msg)
    if stain is not None and channel is not None:
        msg = f"stain={stain!r} takes all three channels of an H&E; leave channel= out"
        raise InputError(msg)


def haematoxylin_images(sdata: SpatialData, names: Sequence[str]) -> dict[str, HaematoxylinImage]:
    """Haematoxylin of H&E images by their names.

    Raises
    ------
    InputError
        If one is no H&E.
    """
    out = {}
    for name in names:
        array = get_image(sdata, name)
        out[name] = HaematoxylinImage(ElementImage(name, array, channel_names(array)))
    return out


def he_names(sdata: SpatialData, image: str | Sequence[str] | None) -> list[str]:
    """Names of H&E images: those given, else all that look like it and that this package did not make.

    Raises
    ------
    InputError
        If there is none.
    """
    names = source_images(sdata, image)
    if image is not None:
        return names
    found = [name for name in names if looks_like_he(sdata.images[name])]
    if not found:
        listed = ", ".join(map(repr, names))
        msg = f"no image has 3 channels (red, green, blue) of uint8, as an H&E has; images: {listed}"
        raise InputError(msg)
    return found
