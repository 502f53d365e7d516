"""Tiles in memory or in memory-mapped ``.npy`` files: what a bare node trains from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as default
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.training.sources import (
    SPLITS,
    FieldKey,
    Group,
    Preprocessing,
    SubsetSource,
    TrainTile,
)

INDEX_FILE = "tiles.json"
FORMAT = 1


@dataclass(frozen=True)
class ArraySource:
    """Tiles of one size; the markers of a place share its mask and labels.

    Parameters
    ----------
    images
        ``(t, y, x)`` floats, one per tile.
    masks
        ``(p, y, x)`` uint8, one per place.
    labels
        ``(p, y, x)`` integers, cells 1..n of each place.
    place, group
        ``(t,)``: each tile's place, and its row of `groups`.
    targets
        All tiles' targets one after another, 1, 0 or NaN; those of tile `i` are
        ``targets[starts[i] : starts[i + 1]]``.
    starts
        ``(t + 1,)``.
    place_field
        ``(p,)``: each place's row of `field_keys`.
    groups
        (dataset, marker) pairs.
    field_keys
        (dataset, field) pairs.
    splits
        Field to ``"train"``, ``"validation"`` or ``"test"``; may be empty.
    context
        ``(g, k)`` float32, a vector per group; None if there is none.
    extra
        ``(p, e, y, x)`` floats; None if there are none.
    preprocessing
        How the images were made.
    """

    images: NDArray[Any]
    masks: NDArray[Any]
    labels: NDArray[Any]
    place: NDArray[Any]
    group: NDArray[Any]
    targets: NDArray[Any]
    starts: NDArray[Any]
    place_field: NDArray[Any]
    groups: tuple[Group, ...]
    field_keys: tuple[FieldKey, ...]
    splits: Mapping[FieldKey, str] = default(default_factory=dict)
    context: NDArray[Any] | None = None
    extra: NDArray[Any] | None = None
    preprocessing: Preprocessing = default(default_factory=Preprocessing)

    def __post_init__(self) -> None:
        unknown = set(self.splits.values()) - set(SPLITS)
        if unknown or set(self.splits) - set(self.field_keys):
            strangers = sorted(set(self.splits) - set(self.field_keys))[:3]
            msg = f"splits: unknown names {sorted(unknown)} (valid: {SPLITS}) or fields {strangers}"
            raise InputError(msg)

    @cached_property
    def fields(self) -> frozenset[FieldKey]:
        """Every (dataset, field)."""
        return frozenset(self.field_keys)

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.images)

    def tile(self, index: int) -> TrainTile:
        """Return one tile."""
        if not 0 <= index < len(self):
            msg = f"tile {index} of {len(self)}"
            raise IndexError(msg)
        place, group = int(self.place[index]), int(self.group[index])
        dataset, marker = self.groups[group]
        return TrainTile(
            image=np.asarray(self.images[index], np.float32),
            mask=np.asarray(self.masks[place]),
            labels=np.asarray(self.labels[place]),
            target=np.asarray(self.targets[self.starts[index] : self.starts[index + 1]], np.float32),
            dataset=dataset,
            marker=marker,
            field=self.field_keys[int(self.place_field[place])][1],
            context=None if self.context is None else np.asarray(self.context[group], np.float32),
            extra=None if self.extra is None else np.asarray(self.extra[place], np.float32),
        )

    def tile_groups(self) -> list[Group]:
        """Group of every tile."""
        return [self.groups[g] for g in self.group]

    def split(self, name: str) -> SubsetSource:
        """Tiles of the fields of one split.

        Raises
        ------
        InputError
            If no field has this split.
        """
        chosen = np.array([self.splits.get(key) == name for key in self.field_keys])
        indices = np.flatnonzero(chosen[self.place_field[self.place]])
        if not indices.size:
            count = {s: list(self.splits.values()).count(s) for s in SPLITS}
            msg = f"no tile is in split {name!r}; fields per split: {count}. Valid: {', '.join(SPLITS)}"
            raise InputError(msg)
        keys = frozenset(k for k, c in zip(self.field_keys, chosen, strict=True) if c)
        return SubsetSource(self, indices, keys)

    @classmethod
    def open(cls, folder: str | Path) -> ArraySource:
        """Open a folder of ``.npy`` files that ``write_npy`` made; arrays stay on disk.

        Raises
        ------
        InputError
            If the folder is not one, or was not finished.
        """
        folder = Path(folder)
        if not (folder / INDEX_FILE).is_file():
            msg = (
                f"{folder} holds no finished tile folder ({INDEX_FILE} is missing); "
                "write it (again) with write_npy"
            )
            raise InputError(msg)
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        if index.get("format") != FORMAT:
            msg = f"{folder}: format {index.get('format')!r}, this version reads {FORMAT}; write it again"
            raise InputError(msg)
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in index["arrays"]}
        keys = tuple((d, f) for d, f, _ in index["fields"])
        return cls(
            **arrays,
            groups=tuple((d, m) for d, m in index["groups"]),
            field_keys=keys,
            splits={k: s for k, (_, _, s) in zip(keys, index["fields"], strict=True) if s},
            preprocessing=Preprocessing(**index["preprocessing"]),
        )
