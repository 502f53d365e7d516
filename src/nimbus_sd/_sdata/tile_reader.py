"""Read a store of training tiles: any marker of any place, in any order, from any thread."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata import tile_format as fmt
from nimbus_sd._sdata.tile_format import TileSettings
from nimbus_sd.engine.training.array_source import ArraySource
from nimbus_sd.engine.training.array_write import write_npy
from nimbus_sd.engine.training.sources import SPLITS, FieldKey, Group, Preprocessing, SubsetSource, TrainTile

_KEPT_PLACES = 32


@dataclass(frozen=True)
class _Place:
    """What the markers of a place share: labels 1..n, mask, the cells' rows, further planes."""

    labels: NDArray[Any]
    mask: NDArray[Any]
    rows: NDArray[Any]
    n: int
    extra: NDArray[Any] | None


class TileStore:
    """Training tiles on disk, as :func:`nimbus_sd.pp.training_tiles` writes them.

    It is a source of training tiles: ``len(store)``, ``store.tile(i)``,
    ``store.split("train")``. A tile is one marker of one place that holds at least
    one labelled cell; the markers of a place follow each other.

    Attributes
    ----------
    path
        The zarr store.
    settings
        Everything that decided its content.
    """

    def __init__(self, path: Path, group: zarr.Group, settings: TileSettings) -> None:
        self.path, self.settings = path, settings
        self._arrays: dict[str, Any] = {
            name: group[name] for name in (fmt.IMAGES, fmt.MASKS, fmt.LABELS, fmt.DEFINED)
        }
        if settings.extra:
            self._arrays[fmt.EXTRA] = group[fmt.EXTRA]
        self._targets = np.asarray(group[fmt.TARGETS][:])  # type: ignore[index]
        self._firsts = [0, *accumulate(settings.cells)]
        self._place_field = np.repeat(np.arange(len(settings.fields)), settings.places)
        # (place, marker) of every tile, place by place
        self._index = np.argwhere(np.asarray(self._arrays[fmt.DEFINED][:]) > 0)
        self._kept: OrderedDict[int, _Place] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def open(cls, path: str | Path) -> TileStore:
        """Open a finished store.

        Parameters
        ----------
        path
            The zarr store.

        Raises
        ------
        InputError
            If there is none, it was not finished, or it is something else.
        """
        path = Path(path)
        group, settings = fmt.open_group(path)
        if not group.attrs.get("complete"):
            defined = np.asarray(group[fmt.DEFINED][:])  # type: ignore[index]
            done = int((defined != fmt.NOT_DONE).all(axis=1).sum())
            msg = (
                f"{path} was interrupted: {done} of {len(defined)} tiles are written. Run "
                "nb.pp.training_tiles again with the same arguments; it continues there"
            )
            raise InputError(msg)
        return cls(path, group, settings)

    def __reduce__(self) -> tuple[Any, ...]:
        return TileStore.open, (self.path,)

    def __repr__(self) -> str:
        s = self.settings
        return (
            f"TileStore({str(self.path)!r}: {len(self)} tiles of {s.tile} px at {s.mpp:g} µm/px, "
            f"{len(s.fields)} fields, {len(s.markers)} markers)"
        )

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """(dataset, marker) of every marker."""
        return tuple((self.settings.dataset, m) for m in self.settings.markers)

    @cached_property
    def splits(self) -> Mapping[FieldKey, str]:
        """(dataset, field) to the name of its split."""
        s = self.settings
        return {(s.dataset, f): name for f, name in zip(s.fields, s.splits, strict=True)}

    @cached_property
    def fields(self) -> frozenset[FieldKey]:
        """Every (dataset, field)."""
        return frozenset(self.splits)

    @property
    def preprocessing(self) -> Preprocessing:
        """How the images were made."""
        return Preprocessing(self.settings.mpp, self.settings.quantile, self.settings.rule)

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self._index)

    def tile(self, index: int) -> TrainTile:
        """Return one tile.

        Parameters
        ----------
        index
            ``0 <= index < len(self)``.
        """
        if not 0 <= index < len(self):
            msg = f"tile {index} of {len(self)}"
            raise IndexError(msg)
        p, m = (int(i) for i in self._index[index])
        place = self._place(p)
        values = self._targets[place.rows, m]
        target = np.full(place.n, np.nan, np.float32)
        target[: len(values)] = np.where(values < 0, np.nan, values)
        s = self.settings
        return TrainTile(
            image=np.asarray(self._arrays[fmt.IMAGES][p, m], np.float32),
            mask=place.mask,
            labels=place.labels,
            target=target,
            dataset=s.dataset,
            marker=s.markers[m],
            field=s.fields[self._place_field[p]],
            extra=place.extra,
        )

    def split(self, name: str) -> SubsetSource:
        """Tiles of the fields of one split.

        Parameters
        ----------
        name
            ``"train"``, ``"validation"`` or ``"test"``.

        Raises
        ------
        InputError
            If no tile is in it.
        """
        s = self.settings
        chosen = np.array([split == name for split in s.splits])
        indices = np.flatnonzero(chosen[self._place_field[self._index[:, 0]]])
        if not indices.size:
            count = {n: s.splits.count(n) for n in SPLITS}
            msg = (
                f"no tile of {self.path} is in split {name!r}; fields per split: {count}. Write it with "
                "split={field: name}, or pass other tiles"
            )
            raise InputError(msg)
        keys = frozenset(k for k, split in self.splits.items() if split == name)
        return SubsetSource(self, indices, keys)

    def instance_ids(self, index: int) -> NDArray[np.int64]:
        """Label ids of the cells 1..n of a tile; -1 for what lies beyond the image.

        Parameters
        ----------
        index
            As for :meth:`tile`.
        """
        place = self._place(int(self._index[index, 0]))
        out = np.full(place.n, -1, np.int64)
        ids = zarr.open_array(self.path / fmt.INSTANCES, mode="r")
        out[: len(place.rows)] = np.asarray(ids[:])[place.rows]
        return out

    def export(self, folder: str | Path, *, dtype: str = "float16") -> ArraySource:
        """Copy everything into plain ``.npy`` files, for a machine without zarr.

        Parameters
        ----------
        folder
            New folder.
        dtype
            Of the images, ``"float16"`` or ``"float32"``.

        Returns
        -------
        The folder as a source; elsewhere ``ArraySource.open(folder)`` of
        :class:`~nimbus_sd.engine.training.array_source.ArraySource` opens it.
        """
        return write_npy(self, folder, dtype=dtype)

    def _place(self, p: int) -> _Place:
        with self._lock:
            if p in self._kept:
                self._kept.move_to_end(p)
                return self._kept[p]
        place = self._read_place(p)
        with self._lock:
            self._kept[p] = place
            while len(self._kept) > _KEPT_PLACES:
                self._kept.popitem(last=False)
        return place

    def _read_place(self, p: int) -> _Place:
        field = int(self._place_field[p])
        rows = np.asarray(self._arrays[fmt.LABELS][p])
        beyond = rows < 0
        padded = bool(beyond.any())
        # number the cells 1..n within the tile; padding becomes a last one that nothing is known of
        seen = np.zeros(self.settings.cells[field] + 1, bool)
        seen[np.where(beyond, 0, rows) if padded else rows] = True
        seen[0] = False
        number = np.cumsum(seen, dtype=np.int32)
        number[0] = 0
        labels = number[rows]
        present = np.flatnonzero(seen) - 1
        if padded:
            labels[beyond] = len(present) + 1
        extra = np.asarray(self._arrays[fmt.EXTRA][p], np.float32) if self.settings.extra else None
        return _Place(
            labels,
            np.asarray(self._arrays[fmt.MASKS][p]),
            present + self._firsts[field],
            len(present) + int(padded),
            extra,
        )
