"""The training store on disk: names of its arrays, and the settings that decide its content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import zarr

from nimbus_sd._core.errors import InputError

KIND = "nimbus_sd training tiles"
FORMAT = 1
NOT_DONE = -1
IMAGES, MASKS, LABELS, EXTRA, DEFINED = "images", "masks", "labels", "extra", "defined"
TARGETS, INSTANCES = "cells/target", "cells/instance_id"


@dataclass(frozen=True)
class TileSettings:
    """Everything that decides what a store holds.

    Parameters
    ----------
    dataset
        Name of the dataset.
    labels_layer, table
        What is learned from.
    markers, scale
        Markers and the intensity of each that maps to 1.
    extra, extra_scale
        Further planes.
    quantile, rule
        Normalisation.
    mpp
        Of the tiles, µm.
    tile, overlap
        px.
    dtype
        Of the images.
    fields, images
        Names of labels and of their images.
    factors
        Full-resolution px per model px of each field.
    places
        Number of tiles of each field.
    cells
        Number of cells of each field.
    splits
        Of each field.
    targets_sha256
        Hash of all cells' ids, sizes and targets.
    """

    dataset: str
    labels_layer: str
    table: str
    markers: tuple[str, ...]
    scale: tuple[float, ...]
    extra: tuple[str, ...]
    extra_scale: tuple[float, ...]
    quantile: float
    rule: str
    mpp: float
    tile: int
    overlap: int
    dtype: str
    fields: tuple[str, ...]
    images: tuple[str, ...]
    factors: tuple[float, ...]
    places: tuple[int, ...]
    cells: tuple[int, ...]
    splits: tuple[str, ...]
    targets_sha256: str

    @property
    def hash(self) -> str:
        """sha256 over all of it."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TileSettings:
        """From what JSON gives back."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)

    def differences(self, other: TileSettings) -> str:
        """What differs, for a message: ``name: ours / theirs``."""
        found = []
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            if mine != theirs:
                texts = (str(mine), str(theirs))
                long = any(len(t) > 60 for t in texts)
                found.append(f.name if long else f"{f.name}: {texts[0]} / {texts[1]}")
        return "; ".join(found)


def open_group(path: Path) -> tuple[zarr.Group, TileSettings]:
    """Open a store of training tiles for reading.

    Raises
    ------
    InputError
        If there is none at `path`, or another version wrote it.
    """
    advice = "write one with nb.pp.training_tiles"
    if not path.is_dir():
        msg = f"no training tiles at {path}; {advice}"
        raise InputError(msg)
    try:
        group = zarr.open_group(path, mode="r")
    except (OSError, ValueError, KeyError) as error:
        msg = f"{path} is no store of training tiles ({type(error).__name__}: {error}); {advice}"
        raise InputError(msg) from error
    attrs = dict(group.attrs)
    if attrs.get("kind") != KIND:
        msg = f"{path} is a zarr store of something else; {advice} at another path"
        raise InputError(msg)
    if attrs.get("format") != FORMAT:
        msg = f"{path}: format {attrs.get('format')!r}, this version reads {FORMAT}; write it again"
        raise InputError(msg)
    try:
        settings = TileSettings.from_dict(dict(attrs["settings"]))  # type: ignore[arg-type]
    except (KeyError, TypeError) as error:
        msg = f"{path}: its settings are damaged ({error}); write it again with overwrite=True"
        raise InputError(msg) from error
    if attrs.get("hash") != settings.hash:
        msg = f"{path}: its settings were changed after it was written; write it again with overwrite=True"
        raise InputError(msg)
    return group, settings
