"""Look up images and labels of a SpatialData object and read rectangles of them lazily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata.pixel_size import mpp_from_common
from nimbus_sd._sdata.zarr_source import (
    check_there,
    fingerprint_of,
    grid_of,
    read_planes,
    unreadable,
    zarr_of,
)
from nimbus_sd.arrays import Interval

MICRONS = "microns"
ATTRS_KEY = "nimbus_sd"


def finest(element: Any) -> xr.DataArray:
    """The full-resolution array of a single-scale or multiscale element."""
    if not isinstance(element, xr.DataTree):
        return element
    scale = element[next(iter(element.children))].to_dataset()
    return next(iter(scale.data_vars.values()))


def get_image(sdata: SpatialData, name: str) -> xr.DataArray:
    """Full-resolution ``(c, y, x)`` image; errors name the valid ones."""
    if name not in sdata.images:
        msg = f"no image {name!r} in the object; images: {_names(sdata.images)}"
        raise ElementNotFoundError(msg)
    array = finest(sdata.images[name])
    if array.dims != ("c", "y", "x"):
        msg = f"image {name!r} has dimensions {array.dims}; valid: (c, y, x); take one plane of a stack"
        raise InputError(msg)
    if array.dtype.kind not in "uifb":
        msg = f"image {name!r} has dtype {array.dtype}; valid: integers, float16, float32, float64"
        raise InputError(msg)
    return array


def get_labels(sdata: SpatialData, name: str) -> xr.DataArray:
    """Full-resolution ``(y, x)`` integer labels; errors name the valid ones."""
    if name not in sdata.labels:
        msg = f"no labels {name!r} in the object; labels: {_names(sdata.labels)}"
        raise ElementNotFoundError(msg)
    array = finest(sdata.labels[name])
    if array.dims != ("y", "x"):
        msg = f"labels {name!r} have dimensions {array.dims}; valid: (y, x); take one plane of a stack"
        raise InputError(msg)
    if array.dtype.kind not in "uib":
        msg = (
            f"labels {name!r} have dtype {array.dtype}; valid: integers, 0 = background. "
            "Cast them with .astype('uint32') and store them again"
        )
        raise InputError(msg)
    return array


def _names(elements: Any) -> str:
    return ", ".join(map(repr, elements)) or "none"


def channel_names(image: xr.DataArray) -> tuple[str, ...]:
    """Channel names as strings; their positions where the image has none."""
    names = image.coords["c"].values if "c" in image.coords else range(len(image))
    return tuple(str(c) for c in names)


def affine(sdata: SpatialData, kind: str, name: str, system: str) -> np.ndarray:
    """3 x 3 matrix from the element's full-resolution (x, y) to a coordinate system."""
    transformation = get_transformation(getattr(sdata, kind)[name], to_coordinate_system=system)
    return transformation.to_affine_matrix(input_axes=("x", "y"), output_axes=("x", "y"))


def systems(sdata: SpatialData, kind: str, name: str) -> list[str]:
    """Coordinate systems of an element."""
    return list(get_transformation(getattr(sdata, kind)[name], get_all=True))


def shared_systems(ours: Sequence[str], theirs: Sequence[str]) -> list[str]:
    """Coordinate systems of both elements; ``"microns"`` only if it is all that either of them has.

    Every field lies at 0 in micrometres, so they pair only what has nothing else.
    """
    shared = [s for s in ours if s in theirs]
    others = [s for s in shared if s != MICRONS]
    return others or (shared if {MICRONS} in (set(ours), set(theirs)) else [])


def own_attrs(sdata: SpatialData) -> dict[str, Any]:
    """Return a copy of what this package keeps in ``sdata.attrs``: pixel size, names of score maps.

    Raises
    ------
    InputError
        If something else is stored under that key.
    """
    own = sdata.attrs.get(ATTRS_KEY, {})
    if not isinstance(own, dict):
        msg = f"sdata.attrs[{ATTRS_KEY!r}] is {own!r}; it must be a dict, for instance {{'mpp': 0.5}}"
        raise InputError(msg)
    return dict(own)


