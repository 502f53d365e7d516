"""Find the image/labels pairs of a SpatialData object, check them, and build engine samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata import elements as el
from nimbus_sd._sdata.align import WarpedImage, WarpedLabels, is_identity, overhang, pixel_map
from nimbus_sd.engine.source import ImageSource, LabelSource, Sample


@dataclass(frozen=True)
class Pair:
    """An image and labels that belong together, and where.

    Attributes
    ----------
    labels, image
        Element names.
    system
        Coordinate system they share.
    """

    labels: str
    image: str
    system: str


@dataclass(frozen=True)
class ResolvedSample:
    """A sample for the engine, with what the table needs besides.

    Attributes
    ----------
    pair
        Where it came from.
    sample
        Image and labels on one grid.
    to_world
        3 x 3 matrix from that grid's (x, y) to ``pair.system``.
    native_image
        The image on its own grid, for statistics over all its pixels.
    of
        Name of the object in a cohort; empty where there is but one.
    """

    pair: Pair
    sample: Sample
    to_world: np.ndarray
    native_image: el.ElementImage
    of: str = ""


def resolve_pairs(
    sdata: SpatialData,
    *,
    image: str | Mapping[str, str] | None = None,
    labels: str | Sequence[str] | None = None,
    coordinate_system: str | None = None,
) -> list[Pair]:
    """Pair labels with images.

    Parameters
    ----------
    sdata
        The object.
    image
        Name of the image; ``{labels name: image name}`` for several samples; None
        pairs each labels element with the one image that overlaps it in a shared
        coordinate system.
    labels
        Name or names; None takes all labels elements (or the keys of `image`).
    coordinate_system
        Where to compare and report positions; None takes one that both have.

    Raises
    ------
    ElementNotFoundError
        If a name does not exist.
    InputError
        If there are no labels, no image overlaps, or several do.
    """
    if not len(sdata.labels):
        msg = "the object has no labels; add a segmentation with sdata['cells'] = Labels2DModel.parse(...)"
        if len(sdata.shapes):
            known = ", ".join(map(repr, sdata.shapes))
            msg += (
                f", or draw shapes ({known}) with spatialdata.rasterize(..., return_regions_as_labels=True)"
            )
        raise InputError(msg)
    names = _labels_names(sdata, image, labels)
    pairs = []
    for name in names:
        el.get_labels(sdata, name)
        wanted = image.get(name) if isinstance(image, Mapping) else image
        if wanted is None:
            pairs.append(_pair_by_overlap(sdata, name, coordinate_system))
        else:
            pairs.append(_check_pair(sdata, name, wanted, coordinate_system))
    return pairs


def _labels_names(
    sdata: SpatialData, image: str | Mapping[str, str] | None, labels: str | Sequence[str] | None
) -> list[str]:
    if labels is not None:
        names = [labels] if isinstance(labels, str) else list(labels)
        if len(set(names)) < len(names) or not names:
            msg = f"labels={names}: name at least one labels element, and each once"
            raise InputError(msg)
        return names
    if isinstance(image, Mapping):
        if not image:
            msg = f"image={{}}: name at least one pair {{labels: image}}; labels: {list(sdata.labels)}"
            raise InputError(msg)
        return list(image)
    if image is not None:
        el.get_image(sdata, image)
    names = list(sdata.labels)
    if image is not None and len(names) > 1:
        overlapping = [n for n in names if _overlap_systems(sdata, n, image, None)]
        if len(overlapping) != 1:
            found = ", ".join(map(repr, overlapping or names))
            msg = f"image {image!r}: which labels? Candidates: {found}; pass labels="
            raise InputError(msg)
        return overlapping
    return names


def _shared_systems(sdata: SpatialData, labels: str, image: str) -> list[str]:
    return el.shared_systems(el.systems(sdata, "labels", labels), el.systems(sdata, "images", image))


def extent(sdata: SpatialData, kind: str, name: str, system: str) -> np.ndarray:
    """[[x0, y0], [x1, y1]] of an element's bounding box in a coordinate system."""
    height, width = el.finest(getattr(sdata, kind)[name]).shape[-2:]
    corners = np.array([[x, y, 1.0] for x in (0, width) for y in (0, height)]).T
    world = (el.affine(sdata, kind, name, system) @ corners)[:2]
    return np.array([world.min(1), world.max(1)])


def _overlap_systems(sdata: SpatialData, labels: str, image: str, system: str | None) -> list[str]:
    shared = _shared_systems(sdata, labels, image)
    if system is not None:
        both = set(el.systems(sdata, "labels", labels)) & set(el.systems(sdata, "images", image))
        shared = [system] if system in both else []
    found = []
    for s in shared:
        a, b = extent(sdata, "labels", labels, s), extent(sdata, "images", image, s)
        if np.all(np.minimum(a[1], b[1]) > np.maximum(a[0], b[0])):
            found.append(s)
    return found


