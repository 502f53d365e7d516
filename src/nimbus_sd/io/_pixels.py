"""Pixels on demand: array-likes over planes of TIFF files, and the chunks dask should ask them for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import zarr

from nimbus_sd.io._scan import Plane, naming, opened


def read_plane(plane: Plane, rows: slice, columns: slice) -> np.ndarray:
    """Read part of a plane.

    Only the strips or tiles that the part touches are decoded.

    Returns
    -------
    ``(y, x)``, or ``(y, x, 3)`` for RGB, in the file's data type and native byte order.
    """
    native = np.dtype(plane.stored).newbyteorder("=")
    if plane.offset is not None:
        with naming(plane.path):
            raw = np.memmap(plane.path, dtype=plane.stored, mode="r", offset=plane.offset, shape=plane.shape)
            return np.array(raw[rows, columns], dtype=native)
    with opened(plane.path) as tif:
        page: Any = tif.pages[plane.page]
        if plane.level:
            page = page.pages[plane.level - 1]
        whole = all(
            part == slice(0, size, 1) for part, size in zip((rows, columns), plane.shape, strict=True)
        )
        if whole:
            pixels: Any = page.asarray(maxworkers=1)
            pixels = pixels.reshape(page.shape)
        else:
            pixels = zarr.open_array(page.aszarr(), mode="r")
        if len(page.shape) == 2:
            part = pixels[rows, columns]
        elif not plane.planar:
            part = pixels[rows, columns, :3]
        elif plane.sample is None:
            part = np.moveaxis(pixels[:3, rows, columns], 0, -1)
        else:
            part = pixels[plane.sample, rows, columns]
        return np.asarray(part).astype(native, copy=False)


class _Lazy:
    """Array-like of a known shape and type that reads what is asked for and keeps nothing open."""

    shape: tuple[int, ...]
    dtype: np.dtype
    planes: tuple[Plane, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __dask_tokenize__(self) -> tuple[object, ...]:
        return (type(self).__name__, self.dtype.str, self.planes)

    def _slices(self, key: Any) -> tuple[list[slice], tuple[Any, ...]]:
        """Split a basic index into forward slices to read and what is left to do in memory."""
        parts = list(key) if isinstance(key, tuple) else [key]
        if Ellipsis in parts:
            at = parts.index(Ellipsis)
            parts[at : at + 1] = [slice(None)] * (self.ndim - len(parts) + 1)
        parts += [slice(None)] * (self.ndim - len(parts))
        reads: list[slice] = []
        rest: list[Any] = []
        for part, size in zip(parts, self.shape, strict=True):
            if isinstance(part, slice):
                places = range(*part.indices(size))
                low, high = (min(places[0], places[-1]), max(places[0], places[-1]) + 1) if places else (0, 0)
                reads.append(slice(low, high, 1))
                rest.append(slice(None, None, part.step))
            else:
                index = range(size)[part]
                reads.append(slice(index, index + 1, 1))
                rest.append(0)
        return reads, tuple(rest)


class ImageStack(_Lazy):
    """``(c, y, x)`` over one plane per channel; planes of different types are widened to a common one."""

    def __init__(self, planes: Sequence[Plane]) -> None:
        self.planes = tuple(planes)
        self.shape = (len(planes), *planes[0].shape)
        self.dtype = np.result_type(*(np.dtype(plane.stored).newbyteorder("=") for plane in planes))

    def __getitem__(self, key: Any) -> np.ndarray:
        (channels, rows, columns), rest = self._slices(key)
        out = np.empty(
            (channels.stop - channels.start, rows.stop - rows.start, columns.stop - columns.start), self.dtype
        )
        for place, plane in enumerate(self.planes[channels]):
            out[place] = read_plane(plane, rows, columns)
        return out[rest]


class LabelImage(_Lazy):
    """``(y, x)`` over one plane; 24-bit RGB becomes uint32 as R·65536 + G·256 + B."""

    def __init__(self, plane: Plane, *, rgb: bool) -> None:
        self.planes = (plane,)
        self.shape = plane.shape
        self.rgb = rgb
        self.dtype = np.dtype(np.uint32) if rgb else np.dtype(plane.stored).newbyteorder("=")

    def __getitem__(self, key: Any) -> np.ndarray:
        (rows, columns), rest = self._slices(key)
        part = read_plane(self.planes[0], rows, columns)
        if self.rgb:
            wide = part.astype(np.uint32)
            part = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
        return part[rest]


class RgbStack(_Lazy):
    """``(3, y, x)`` over one plane of RGB pixels: the colours are stored together and read together."""

    def __init__(self, plane: Plane) -> None:
        self.planes = (plane,)
        self.shape = (3, *plane.shape)
        self.dtype = np.dtype(plane.stored).newbyteorder("=")

    def __getitem__(self, key: Any) -> np.ndarray:
        (colours, rows, columns), rest = self._slices(key)
        part = read_plane(self.planes[0], rows, columns)[..., colours]
        return np.ascontiguousarray(np.moveaxis(part, -1, 0))[rest]


def chunk_shape(plane: Plane, target: int) -> tuple[int, int]:
    """Choose ``(y, x)`` of dask chunks: about `target` px a side, in whole strips or tiles.

    Strips of an image wider than `target` are kept whole (fewer rows instead),
    because each would be decoded again for every chunk that touches it. A file with
    one compressed strip is one chunk.
    """
    height, width = plane.shape
    if plane.offset is not None:
        return min(target, height), min(target, width)
    rows, columns = (min(side, size) for side, size in zip(plane.native, plane.shape, strict=True))
    wide = columns * max(1, target // columns)
    allowed = target if wide <= target else max(1, target * target // wide)
    tall = rows * max(1, allowed // rows)
    return min(tall, height), min(wide, width)


def as_dask(pixels: ImageStack | LabelImage | RgbStack, target: int) -> da.Array:
    """Wrap an array-like so that one task reads one chunk of one channel, or of all three colours."""
    inner = chunk_shape(pixels.planes[0], target)
    colours = 3 if isinstance(pixels, RgbStack) else 1
    chunks = (colours, *inner) if pixels.ndim == 3 else inner
    meta = np.empty((0,) * pixels.ndim, dtype=pixels.dtype)
    return da.from_array(pixels, chunks=chunks, meta=meta, asarray=False, fancy=False)
