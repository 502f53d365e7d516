"""How large the pixels of an element are, where the object gives one size for all that has no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation

from nimbus_sd._core.errors import InputError

_AXES = ("x", "y")
_CLOSE = 0.01


@dataclass(frozen=True)
class _Other:
    """An element that shares a coordinate system with the one that is asked about.

    Attributes
    ----------
    kind, name
        The element.
    sides
        How many of its px one px of ours is wide along its x and y.
    unit
        Whether its px are the units of the shared coordinate system.
    mpp
        µm per px by its own transformation; None where it has none.
    """

    kind: str
    name: str
    sides: np.ndarray
    unit: bool
    mpp: float | None

    @property
    def ratio(self) -> float:
        return float(np.sqrt(self.sides.prod()))


def mpp_from_common(sdata: SpatialData, kind: str, name: str, common: float, *, microns: str) -> float:
    """µm per px of an element without a scale of its own, from the size that the object gives for all.

    That size is of elements whose own scale says the same; else of images and labels whose px are
    the units of the coordinate system that they share, as readers set it. Where all images and
    labels have px of one size, it is that.

    Parameters
    ----------
    sdata, kind, name
        The element.
    common
        µm per px.
    microns
        Name of the coordinate system of the elements' own scales.

    Raises
    ------
    InputError
        If it is not clear whose size it is, or px are not square.
    """
    others = _others(sdata, kind, name, microns)
    sure = [o for o in others if o.mpp is not None and _close(o.mpp, common)]
    rasters = [o for o in others if o.kind in ("images", "labels")]
    if not sure and all(_close(o.ratio, 1) for o in rasters):
        return common
    reference = sure[0] if sure else _reference(rasters)
    if reference is None:
        listed = ", ".join(f"{o.kind} {o.name!r} {1 / o.ratio:.4g}" for o in rasters)
        msg = (
            f"{kind} {name!r}: how large is a px? The object's mpp ({common:g}) could be that of several "
            f"elements, whose px differ (in px of it: {listed}); pass mpp=, or give it a Scale to "
            f"{microns!r}"
        )
        raise InputError(msg)
    if not _close(reference.sides[0], reference.sides[1]):
        wide, high = reference.sides * common
        msg = (
            f"{kind} {name!r}: pixels are {wide:g} x {high:g} µm, not square; resample the element, or pass "
            "mpp= if the transformation is wrong"
        )
        raise InputError(msg)
    return common * reference.ratio


def _reference(rasters: Sequence[_Other]) -> _Other | None:
    """The element that the common size is of; None where several could be meant."""
    images = [o for o in rasters if o.kind == "images"]
    labels = [o for o in rasters if o.kind == "labels"]
    alike = all(_close(o.ratio, images[0].ratio) for o in images)
    units = [o for o in rasters if o.unit]
    if not units:
        return images[0] if images and alike else None
    # cells are looked for in the image that is measured: units that no labels share may be another's
    return None if labels and not alike and not any(o.unit for o in labels) else units[0]


def _others(sdata: SpatialData, kind: str, name: str, microns: str) -> list[_Other]:
    """All elements that share a coordinate system with one, and itself."""
    ours = _matrices(getattr(sdata, kind)[name])
    out = []
    for each in ("images", "labels", "points", "shapes"):
        for other, element in getattr(sdata, each).items():
            theirs = _matrices(element)
            system = next((s for s in ours if s in theirs and s != microns), None)
            if system is None:
                continue
            relative = np.linalg.inv(theirs[system]) @ ours[system]
            out.append(
                _Other(
                    kind=each,
                    name=other,
                    sides=np.linalg.norm(relative[:2, :2], axis=0),
                    unit=_close(_side(theirs[system]), 1),
                    mpp=_side(theirs[microns]) if microns in theirs else None,
                )
            )
    return out


def _matrices(element: Any) -> dict[str, np.ndarray]:
    """3 x 3 matrices from an element's (x, y) by coordinate system."""
    found = get_transformation(element, get_all=True)
    return {s: t.to_affine_matrix(input_axes=_AXES, output_axes=_AXES) for s, t in found.items()}


def _side(matrix: np.ndarray) -> float:
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))


def _close(a: float, b: float) -> bool:
    return bool(np.isclose(a, b, rtol=_CLOSE, atol=0))
