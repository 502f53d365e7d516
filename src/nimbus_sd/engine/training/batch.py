"""Batches: which tiles a step sees, cropped and joined, with cells numbered through the batch."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.training.config import TrainConfig
from nimbus_sd.engine.training.sources import Group, TileSource, TrainTile, check_tile, tile_groups

_DRAW, _CROP = 1, 2


@dataclass(frozen=True)
class Batch:
    """Tiles of one step (or of validation).

    Parameters
    ----------
    planes
        ``(b, 1 + e, y, x)`` float32: the marker before transform, extra planes.
    mask
        ``(b, y, x)`` uint8.
    labels
        ``(b, y, x)`` int64: 0 background, cells 1..n counted through the batch.
    target
        ``(n + 1,)`` float32: 1, 0, NaN; entry 0 (background) is NaN.
    group
        ``(n + 1,)`` int64: row of the source's groups; entry 0 is -1.
    names
        What each tile is called in messages.
    step, part
        Which draw this is, and of which process.
    context
        ``(b, k)`` float32 or None.
    """

    planes: Tensor
    mask: Tensor
    labels: Tensor
    target: Tensor
    group: Tensor
    names: tuple[str, ...]
    step: int = 0
    part: int = 0
    context: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


class GroupIndex:
    """(dataset, marker) to its row."""

    def __init__(self, groups: tuple[Group, ...]) -> None:
        self._rows = {group: i for i, group in enumerate(groups)}

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self._rows)

    def row(self, tile: TrainTile) -> int:
        """Row of a tile's group.

        Raises
        ------
        InputError
            If the source did not announce it.
        """
        try:
            return self._rows[tile.dataset, tile.marker]
        except KeyError:
            msg = (
                f"{tile.name}: its (dataset, marker) is not among the source's groups {list(self._rows)[:5]}"
            )
            raise InputError(msg) from None


def collate(tiles: list[TrainTile], groups: GroupIndex, *, step: int = 0, part: int = 0) -> Batch:
    """Join tiles of one size.

    Raises
    ------
    InputError
        If their sizes, extra planes or context differ, naming two of them.
    """
    first = tiles[0]
    for tile in tiles:
        same = [
            (None if a is None else a.shape) == (None if b is None else b.shape)
            for a, b in ((tile.image, first.image), (tile.extra, first.extra), (tile.context, first.context))
        ]
        if not all(same):
            what = ("size", "extra planes", "context")[same.index(False)]
            msg = f"tiles of one batch must agree; the {what} of {tile.name} and of {first.name} differ"
            raise InputError(msg)
    labels: list[NDArray[Any]] = []
    # entry 0 is the background
    targets: list[NDArray[Any]] = [np.full(1, np.nan, np.float32)]
    rows: list[NDArray[Any]] = [np.full(1, -1, np.int64)]
    offset = 0
    for tile in tiles:
        n = len(tile.target)
        each = tile.labels.astype(np.int64)
        labels.append(np.where(each > 0, each + offset, 0))
        targets.append(np.asarray(tile.target, np.float32))
        rows.append(np.full(n, groups.row(tile), np.int64))
        offset += n
    return Batch(
        planes=torch.from_numpy(np.stack([_planes(t) for t in tiles])),
        mask=torch.from_numpy(np.stack([t.mask for t in tiles]).astype(np.uint8)),
        labels=torch.from_numpy(np.stack(labels)),
        target=torch.from_numpy(np.concatenate(targets)),
        group=torch.from_numpy(np.concatenate(rows)),
        names=tuple(t.name for t in tiles),
        step=step,
        part=part,
        context=(
            None
            if first.context is None
            else torch.from_numpy(np.stack([t.context for t in tiles if t.context is not None]))
        ),
    )


def _planes(tile: TrainTile) -> NDArray[Any]:
    extra = [] if tile.extra is None else list(tile.extra)
    return np.stack([tile.image, *extra]).astype(np.float32)


class Sampler:
    """Which tiles each step sees: every tile once per epoch, or groups in equal shares.

    Parameters
    ----------
    source
        Tiles.
    config
        ``batch``, ``crop``, ``sampling`` and ``seed`` of it.
    """

    def __init__(self, source: TileSource, config: TrainConfig) -> None:
        if len(source) == 0:
            msg = "the training source has no tiles"
            raise InputError(msg)
        self.source, self.config = source, config
        self.groups = GroupIndex(source.groups)
        self._members = _members(source) if config.sampling == "balanced" else []
        self._order = lru_cache(maxsize=4)(self._epoch)

    def _epoch(self, epoch: int) -> NDArray[Any]:
        return np.random.default_rng((self.config.seed, _DRAW, epoch)).permutation(len(self.source))

    def indices(self, step: int) -> list[int]:
        """Tiles of a step; depends on seed and step alone."""
        size = self.config.batch
        if self._members:
            rng = np.random.default_rng((self.config.seed, _DRAW, step))
            return [int(rng.choice(self._members[k])) for k in rng.integers(len(self._members), size=size)]
        n = len(self.source)
        return [int(self._order(i // n)[i % n]) for i in range(step * size, (step + 1) * size)]

    def draw(self, step: int, *, part: int = 0, parts: int = 1) -> Batch:
        """The batch of a step, or one process's share of it."""
        crops = np.random.default_rng((self.config.seed, _CROP, step)).random((self.config.batch, 2))
        chosen = list(enumerate(self.indices(step)))[part::parts]
        tiles = []
        for slot, index in chosen:
            tile = self.source.tile(index)
            check_tile(tile)
            tiles.append(random_crop(tile, self.config.crop, *crops[slot]))
        return collate(tiles, self.groups, step=step, part=part)


def _members(source: TileSource) -> list[NDArray[Any]]:
    """Indices of the tiles of every group that has any."""
    found: dict[Group, list[int]] = defaultdict(list)
    for i, group in enumerate(tile_groups(source)):
        found[group].append(i)
    return [np.array(members) for members in found.values()]


def random_crop(tile: TrainTile, side: int, u: float, v: float) -> TrainTile:
    """Crop a square of `side` px at a place that `u` and `v` in [0, 1) decide; 0 keeps the tile."""
    height, width = tile.image.shape
    if side == 0:
        return tile
    if side > min(height, width):
        msg = f"{tile.name}: a crop of {side} px does not fit into {height} x {width}; set crop smaller, or 0"
        raise InputError(msg)
    top, left = int(u * (height - side + 1)), int(v * (width - side + 1))
    at = (slice(top, top + side), slice(left, left + side))
    extra = None if tile.extra is None else tile.extra[:, *at]
    return replace(tile, image=tile.image[at], mask=tile.mask[at], labels=tile.labels[at], extra=extra)
