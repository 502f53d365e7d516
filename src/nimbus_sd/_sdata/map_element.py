"""Score maps while they are made: spooled on the model's grid, seen as a multiscale image."""

from __future__ import annotations

import shutil
import uuid
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import dask.array as da
import numpy as np
import zarr
from scipy import sparse
from spatialdata.transformations import Affine
from xarray import Dataset, DataTree

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.levels import element_of_levels
from nimbus_sd._sdata.resolve import ResolvedSample
from nimbus_sd.arrays import AxisMap, Interval, Tile, TilePlan

DTYPES = ("float16", "uint8")
_CHUNK = 1024
_MODEL_SIDE = 2048  # model px that one mean over a large area holds at once, along each axis


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


class _Level:
    """The map of a sink at ``1 / 2**level`` of the image's resolution; slices like an array.

    Each chunk of each level comes straight from the model's grid, in one task: a level made of
    the one above would take a graph of millions of tasks for a slide.

    Attributes
    ----------
    owner
        Keeps a temporary folder for as long as there are arrays that read from it.
    """

    def __init__(self, sink: MapSink, plan: TilePlan, level: int) -> None:
        self._sink, self._plan, self._level = sink, plan, level
        self._array = zarr.open_array(sink.path, mode="r")
        self.shape = (self._array.shape[0], plan.y.size >> level, plan.x.size >> level)
        self.dtype, self.ndim = np.dtype(sink.dtype), 3
        self.owner: _Folder | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # a copy in another process must not remove the folder
        return type(self), (self._sink, self._plan, self._level)

    def __getitem__(self, key: tuple[slice | int, ...]) -> np.ndarray:
        picked = [np.arange(n)[k] for n, k in zip(self.shape, key, strict=True)]
        c, y, x = (np.atleast_1d(p) for p in picked)
        if not (c.size and y.size and x.size):
            return np.zeros([p.size for p in picked if p.ndim], self.dtype)
        spans = [Interval(int(p.min()), int(p.max()) + 1) for p in (c, y, x)]
        block = self._means(*spans) if self._level else self._nearest(*spans)
        block = block[np.ix_(*(p - s.start for p, s in zip((c, y, x), spans, strict=True)))]
        return block[tuple(slice(None) if p.ndim else 0 for p in picked)]

    def _nearest(self, c: Interval, y: Interval, x: Interval) -> np.ndarray:
        rows, columns = self._plan.y.model_index(y.start, y.stop), self._plan.x.model_index(x.start, x.stop)
        part = self._array[c.slice, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return np.asarray(part)[:, rows - rows[0]][:, :, columns - columns[0]]

    def _means(self, c: Interval, y: Interval, x: Interval) -> np.ndarray:
        """Means of ``2**level`` x ``2**level`` px, block by block as they may come from a large area."""
        out = np.empty((c.size, y.size, x.size), self.dtype)
        for rows, row_weights in self._weights(self._plan.y, y):
            for columns, column_weights in self._weights(self._plan.x, x):
                first, last = row_weights.model.slice, column_weights.model.slice
                part = np.asarray(self._array[c.slice, first, last], dtype=np.float32)
                for plane, target in zip(part, out, strict=True):
                    mean = (column_weights.matrix @ (row_weights.matrix @ plane).T).T
                    target[rows, columns] = np.rint(mean) if self.dtype.kind == "u" else mean
        return out

    def _weights(self, axis: AxisMap, span: Interval) -> Iterator[tuple[slice, _Weights]]:
        """For each block along an axis: where it goes, and which model px make it up."""
        n = 2**self._level
        side = max(int(_MODEL_SIDE * axis.factor) // n, 1)
        for start in range(span.start, span.stop, side):
            stop = min(start + side, span.stop)
            index = axis.model_index(start * n, stop * n)
            model = Interval(int(index[0]), int(index[-1]) + 1)
            where = (np.arange(index.size) // n, index - model.start)
            share = np.full(index.size, 1 / n, np.float32)
            matrix = sparse.csr_array((share, where), shape=(stop - start, model.size))
            yield slice(start - span.start, stop - span.start), _Weights(model, matrix)


class _Weights(NamedTuple):
    """Mean of model px along one axis: which px, and a matrix ``(px of the level, model px)``."""

    model: Interval
    matrix: sparse.csr_array


def map_element(sink: MapSink, plan: TilePlan, sample: ResolvedSample, channels: Sequence[str]) -> Any:
    """A lazy multiscale ``Image2DModel`` element on the sample's grid; nothing is read as yet.

    Parameters
    ----------
    sink
        Where the probabilities are; they may still be on their way.
    plan
        Tiles that they came in; it has the size of the sample's labels.
    sample
        Gives the place in ``sample.pair.system``.
    channels
        Names of the markers.

    Returns
    -------
    DataTree with levels ``(c, y, x)`` of the sink's dtype, each half the size of the one
    before (means), until the longer side has at most 1024 px; at least two. A DataArray for
    an image that is one px wide.
    """
    to = {sample.pair.system: Affine(sample.to_world, input_axes=("x", "y"), output_axes=("x", "y"))}
    levels = [_lazy(_Level(sink, plan, i)) for i in range(_halvings((plan.y.size, plan.x.size)) + 1)]
    return element_of_levels(levels, channels=channels, transformations=to)


def _lazy(source: _Level) -> da.Array:
    name, meta = f"nimbus-map-{uuid.uuid4().hex}", np.empty((0, 0, 0), source.dtype)
    return da.from_array(source, chunks=(1, _CHUNK, _CHUNK), name=name, meta=meta, fancy=False)


def _halvings(shape: tuple[int, ...]) -> int:
    short, long = min(shape), max(shape)
    n = 0
    while short >> (n + 1) and (n == 0 or long >> n > _CHUNK):
        n += 1
    return n


def keep_alive(element: Any, folder: Path) -> None:
    """Let `folder` go with the last array that reads from it, be it of this `element` or of another."""
    owner = _folders.get(folder) or _Folder(folder)
    _folders[folder] = owner
    for source in _sources(element):
        source.owner = owner


def _sources(element: Any) -> list[_Level]:
    levels = [element[name].to_dataset() for name in element] if isinstance(element, DataTree) else [element]
    arrays = [next(iter(v.data_vars.values())).data if isinstance(v, Dataset) else v.data for v in levels]
    layers = [(name, layer) for array in arrays for name, layer in array.dask.layers.items()]
    originals = [layer for name, layer in layers if name.startswith("original-")]
    return [value for layer in originals for value in layer.values() if isinstance(value, _Level)]