def mpp_of(sdata: SpatialData, kind: str, name: str) -> float | None:
    """µm per px from the transformation to ``"microns"``, else from ``sdata.attrs``; None if neither knows.

    What ``sdata.attrs`` holds is the size of px on the grid that the object was read on; an element
    that another transformation brings there has px of another size.

    Raises
    ------
    InputError
        If the pixels are not square, or it is not clear which grid ``sdata.attrs`` speaks of.
    """
    if MICRONS in systems(sdata, kind, name):
        linear = affine(sdata, kind, name, MICRONS)[:2, :2]
        sides = np.linalg.norm(linear, axis=0)
        if not np.isclose(sides[0], sides[1], rtol=0.01):
            msg = (
                f"{kind} {name!r}: pixels are {sides[0]:g} x {sides[1]:g} µm, not square; resample the "
                "element, or pass mpp= if the transformation is wrong"
            )
            raise InputError(msg)
        return float(sides.mean())
    stored = own_attrs(sdata).get("mpp")
    if stored is None:
        return None
    if isinstance(stored, bool) or not isinstance(stored, int | float | np.number) or not stored > 0:
        msg = f"sdata.attrs[{ATTRS_KEY!r}]['mpp'] is {stored!r}; it must be a positive number of µm per px"
        raise InputError(msg)
    return mpp_from_common(sdata, kind, name, float(stored), microns=MICRONS)


def _stored(array: Any) -> Any:
    """The zarr array behind an element where there is one, else its dask or NumPy array."""
    pixels = array.data if isinstance(array, xr.DataArray) else array
    found = zarr_of(pixels) if isinstance(pixels, da.Array) else None
    return pixels if found is None else found


def _compute(array: Any) -> np.ndarray:
    # readers are threads already: dask must not start more, nor use a distributed client
    return array.compute(scheduler="synchronous") if isinstance(array, da.Array) else np.asarray(array)


@dataclass(frozen=True)
class ElementImage:
    """An image element as an :class:`~nimbus_sd.engine.source.ImageSource`.

    Parameters
    ----------
    name
        For messages.
    array
        ``(c, y, x)``; of a DataArray only the pixels are kept. Where they lie in a zarr
        array as they are, they are read from there, with no dask graph to cull or send.
    channels
        One name per channel.
    """

    name: str
    array: Any = field(repr=False)
    channels: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "array", _stored(self.array))

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) px."""
        return self.array.shape[1], self.array.shape[2]

    @property
    def dtype(self) -> np.dtype:
        """Pixel dtype."""
        return self.array.dtype

    @cached_property
    def chunks(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Chunk sizes along c, y, x."""
        if isinstance(self.array, zarr.Array):
            c, y, x = grid_of(self.array)
            return c, y, x
        if isinstance(self.array, da.Array):
            return self.array.chunks
        c, y, x = ((n,) for n in self.array.shape)
        return c, y, x

    @cached_property
    def fingerprint(self) -> str | None:
        """Hash that changes when the stored pixels do; None in memory."""
        return fingerprint_of(self.array) if isinstance(self.array, zarr.Array) else None

    def read(self, channels: list[int], y: Interval, x: Interval) -> np.ndarray:
        """Return ``(len(channels), y, x)`` pixels.

        Raises
        ------
        DataError
            If a chunk can't be read or decoded, or the store is not there.
        """
        if isinstance(self.array, zarr.Array):
            try:
                pixels = read_planes(self.array, channels, y, x)
            except MemoryError:
                raise
            except Exception as error:  # codecs and stores raise what they like
                planes = [(c, self.channels[c]) for c in channels]
                raise unreadable(self.array, f"image {self.name!r}", (y, x), error, planes=planes) from error
            if not pixels.any():
                check_there(self.array, f"image {self.name!r}")
            return pixels
        first, last = min(channels), max(channels)
        contiguous = channels == list(range(first, last + 1))
        index = slice(first, last + 1) if contiguous else channels
        return _compute(self.array[index, y.slice, x.slice])


@dataclass(frozen=True)
class ElementLabels:
    """A labels element as a :class:`~nimbus_sd.engine.source.LabelSource`; `array` as in an image's."""

    name: str
    array: Any = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "array", _stored(self.array))

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) px."""
        return self.array.shape[0], self.array.shape[1]

    @property
    def dtype(self) -> np.dtype:
        """Label dtype."""
        return self.array.dtype

    @cached_property
    def fingerprint(self) -> str | None:
        """Hash that changes when the stored ids do; None in memory."""
        return fingerprint_of(self.array) if isinstance(self.array, zarr.Array) else None

    def read(self, y: Interval, x: Interval) -> np.ndarray:
        """Return ``(y, x)`` label ids.

        Raises
        ------
        DataError
            If a chunk can't be read or decoded, or the store is not there.
        """
        if not isinstance(self.array, zarr.Array):
            return _compute(self.array[y.slice, x.slice])
        try:
            ids = np.asarray(self.array[y.slice, x.slice])
        except MemoryError:
            raise
        except Exception as error:  # codecs and stores raise what they like
            raise unreadable(self.array, f"labels {self.name!r}", (y, x), error) from error
        if not ids.any():
            check_there(self.array, f"labels {self.name!r}")
        return ids