def _pair_by_overlap(sdata: SpatialData, labels: str, system: str | None) -> Pair:
    image, shared = only_image(
        sdata,
        lambda name: _overlap_systems(sdata, labels, name, system),
        system=system,
        what=f"labels {labels!r}",
        verb="overlap{} it",
        mapping="{labels name: image name}",
    )
    return Pair(labels, image, shared)


def only_image(
    sdata: SpatialData,
    overlapping: Callable[[str], Sequence[str]],
    *,
    system: str | None,
    what: str,
    verb: str,
    mapping: str,
) -> tuple[str, str]:
    """The one image that overlaps something, score maps apart, and a coordinate system that they share.

    Parameters
    ----------
    sdata
        The object.
    overlapping
        From an image's name to the coordinate systems in which it overlaps.
    system
        The one that is asked for, for the message.
    what, verb, mapping
        What the error calls the thing, what images do (``{}`` is the ending), and what can be passed.

    Raises
    ------
    InputError
        If no image overlaps it, or several do.
    """
    own_maps = set(el.own_attrs(sdata).get("maps", []))
    candidates = {
        name: found for name in sdata.images if name not in own_maps and (found := overlapping(name))
    }
    if len(candidates) == 1:
        name, found = next(iter(candidates.items()))
        el.get_image(sdata, name)
        return name, found[0]
    if candidates:
        why = f"several images {verb.format('')}: {', '.join(map(repr, candidates))}"
    else:
        images = ", ".join(map(repr, sdata.images)) or "none"
        where = f"in coordinate system {system!r}" if system else "in a shared coordinate system"
        why = f"no image {verb.format('s')} {where} (images: {images})"
    msg = f"{what}: {why}; pass image= (one name, or {mapping})"
    raise InputError(msg)


def _check_pair(sdata: SpatialData, labels: str, image: str, system: str | None) -> Pair:
    el.get_image(sdata, image)
    found = _overlap_systems(sdata, labels, image, system)
    if found:
        return Pair(labels, image, found[0])
    ours, theirs = el.systems(sdata, "labels", labels), el.systems(sdata, "images", image)
    msg = (
        f"labels {labels!r} and image {image!r} don't overlap in a shared coordinate system "
        f"(labels: {ours}, image: {theirs}); align them with spatialdata.transformations.set_transformation"
    )
    raise InputError(msg)


def resolve_sample(
    sdata: SpatialData, pair: Pair, *, mpp: float | None = None, of: str = ""
) -> ResolvedSample:
    """Build the engine's sample: both elements on the finer of their two grids.

    Parameters
    ----------
    sdata
        The object.
    pair
        From :func:`resolve_pairs`.
    mpp
        µm per px of the image; None looks for it in the object and leaves it open
        where it is unknown.
    of
        Name of the object in a cohort, which messages then say too.
    """
    where = f"{of}/" if of else ""
    array = el.get_image(sdata, pair.image)
    native = el.ElementImage(where + pair.image, array, el.channel_names(array))
    segmentation = el.ElementLabels(where + pair.labels, el.get_labels(sdata, pair.labels))
    if mpp is None:
        mpp = el.mpp_of(sdata, "images", pair.image)
    to_image = el.affine(sdata, "images", pair.image, pair.system)
    to_labels = el.affine(sdata, "labels", pair.labels, pair.system)
    matrix = pixel_map(to_labels, to_image)
    image: ImageSource = native
    labels: LabelSource = segmentation
    grid = to_image
    if is_identity(matrix, segmentation.shape):
        _check_same_shape(native, segmentation)
    elif abs(np.linalg.det(matrix[:2, :2])) >= 1.01:
        # one label px covers several image px: keep the image's detail
        labels = WarpedLabels(segmentation, np.linalg.inv(matrix), native.shape)
    else:
        image, grid = WarpedImage(native, matrix, segmentation.shape), to_labels
        if mpp is not None:
            mpp *= float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    _warn_of_overhang(pair, overhang(matrix, segmentation.shape, native.shape))
    return ResolvedSample(pair, Sample(segmentation.name, image, labels, mpp), grid, native, of)


def _warn_of_overhang(pair: Pair, px: float) -> None:
    if px > 2:
        warnings.warn(
            f"labels {pair.labels!r} reach up to {px:.0f} px beyond image {pair.image!r}: cells out there "
            "have no signal to look at; check the transformations, or crop the labels",
            NimbusWarning,
            stacklevel=4,
        )


def _check_same_shape(image: el.ElementImage, labels: el.ElementLabels) -> None:
    if image.shape != labels.shape:
        msg = (
            f"image {image.name!r} is {image.shape} px (y, x) and labels {labels.name!r} are {labels.shape}, "
            "though their transformations are the same; crop or pad one of them, or set the transformation "
            "that brings them together"
        )
        raise InputError(msg)
