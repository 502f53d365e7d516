"""Copies of a source: into memory, or into ``.npy`` files for a node without zarr."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.training.array_source import FORMAT, INDEX_FILE, ArraySource
from nimbus_sd.engine.training.sources import FieldKey, TileSource, TrainTile, check_tile


def in_memory(source: TileSource, *, splits: Mapping[FieldKey, str] | None = None) -> ArraySource:
    """Copy a source's tiles into memory, float32.

    Parameters
    ----------
    source
        All of one size; tiles of one place (same field, labels and mask) should follow each other.
    splits
        See :class:`ArraySource`; None takes over the source's own.
    """
    found = _Places()
    images, masks, labels, extra = [], [], [], []
    for tile in (source.tile(i) for i in range(len(source))):
        check_tile(tile)
        images.append(np.asarray(tile.image, np.float32))
        if found.add(tile, source):
            masks.append(np.asarray(tile.mask, np.uint8))
            labels.append(np.asarray(tile.labels, np.int32))
            extra.append(tile.extra)
    planes = None if not extra or extra[0] is None else np.stack([e for e in extra if e is not None])
    return ArraySource(
        images=np.stack(images),
        masks=np.stack(masks),
        labels=np.stack(labels),
        extra=planes,
        groups=source.groups,
        field_keys=tuple(found.fields),
        splits=_splits(source) if splits is None else splits,
        preprocessing=source.preprocessing,
        **found.columns(),
    )


def write_npy(
    source: TileSource,
    folder: str | Path,
    *,
    splits: Mapping[FieldKey, str] | None = None,
    dtype: str = "float16",
) -> ArraySource:
    """Write a source's tiles to ``.npy`` files, one tile in memory at a time.

    Parameters
    ----------
    source
        See :func:`in_memory`.
    folder
        Must not hold files; it appears under this name only when it is complete.
    splits
        See :class:`ArraySource`; None takes over the source's own.
    dtype
        Of the images: ``"float16"`` keeps 11 bits, ``"float32"`` all.

    Returns
    -------
    The folder, opened.

    Raises
    ------
    InputError
        If the folder holds files already.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        msg = f"{folder} is not empty; write the tiles into a new folder"
        raise InputError(msg)
    half = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    found = _Places()
    n = len(source)
    maps: dict[str, Any] = {}
    for i in range(n):
        tile = source.tile(i)
        check_tile(tile)
        if not maps:
            maps = _open_maps(half, n, tile, dtype)
        maps["images"][i] = tile.image
        if found.add(tile, source):
            p = len(found.place_field) - 1
            maps["masks"][p], maps["labels"][p] = tile.mask, tile.labels
            if tile.extra is not None:
                maps["extra"][p] = tile.extra
    for array in maps.values():
        array.flush()
    places = len(found.place_field)
    for name in ("masks", "labels", "extra"):
        if name in maps and places < n:
            _shorten(half / f"{name}.npy", places)
    columns = {k: v for k, v in found.columns().items() if v is not None}
    for name, column in columns.items():
        np.save(half / f"{name}.npy", column)
    own = _splits(source) if splits is None else splits
    index = {
        "format": FORMAT,
        "arrays": sorted({*maps, *columns}),
        "groups": source.groups,
        "fields": [[*key, own.get(key, "")] for key in found.fields],
        "preprocessing": asdict(source.preprocessing),
    }
    (half / INDEX_FILE).write_text(json.dumps(index, indent=1, ensure_ascii=False), encoding="utf-8")
    if folder.exists():
        folder.rmdir()
    half.rename(folder)
    return ArraySource.open(folder)


def _open_maps(folder: Path, n: int, tile: TrainTile, dtype: str) -> dict[str, Any]:
    """Files for `n` tiles at `n` places; they are sparse until written, and shortened at the end."""
    shape = tile.image.shape
    kinds: dict[str, tuple[str, tuple[int, ...]]] = {
        "images": (dtype, shape),
        "masks": ("uint8", shape),
        "labels": ("int32", shape),
    }
    if tile.extra is not None:
        kinds["extra"] = (dtype, tile.extra.shape)
    return {
        name: open_memmap(folder / f"{name}.npy", "w+", dtype=kind, shape=(n, *rest))
        for name, (kind, rest) in kinds.items()
    }


def _shorten(path: Path, rows: int) -> None:
    """Keep the first rows of an ``.npy`` file, place by place."""
    old = np.load(path, mmap_mode="r")
    part = path.with_suffix(".part")
    new = open_memmap(part, "w+", dtype=old.dtype, shape=(rows, *old.shape[1:]))
    for i in range(rows):
        new[i] = old[i]
    new.flush()
    del old, new
    part.replace(path)


def _splits(source: TileSource) -> dict[FieldKey, str]:
    return dict(getattr(source, "splits", {}))


class _Places:
    """Columns of an ArraySource, grown tile by tile."""

    def __init__(self) -> None:
        self.place: list[int] = []
        self.group: list[int] = []
        self.targets: list[NDArray[Any]] = []
        self.place_field: list[int] = []
        self.fields: dict[FieldKey, int] = {}
        self._last: TrainTile | None = None
        self._context: dict[int, NDArray[Any]] = {}
        self._n_groups = 0

    def add(self, tile: TrainTile, source: TileSource) -> bool:
        """Note a tile; whether it opens a new place."""
        self._n_groups = len(source.groups)
        group = source.groups.index((tile.dataset, tile.marker))
        new = self._last is None or not _same_place(self._last, tile)
        if new:
            key = (tile.dataset, tile.field)
            self.place_field.append(self.fields.setdefault(key, len(self.fields)))
            self._last = tile
        self.place.append(len(self.place_field) - 1)
        self.group.append(group)
        self.targets.append(np.asarray(tile.target, np.float32))
        if tile.context is not None:
            self._context[group] = np.asarray(tile.context, np.float32)
        return new

    def columns(self) -> dict[str, Any]:
        """Arrays by name."""
        context = None
        if self._context:
            width = len(next(iter(self._context.values())))
            context = np.zeros((self._n_groups, width), np.float32)
            for group, vector in self._context.items():
                context[group] = vector
        return {
            "place": np.array(self.place, np.int64),
            "group": np.array(self.group, np.int64),
            "targets": np.concatenate(self.targets),
            "starts": np.concatenate([[0], np.cumsum([len(t) for t in self.targets])]).astype(np.int64),
            "place_field": np.array(self.place_field, np.int64),
            "context": context,
        }


def _same_place(a: TrainTile, b: TrainTile) -> bool:
    return (
        (a.dataset, a.field) == (b.dataset, b.field)
        and np.array_equal(a.labels, b.labels)
        and np.array_equal(a.mask, b.mask)
    )
