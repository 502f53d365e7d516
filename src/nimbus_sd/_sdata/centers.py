"""Find the cell centres of a SpatialData object and the image that each set of them lies in."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from spatialdata import SpatialData

from nimbus_sd._core.channels import NOT_MARKERS
from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata import elements as el
from nimbus_sd._sdata.center_elements import CenterElement, find_element
from nimbus_sd._sdata.plausible_mpp import PIXEL_SIZES, PixelSizes
from nimbus_sd._sdata.resolve import only_image
from nimbus_sd._sdata.samples import check_arguments, common_channels
from nimbus_sd.engine.embedding.patches import PatchSample, check_size

log = logging.getLogger("nimbus_sd")

_KINDS = ("labels", "points", "shapes")
_SNAP = 1e-6  # px; rounding errors of a transformation must not put a cell outside


@dataclass(frozen=True)
class CenterSample:
    """Centres of one element, and the image they lie in.

    Attributes
    ----------
    region
        The element's name.
    kind
        ``"labels"``, ``"points"`` or ``"shapes"``.
    image_name, system
        The image, and the coordinate system that both share.
    image
        On its own grid, full resolution.
    ids
        int64 ``(n,)``: label ids in ascending order, or the element's index in its order.
    centers
        Index coordinates (y, x) of the image's grid, float64 ``(n, 2)``.
    to_world
        3 x 3 matrix from that grid's (x, y) to ``system``.
    mpp
        µm per px of the image; None where unknown.
    count
        Pixels of each label on the labels' grid, int64 ``(n,)``; None for points and shapes.
    of
        Name of the object in a cohort; empty where there is but one.
    outside
        How many centres were left out because they lie outside the image.
    """

    region: str
    kind: str
    image_name: str
    system: str
    image: el.ElementImage
    ids: np.ndarray
    centers: np.ndarray
    to_world: np.ndarray
    mpp: float | None
    count: np.ndarray | None
    of: str = ""
    outside: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def native_image(self) -> el.ElementImage:
        """The image, by the name that fitting scales asks for."""
        return self.image

    @property
    def patches(self) -> PatchSample:
        """The same for the engine."""
        region = f"{self.of}/{self.region}" if self.of else self.region
        return PatchSample(region, self.image, self.ids, self.centers, self.mpp)

    def positions(self) -> np.ndarray:
        """Centres (x, y) in the coordinate system, float64 ``(n, 2)``."""
        y, x = (self.centers + 0.5).T
        return (self.to_world @ np.stack([x, y, np.ones_like(x)]))[:2].T


@dataclass(frozen=True)
class CenterSet:
    """Samples and the markers they have in common."""

    samples: tuple[CenterSample, ...]
    channels: tuple[str, ...]

    def __len__(self) -> int:
        return sum(len(s) for s in self.samples)


def resolve_centers(
    sdata: SpatialData | Mapping[str, SpatialData],
    *,
    image: str | Mapping[str, str] | None = None,
    centers: str | Sequence[str] | Mapping[str, str] | None = None,
    channels: str | Sequence[str] | None = "auto",
    coordinate_system: str | None = None,
    mpp: float | None = None,
    exclude: str = NOT_MARKERS,
    strict: bool = True,
    sizes: PixelSizes = PIXEL_SIZES,
) -> CenterSet:
    """Pair centres with images, choose the channels, and read the centres; no image is read.

    Parameters
    ----------
    sdata
        The object, or several by name.
    image
        Name of the image, or ``{element of the centres: image}``; None pairs by overlap.
    centers
        Name or names of labels, points or shapes, or ``{element: image}``; None takes the labels
        if there are any, else the points, else the shapes.
    channels, exclude, coordinate_system, mpp
        As in :func:`nimbus_sd.tl.predict`; where mpp is not known it stays open. Channels None
        asks for nothing: images may differ, and the set has no channels.
    strict
        False leaves centres outside their image out and says how many
        (:attr:`CenterSample.outside`), and lets labels have no cell at all.
    sizes
        What mpp can be.

    Raises
    ------
    ElementNotFoundError
        If a name does not exist.
    InputError
        If it is not clear which centres or image are meant, nothing overlaps, ids are not whole
        numbers or not unique, centres lie outside their image, there is no cell at all, or mpp
        can't be right.

    Warns
    -----
    NimbusWarning
        If mpp is not what an object says.
    """
    objects = {"": sdata} if isinstance(sdata, SpatialData) else sdata
    pairs = [
        (name, each, pair)
        for name, each in objects.items()
        for pair in _pairs(each, image, centers, coordinate_system)
    ]
    check_arguments(mpp, exclude, sizes)
    if mpp is not None:
        sizes.warn_unless_same(mpp, [(each, pair.image) for _, each, pair in pairs])
    images = [_image(each, pair.image, of) for of, each, pair in pairs]
    chosen = () if channels is None else common_channels(images, channels, exclude)
    samples = tuple(
        _sample(each, pair, source, mpp=mpp, of=of, strict=strict)
        for (of, each, pair), source in zip(pairs, images, strict=True)
    )
    if strict and not any(len(s) for s in samples):
        named = ", ".join(f"{s.kind} {s.region!r}" for s in samples)
        msg = f"{named}: no cell in them; check the segmentation, or name other centres with centers="
        raise InputError(msg)
    return CenterSet(samples, chosen)


@dataclass(frozen=True)
class _Pair:
    element: CenterElement
    image: str
    system: str


def _pairs(
    sdata: SpatialData,
    image: str | Mapping[str, str] | None,
    centers: str | Sequence[str] | Mapping[str, str] | None,
    system: str | None,
) -> list[_Pair]:
    if isinstance(centers, Mapping):
        if image is not None:
            msg = "centers={element: image} names the images; leave image= out, or give the names alone"
            raise InputError(msg)
        image, centers = centers, None
    if isinstance(image, Mapping):
        return _named_pairs(sdata, image, centers, system)
    if centers is not None:
        names = [centers] if isinstance(centers, str) else list(centers)
        if not names or len(set(names)) < len(names):
            msg = f"centers={names}: name at least one element, and each once"
            raise InputError(msg)
        return [_pair(sdata, find_element(sdata, name), image, system) for name in names]
    return _guess(sdata, image, system)


def _named_pairs(
    sdata: SpatialData,
    image: Mapping[str, str],
    centers: str | Sequence[str] | None,
    system: str | None,
) -> list[_Pair]:
    named = list(image) if centers is None else [centers] if isinstance(centers, str) else list(centers)
    if not image or set(named) != set(image):
        msg = (
            f"image={dict(image)} and centers={named}: name the same elements in both, or only "
            "{element of the centres: image}"
        )
        raise InputError(msg)
    return [_pair(sdata, find_element(sdata, name), image[name], system) for name in named]


def _guess(sdata: SpatialData, image: str | None, system: str | None) -> list[_Pair]:
    """All labels, else all points, else all shapes; with an image, the one that overlaps it."""
    if image is not None:
        el.get_image(sdata, image)
    for kind in _KINDS:
        found = [find_element(sdata, name) for name in getattr(sdata, kind)]
        if not found:
            continue
        if image is not None and len(found) > 1:
            found = [e for e in found if e.overlapping(sdata, image, system)] or found
        pairs = [_pair(sdata, e, image, system) for e in found]
        for pair in pairs:
            rivals = [p.element.name for p in pairs if p.image == pair.image]
            if len(rivals) > 1:
                listed = ", ".join(map(repr, rivals))
                msg = f"image {pair.image!r}: which centres? Candidates ({kind}): {listed}; pass centers="
                raise InputError(msg)
        rest = [k for k in _KINDS[_KINDS.index(kind) + 1 :] if len(getattr(sdata, k))]
        if rest:
            others = ", ".join(repr(name) for k in rest for name in getattr(sdata, k))
            log.warning("cell centres: those of all %s; others are there too: %s (centers=)", kind, others)
        return pairs
    msg = (
        "the object has no labels, points or shapes to take cell centres from; add a segmentation, or find "
        "nuclei with nb.pp.detect_nuclei (stain='haematoxylin' for an H&E)"
    )
    raise InputError(msg)


def _pair(sdata: SpatialData, element: CenterElement, image: str | None, system: str | None) -> _Pair:
    if image is not None:
        el.get_image(sdata, image)
        found = element.overlapping(sdata, image, system)
        if found:
            return _Pair(element, image, found[0])
        ours, theirs = el.systems(sdata, element.kind, element.name), el.systems(sdata, "images", image)
        msg = (
            f"{element} and image {image!r} don't overlap in a shared coordinate system (centres: {ours}, "
            f"image: {theirs}); align them with spatialdata.transformations.set_transformation"
        )
        raise InputError(msg)
    name, shared = only_image(
        sdata,
        lambda each: element.overlapping(sdata, each, system),
        system=system,
        what=str(element),
        verb="overlap{}",
        mapping="{element of the centres: image}",
    )
    return _Pair(element, name, shared)


def _image(sdata: SpatialData, name: str, of: str) -> el.ElementImage:
    array = el.get_image(sdata, name)
    return el.ElementImage(f"{of}/{name}" if of else name, array, el.channel_names(array))


def _sample(
    sdata: SpatialData, pair: _Pair, image: el.ElementImage, *, mpp: float | None, of: str, strict: bool
) -> CenterSample:
    element = pair.element
    to_image = el.affine(sdata, "images", pair.image, pair.system)
    matrix = np.linalg.inv(to_image) @ el.affine(sdata, element.kind, element.name, pair.system)
    ids, xy, count = element.read()
    index = (matrix @ np.column_stack([xy, np.ones(len(xy))]).T)[1::-1].T - 0.5
    last = np.array(image.shape) - 0.5 - _SNAP
    near = (np.abs(index - np.clip(index, -0.5, last)) <= 2 * _SNAP).all(axis=1)
    index[near] = np.clip(index[near], -0.5, last)
    kept = np.ones(len(ids), dtype=bool) if strict else ((index >= -0.5) & (index <= last)).all(axis=1)
    sample = CenterSample(
        region=element.name,
        kind=element.kind,
        image_name=pair.image,
        system=pair.system,
        image=image,
        ids=ids[kept],
        centers=np.ascontiguousarray(index[kept]),
        to_world=to_image,
        mpp=el.mpp_of(sdata, "images", pair.image) if mpp is None else mpp,
        count=None if count is None else count[kept],
        of=of,
        outside=int((~kept).sum()),
    )
    check_size(sample.patches, 1)
    return sample
