"""What several commands share: splitting lists, opening stores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.place import as_local, as_url

if TYPE_CHECKING:
    from spatialdata import SpatialData


def split_names(text: str | None) -> list[str] | None:
    """Split ``"a,b"`` into its names; None stays None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def channel_choice(text: str) -> str | list[str]:
    """``auto``, ``all`` or a list of names."""
    if text in ("auto", "all"):
        return text
    names = split_names(text)
    if not names:
        msg = f"--channels {text!r} names no channel; valid: auto, all, or comma-separated names"
        raise InputError(msg)
    return names


def is_store(path: str | Path) -> bool:
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

    return is_remote_store(url)


def open_store(path: str | Path) -> SpatialData:
    """Open a SpatialData zarr store on a local disk or behind a URL (``s3://bucket/data.zarr``).

    Credentials and endpoint of a URL come from the usual places, such as the variables
    ``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE`` and ``AWS_ENDPOINT_URL``.

    Raises
    ------
    InputError
        If there is none at `path`.
    """
    if not is_store(path):
        msg = f"{path} is not a SpatialData zarr store; make one with nimbus-sd convert"
        raise InputError(msg)
    url = as_url(path)
    if url is not None:
        from nimbus_sd._sdata.remote import open_remote

        return open_remote(url)
    import spatialdata as sd

    return sd.read_zarr(as_local(path))
