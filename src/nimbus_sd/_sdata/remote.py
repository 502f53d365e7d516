"""SpatialData objects in object stores (S3 and whatever else fsspec reaches): open them, remember where from.

spatialdata itself reads and writes local stores only: it can't resolve a remote path,
nor print an object that has one. So an object opened here has no ``path``; the store
is remembered beside it.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import anndata as ad
import dask.array as da
import numpy as np
import zarr
from spatialdata import SpatialData
from spatialdata.models import TableModel
from zarr.storage import FsspecStore

from nimbus_sd._core.errors import InputError, MissingExtraError
from nimbus_sd._sdata.levels import element_of_levels
from nimbus_sd._sdata.place import KINDS, as_url
from nimbus_sd._sdata.zarr_source import blocking

log = logging.getLogger("nimbus_sd")

_opened: WeakKeyDictionary[SpatialData, FsspecStore] = WeakKeyDictionary()


def remote_store(url: object, **options: Any) -> FsspecStore:
    """The zarr store at a URL; a UPath's options count, then `options`, then the usual environment.

    Raises
    ------
    MissingExtraError
        If the package for this kind of URL is not installed.
    InputError
        If there is no such kind.
    """
    name = as_url(url)
    if name is None:
        msg = f"{url} is no URL; valid: s3://bucket/data.zarr or another URL that fsspec can open"
        raise InputError(msg)
    known = dict(getattr(url, "storage_options", {}))
    if name.startswith(("s3:", "s3a:")):
        # s3fs asks for the size of every file before it reads it, so as to read parts at once: twice
        # the requests, and chunks are small and come many at once anyway
        known = {"max_concurrency": 1} | known
    try:
        return FsspecStore.from_url(name, storage_options=known | options)
    except ImportError as error:
        msg = f"{name}: {error}"
        raise MissingExtraError(msg) from error
    except ValueError as error:
        msg = f"{name} can't be opened: {error}"
        raise InputError(msg) from error


def url_of(store: FsspecStore) -> str:
    """What to call a store in messages."""
    return str(blocking(store.fs).unstrip_protocol(store.path))


def store_behind(sdata: SpatialData) -> FsspecStore | None:
    """The remote store that an object was opened from; None for all others."""
    if sdata in _opened:
        return _opened[sdata]
    return remote_store(sdata.path) if as_url(sdata.path) else None


def is_remote_store(url: object, **options: Any) -> bool:
    """Whether there is a zarr group at a URL.

    Raises
    ------
    InputError
        If the URL can't be reached.
    """
    store = remote_store(url, **options)
    fs = blocking(store.fs)
    try:
        return any(fs.exists(f"{store.path}/{name}") for name in ("zarr.json", ".zgroup"))
    except Exception as error:  # each kind of file system has its own errors
        raise _unreached(url_of(store), error) from error


def _unreached(url: str, error: Exception) -> InputError:
    return InputError(
        f"{url}: no zarr store can be opened there ({type(error).__name__}: {error}). Check the URL and the "
        "credentials; for servers other than Amazon's set AWS_ENDPOINT_URL"
    )


def open_remote(url: object, **options: Any) -> SpatialData:
    """Open the images, labels and tables of a remote store; images and labels lazily.

    Parameters
    ----------
    url
        ``s3://bucket/data.zarr`` or such, as text or as a UPath.
    options
        For the file system, such as ``endpoint_url=`` or ``anon=True``; by default what
        the environment says (``AWS_ENDPOINT_URL``, ``AWS_PROFILE``, ...).

    Raises
    ------
    InputError
        If there is no SpatialData store, or it can't be reached.
    """
    store = remote_store(url, **options)
    store.fs.invalidate_cache()
    try:
        root = zarr.open_group(store, mode="r")
    except Exception as error:  # each kind of file system has its own errors
        raise _unreached(url_of(store), error) from error
    unread = [f"{kind}/{name}" for kind in ("points", "shapes") for name in _members(root, kind)]
    if unread:
        log.warning("not read from a remote store: %s", ", ".join(unread))
    attrs = root.attrs.asdict()
    if attrs.pop("spatialdata_attrs", None) is None and not any(kind in root for kind in KINDS):
        msg = f"{url_of(store)} is a zarr store without a SpatialData object; valid: what sdata.write makes"
        raise InputError(msg)
    sdata = SpatialData(
        images={name: raster_of(group) for name, group in _members(root, "images").items()},
        labels={name: raster_of(group) for name, group in _members(root, "labels").items()},
        tables={name: _table(group) for name, group in _members(root, "tables").items()},
        attrs=attrs,
    )
    _opened[sdata] = store
    return sdata


def make_remote(url: object, **options: Any) -> SpatialData:
    """Make an empty SpatialData store at a URL, and open it."""
    store = remote_store(url, **options)
    fs, root = blocking(store.fs), store.path.rstrip("/")
    with tempfile.TemporaryDirectory(prefix="nimbus-sd-") as folder:
        empty = Path(folder) / "empty.zarr"
        SpatialData().write(empty)
        files = [file for file in empty.rglob("*") if file.is_file()]
        fs.put([str(f) for f in files], [f"{root}/{f.relative_to(empty).as_posix()}" for f in files])
    return open_remote(url, **options)


def _members(root: zarr.Group, kind: str) -> dict[str, zarr.Group]:
    if kind not in root:
        return {}
    group = root[kind]
    return {n: g for n, g in group.groups() if not n.startswith(".")} if isinstance(group, zarr.Group) else {}


def raster_of(group: zarr.Group) -> Any:
    """A lazy image or labels element from its group in a SpatialData store, by its OME-NGFF metadata."""
    from spatialdata._io._utils import _get_transformations_from_ngff_dict

    attrs = group.attrs.asdict()
    ome: dict[str, Any] = attrs.get("ome", attrs)  # type: ignore[assignment]
    about = ome["multiscales"][0]
    transformations = _get_transformations_from_ngff_dict(about["coordinateTransformations"])
    channels = [c["label"] for c in ome.get("omero", {}).get("channels", [])] or None
    levels = [da.from_zarr(group[dataset["path"]]) for dataset in about["datasets"]]
    return element_of_levels(levels, channels=channels, transformations=transformations)


def _table(group: zarr.Group) -> ad.AnnData:
    table = ad.read_zarr(group)
    about = table.uns.get(TableModel.ATTRS_KEY)
    if about is not None:  # as spatialdata does: what was None is not in the store, lists come as arrays
        for key in ("region", "region_key", "instance_key"):
            about.setdefault(key, None)
        if isinstance(about["region"], np.ndarray):
            about["region"] = about["region"].tolist()
    return table
