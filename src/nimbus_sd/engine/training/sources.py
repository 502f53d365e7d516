"""What training reads: labelled tiles by index, from wherever they come."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from nimbus_sd._core.errors import InputError

Group = tuple[str, str]
"""(dataset, marker): cells whose losses are compared with each other."""
FieldKey = tuple[str, str]
"""(dataset, field of view)."""

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Preprocessing:
    """How a source's images were made, for the card of what is trained on them.

    Parameters
    ----------
    mpp
        µm per px of the tiles.
    quantile, rule
        Normalisation that maps to 1 (see :func:`nimbus_sd.pp.normalization`).
    """

    mpp: float = 1.0
    quantile: float = 0.9999
    rule: str = "dataset"


@dataclass(frozen=True)
class TrainTile:
    """One marker of one tile, with what is known about its cells.

    Parameters
    ----------
    image
        ``(y, x)`` float32, ``x / scale`` at model px and *before* the model's
        transform (square root, …), which training applies after augmentation.
        Values above 1 are clipped there too.
    mask
        ``(y, x)`` uint8 or bool, the interior mask (1 inside).
    labels
        ``(y, x)`` integers: 0 background, cells 1..n numbered within the tile.
    target
        ``(n,)`` float32 for labels 1..n: 1 positive, 0 negative, NaN undefined.
    dataset, marker, field
        Where it comes from; (dataset, marker) is its group.
    context
        Float32 ``(k,)``, the same for all tiles of a (dataset, marker); None if there is none.
    extra
        Float32 ``(e, y, x)``, further normalised planes (nuclei, membrane); None if there are none.
    """

    image: NDArray[Any]
    mask: NDArray[Any]
    labels: NDArray[Any]
    target: NDArray[Any]
    dataset: str
    marker: str
    field: str
    context: NDArray[Any] | None = None
    extra: NDArray[Any] | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return f"dataset {self.dataset!r}, field {self.field!r}, marker {self.marker!r}"


@runtime_checkable
class TileSource(Protocol):
    """Tiles by index; the same index always gives the same tile, from any thread."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """Every (dataset, marker) that its tiles can have, without repeats."""
        ...

    @property
    def fields(self) -> frozenset[FieldKey]:
        """Every (dataset, field) that its tiles come from."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """How its images were made."""
        ...

    def __len__(self) -> int:
        """Return the number of tiles."""
        ...

    def tile(self, index: int) -> TrainTile:
        """Return one tile, ``0 <= index < len(self)``."""
        ...


@runtime_checkable
class SplitSource(TileSource, Protocol):
    """A source whose fields are divided into ``"train"``, ``"validation"`` and ``"test"``."""

    @property
    def splits(self) -> Mapping[FieldKey, str]:
        """(dataset, field) to the name of its split; empty if nothing is divided."""
        ...

    def split(self, name: str) -> TileSource:
        """Tiles of one split."""
        ...


@dataclass(frozen=True)
class SubsetSource:
    """Some tiles of a source.

    Parameters
    ----------
    source
        Where from.
    indices
        Which, in order.
    fields
        The fields of these tiles.
    """

    source: TileSource
    indices: NDArray[Any]
    fields: frozenset[FieldKey]

    @property
    def groups(self) -> tuple[Group, ...]:
        """Groups of the whole source."""
        return self.source.groups

    @property
    def preprocessing(self) -> Preprocessing:
        """How the images were made."""
        return self.source.preprocessing

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.indices)

    def tile(self, index: int) -> TrainTile:
        """Return one tile."""
        return self.source.tile(int(self.indices[index]))

    def tile_groups(self) -> list[Group]:
        """Group of every tile."""
        groups = tile_groups(self.source)
        return [groups[i] for i in self.indices]


class ConcatSource:
    """Several sources one after another.

    Parameters
    ----------
    sources
        At least one, all made with the same pixel size and normalisation.

    Raises
    ------
    InputError
        If there is none, or their preprocessing differs.
    """

    def __init__(self, sources: Sequence[TileSource]) -> None:
        if not sources:
            msg = "ConcatSource needs at least one source"
            raise InputError(msg)
        made = {s.preprocessing for s in sources}
        if len(made) > 1:
            msg = f"the sources were made differently: {sorted(map(str, made))}; make them with one setting"
            raise InputError(msg)
        self.sources = tuple(sources)
        self._ends = list(accumulate(len(s) for s in sources))

    @property
    def groups(self) -> tuple[Group, ...]:
        """Groups of all sources, each once."""
        return tuple(dict.fromkeys(g for s in self.sources for g in s.groups))

    @property
    def fields(self) -> frozenset[FieldKey]:
        """Fields of all sources."""
        return frozenset().union(*(s.fields for s in self.sources))

    @property
    def preprocessing(self) -> Preprocessing:
        """What they share."""
        return self.sources[0].preprocessing

    def __len__(self) -> int:
        """Return the number of tiles."""
        return self._ends[-1]

    def tile(self, index: int) -> TrainTile:
        """Return one tile."""
        if not 0 <= index < len(self):
            msg = f"tile {index} of {len(self)}"
            raise IndexError(msg)
        k = bisect_right(self._ends, index)
        return self.sources[k].tile(index - (self._ends[k - 1] if k else 0))

    def tile_groups(self) -> list[Group]:
        """Group of every tile."""
        return [group for source in self.sources for group in tile_groups(source)]

    @property
    def splits(self) -> Mapping[FieldKey, str]:
        """Splits of all sources; empty unless every source is divided."""
        each = [s.splits if isinstance(s, SplitSource) else {} for s in self.sources]
        return {k: v for part in each for k, v in part.items()} if all(each) else {}

    def split(self, name: str) -> ConcatSource:
        """Join one split of the sources that have it.

        Raises
        ------
        InputError
            If a source is not divided, or none has this split.
        """
        whole = [type(s).__name__ for s in self.sources if not isinstance(s, SplitSource) or not s.splits]
        if whole:
            msg = f"these sources have no splits: {', '.join(whole)}; pass validation= yourself"
            raise InputError(msg)
        having = [s for s in self.sources if isinstance(s, SplitSource) and name in s.splits.values()]
        if not having:
            msg = f"no source has a field in split {name!r}; valid: {', '.join(SPLITS)}"
            raise InputError(msg)
        return ConcatSource([s.split(name) for s in having])


class RelabelledSource:
    """A source whose targets go through a function (corrupted labels for experiments).

    Parameters
    ----------
    source
        Where from.
    relabel
        Called with (index, tile), returns the new target ``(n,)``.
    """

    def __init__(self, source: TileSource, relabel: Callable[[int, TrainTile], NDArray[Any]]) -> None:
        self.source, self.relabel = source, relabel
        self.groups, self.fields, self.preprocessing = source.groups, source.fields, source.preprocessing

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.source)

    def tile(self, index: int) -> TrainTile:
        """Return one tile."""
        tile = self.source.tile(index)
        return replace(tile, target=self.relabel(index, tile))


def tile_groups(source: TileSource) -> list[Group]:
    """Group of every tile: from the source's ``tile_groups()`` if it has one, else tile by tile."""
    own = getattr(source, "tile_groups", None)
    if own is not None:
        return list(own())
    tiles = (source.tile(i) for i in range(len(source)))
    return [(tile.dataset, tile.marker) for tile in tiles]


