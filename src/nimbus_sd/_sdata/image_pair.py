"""An H&E and a fluorescence image of the same tissue, seen on one grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata import elements as el
from nimbus_sd._sdata.align import WarpedImage, is_identity, pixel_map
from nimbus_sd._sdata.he import check_he
from nimbus_sd._sdata.plausible_mpp import PIXEL_SIZES
from nimbus_sd._sdata.resolve import extent
from nimbus_sd._sdata.samples import check_arguments
from nimbus_sd.engine.source import ImageSource

_SNAP = 1e-6  # px; rounding errors of a transformation must not put a cell outside


@dataclass(frozen=True)
class ImagePair:
    """Two images that overlap.

    Attributes
    ----------
    image
        The one that sets the grid, full resolution.
    he
        The H&E on that grid; black outside.
    system
        Coordinate system that both share.
    to_world
        3 x 3 matrix from the grid's (x, y) to ``system``.
    mpp
        µm per px of the grid.
    """

    image: el.ElementImage
    he: ImageSource
    system: str
    to_world: np.ndarray
    mpp: float

    def covered(self, centers: np.ndarray) -> np.ndarray:
        """Whether the H&E shows a place of the grid, bool ``(n,)``, by index (y, x), ``(n, 2)``."""
        if not isinstance(self.he, WarpedImage):
            return np.ones(len(centers), dtype=bool)
        index = np.column_stack([centers, np.ones(len(centers))]) @ self.he.matrix[:2].T
        px = np.floor(index + 0.5 + _SNAP)
        return np.asarray(((px >= 0) & (px < self.he.source.shape)).all(axis=1))


def element_image(sdata: SpatialData, name: str) -> el.ElementImage:
    """An image of the object by name, full resolution."""
    array = el.get_image(sdata, name)
    return el.ElementImage(name, array, el.channel_names(array))


def known_mpp(sdata: SpatialData, image: str, mpp: float | None) -> float:
    """µm per px of an image: the one given, or what the object says.

    Raises
    ------
    InputError
        If neither is there, or it can't be right.

    Warns
    -----
    NimbusWarning
        If `mpp` is not what the object says.
    """
    check_arguments(mpp, "")
    found = el.mpp_of(sdata, "images", image) if mpp is None else float(mpp)
    if found is None:
        msg = (
            f"image {image!r}: how large is a px? Pass mpp= (µm per px), or give the image a Scale to a "
            "coordinate system named 'microns'"
        )
        raise InputError(msg)
    if mpp is None:
        PIXEL_SIZES.check(found, f"image {image!r}")
    else:
        PIXEL_SIZES.warn_unless_same(found, [(sdata, image)])
    return found


def resolve_image_pair(
    sdata: SpatialData, *, he: str, image: str, coordinate_system: str | None, mpp: float | None
) -> ImagePair:
    """Bring an H&E onto the grid of another image; reads metadata only.

    Raises
    ------
    ElementNotFoundError
        If there is no such image.
    InputError
        If `he` is no H&E, the two share no coordinate system or don't overlap there, or the
        pixel size of `image` is not known.
    """
    colours, fixed = element_image(sdata, he), element_image(sdata, image)
    check_he(colours, argument="he")
    system = _system(sdata, he, image, coordinate_system)
    to_world = el.affine(sdata, "images", image, system)
    matrix = pixel_map(to_world, el.affine(sdata, "images", he, system))
    same = colours.shape == fixed.shape and is_identity(matrix, fixed.shape)
    return ImagePair(
        image=fixed,
        he=colours if same else WarpedImage(colours, matrix, fixed.shape),
        system=system,
        to_world=to_world,
        mpp=known_mpp(sdata, image, mpp),
    )


def _system(sdata: SpatialData, he: str, image: str, wanted: str | None) -> str:
    """The coordinate system in which both overlap."""
    ours, theirs = el.systems(sdata, "images", he), el.systems(sdata, "images", image)
    shared = el.shared_systems(ours, theirs) if wanted is None else [wanted]
    for system in shared:
        if system not in ours or system not in theirs:
            continue
        a, b = extent(sdata, "images", he, system), extent(sdata, "images", image, system)
        if np.all(np.minimum(a[1], b[1]) > np.maximum(a[0], b[0])):
            return system
    told = "" if wanted is None else f" {wanted!r}"
    msg = (
        f"H&E {he!r} and image {image!r} are not registered: they don't overlap in a shared coordinate "
        f"system{told} (H&E: {', '.join(ours)}; image: {', '.join(theirs)}); align them with "
        "nb.pp.register_landmarks"
    )
    raise InputError(msg)
