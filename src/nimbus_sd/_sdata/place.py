"""Where a store lies: on a local disk, or behind a URL. Nothing is imported or opened to tell."""

from __future__ import annotations

import re
from pathlib import Path

KINDS = ("images", "labels", "points", "shapes", "tables")  # of elements, as their groups are called
# two letters or more, as one is a drive; one slash will do, as pathlib folds two into one
_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)", re.IGNORECASE | re.DOTALL)
_LOCAL = ("file", "local")


def as_url(place: object) -> str | None:
    """The URL of a store that is not on a local disk; None for local paths, also as ``file://``.

    Examples
    --------
    >>> as_url(Path("s3://bucket/a.zarr")), as_url("file:///tmp/a.zarr"), as_url("data/a.zarr")
    ('s3://bucket/a.zarr', None, None)
    """
    match = _URL.fullmatch(str(place))
    if match is None or match[1].lower() in _LOCAL:
        return None
    return f"{match[1]}://{match[2].rstrip('/')}"


def as_local(place: object) -> Path:
    """The local path that a path or a ``file://`` URL names.

    Examples
    --------
    >>> as_local("file:///tmp/a.zarr").as_posix(), as_local("data/a.zarr").as_posix()
    ('/tmp/a.zarr', 'data/a.zarr')
    """
    match = _URL.fullmatch(str(place))
    return Path(f"/{match[2]}") if match and match[1].lower() in _LOCAL else Path(str(place))
