"""Cell-centred patches in a zarr store: cut once, read in every later pass."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.progress import progress_bar
from nimbus_sd.engine.embedding.image_source import ImagePatches
from nimbus_sd.engine.embedding.patches import PatchSample
from nimbus_sd.engine.embedding.shuffle import draw
from nimbus_sd.engine.readahead import read_ahead

KIND = "nimbus_sd cell patches"
FORMAT = 1
_CHUNK = 4 << 20  # bytes of pixels that are compressed together: some dozens of patches
PATCHES, SAMPLE, ROW = "patches", "sample", "row"
_EVERY_CHUNK: Any = {"write_empty_chunks": True}  # so that a missing one shows


@dataclass(frozen=True)
class StoreSettings:
    """Everything that decides what a store holds.

    Parameters
    ----------
    size
        Side of the patches in px.
    markers
        Their channels.
    dtype
        Of the raw pixels.
    cells
        Number of cells of each element, by its name.
    centers_hash, images_hash
        Hashes of all ids and centres, and of the stored images.
    """

    size: int
    markers: tuple[str, ...]
    dtype: str
    cells: dict[str, int]
    centers_hash: str
    images_hash: str

    @classmethod
    def of(
        cls,
        samples: Sequence[PatchSample],
        markers: Sequence[str],
        size: int,
        dtype: np.dtype,
        *,
        argument: str = "cache",
    ) -> StoreSettings:
        """Describe the patches of some samples; `argument` is what messages call the store's path.

        Raises
        ------
        InputError
            If an image lies in memory, so that a change of its pixels could not be told.
        """
        centers, images = hashlib.sha256(), hashlib.sha256()
        for sample in samples:
            image = sample.image
            if image.fingerprint is None:
                msg = (
                    f"{argument}=: image {image.name!r} lies in memory, so that a later call could not tell "
                    f"whether its pixels changed; write the object and read it back, or leave {argument}= out"
                )
                raise InputError(msg)
            images.update(json.dumps([image.name, image.fingerprint, list(image.channels)]).encode())
            for values in (sample.ids.astype("<i8"), sample.centers.astype("<f8")):
                centers.update(values.tobytes())
        cells = {sample.region: len(sample) for sample in samples}
        return cls(size, tuple(markers), dtype.name, cells, centers.hexdigest(), images.hexdigest())

    def to_dict(self) -> dict[str, Any]:
        """In JSON's types."""
        return {**asdict(self), "markers": list(self.markers)}


@dataclass(frozen=True)
class _Chunk:
    """Some patches of a store, read."""

    sample: np.ndarray
    row: np.ndarray
    patches: np.ndarray

    def fill(self, which: slice, out: np.ndarray, at: np.ndarray) -> None:
        out[at] = self.patches[which]


class StoredPatches:
    """Reads patches from a store, chunk by chunk.

    Parameters
    ----------
    path
        A finished store.
    """

    def __init__(self, path: Path) -> None:
        group = zarr.open_group(path, mode="r")
        self._patches: Any = group[PATCHES]
        self._sample, self._row = (np.asarray(group[name][:]) for name in (SAMPLE, ROW))  # type: ignore[index]

    def groups(self, *, shuffle: bool) -> list[list[slice]]:
        """Every chunk by itself; in the order of the image, so `shuffle` makes no difference."""
        del shuffle
        step, n = self._patches.chunks[0], len(self._row)
        return [[slice(start, min(start + step, n))] for start in range(0, n, step)]

    def reader(self, *, shuffle: bool) -> StoredPatches:
        """Itself, in any order."""
        del shuffle
        return self

    def __call__(self, job: slice) -> _Chunk:
        """Read a chunk."""
        return _Chunk(self._sample[job], self._row[job], np.asarray(self._patches[job]))


def cached_patches(
    path: str | Path,
    samples: Sequence[PatchSample],
    markers: Sequence[str],
    *,
    size: int,
    dtype: np.dtype,
    n_threads: int,
    progress: bool,
    argument: str = "cache",
) -> StoredPatches:
    """Open the store at `path`, and write it before if there is none.

    Messages call the path by the `argument` that the user gave it with.

    Raises
    ------
    InputError
        If `path` holds something else, patches of other cells, channels or pixels, or a store of
        which a part is missing. It is left as it is then.
    """
    path = Path(path)
    settings = StoreSettings.of(samples, markers, size, dtype, argument=argument)
    source = ImagePatches(samples, markers, size)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        _check(path, settings)
    else:
        _write(path, source, settings, n_threads=n_threads, progress=progress)
    return StoredPatches(path)


