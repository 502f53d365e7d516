"""Cell-centred patches in a zarr store: cut once, read in every later pass."""

from __future__ import annotations

import hashlib
import json
import shutil
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
        cls, samples: Sequence[PatchSample], markers: Sequence[str], size: int, dtype: np.dtype
    ) -> StoreSettings:
        """Describe the patches of some samples.

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
                    f"cache=: image {image.name!r} lies in memory, so that a later call could not tell "
                    "whether its pixels changed; write the object and read it back, or leave cache= out"
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

    def reader(self) -> StoredPatches:
        """Itself."""
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
) -> StoredPatches:
    """Open the store at `path`, and write it before if there is none.

    Raises
    ------
    InputError
        If `path` holds something else, or patches of other cells, channels or pixels. Nothing
        is written then.
    """
    path = Path(path)
    settings = StoreSettings.of(samples, markers, size, dtype)
    source = ImagePatches(samples, markers, size)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        _check(path, settings)
    else:
        _write(path, source, settings, n_threads=n_threads, progress=progress)
    return StoredPatches(path)


def _check(path: Path, settings: StoreSettings) -> None:
    advice = "pass another path, or remove it"
    try:
        attrs = dict(zarr.open_group(path, mode="r").attrs)
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


def _write(
    path: Path, source: ImagePatches, settings: StoreSettings, *, n_threads: int, progress: bool
) -> None:
    """Write under another name, so that a store of this name is always whole."""
    n, c, s = sum(settings.cells.values()), len(settings.markers), settings.size
    dtype = np.dtype(settings.dtype)
    step = min(max(_CHUNK // (c * s * s * dtype.itemsize), 1), n)
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    group = zarr.create_group(part, zarr_format=3)
    patches = group.create_array(
        PATCHES,
        shape=(n, c, s, s),
        chunks=(step, c, s, s),
        dtype=dtype,
        compressors=ZstdCodec(level=1),
    )
    sample, row = np.empty(n, np.int64), np.empty(n, np.int64)
    jobs = [job for each in source.groups(shuffle=False) for job in each]
    opened = read_ahead(source.reader(), jobs, n_threads=n_threads)
    done = 0
    with progress_bar(n, description="patches", unit="cell", show=progress) as advance:
        for drawn in draw(opened, shape=(c, s, s), dtype=dtype, capacity=step, batch_size=step, rng=None):
            to = slice(done, done + len(drawn))
            patches[to] = drawn.buffer[drawn.at]
            sample[to], row[to] = drawn.sample, drawn.row
            done += len(drawn)
            advance(len(drawn))
    group.create_array(SAMPLE, data=sample)
    group.create_array(ROW, data=row)
    group.attrs.update({"kind": KIND, "format": FORMAT, "settings": settings.to_dict()})
    if path.exists():
        path.rmdir()
    part.rename(path)
