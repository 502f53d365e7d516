"""Where the results of an object go: memory alone, its own store, or a small store of their own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import spatialdata as sd
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.cohort import location_of, stem_of
from nimbus_sd._sdata.place import as_local, as_url
from nimbus_sd._sdata.remote import is_remote_store, make_remote, open_remote
from nimbus_sd._sdata.target import check_map_names, check_prediction_target


@dataclass(frozen=True)
class Destination:
    """Where the results of one object go.

    Attributes
    ----------
    sdata
        The object; it gets them in memory in any case.
    own
        Whether they are persisted in its own store as well.
    place
        Path or URL of a store of their own; None for none.
    """

    sdata: SpatialData
    own: bool = False
    place: str | Path | None = None

    @property
    def persists(self) -> bool:
        """Whether anything outlives the process."""
        return self.own or self.place is not None

    @property
    def store(self) -> str | Path | None:
        """Path or URL of the store that is written, else of the object's own; None in memory."""
        return location_of(self.sdata) if self.place is None else self.place

    def check(self, table: str, into: str | None, *, overwrite: bool) -> None:
        """Raise unless the scores can be stored under these names; nothing is made yet.

        Raises
        ------
        InputError
            If they can't.
        ElementNotFoundError
            If `into` is no table.
        """
        check_prediction_target(self.sdata, table, into, overwrite=overwrite, write=self.own)
        if self.place is None:
            return
        if into is not None:
            msg = (
                f"write={str(self.place)!r} with into={into!r}: a layer goes where its table is; pass "
                "write=True, or leave into= out"
            )
            raise InputError(msg)
        if location_of(self.sdata) == self.place:
            msg = f"write=: {self.place} is the object's own store; pass write=True"
            raise InputError(msg)
        there = _open(self.place)
        if there is not None:
            check_prediction_target(there, table, None, overwrite=overwrite, write=True)

    def check_maps(self, names: Sequence[str], table: str, into: str | None, *, overwrite: bool) -> None:
        """Raise unless score maps can be stored under `names`, beside the table."""
        new_table = table if into is None else None
        check_map_names(self.sdata, names, table=new_table, overwrite=overwrite, write=self.own)
        there = _open(self.place) if self.place is not None and names else None
        if there is not None:
            check_map_names(there, names, table=table, overwrite=overwrite, write=True)

    def opened(self) -> SpatialData:
        """The store at `place`, made if there is none."""
        if self.place is None:
            msg = "these results have no store of their own"
            raise ValueError(msg)
        there = _open(self.place)
        return _make(self.place) if there is None else there


def destinations(objects: Mapping[str, SpatialData], write: bool | str | Path) -> dict[str, Destination]:
    """One destination per object.

    Parameters
    ----------
    objects
        By name.
    write
        As of :func:`nimbus_sd.tl.predict`.

    Raises
    ------
    InputError
        If `write` is a folder that is a store itself.
    """
    if isinstance(write, bool):
        return {name: Destination(each, own=write) for name, each in objects.items()}
    if _open(_absolute(write)) is not None:
        msg = (
            f"write={str(write)!r} is a SpatialData store; pass write=True to write into the object's own "
            "store, or a folder in which one store per object is made"
        )
        raise InputError(msg)
    found = {}
    for name, each in objects.items():
        called = name or stem_of(location_of(each)) or "object"
        url = as_url(write)
        place = f"{url}/{called}.zarr" if url else Path(_absolute(write)) / f"{called}.zarr"
        found[name] = Destination(each, place=place)
    return found


def _absolute(place: str | Path) -> str | Path:
    return as_url(place) or as_local(place).absolute()


def _open(place: str | Path) -> SpatialData | None:
    """The store there; None if there is none.

    Raises
    ------
    InputError
        If something else is there, or a URL can't be reached.
    """
    if as_url(place):
        return open_remote(place) if is_remote_store(place) else None
    folder = Path(place)
    if any((folder / name).is_file() for name in ("zarr.json", ".zgroup")):
        with warnings.catch_warnings():
            # tables there annotate labels that lie in the object's own store
            warnings.filterwarnings("ignore", message=".*annotat", category=UserWarning)
            return sd.read_zarr(folder)
    if folder.exists() and not folder.is_dir():
        msg = f"write=: {folder} is a file; pass a folder"
        raise InputError(msg)
    return None


def _make(place: str | Path) -> SpatialData:
    """An empty store there."""
    if as_url(place):
        return make_remote(place)
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    SpatialData().write(place)
    return sd.read_zarr(place)
