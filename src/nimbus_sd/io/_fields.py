"""Images of fields: channels chosen and ordered, checked against each other before any pixel is read."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._core.near import did_you_mean
from nimbus_sd._sdata.plausible_mpp import PIXEL_SIZES
from nimbus_sd.io._discover import FieldFiles
from nimbus_sd.io._names import duplicates, listing, tiff_stem
from nimbus_sd.io._scan import Plane, Scan, scan


@dataclass(frozen=True)
class FieldImage:
    """One field's channels, their planes (same order) and ``(y, x)`` µm per px, if its metadata tells."""

    name: str
    source: Path
    channels: tuple[str, ...]
    planes: tuple[Plane, ...]
    pixel_size: tuple[float, float] | None


def load_field(field: FieldFiles, channels: Sequence[str] | None) -> FieldImage:
    """Read the tags of a field's files.

    Parameters
    ----------
    field
        Its files.
    channels
        The channels to take, in this order; None takes all.

    Raises
    ------
    InputError
        If a channel is missing or there twice, or the channels don't fit each other.
    """
    source = field.files[0].parent if field.per_channel else field.files[0]
    if field.per_channel:
        names = [tiff_stem(file.name) for file in field.files]
        take = _choose(names, channels, field.name, source)
        scans = [_single(scan(field.files[index])) for index in take]
        planes = [found.planes[0] for found in scans]
    else:
        found = scan(field.files[0], omexml=field.omexml)
        check_kind(found)
        names = list(found.names)
        if names == ["channel_0"] and source.parent.name == field.name:
            # a field's folder with one channel: named by its file, as its neighbours with several are
            names = [tiff_stem(source.name)]
        take = _choose(names, channels, field.name, source)
        scans = [found]
        planes = [found.planes[index] for index in take]
    chosen = tuple(names[index] for index in take)
    shapes = {plane.shape for plane in planes}
    if len(shapes) > 1:
        held = listing(f"{name} {plane.shape}" for name, plane in zip(chosen, planes, strict=True))
        msg = (
            f"{source}: the channels of field {field.name!r} differ in shape (y, x): {held}. "
            "Export them again, or leave some out with channels=."
        )
        raise InputError(msg)
    return FieldImage(field.name, source, chosen, tuple(planes), scans[0].pixel_size)


def same_channels(fields: Sequence[FieldImage]) -> list[FieldImage]:
    """Bring all fields to the first one's channel order.

    Raises
    ------
    InputError
        If they don't have the same channels; the message lists the common ones.
    """
    first = fields[0]
    expected = set(first.channels)
    odd = [field for field in fields if set(field.channels) != expected]
    if odd:
        common = [name for name in first.channels if all(name in field.channels for field in fields)]
        differences = listing(
            (
                f"{field.name} lacks {listing(sorted(expected - set(field.channels)))} and has besides "
                f"{listing(sorted(set(field.channels) - expected))}"
                for field in odd
            ),
            limit=4,
        )
        msg = (
            f"{len(odd)} of {len(fields)} fields have other channels than {first.name!r}: {differences}. "
            f"Choose channels that all have with channels=[…]; common: {listing(common, limit=80)}."
        )
        raise InputError(msg)
    ordered = []
    for field in fields:
        places = [field.channels.index(name) for name in first.channels]
        planes = tuple(field.planes[place] for place in places)
        ordered.append(replace(field, channels=first.channels, planes=planes))
    return ordered


def check_arguments(*, mpp: float | None, chunks: int, **names: Sequence[str] | None) -> None:
    """Raise :class:`InputError` for an impossible pixel size or chunk, or a bad list of names."""
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        msg = f"mpp={mpp!r}; valid: µm per px, a number above 0."
        raise InputError(msg)
    if mpp is not None:
        PIXEL_SIZES.check(mpp)
    if chunks < 1:
        msg = f"chunks={chunks!r}; valid: the side of a chunk in px, 1 or more (1024 is a good start)."
        raise InputError(msg)
    for name, given in names.items():
        if given is None:
            continue
        if isinstance(given, str):
            msg = f"{name}={given!r} is one string; give a list of names, for example {name}=[{given!r}]."
            raise InputError(msg)
        if not given or duplicates(given):
            msg = f"{name}={list(given)!r}; valid: one or more names, each once."
            raise InputError(msg)


def field_mpp(field: FieldImage, mpp: float | None) -> float:
    """µm per px of a field: the one given, or the metadata's; warns where they differ by more than 1 %.

    Raises
    ------
    InputError
        If neither is there, or the metadata's is no positive, plausible size of square pixels.
    """
    size = field.pixel_size
    if mpp is None and size is None:
        msg = (
            f"{field.source}: the pixel size of field {field.name!r} is not in its metadata "
            "(OME PhysicalSizeX and PhysicalSizeY). Give it in µm per px, for example mpp=0.5."
        )
        raise InputError(msg)
    if size is not None and not (all(math.isfinite(side) and side > 0 for side in size)):
        size = None
        if mpp is None:
            msg = f"{field.source}: the metadata's pixel size {field.pixel_size} µm is impossible. Give mpp=."
            raise InputError(msg)
    if mpp is None:
        y, x = size or (math.nan, math.nan)
        if not math.isclose(y, x, rel_tol=1e-3):
            msg = (
                f"{field.source}: pixels of {x} by {y} µm (x, y); only square pixels are supported. "
                "Resample the image, or give mpp= if the metadata is wrong."
            )
            raise InputError(msg)
        PIXEL_SIZES.check(x, f"{field.source}: the metadata")
        return x
    if size is not None and not math.isclose(size[1], mpp, rel_tol=0.01):
        warnings.warn(
            f"{field.source}: mpp={mpp:g} was given, the metadata says {size[1]:g} µm per px; using {mpp:g}",
            NimbusWarning,
            stacklevel=3,
        )
    return float(mpp)


def _choose(names: Sequence[str], channels: Sequence[str] | None, fov: str, source: Path) -> list[int]:
    twice = duplicates(names)
    if twice:
        msg = (
            f"{source}: field {fov!r} has more than one channel named {listing(twice)}. "
            "Rename or remove the others."
        )
        raise InputError(msg)
    if channels is None:
        return list(range(len(names)))
    missing = [name for name in channels if name not in names]
    if missing:
        msg = (
            f"{source}: field {fov!r} has no channel {listing(missing)}{did_you_mean(missing, names)}; "
            f"it has: {listing(names, limit=80)}."
        )
        raise InputError(msg)
    return [names.index(name) for name in channels]


def _single(found: Scan) -> Scan:
    check_kind(found)
    if len(found.planes) != 1:
        msg = (
            f"{found.path}: {len(found.planes)} pages or channels; valid: in a folder with one TIFF per "
            "channel, each holds one 2-D image. Put multi-channel files beside each other, not into folders."
        )
        raise InputError(msg)
    return found


def check_kind(found: Scan) -> None:
    """Raise :class:`InputError` unless the file holds intensities: numbers, and no RGB."""
    if found.rgb:
        msg = (
            f"{found.path}: an RGB picture; valid: one intensity per channel and pixel. "
            "Of fluorescence export the raw channels, not a rendered view; an H&E becomes an image with "
            "spatialdata.models.Image2DModel.parse(rgb, dims=('y', 'x', 'c'), ...), or, in a folder of "
            "ORION, with nb.io.read_orion."
        )
        raise InputError(msg)
    for plane in found.planes:
        dtype = np.dtype(plane.stored)
        if dtype.kind not in "iuf":
            msg = f"{found.path}: pixels are {dtype.name}; valid: integer or floating-point intensities."
            raise InputError(msg)
