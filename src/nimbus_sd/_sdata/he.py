"""H&E images of SpatialData objects: what is one, and the cell centres that lie in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.centers import CenterSet, resolve_centers
from nimbus_sd._sdata.elements import finest
from nimbus_sd._sdata.plausible_mpp import PixelSizes
from nimbus_sd.engine.source import ImageSource

#: What the channels of every H&E are called here, whatever the file calls them.
HE_CHANNELS = ("red", "green", "blue")
#: Of H&E, whose scanners differ by some percent from what they say.
HE_SIZES = PixelSizes(largest=5.0, close=0.1, of=" of an H&E")


def looks_like_he(element: Any) -> bool:
    """Whether an image element, single-scale or multiscale, has three channels of 8 bit."""
    array = finest(element)
    return bool(array.dims == ("c", "y", "x") and array.sizes["c"] == 3 and array.dtype == np.uint8)


def check_he(image: ImageSource, *, argument: str = "image") -> None:
    """Raise :class:`InputError` unless an image has three channels of 8 bit; `argument` named it."""
    n = len(image.channels)
    if n == 3 and image.dtype == np.uint8:
        return
    hint = "write it as RGB"
    if n == 4 and image.dtype == np.uint8:
        hint = "drop the fourth channel (alpha)"
    elif n == 3:
        hint = "convert it to 0–255 (uint8) first"
    elif n > 4:
        hint = f"this looks like an immunofluorescence image; name the H&E with {argument}="
    msg = (
        f"image {image.name!r} has {n} channels of {image.dtype}; an H&E has 3 (red, green, blue) of uint8: "
        f"{hint}"
    )
    raise InputError(msg)


def he_centers(
    sdata: SpatialData | Mapping[str, SpatialData],
    *,
    image: str | Mapping[str, str] | None,
    centers: str | Sequence[str] | Mapping[str, str] | None,
    coordinate_system: str | None = None,
    mpp: float | None = None,
    strict: bool = True,
) -> CenterSet:
    """Pair cell centres with H&E images, as :func:`~nimbus_sd._sdata.centers.resolve_centers`.

    With ``image=None`` only images that look like H&E count: the fluorescence of the same section
    overlaps the centres as well. Channels are called :data:`HE_CHANNELS`.

    Raises
    ------
    ElementNotFoundError
        If a name does not exist.
    InputError
        As there; or if an image is no H&E, or its pixel size is not known or can't be that of one.

    Warns
    -----
    NimbusWarning
        If `mpp` is not what an image's own scale says.
    """
    objects = {"": sdata} if isinstance(sdata, SpatialData) else sdata
    if image is None and not isinstance(centers, Mapping):
        objects = {name: _only_he(each) for name, each in objects.items()}
    found = resolve_centers(
        objects,
        image=image,
        centers=centers,
        channels=None,
        coordinate_system=coordinate_system,
        mpp=mpp,
        strict=strict,
        sizes=HE_SIZES,
    )
    for sample in found.samples:
        check_he(sample.image, argument="centers" if isinstance(centers, Mapping) else "image")
        if sample.mpp is None:
            msg = (
                f"image {sample.image.name!r}: how large is a px? Pass mpp= (µm per px), or give the image a "
                "Scale to a coordinate system named 'microns'"
            )
            raise InputError(msg)
        if mpp is None:
            HE_SIZES.check(sample.mpp, f"image {sample.image.name!r}")
    samples = [replace(s, image=replace(s.image, channels=HE_CHANNELS)) for s in found.samples]
    return CenterSet(tuple(samples), HE_CHANNELS)


def _only_he(sdata: SpatialData) -> SpatialData:
    """The object without images that can't be H&E; as it is where none is left, for the message."""
    found = {name: element for name, element in sdata.images.items() if looks_like_he(element)}
    if not found or len(found) == len(sdata.images):
        return sdata
    return SpatialData(
        images=found,
        labels=dict(sdata.labels),
        points=dict(sdata.points),
        shapes=dict(sdata.shapes),
        attrs=sdata.attrs,
    )
