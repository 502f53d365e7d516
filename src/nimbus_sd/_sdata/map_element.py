"""Score maps while they are made: spooled on the model's grid, seen as a multiscale image."""

from __future__ import annotations

import shutil
import uuid
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import dask.array as da
import numpy as np
import zarr
from spatialdata.models import Image2DModel
from spatialdata.transformations import Affine

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.elements import finest
from nimbus_sd._sdata.resolve import ResolvedSample
from nimbus_sd.arrays import Tile, TilePlan

DTYPES = ("float16", "uint8")
_CHUNK = 1024


@dataclass(frozen=True)
class MapSink:
    """A zarr array on the model's grid that receives tiles from any thread or process.

    Its chunks never straddle two tiles, so that two writers never share one.

    Parameters
    ----------
    path
        Of the array.
    dtype
        ``"float16"``, or ``"uint8"``, which keeps ``round(255 p)``.
    """

    path: Path
    dtype: str

    @classmethod
    def create(cls, path: Path, plan: TilePlan, n_markers: int, dtype: str) -> MapSink:
        """Make the array, or keep the one that an interrupted run of these tiles left.

        Parameters
        ----------
        path
            Of the array; one of another shape, dtype or tiling there is replaced.
        plan
            Tiles of the image.
        n_markers
            Number of markers.
        dtype
            One of :data:`DTYPES`.

        Raises
        ------
        InputError
            If `dtype` is none of them.
        """
        check_dtype(dtype)
        side = _chunk_side(plan.tile)
        shape, chunks = (n_markers, plan.y.model_size, plan.x.model_size), (1, side, side)
        found = _existing(path)
        if found is None or (found.shape, found.chunks, found.dtype) != (shape, chunks, np.dtype(dtype)):
            zarr.create_array(path, shape=shape, chunks=chunks, dtype=dtype, fill_value=0, overwrite=True)
        return cls(path, dtype)

    def write(self, tile: Tile, markers: Sequence[int], probabilities: np.ndarray) -> None:
        """Keep float32 ``(g, y, x)`` probabilities of a tile's core; what is never written stays 0."""
        values = np.rint(probabilities * 255) if self.dtype == "uint8" else probabilities
        values = values.astype(self.dtype)
        array = _open(self.path, (self.path / "zarr.json").stat().st_mtime_ns)
        y, x = (part.slice for part in tile.core)
        first, n = markers[0], len(markers)
        if list(markers) == list(range(first, first + n)):
            array[first : first + n, y, x] = values
            return
        for marker, plane in zip(markers, values, strict=True):
            array[marker, y, x] = plane


def _chunk_side(tile: int) -> int:
    """Largest whole fraction of a tile's side that is no more than 1024 px."""
    parts = -(-tile // _CHUNK)
    while tile % parts:
        parts += 1
    return tile // parts


def _existing(path: Path) -> zarr.Array | None:
    try:
        return zarr.open_array(path, mode="r")
    except (OSError, ValueError):  # none, or what a crash left of one
        return None


@lru_cache(maxsize=16)
def _open(path: Path, made: int) -> zarr.Array:
    """Per process; `made`, a time, tells an array from the one that it replaced."""
    return zarr.open_array(path, mode="r+")


def check_dtype(dtype: str) -> None:
    """Raise :class:`InputError` unless maps can have that dtype."""
    if dtype not in DTYPES:
        msg = f"maps_dtype={dtype!r}; valid: {', '.join(map(repr, DTYPES))}"
        raise InputError(msg)


class _Folder:
    """A folder that goes when nothing holds this object any more, or Python ends."""

    def __init__(self, path: Path) -> None:
        weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)


_folders: WeakValueDictionary[Path, _Folder] = WeakValueDictionary()


class _FullResolution:
    """The map of a sink at the image's resolution (nearest), as something that slices like an array.

    Attributes
    ----------
    owner
        Keeps a temporary folder for as long as there are arrays that read from it.
    """

    def __init__(self, sink: MapSink, plan: TilePlan, shape: tuple[int, ...]) -> None:
        self._sink, self._plan, self.shape = sink, plan, shape
        self._array = zarr.open_array(sink.path, mode="r")
        self.dtype, self.ndim = np.dtype(sink.dtype), len(shape)
        self.owner: _Folder | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # a copy in another process must not remove the folder
        return type(self), (self._sink, self._plan, self.shape)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        c, y, x = (slice(*k.indices(n)) for k, n in zip(key, self.shape, strict=True))
        rows, columns = (
            axis.model_index(s.start, s.stop)[:: s.step] for axis, s in ((self._plan.y, y), (self._plan.x, x))
        )
        if not rows.size or not columns.size:
            return np.zeros((len(range(self.shape[0])[c]), rows.size, columns.size), self.dtype)
        part = np.asarray(self._array[c, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
        return part[:, rows - rows[0]][:, :, columns - columns[0]]


def map_element(sink: MapSink, plan: TilePlan, sample: ResolvedSample, channels: Sequence[str]) -> Any:
    """A lazy multiscale ``Image2DModel`` element on the sample's grid; nothing is read as yet.

    Parameters
    ----------
    sink
        Where the probabilities are; they may still be on their way.
    plan
        Tiles that they came in.
    sample
        Whose labels give the size, and the place in ``sample.pair.system``.
    channels
        Names of the markers.

    Returns
    -------
    DataTree with levels ``(c, y, x)`` of the sink's dtype, each half the size of the one
    before, until the longer side has at most 1024 px; at least two where the image
    has two px along both sides.
    """
    shape = (len(channels), *sample.sample.labels.shape)
    source = _FullResolution(sink, plan, shape)
    lazy = da.from_array(
        source,
        chunks=(1, _CHUNK, _CHUNK),
        name=f"nimbus-map-{uuid.uuid4().hex}",
        meta=np.empty((0, 0, 0), source.dtype),
    )
    matrix = Affine(sample.to_world, input_axes=("x", "y"), output_axes=("x", "y"))
    return Image2DModel.parse(
        lazy,
        dims=("c", "y", "x"),
        c_coords=list(channels),
        transformations={sample.pair.system: matrix},
        scale_factors=[2] * _halvings(shape[1:]) or None,
        chunks=(1, _CHUNK, _CHUNK),  # else multiscales get 256 x 256 px of all markers
    )


def _halvings(shape: tuple[int, ...]) -> int:
    short, long = min(shape), max(shape)
    n = 0
    while short >> (n + 1) and (n == 0 or long >> n > _CHUNK):
        n += 1
    return n


def keep_alive(element: Any, folder: Path) -> None:
    """Let `folder` go with the last array that reads from it, be it of this `element` or of another."""
    owner = _folders.setdefault(folder, _Folder(folder)) if folder not in _folders else _folders[folder]
    for source in _sources(element):
        source.owner = owner


def _sources(element: Any) -> list[_FullResolution]:
    layers = finest(element).data.dask.layers
    originals = [layer for name, layer in layers.items() if name.startswith("original-")]
    return [value for layer in originals for value in layer.values() if isinstance(value, _FullResolution)]