def _check(path: Path, settings: StoreSettings) -> None:
    advice = "pass another path, or remove it"
    try:
        group = zarr.open_group(path, mode="r")
        attrs = dict(group.attrs)
    except (OSError, ValueError, KeyError) as error:
        msg = f"{path} is no store of cell patches ({type(error).__name__}: {error}); {advice}"
        raise InputError(msg) from error
    if attrs.get("kind") != KIND or attrs.get("format") != FORMAT:
        msg = f"{path} holds {attrs.get('kind') or 'something else'}, format {attrs.get('format')}; {advice}"
        raise InputError(msg)
    there, now = attrs.get("settings"), settings.to_dict()
    if there != now:
        stored = there if isinstance(there, dict) else {}
        differ = ", ".join(k for k, v in now.items() if stored.get(k) != v)
        msg = f"{path} holds patches of other cells, channels or pixels (different: {differ}); {advice}"
        raise InputError(msg)
    for name, shape in _shapes(settings).items():
        found = group.get(name)
        if not isinstance(found, zarr.Array) or found.shape != shape:
            msg = f"{path} is incomplete: it has no array {name!r} of {shape}; {advice}"
            raise InputError(msg)
        if found.nchunks_initialized < found.nchunks:  # zarr would give zeros for the others
            msg = (
                f"{path} is incomplete: {found.nchunks_initialized} of {found.nchunks} chunks of {name!r} "
                f"are there; {advice}"
            )
            raise InputError(msg)


def _shapes(settings: StoreSettings) -> dict[str, tuple[int, ...]]:
    """Of the arrays of a store."""
    n = sum(settings.cells.values())
    return {PATCHES: (n, len(settings.markers), settings.size, settings.size), SAMPLE: (n,), ROW: (n,)}


def _write(
    path: Path, source: ImagePatches, settings: StoreSettings, *, n_threads: int, progress: bool
) -> None:
    """Write under a name that nobody else has, so that a store of this name is always whole.

    Who finds that another was faster drops his own, and takes the other's if it is the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        _fill(part, source, settings, n_threads=n_threads, progress=progress)
        with contextlib.suppress(OSError):
            path.rmdir()  # an empty folder; another's store stays
        try:
            part.rename(path)
        except OSError:
            if not path.is_dir():
                raise
            _check(path, settings)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fill(
    part: Path, source: ImagePatches, settings: StoreSettings, *, n_threads: int, progress: bool
) -> None:
    """Write all patches to a new folder."""
    shapes, dtype = _shapes(settings), np.dtype(settings.dtype)
    n, *shape = shapes[PATCHES]
    step = min(max(_CHUNK // (math.prod(shape) * dtype.itemsize), 1), n)
    group = zarr.create_group(part, zarr_format=3)
    patches = group.create_array(
        PATCHES,
        shape=shapes[PATCHES],
        chunks=(step, *shape),
        dtype=dtype,
        compressors=ZstdCodec(level=1),
        config=_EVERY_CHUNK,
    )
    order = {name: np.empty(shapes[name], np.int64) for name in (SAMPLE, ROW)}
    jobs = [job for each in source.groups(shuffle=False) for job in each]
    opened = read_ahead(source.reader(shuffle=False), jobs, n_threads=n_threads)
    options: dict[str, Any] = {"shape": tuple(shape), "dtype": dtype, "rng": None}
    done = 0
    with progress_bar(n, description="patches", unit="cell", show=progress) as advance:
        for drawn in draw(opened, capacity=step, batch_size=step, **options):
            to = slice(done, done + len(drawn))
            patches[to] = drawn.buffer[drawn.at]
            order[SAMPLE][to], order[ROW][to] = drawn.sample, drawn.row
            done += len(drawn)
            advance(len(drawn))
    for name, values in order.items():
        group.create_array(name, data=values, config=_EVERY_CHUNK)
    group.attrs.update({"kind": KIND, "format": FORMAT, "settings": settings.to_dict()})
