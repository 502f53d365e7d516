"""Open a SpatialData store, on a local disk or behind a URL."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.place import as_local, as_url

if TYPE_CHECKING:
    from spatialdata import SpatialData


def is_store(path: str | PathLike[str], storage_options: Mapping[str, Any] | None = None) -> bool:
    """Whether there is a zarr group at a local path or a URL.

    Raises
    ------
    InputError
        If the URL can't be reached.
    """
    url = as_url(path)
    if url is None:
        folder = as_local(path)
        return (folder / "zarr.json").is_file() or (folder / ".zgroup").is_file()
    from nimbus_sd._sdata.remote import is_remote_store

    return is_remote_store(path, **(storage_options or {}))


def open_store(path: str | PathLike[str], storage_options: Mapping[str, Any] | None = None) -> SpatialData:
    """Open a SpatialData zarr store on a local disk or behind a URL; images and labels stay lazy.

    Local stores are read as by :func:`spatialdata.read_zarr`. Of a store behind a URL, images,
    labels and tables are opened, points and shapes are not; the object can be given to every
    function here, remembers where it came from for ``write=True`` and
    :func:`nimbus_sd.io.write_table`, and has no ``path``.

    Parameters
    ----------
    path
        A folder, ``file://`` URL, or a URL such as ``s3://bucket/data.zarr`` that fsspec can
        open (a UPath, too; it brings its own options).
    storage_options
        For the file system behind a URL, such as ``{"endpoint_url": "https://..."}`` or
        ``{"anon": True}``. None takes credentials and endpoint from the usual places, such as
        the variables ``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE`` and ``AWS_ENDPOINT_URL``.

    Returns
    -------
    The object.

    Raises
    ------
    InputError
        If there is no SpatialData store, the URL can't be reached or its credentials are
        refused, or options are given for a local path.
    MissingExtraError
        If the package for this kind of URL is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import nimbus_sd as nb
    >>> store = Path(tempfile.mkdtemp()) / "tissue.zarr"
    >>> nb.datasets.simulated_tissue(n_fovs=1, shape=(64, 64)).write(store)
    >>> list(nb.io.open_store(store).images)
    ['fov0_image']
    """
    remote = as_url(path) is not None
    if storage_options and not remote:
        msg = (
            f"{path} is a local path and takes no storage_options (got {sorted(storage_options)}); leave "
            "them out, or pass a URL such as s3://bucket/data.zarr"
        )
        raise InputError(msg)
    if not is_store(path, storage_options):
        msg = (
            f"{path} is not a SpatialData zarr store; check the path, or make a store from images with "
            "nb.io.read_fovs(...).write(path) or nimbus-sd convert"
        )
        raise InputError(msg)
    if remote:
        from nimbus_sd._sdata.remote import open_remote

        return open_remote(path, **(storage_options or {}))
    import spatialdata as sd

    return sd.read_zarr(as_local(path))
