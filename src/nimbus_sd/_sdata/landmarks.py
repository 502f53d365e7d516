"""Pairs of landmarks on two images: from points elements, arrays, or a table of coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
from spatialdata import SpatialData
from spatialdata.transformations import Affine, get_transformation, set_transformation

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata import elements as el
from nimbus_sd._sdata.center_elements import CenterElement, find_element
from nimbus_sd._sdata.csv_table import read_csv

COLUMNS = ("he_x", "he_y", "reference_x", "reference_y")


@dataclass(frozen=True)
class Attached:
    """Landmarks that are an element of the object, and go where their image goes.

    Attributes
    ----------
    kind, name
        The element.
    to_image
        3 x 3 matrix from its (x, y) to px of the image.
    """

    kind: str
    name: str
    to_image: np.ndarray


@dataclass(frozen=True)
class Landmarks:
    """Pairs, in px (x, y) of the images' full resolution.

    Attributes
    ----------
    he, reference
        float64 ``(n, 2)``.
    attached
        The element that holds those of the H&E; None where they are numbers.
    """

    he: np.ndarray
    reference: np.ndarray
    attached: Attached | None = None


def read_landmarks(sdata: SpatialData, landmarks: Any, *, he: str, reference: str) -> Landmarks:
    """Read and pair landmarks.

    Parameters
    ----------
    sdata
        With the images.
    landmarks
        As in :func:`nimbus_sd.pp.register_landmarks`.
    he, reference
        Names of the images.

    Raises
    ------
    ElementNotFoundError
        If an element does not exist.
    InputError
        If they can't be read or paired, are not finite, or lie outside their image.
    """
    attached = None
    if isinstance(landmarks, pd.DataFrame | str | PathLike):
        found = _from_frame(landmarks)
    elif isinstance(landmarks, Sequence | np.ndarray) and len(landmarks) == 2:
        if all(isinstance(each, str) for each in landmarks):
            if landmarks[0] == landmarks[1]:
                msg = f"landmarks={landmarks!r}: one element for both images; give one each"
                raise InputError(msg)
            names = (str(landmarks[0]), str(landmarks[1]))
            *found, attached = _from_elements(sdata, names, (he, reference))
        else:
            found = [_numbers(each, name) for each, name in zip(landmarks, (he, reference), strict=True)]
    else:
        msg = (
            f"landmarks={landmarks!r}: give two names of points elements, two arrays (n, 2) of px (x, y), or "
            f"a table or CSV with the columns {', '.join(COLUMNS)}; the H&E's first"
        )
        raise InputError(msg)
    if len(found[0]) != len(found[1]):
        msg = f"landmarks: {len(found[0])} on {he!r} and {len(found[1])} on {reference!r}; give pairs"
        raise InputError(msg)
    for xy, name in zip(found, (he, reference), strict=True):
        _check(sdata, xy, name)
    return Landmarks(found[0], found[1], attached)


def _from_frame(landmarks: pd.DataFrame | str | PathLike[str]) -> list[np.ndarray]:
    frame = landmarks if isinstance(landmarks, pd.DataFrame) else read_csv(str(landmarks))
    missing = [c for c in COLUMNS if c not in frame]
    if missing:
        msg = f"landmarks lack the columns {missing}; wanted {', '.join(COLUMNS)}, in px"
        raise InputError(msg)
    return [_numbers(frame[list(part)], "/".join(part)) for part in (COLUMNS[:2], COLUMNS[2:])]


def _numbers(given: Any, where: str) -> np.ndarray:
    try:
        xy = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        msg = f"landmarks of {where!r} are no numbers ({error}); give an array (n, 2) of px (x, y)"
        raise InputError(msg) from error
    if xy.ndim != 2 or xy.shape[1] != 2:
        msg = f"landmarks of {where!r} have the shape {xy.shape}; give an array (n, 2) of px (x, y)"
        raise InputError(msg)
    return xy


def _from_elements(
    sdata: SpatialData, names: Sequence[str], images: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, Attached]:
    """Landmarks of the same index belong together."""
    found, maps = [], []
    for name, image in zip(names, images, strict=True):
        element = find_element(sdata, name)
        if element.kind == "labels":
            msg = f"labels {name!r} are no landmarks; valid: points or shapes"
            raise InputError(msg)
        to_image = _to_image(sdata, element, image)
        ids, xy, _ = element.read()
        found.append(pd.DataFrame(xy @ to_image[:2, :2].T + to_image[:2, 2], index=ids))
        maps.append(Attached(element.kind, name, to_image))
    he, reference = found
    odd = he.index.symmetric_difference(reference.index)
    if len(odd):
        msg = (
            f"landmarks {names[0]!r} and {names[1]!r} have different indices ({odd[:5].tolist()} in one "
            "only); those of the same index belong together"
        )
        raise InputError(msg)
    return he.to_numpy(), reference.loc[he.index].to_numpy(), maps[0]


def _to_image(sdata: SpatialData, element: CenterElement, image: str) -> np.ndarray:
    ours, theirs = el.systems(sdata, element.kind, element.name), el.systems(sdata, "images", image)
    shared = el.shared_systems(ours, theirs) or [s for s in ours if s in theirs]
    if not shared:
        msg = (
            f"landmarks {element.name!r} and image {image!r} share no coordinate system (landmarks: "
            f"{', '.join(ours)}; image: {', '.join(theirs)}); set the landmarks' transformation"
        )
        raise InputError(msg)
    to_world = el.affine(sdata, "images", image, shared[0])
    return np.linalg.inv(to_world) @ el.affine(sdata, element.kind, element.name, shared[0])


def _check(sdata: SpatialData, xy: np.ndarray, image: str) -> None:
    height, width = el.get_image(sdata, image).shape[-2:]
    wrong = ~((xy >= 0) & (xy <= [width, height])).all(axis=1)  # NaN is nowhere
    if wrong.any():
        first = tuple(xy[wrong][0].round(1).tolist())
        msg = (
            f"landmarks of {image!r}: {int(wrong.sum())} of {len(xy)} lie outside the image of {width} x "
            f"{height} px (x, y), for instance {first}; they are counted in px of its full resolution"
        )
        raise InputError(msg)


def place_he(
    sdata: SpatialData,
    landmarks: Landmarks,
    matrix: np.ndarray,
    *,
    he: str,
    reference: str,
    systems: dict[str, np.ndarray],
) -> None:
    """Set the H&E's transformations, and those of its landmarks, so that they stay where they are on it.

    Other coordinate systems of the reference are taken off: in them the H&E lay somewhere else.

    Parameters
    ----------
    sdata, landmarks, he, reference
        As read.
    matrix
        3 x 3, from px (x, y) of the H&E to those of the reference.
    systems
        Coordinate system to the 3 x 3 matrix from px of the reference.
    """
    attached = landmarks.attached
    theirs = el.systems(sdata, "images", reference)
    places = [(sdata.images[he], matrix)]
    if attached is not None:
        element = getattr(sdata, attached.kind)[attached.name]
        places.append((element, matrix @ attached.to_image))
    for element, to_reference in places:
        new = {
            system: Affine(to_world @ to_reference, input_axes=("x", "y"), output_axes=("x", "y"))
            for system, to_world in systems.items()
        }
        old = get_transformation(element, get_all=True)
        kept = {system: t for system, t in old.items() if system not in theirs}
        set_transformation(element, {**kept, **new}, set_all=True)
