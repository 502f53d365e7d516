"""Score maps in the object and in its store: their names, and how one gets there whole or not at all."""

from __future__ import annotations

import shutil
import uuid
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import spatialdata as sd
import zarr
from spatialdata import SpatialData
from spatialdata._io.format import SpatialDataContainerFormatV01

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata.elements import ATTRS_KEY, own_attrs
from nimbus_sd._sdata.map_element import DTYPES, MapSink, check_dtype, keep_alive, map_element
from nimbus_sd._sdata.persist import _MARK, _clean_up, _take_back, put_in_place
from nimbus_sd._sdata.resolve import ResolvedSample

__all__ = [
    "DTYPES",
    "MapSink",
    "check_dtype",
    "keep_alive",
    "map_element",
    "map_name",
    "persist_map",
    "remember_maps",
]

_WRITERS = 2  # threads; each holds a few chunks


def map_name(base: str, sample: ResolvedSample, n_samples: int) -> str:
    """Element name: `base`, with the labels' name when there are several samples."""
    return base if n_samples == 1 else f"{base}_{sample.pair.labels}"


def persist_map(sdata: SpatialData, name: str) -> None:
    """Write ``sdata.images[name]`` into the object's local store; a crash leaves the old one or the new.

    spatialdata's writer writes it, chunk by chunk and in this process, into a hidden sibling;
    then old and new trade places (in one step where the system can), and the consolidated
    metadata are refreshed. An error before that puts the old one back. The element in
    memory is read from the store afterwards, so that what it read from until then can go.

    Parameters
    ----------
    sdata
        Backed by a zarr store on a local disk.
    name
        Map to write; one of that name on disk is replaced.

    Raises
    ------
    ElementNotFoundError
        If the object has no such image.
    InputError
        If it has no local store.
    """
    if name not in sdata.images:
        msg = f"no image {name!r} in the object; it has: {', '.join(sdata.images) or '(none)'}"
        raise ElementNotFoundError(msg)
    store = _local_store(sdata, name)
    zarr.open_group(store, mode="r+", use_consolidated=False).require_group("images")
    target = store / "images" / name
    _clean_up(target.parent, name)
    sibling = target.with_name(f".{name}.{uuid.uuid4().hex}.{_MARK}")
    try:
        new = _write_alone(sdata.images[name], name, sibling / "store.zarr", like=store)
        replaced = put_in_place(new, target)
        try:
            if sdata.has_consolidated_metadata():
                sdata.write_consolidated_metadata()
        except BaseException:
            _take_back(new, target, replaced=replaced)
            raise
    finally:
        shutil.rmtree(sibling, ignore_errors=True)
    with warnings.catch_warnings():
        # who opened the object was told of its format then
        warnings.filterwarnings("ignore", message=".*most current format", category=UserWarning)
        stored = sd.read_zarr(store, selection=("images",)).images[name]
    del sdata.images[name]
    sdata.images[name] = stored


def _local_store(sdata: SpatialData, name: str) -> Path:
    if sdata.path is None or not Path(str(sdata.path)).is_dir():
        msg = (
            f"{sdata.path or 'the object'}: no zarr store on a local disk, so image {name!r} has no place to "
            "go. Write the object first: sdata.write('data.zarr')."
        )
        raise InputError(msg)
    return Path(str(sdata.path))


def _write_alone(element: Any, name: str, folder: Path, *, like: Path) -> Path:
    """Write an image as a store of its own, in the zarr format of the store it is for."""
    options: dict[str, Any] = {"consolidate_metadata": False}
    if zarr.open_group(like, mode="r", use_consolidated=False).metadata.zarr_format == 2:
        options["sdata_formats"] = SpatialDataContainerFormatV01()
    # here and not on a cluster: the pixels may lie where its workers can't see them
    with warnings.catch_warnings(), dask.config.set(scheduler="threads", num_workers=_WRITERS):
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        SpatialData(images={name: element}).write(folder, **options)
    return folder / "images" / name


def remember_maps(sdata: SpatialData, names: Sequence[str]) -> None:
    """Note in ``sdata.attrs`` which images are score maps, so that pairing leaves them out."""
    own = own_attrs(sdata)
    own["maps"] = sorted({*own.get("maps", []), *names})
    sdata.attrs[ATTRS_KEY] = own
