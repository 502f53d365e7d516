"""Read rectangles of a zarr array without a dask graph, and recognise the array in another process."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr
from zarr.storage import FsspecStore, LocalStore

from nimbus_sd._core.errors import DataError
from nimbus_sd.arrays import Interval

Grid = tuple[tuple[int, ...], ...]
_LARGE = 128 * 2**20  # bytes; a shard above this is read by its inner chunks
_NAME = "from-zarr-"


def zarr_of(array: da.Array) -> zarr.Array | None:
    """The zarr array that a dask array is an untouched view of; None for anything else.

    Parameters
    ----------
    array
        Untouched is what :func:`dask.array.from_zarr` returns: a graph of the array and
        of one layer that slices it. Anything done to it since adds a layer.
    """
    layers = getattr(getattr(array, "dask", None), "layers", {})
    origin = f"original-{array.name}"
    if not array.name.startswith(_NAME) or set(layers) != {origin, array.name}:
        return None
    if set(layers[origin]) != {origin}:
        return None
    found = layers[origin][origin]
    found = getattr(found, "value", found)  # dask may wrap it as a DataNode
    if not isinstance(found, zarr.Array) or (found.shape, found.dtype) != (array.shape, array.dtype):
        return None
    return found


def grid_of(array: zarr.Array) -> Grid:
    """Sizes along each axis of the pieces that are best read whole, each once.

    A shard, so that its index is read once; its inner chunks where a shard is large.
    """
    size = array.shards
    if size is None or np.prod(size, dtype=np.int64) * array.dtype.itemsize > _LARGE:
        size = array.chunks
    return tuple(
        (c,) * (n // c) + ((n % c,) if n % c else ()) for n, c in zip(array.shape, size, strict=True)
    )


def read_planes(array: zarr.Array, channels: Sequence[int], y: Interval, x: Interval) -> np.ndarray:
    """Return ``(len(channels), y, x)`` of a ``(c, y, x)`` array; every chunk is decoded once.

    Parameters
    ----------
    array
        The image.
    channels
        Positions, in any order.
    y, x
        The rectangle.
    """
    slabs = _slabs(channels, (array.shards or array.chunks)[0])
    if len(slabs) == 1 and list(channels) == list(range(slabs[0].start, slabs[0].stop)):
        return np.asarray(array[slabs[0].slice, y.slice, x.slice])
    out = np.empty((len(channels), y.size, x.size), array.dtype)
    for slab in slabs:
        pixels = np.asarray(array[slab.slice, y.slice, x.slice])
        for i, c in enumerate(channels):
            if slab.start <= c < slab.stop:
                out[i] = pixels[c - slab.start]
    return out


def _slabs(channels: Sequence[int], chunk: int) -> list[Interval]:
    """Runs of channels; two that share a chunk become one, or that chunk would be decoded twice."""
    slabs: list[Interval] = []
    for c in sorted(set(channels)):
        if slabs and (c == slabs[-1].stop or c // chunk == (slabs[-1].stop - 1) // chunk):
            slabs[-1] = Interval(slabs[-1].start, c + 1)
        else:
            slabs.append(Interval(c, c + 1))
    return slabs


def unreadable(
    array: zarr.Array,
    what: str,
    rect: tuple[Interval, Interval],
    error: Exception,
    *,
    planes: Sequence[tuple[int, str]] = (),
) -> DataError:
    """Find the chunk that could not be read and say where it lies.

    Parameters
    ----------
    array
        ``(c, y, x)`` with `planes`, ``(y, x)`` without.
    what
        The element, as the message should name it.
    rect
        What was to be read.
    error
        What reading it raised.
    planes
        Position and name of the channels that were to be read.
    """
    wanted: list[tuple[tuple[slice, ...], str]] = [
        ((slice(c, c + 1),), f", channel {name!r}") for c, name in planes
    ]
    for lead, told in wanted or [((), "")]:
        for y, x in _pieces(array, rect):
            try:
                array[(*lead, y.slice, x.slice)]
            except Exception as again:  # noqa: BLE001 - codecs and stores raise what they like
                return _data_error(f"{what}{told}", (y, x), again)
    return DataError(
        f"{what}, {_place(rect)}: could not be read once ({_cause(error)}), and could when tried again: "
        "check the disk or the network, and run again"
    )


_found: set[str] = set()  # arrays that were there when this process looked


def check_there(array: zarr.Array, what: str) -> None:
    """Raise unless the array's metadata can be found, as zarr reads zeros of an array that is gone.

    Meant for rectangles that are all 0; looks once per array and process.

    Raises
    ------
    DataError
        If it is not there, for instance on a worker that does not see the disk.
    """
    name = str(array.store_path)
    if name in _found:
        return
    try:
        zarr.open_array(array.store_path, mode="r", zarr_format=array.metadata.zarr_format)
    except Exception as error:  # codecs and stores raise what they like
        msg = (
            f"{what}: there is no zarr array at {name} as seen from {platform.node()} ({_cause(error)}), "
            "only zeros would be read. Put the store back, or where every worker can read it by this path"
        )
        raise DataError(msg) from error
    _found.add(name)


def _data_error(what: str, rect: tuple[Interval, Interval], cause: Exception) -> DataError:
    return DataError(
        f"{what}, {_place(rect)}: a chunk can't be read ({_cause(cause)}): restore the file, or crop "
        "the image"
    )


def _place(rect: tuple[Interval, Interval]) -> str:
    return f"y {rect[0].start}–{rect[0].stop}, x {rect[1].start}–{rect[1].stop}"


def _cause(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _pieces(array: zarr.Array, rect: tuple[Interval, Interval]) -> Iterator[tuple[Interval, Interval]]:
    """The chunks that a rectangle touches."""
    rows, columns = (
        [Interval(a, b) for a, b in pairwise([*range(0, n, c), n]) if a < wanted.stop and b > wanted.start]
        for n, c, wanted in zip(array.shape[-2:], array.chunks[-2:], rect, strict=True)
    )
    return ((y, x) for y in rows for x in columns)


def fingerprint_of(array: zarr.Array) -> str | None:
    """Hash of where an array lies, its metadata, and name, size and stamp of each of its chunks.

    None for stores that can't be listed with stamps, such as those in memory. Chunks
    are not read.
    """
    if isinstance(array.store, LocalStore):
        root = Path(array.store.root).resolve()
        where, files = root.as_uri(), _local_files(root / array.path)
    elif isinstance(array.store, FsspecStore):
        fs = blocking(array.store.fs)
        where, files = fs.unstrip_protocol(array.store.path), _remote_files(fs, array)
    else:
        return None
    digest = hashlib.blake2b(digest_size=16)
    metadata = json.dumps(array.metadata.to_dict(), sort_keys=True, default=str)
    for line in (where, array.path, metadata, *sorted(files)):
        digest.update(line.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _local_files(folder: Path) -> Iterator[str]:
    # os.scandir, as a whole slide has hundreds of thousands of chunks
    left = [str(folder)]
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    left.append(entry.path)
                else:
                    stat = entry.stat()
                    yield f"{os.path.relpath(entry.path, folder)} {stat.st_size} {stat.st_mtime_ns}"


def _remote_files(fs: Any, array: zarr.Array) -> Iterator[str]:
    prefix = f"{array.store.path.rstrip('/')}/{array.path}".rstrip("/")  # type: ignore[attr-defined]
    for name, entry in fs.find(prefix, detail=True).items():
        stamps = [entry[k] for k in ("ETag", "etag", "LastModified", "mtime", "created") if entry.get(k)]
        yield f"{name.removeprefix(prefix)} {entry.get('size')} {stamps[:1]}"


def blocking(fs: Any) -> Any:
    """The synchronous twin of the asynchronous file system that a zarr store holds.

    Both forget what they listed before: they don't see each other's writes, nor those of others.
    """
    fs.invalidate_cache()
    if hasattr(fs, "sync_fs"):  # an asynchronous wrapper around one that is not
        twin = fs.sync_fs
    else:
        twin = type(fs)(*fs.storage_args, **(fs.storage_options | {"asynchronous": False}))
    twin.invalidate_cache()
    return twin
