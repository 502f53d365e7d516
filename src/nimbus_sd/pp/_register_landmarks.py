"""Lay an H&E on the fluorescence of the same section, by landmarks that both show."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from spatialdata import SpatialData
from spatialdata.models import PointsModel
from spatialdata.transformations import get_transformation_between_landmarks

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata import elements as el
from nimbus_sd._sdata.he import check_he
from nimbus_sd._sdata.image_pair import element_image, known_mpp
from nimbus_sd._sdata.landmarks import Landmarks, place_he, read_landmarks
from nimbus_sd.arrays.registration import fit_affine, flatness

MODELS = ("affine", "similarity")
_LEAST_SPREAD = 0.02  # across, of that along: less is a line
_SQUARE = 0.01  # what the pixel size of an image may differ by between directions


def register_landmarks(
    sdata: SpatialData,
    *,
    he: str,
    reference: str,
    landmarks: Any,
    model: str = "affine",
    coordinate_system: str | None = None,
    mpp: float | None = None,
    nucleus_radius_um: float = 3.5,
) -> float:
    """Lay an H&E on another image of the same section by pairs of landmarks.

    No pixel is moved: the H&E keeps its grid and gets transformations to the coordinate systems
    of `reference`. Everything that pairs elements by their place then finds the two together.

    Parameters
    ----------
    sdata
        Object with both images.
    he
        Name of the H&E, ``(3, y, x)`` uint8.
    reference
        Name of the image that stays, usually the fluorescence with the nuclear channel.
    landmarks
        At least three pairs, spread over the tissue, those of the H&E first: two names of points
        (or shapes) elements, paired by their index, each in a coordinate system of its image;
        or two arrays ``(n, 2)`` of px (x, y) of the images' full resolution, the first pixel's
        middle at 0.5; or a DataFrame or the path of a CSV with such px in the columns
        ``he_x, he_y, reference_x, reference_y``.
    model
        ``"affine"``, least squares; it needs four pairs before errors show. ``"similarity"``,
        rotation, one scale and shift by
        :func:`spatialdata.transformations.get_transformation_between_landmarks`: better for
        few or inaccurate pairs.
    coordinate_system
        One of those of `reference`, the only one besides ``"microns"`` that the H&E gets; None
        takes them all. Others of `reference` are taken off the H&E, which lay elsewhere in them;
        those that it alone has stay.
    mpp
        µm per px of `reference`; None looks for it in the object.
    nucleus_radius_um
        Residuals above this are warned of, µm.

    Returns
    -------
    float
        Root mean square of the distances that remain between the pairs, µm.
        Writes the H&E's transformations, also to ``"microns"``, so that its own pixel size is
        known; landmarks that are elements move with their H&E, others
        that lie on it (nuclei found before, say) don't. In an object with a store,
        ``sdata.write_transformations(he)`` keeps them.

    Raises
    ------
    ElementNotFoundError
        If an image or a points element does not exist.
    InputError
        If there are fewer than three pairs, they lie on a line or outside their images, the
        map would mirror, `he` is no H&E, or the pixel size is not known.

    Examples
    --------
    >>> import numpy as np
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_sections(shape=(128, 128))
    >>> corners = np.array([[10.0, 10], [110, 15], [20, 120], [100, 100]])
    >>> rms = nb.pp.register_landmarks(
    ...     sdata, he="p0s0_he", reference="p0s0_if", landmarks=(corners, corners + [3, -2])
    ... )
    >>> round(rms, 3)
    0.0
    """
    if model not in MODELS:
        msg = f"model={model!r}; valid: {', '.join(map(repr, MODELS))}"
        raise InputError(msg)
    if not (np.isfinite(nucleus_radius_um) and nucleus_radius_um > 0):
        msg = f"nucleus_radius_um={nucleus_radius_um!r} must be a positive number of µm"
        raise InputError(msg)
    check_he(element_image(sdata, he), argument="he")
    element_image(sdata, reference)
    if he == reference:
        msg = f"he and reference are both {he!r}; name two images"
        raise InputError(msg)
    size = known_mpp(sdata, reference, mpp)
    systems = _systems(sdata, reference, coordinate_system, size)
    found = read_landmarks(sdata, landmarks, he=he, reference=reference)
    matrix = _fit(found, model)
    distance = np.linalg.norm(found.he @ matrix[:2, :2].T + matrix[:2, 2] - found.reference, axis=1) * size
    place_he(sdata, found, matrix, he=he, reference=reference, systems=systems)
    rms = float(np.sqrt((distance**2).mean()))
    _warn(matrix, distance, rms, model=model, radius=nucleus_radius_um)
    return rms


def _systems(sdata: SpatialData, reference: str, wanted: str | None, mpp: float) -> dict[str, np.ndarray]:
    """Coordinate system to the matrix from px (x, y) of the reference; µm are always among them."""
    there = el.systems(sdata, "images", reference)
    if wanted is not None and wanted not in there:
        msg = f"image {reference!r} has no coordinate system {wanted!r}; valid: {', '.join(there)}"
        raise InputError(msg)
    names = [s for s in there if wanted in (None, s) or s == el.MICRONS]
    return {el.MICRONS: np.diag([mpp, mpp, 1.0])} | {
        s: el.affine(sdata, "images", reference, s) for s in names
    }


def _fit(landmarks: Landmarks, model: str) -> np.ndarray:
    """3 x 3 matrix from px of the H&E to px of the reference."""
    n = len(landmarks.he)
    if n < 3:
        msg = f"{n} pairs of landmarks; at least 3 are needed, and more show how good they are"
        raise InputError(msg)
    for xy, what in ((landmarks.he, "H&E"), (landmarks.reference, "reference")):
        if flatness(xy) < _LEAST_SPREAD:
            msg = (
                f"the {n} landmarks of the {what} lie on a line, so what is beside it is not known; add some "
                "far from it"
            )
            raise InputError(msg)
    matrix = fit_affine(landmarks.he, landmarks.reference)
    if np.linalg.det(matrix[:2, :2]) <= 0:
        msg = (
            "the landmarks mirror the H&E: check that pairs belong together and that both are (x, y). If the "
            "slide was scanned from its back, flip the image first"
        )
        raise InputError(msg)
    if model == "affine":
        return matrix
    points = [PointsModel.parse(xy) for xy in (landmarks.reference, landmarks.he)]
    between = get_transformation_between_landmarks(*points)
    return between.to_affine_matrix(input_axes=("x", "y"), output_axes=("x", "y"))


def _warn(matrix: np.ndarray, distance: np.ndarray, rms: float, *, model: str, radius: float) -> None:
    told = []
    if rms > radius:
        worst = int(distance.argmax())
        told.append(
            f"the landmarks don't fit each other: {rms:.1f} µm remain between pairs (root mean square), more "
            f"than a nucleus' radius of {radius:g}; the worst is number {worst} (from 0) with "
            f"{distance[worst]:.1f} µm"
        )
    long, short = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if long / short - 1 > _SQUARE:
        told.append(
            f"the H&E is stretched by {100 * (long / short - 1):.1f} % in one direction; pixels of both "
            "images should be square: check the landmarks, or take model='similarity'"
        )
    if model == "affine" and len(distance) == 3:
        told.append("three pairs fit every affine map, so that the residual says nothing; add a fourth")
    for text in told:
        warnings.warn(text, NimbusWarning, stacklevel=3)
