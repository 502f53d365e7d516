"""What several commands share: splitting lists, opening stores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nimbus_sd._core.errors import InputError

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


def is_store(path: Path) -> bool:
    """Whether there is a zarr group at `path`."""
    return (path / "zarr.json").is_file() or (path / ".zgroup").is_file()


def open_store(path: Path) -> SpatialData:
    """Open a SpatialData zarr store.

    Raises
    ------
    InputError
        If there is none at `path`.
    """
    import spatialdata as sd

    if not is_store(path):
        msg = f"{path} is not a SpatialData zarr store; make one with nimbus-sd convert"
        raise InputError(msg)
    return sd.read_zarr(path)