def check_disjoint(train: TileSource, validation: TileSource) -> None:
    """Raise :class:`InputError` if training and validation share a field of view."""
    shared = sorted(train.fields & validation.fields)
    if shared:
        named = ", ".join(f"{d}/{f}" for d, f in shared[:5]) + (", …" if len(shared) > 5 else "")
        msg = (
            f"training and validation share {len(shared)} field(s): {named}. Cells of one field are alike: "
            "split by field, so that validation is honest"
        )
        raise InputError(msg)


def check_tile(tile: TrainTile) -> None:
    """Raise :class:`InputError`, naming the tile, unless its arrays fit together."""
    shape = tile.image.shape
    n = int(tile.labels.max(initial=0))
    if tile.mask.shape != shape or tile.labels.shape != shape or len(shape) != 2:
        what = f"image {shape}, mask {tile.mask.shape}, labels {tile.labels.shape} must be one (y, x)"
    elif tile.labels.dtype.kind not in "ui" or int(tile.labels.min(initial=0)) < 0:
        what = f"labels must be integers ≥ 0, got {tile.labels.dtype}"
    elif tile.target.ndim != 1 or len(tile.target) < n:
        what = f"target {tile.target.shape} must hold one value for each of labels 1..{n}"
    elif not np.isin(tile.target[~np.isnan(tile.target)], (0, 1)).all():
        what = "targets must be 1, 0 or NaN"
    elif tile.extra is not None and tile.extra.shape[1:] != shape:
        what = f"extra planes {tile.extra.shape} must be (e, {shape[0]}, {shape[1]})"
    else:
        return
    msg = f"{tile.name}: {what}"
    raise InputError(msg)
