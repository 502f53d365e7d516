"""Several objects in one call, and what to call each of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.remote import store_behind, url_of

_VALID = re.compile(r"[\w-][\w. -]*")


def location_of(sdata: SpatialData) -> str | Path | None:
    """Path of an object's local store or URL of its remote one; None for objects in memory."""
    remote = store_behind(sdata)
    if remote is not None:
        return url_of(remote)
    path = None if sdata.path is None else Path(str(sdata.path))
    return path.absolute() if path is not None and path.is_dir() else None


def stem_of(location: str | Path | None) -> str | None:
    """What a store is called: its last part without the ending."""
    if location is None:
        return None
    return re.sub(r"(\.ome)?\.zarr$", "", str(location).rstrip("/").rsplit("/", 1)[-1]) or None


def as_cohort(
    objects: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
) -> dict[str, SpatialData]:
    """Objects by name: ``""`` for a single one; in a list the names of their stores.

    Raises
    ------
    InputError
        If there is none, one is no SpatialData object or comes twice, or a name can't be one.

    Examples
    --------
    >>> list(as_cohort([SpatialData(), SpatialData()]))
    ['object0', 'object1']
    """
    if isinstance(objects, SpatialData):
        return {"": objects}
    if not isinstance(objects, Mapping | Sequence) or isinstance(objects, str):
        msg = f"{type(objects).__name__} given; pass a SpatialData object, a list of them or {{name: object}}"
        raise InputError(msg)
    if not objects:
        msg = "no object given; pass at least one SpatialData object"
        raise InputError(msg)
    given = list(objects.values() if isinstance(objects, Mapping) else objects)
    wrong = [type(o).__name__ for o in given if not isinstance(o, SpatialData)]
    if wrong:
        msg = f"{wrong[0]} among the objects; each must be a SpatialData object: sd.read_zarr(path)"
        raise InputError(msg)
    _check_distinct(given)
    if not isinstance(objects, Mapping):
        return dict(zip(_names(given), given, strict=True))
    bad = [n for n in objects if not isinstance(n, str) or not _VALID.fullmatch(n)]
    if bad:
        msg = f"{bad[0]!r} can't name an object; valid: letters, digits, '_', '-', '.' and blanks"
        raise InputError(msg)
    return dict(objects)


def _check_distinct(objects: Sequence[SpatialData]) -> None:
    seen: set[object] = set()
    for each in objects:
        where = location_of(each) or id(each)
        if where in seen:
            msg = f"the object {where if isinstance(where, str | Path) else ''} comes twice; give each once"
            raise InputError(msg)
        seen.add(where)


def _names(objects: Sequence[SpatialData]) -> list[str]:
    """Names of the stores; with as much of the folders before them as tells them apart."""
    places = [location_of(each) for each in objects]
    names = [stem_of(p) or f"object{i}" for i, p in enumerate(places)]
    for depth in range(2, 10):
        if len(set(names)) == len(names):
            break
        names = [
            "-".join([*str(p).split("/")[-depth:-1], stem_of(p) or ""]) if names.count(n) > 1 and p else n
            for n, p in zip(names, places, strict=True)
        ]
    return names if len(set(names)) == len(names) else [f"{i}-{n}" for i, n in enumerate(names)]
