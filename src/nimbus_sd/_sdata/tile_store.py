"""Write training tiles into one zarr store, place by place, so that an interrupted run continues."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from spatialdata import SpatialData
from zarr.codecs import ZstdCodec

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata import tile_format as fmt
from nimbus_sd._sdata.progress import progress_bar
from nimbus_sd._sdata.tile_plan import StorePlan, TileRequest, plan_store
from nimbus_sd._sdata.tile_reader import TileStore
from nimbus_sd.engine.readahead import read_ahead
from nimbus_sd.engine.training.cut import (
    axis_maps,
    read_place_labels,
    read_place_planes,
)

__all__ = ["TileRequest", "write_tiles"]


def write_tiles(sdata: SpatialData, path: str | Path, request: TileRequest) -> TileStore:
    """Write the tiles that are not there yet, and open the store.

    Raises
    ------
    InputError
        If the request is not possible, or `path` holds something else or tiles made
        with other settings. Nothing is written then.
    ElementNotFoundError
        If an element, channel, table or layer does not exist.
    """
    path = Path(path)
    _check_path(path, overwrite=request.overwrite)
    plan = plan_store(sdata, path, request)
    group = _open_or_create(path, plan, overwrite=request.overwrite)
    _write_places(group, plan, n_threads=request.n_threads, progress=request.progress)
    group.attrs["complete"] = True
    return TileStore.open(path)


def _check_path(path: Path, *, overwrite: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    try:
        fmt.open_group(path)
    except InputError as error:
        ours = path.is_dir() and _is_ours(path)
        if overwrite and ours:
            return
        msg = f"{error}. Nothing was written: pass another path" + (", or overwrite=True" if ours else "")
        raise InputError(msg) from error


def _is_ours(path: Path) -> bool:
    try:
        return zarr.open_group(path, mode="r").attrs.get("kind") == fmt.KIND
    except (OSError, ValueError, KeyError):
        return False


def _open_or_create(path: Path, plan: StorePlan, *, overwrite: bool) -> zarr.Group:
    if path.exists() and any(path.iterdir()):
        if overwrite:
            shutil.rmtree(path)
        else:
            _, stored = fmt.open_group(path)
            if stored != plan.settings:
                msg = (
                    f"{path} holds tiles made with other settings or data (there / now): "
                    f"{stored.differences(plan.settings)}. Pass another path, the same settings, or "
                    "overwrite=True"
                )
                raise InputError(msg)
            return zarr.open_group(path, mode="r+")
    return _create(path, plan)


def _create(path: Path, plan: StorePlan) -> zarr.Group:
    """Make the store under another name, so that a store of this name always has all its arrays."""
    s, n = plan.settings, len(plan.places)
    m, e, t = len(s.markers), len(s.extra), s.tile
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    group = zarr.create_group(part, zarr_format=3)

    def add(name: str, shape: tuple[int, ...], dtype: str, **options: Any) -> None:
        group.create_array(name, shape=shape, dtype=dtype, compressors=ZstdCodec(level=1), **options)

    # one file per place: the chunks of its markers share a shard
    add(fmt.IMAGES, (n, m, t, t), s.dtype, chunks=(1, 1, t, t), shards=(1, m, t, t))
    add(fmt.MASKS, (n, t, t), "uint8", chunks=(1, t, t))
    add(fmt.LABELS, (n, t, t), "int32", chunks=(1, t, t))
    if e:
        add(fmt.EXTRA, (n, e, t, t), s.dtype, chunks=(1, e, t, t))
    add(fmt.DEFINED, (n, m), "int32", chunks=(1024, m), fill_value=fmt.NOT_DONE)
    group.create_array(fmt.TARGETS, data=plan.targets, chunks="auto")
    group.create_array(fmt.INSTANCES, data=np.concatenate([c.ids for c in plan.cells]), chunks="auto")
    group.attrs.update(
        {
            "kind": fmt.KIND,
            "format": fmt.FORMAT,
            "settings": asdict(s),
            "hash": s.hash,
            "complete": False,
        }
    )
    if path.exists():
        path.rmdir()
    part.rename(path)
    return zarr.open_group(path, mode="r+")


@dataclass(frozen=True)
class _Cut:
    """One place, ready to be written; without cells there is nothing but its number."""

    index: int
    defined: np.ndarray
    labels: np.ndarray | None = None
    mask: np.ndarray | None = None
    planes: np.ndarray | None = None


def _write_places(group: zarr.Group, plan: StorePlan, *, n_threads: int, progress: bool) -> None:
    defined = np.asarray(group[fmt.DEFINED][:])  # type: ignore[index]
    waiting = [i for i in range(len(plan.places)) if (defined[i] == fmt.NOT_DONE).any()]
    firsts = [0, *accumulate(plan.settings.cells)]
    m = len(plan.settings.markers)

    def cut(index: int) -> _Cut:
        return _cut(plan, index, firsts[plan.places[index][0]])

    with progress_bar(len(plan.places), description="training tiles", unit="tile", show=progress) as advance:
        advance(len(plan.places) - len(waiting))
        for found in read_ahead(cut, waiting, n_threads=n_threads):
            if found.planes is not None and found.labels is not None and found.mask is not None:
                group[fmt.IMAGES][found.index] = found.planes[:m].astype(plan.settings.dtype)  # type: ignore[index]
                if plan.settings.extra:
                    group[fmt.EXTRA][found.index] = found.planes[m:].astype(plan.settings.dtype)  # type: ignore[index]
                group[fmt.MASKS][found.index] = found.mask  # type: ignore[index]
                group[fmt.LABELS][found.index] = found.labels  # type: ignore[index]
            # last, so that a place that is marked as done is whole
            group[fmt.DEFINED][found.index] = found.defined  # type: ignore[index]
            advance(1)


def _cut(plan: StorePlan, index: int, first: int) -> _Cut:
    """Cut one place; its image is read only if it holds a cell with a label."""
    k, place = plan.places[index]
    sample, s = plan.samples[k].sample, plan.settings
    axes = axis_maps(sample.labels.shape, s.factors[k], s.tile)
    nothing = _Cut(index, np.zeros(len(s.markers), np.int32))
    labels = read_place_labels(sample.labels, axes, place, plan.cells[k].ids)
    if labels is None:
        return nothing
    present = np.unique(labels.rows[labels.rows > 0]) - 1
    defined = (plan.targets[first + present] >= 0).sum(axis=0).astype(np.int32)
    if not defined.any():
        return nothing
    planes = read_place_planes(
        sample.image,
        axes,
        place,
        channels=[*s.markers, *s.extra],
        scale=np.array([*s.scale, *s.extra_scale]),
    )
    return _Cut(index, defined, labels.rows, labels.mask, planes)
