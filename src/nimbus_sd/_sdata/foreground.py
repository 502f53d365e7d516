"""Images without their background, lazily: by probabilities, or by the density of counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.derived import dask_of, source_images
from nimbus_sd._sdata.elements import affine, channel_names, get_image, systems
from nimbus_sd.arrays import Interval, check_pixels
from nimbus_sd.arrays.background import disc_areas, disc_rows, disc_sums
from nimbus_sd.engine.noise import NOT_WHOLE, are_whole

_FULL_SCALE = {"uint8": 255, "uint16": 65_535}


@dataclass(frozen=True)
class Probability:
    """Where the probabilities of one image lie.

    Attributes
    ----------
    image
        Name of the image with probabilities.
    channel
        Its channel that serves for all; None: one by the name of each.
    """

    image: str
    channel: str | None


def probabilities(
    sdata: SpatialData,
    image: str | Sequence[str] | None,
    probability: str | Mapping[str, str] | None,
    *,
    channel: str | None,
) -> dict[str, Probability]:
    """Which image has its probabilities where.

    Parameters
    ----------
    sdata
        The object.
    image
        Name or names; None takes those that `probability` names, or the one image on the
        same grid.
    probability, channel
        As in :func:`nimbus_sd.pp.remove_background`.

    Raises
    ------
    ElementNotFoundError
        If an image does not exist.
    InputError
        If it is open which belong together, they are not on one grid, or values can't be
        probabilities.
    """
    if probability is None:
        if channel is not None:
            msg = f"probability_channel={channel!r} without probability=; name the image with probabilities"
            raise InputError(msg)
        return {}
    pairs = dict(probability) if isinstance(probability, Mapping) else _one(sdata, image, probability)
    wanted = list(pairs) if image is None else source_images(sdata, image)
    missing = [each for each in wanted if each not in pairs]
    unused = [each for each in pairs if each not in wanted]
    if missing or unused or not pairs:
        what = f"lacks {missing}" if missing else f"names {unused}, which image= leaves out"
        msg = f"probability= {what}; give {{image: image with probabilities}} for the same images"
        raise InputError(msg)
    return {each: _checked(sdata, each, pairs[each], channel) for each in wanted}


def _one(sdata: SpatialData, image: str | Sequence[str] | None, probability: str) -> dict[str, str]:
    shape = get_image(sdata, probability).shape[1:]
    if image is None:
        others = [n for n in source_images(sdata, None) if n != probability]
        names = [n for n in others if get_image(sdata, n).shape[1:] == shape and _same(sdata, n, probability)]
    else:
        names = source_images(sdata, image)
    if len(names) != 1:
        told = ", ".join(map(repr, names)) or "none"
        msg = (
            f"probability={probability!r}: of which image? Candidates: {told}; pass image=, or "
            "probability={image: image with probabilities}"
        )
        raise InputError(msg)
    return {names[0]: probability}


def _same(sdata: SpatialData, one: str, other: str) -> bool:
    """Whether two images lie on each other in a coordinate system that both have."""
    shared = set(systems(sdata, "images", one)) & set(systems(sdata, "images", other))
    return any(
        np.allclose(affine(sdata, "images", one, s), affine(sdata, "images", other, s)) for s in shared
    )


def _checked(sdata: SpatialData, image: str, probability: str, channel: str | None) -> Probability:
    source, found = get_image(sdata, image), get_image(sdata, probability)
    if source.shape[1:] != found.shape[1:] or not _same(sdata, image, probability):
        msg = (
            f"images {image!r} {source.shape[1:]} and {probability!r} {found.shape[1:]} are not on the same "
            "pixel grid of a shared coordinate system; resample the probabilities, or set the transformation"
        )
        raise InputError(msg)
    names = channel_names(found)
    if found.dtype.kind != "f" and found.dtype.name not in _FULL_SCALE:
        msg = (
            f"image {probability!r} has dtype {found.dtype}, which can't hold probabilities; valid: floats "
            "in [0, 1], uint8 (255 = 1), uint16 (65535 = 1)"
        )
        raise InputError(msg)
    if channel is not None and channel not in names:
        msg = f"image {probability!r} has no channel {channel!r}; valid: {', '.join(names)}"
        raise InputError(msg)
    return Probability(probability, names[0] if channel is None and len(names) == 1 else channel)


def likely_pixels(
    sdata: SpatialData,
    image: str,
    probability: Probability,
    channels: Sequence[str],
    *,
    threshold: float,
    of: str,
) -> da.Array:
    """Pixels of an image with 0 in `channels` wherever it is background; lazy.

    Raises
    ------
    InputError
        If the probabilities lack a channel; when they are read, if they lie outside [0, 1].
    """
    source = get_image(sdata, image)
    found, pixels = get_image(sdata, probability.image), dask_of(source)
    names = channel_names(found)
    missing = [c for c in channels if c not in names]
    if probability.channel is None and missing:
        msg = (
            f"image {probability.image!r} has no probabilities for {missing}; it has: {', '.join(names)}. "
            "Name one that serves for all with probability_channel=, or choose channels="
        )
        raise InputError(msg)
    out = []
    for c, plane in zip(channel_names(source), pixels, strict=True):
        if c not in channels:
            out.append(plane)
            continue
        given = dask_of(found)[names.index(probability.channel or c)].rechunk(plane.chunks)
        out.append(
            da.map_blocks(
                _keep_likely,
                plane,
                given,
                threshold=threshold,
                of=of,
                where=f"image {probability.image!r}, channel {probability.channel or c!r}",
                dtype=plane.dtype,
                meta=np.empty((0, 0), plane.dtype),
            )
        )
    return da.stack(out).rechunk(pixels.chunks)


def _keep_likely(
    plane: np.ndarray, given: np.ndarray, *, threshold: float, of: str, where: str
) -> np.ndarray:
    share = given if given.dtype.kind == "f" else given / _FULL_SCALE[given.dtype.name]
    if not ((share >= 0) & (share <= 1)).all():
        msg = f"{where}: holds values outside [0, 1], which are no probabilities; rescale the image"
        raise InputError(msg)
    keep = share > threshold if of == "foreground" else share <= threshold
    return np.where(keep, plane, np.zeros((), plane.dtype))


def dense_pixels(source: xr.DataArray, name: str, min_count: Mapping[str, int], *, radius: float) -> da.Array:
    """Pixels of an image with 0 wherever too few other counts are near; lazy.

    Parameters
    ----------
    source
        ``(c, y, x)`` whole numbers.
    name
        Of the image, for messages.
    min_count
        By channel; those that are missing stay as they are.
    radius
        px.
    """
    pixels, names = dask_of(source), channel_names(source)
    depth = {0: 0, 1: int(radius), 2: int(radius)}
    short = {i: min(int(radius), pixels.shape[i]) for i in (1, 2)}
    near = da.map_overlap(
        _disc_sums,
        pixels,
        depth=depth | short,
        boundary=0,
        radius=radius,
        image=name,
        dtype=np.int64,
        meta=np.empty((0, 0, 0), np.int64),
    )
    area = da.map_blocks(
        _areas,
        chunks=((1,), *near.chunks[1:]),
        shape=pixels.shape[1:],
        radius=radius,
        dtype=np.int64,
        meta=np.empty((0, 0, 0), np.int64),
    )
    full = sum(2 * half + 1 for _, half in disc_rows(radius))
    needed = np.array([min_count.get(c, 0) for c in names], dtype=np.int64)[:, None, None]
    # whole numbers on both sides, so that no rounding decides
    keep = (near - 1) * full >= da.from_array(needed, chunks=(near.chunks[0], 1, 1)) * area
    keep |= da.from_array(needed == 0, chunks=(near.chunks[0], 1, 1))
    return da.where(keep, pixels, np.zeros((), pixels.dtype)).rechunk(pixels.chunks)


def _disc_sums(counts: np.ndarray, *, radius: float, image: str) -> np.ndarray:
    try:
        check_pixels(counts)
    except InputError as error:
        msg = f"image {image!r}: {error}"
        raise InputError(msg) from error
    if not are_whole(counts):
        msg = f"image {image!r}: {NOT_WHOLE}"
        raise InputError(msg)
    return disc_sums(counts, radius=radius).astype(np.int64)


def _areas(*, shape: tuple[int, int], radius: float, block_info: Any = None) -> np.ndarray:
    (_, y, x) = (Interval(*span) for span in block_info[None]["array-location"])
    return disc_areas(shape, radius=radius, y=y, x=x)[None]
