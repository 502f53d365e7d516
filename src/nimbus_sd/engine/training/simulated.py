"""Tiles from the simulator: endless random samples, and whole datasets with silver labels gone wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import interior_mask
from nimbus_sd.engine.training.array_source import ArraySource
from nimbus_sd.engine.training.silver_noise import SilverNoise, corrupt
from nimbus_sd.engine.training.sources import FieldKey, Group, Preprocessing, TrainTile
from nimbus_sd.simulation import (
    FieldConfig,
    PlatformConfig,
    Samples,
    panel,
    random_platform,
    random_tissue,
    simulate_field,
    simulate_samples,
)


class SimulatedSource:
    """Random markers on random platforms over random tissue; tile `i` depends on the seed and `i` alone.

    Simulation takes longer than a training step on a GPU: copy the tiles with
    :func:`~nimbus_sd.engine.training.array_write.write_npy` first and train from there.

    Parameters
    ----------
    n_tissues
        Fields; each gives `n_channels` tiles.
    seed
        Tissue `i` is simulated from ``seed + i``.
    side, n_channels
        px per side, random markers per tissue.
    dataset
        Name of the dataset.
    """

    def __init__(
        self,
        n_tissues: int,
        *,
        seed: int = 0,
        side: int = 512,
        n_channels: int = 6,
        dataset: str = "simulated",
    ) -> None:
        if min(n_tissues, n_channels) < 1 or side < 32:
            msg = (
                f"SimulatedSource needs at least one tissue and channel and 32 px a side, got {n_tissues}, "
                f"{n_channels} and {side}"
            )
            raise InputError(msg)
        self.n_tissues, self.n_channels = n_tissues, n_channels
        self.groups: tuple[Group, ...] = tuple((dataset, f"random{k}") for k in range(n_channels))
        self.fields: frozenset[FieldKey] = frozenset((dataset, f"tissue{seed + i}") for i in range(n_tissues))
        self.preprocessing = Preprocessing()
        self._seed, self._dataset = seed, dataset

        @lru_cache(maxsize=2)
        def samples(tissue: int) -> Samples:
            return simulate_samples(seed + tissue, shape=(side, side), n_channels=n_channels)

        self._samples = samples

    def __len__(self) -> int:
        """Return the number of tiles."""
        return self.n_tissues * self.n_channels

    def tile(self, index: int) -> TrainTile:
        """Return one tile."""
        if not 0 <= index < len(self):
            msg = f"tile {index} of {len(self)}"
            raise IndexError(msg)
        tissue, channel = divmod(index, self.n_channels)
        samples = self._samples(tissue)
        return TrainTile(
            image=samples.images[channel],
            mask=samples.interior.astype(np.uint8),
            labels=samples.labels,
            target=samples.positive[:, channel],
            dataset=self._dataset,
            marker=f"random{channel}",
            field=f"tissue{self._seed + tissue}",
        )


@dataclass(frozen=True)
class SimulatedDataset:
    """One experiment: the same markers, instrument and intensity scales over all its fields.

    Parameters
    ----------
    truth
        Its tiles with true targets.
    positive
        ``(cells, markers)``: the same truth as a matrix.
    cell_type, field
        ``(cells,)``: what clustering would group by.
    """

    truth: ArraySource
    positive: NDArray[Any]
    cell_type: NDArray[Any]
    field: NDArray[Any]

    def silver(self, noise: SilverNoise) -> ArraySource:
        """Tiles whose targets are corrupted as `noise` says."""
        wrong = corrupt(self.positive, self.cell_type, self.field, noise)
        return replace(self.truth, targets=_by_tile(wrong, self.field))


def simulated_dataset(
    seed: int,
    *,
    n_fields: int = 8,
    side: int = 256,
    markers: Sequence[str] | None = None,
    platform: str | None = None,
    splits: Sequence[str] = (),
    dataset: str | None = None,
) -> SimulatedDataset:
    """Simulate the fields of one experiment at 1 µm per px.

    Parameters
    ----------
    seed
        Decides everything.
    n_fields, side
        Fields of view, each one tile, and their px per side.
    markers
        Names of the simulator's panel; None takes all.
    platform
        One of :data:`nimbus_sd.simulation.PLATFORMS`; None draws one.
    splits
        One of ``"train"``, ``"validation"``, ``"test"`` per field; empty makes none.
    dataset
        Its name, ``"simulated<seed>"`` by default.

    Returns
    -------
    Images divided by the marker's 99.99th percentile over all fields and clipped to
    [0, 1], as prediction sees them.
    """
    if splits and len(splits) != n_fields:
        msg = f"splits names {len(splits)} fields, there are {n_fields}"
        raise InputError(msg)
    rng = np.random.default_rng((seed, 0x5D))
    instrument = random_platform(rng) if platform is None else PlatformConfig(kind=platform)
    names = panel(tuple(markers)) if markers is not None else FieldConfig().markers
    fields = [
        simulate_field(
            int(s),
            FieldConfig(
                shape=(side, side), mpp=1.0, markers=names, platform=instrument, tissue=random_tissue(rng)
            ),
        )
        for s in np.random.SeedSequence((seed, 0x5E)).generate_state(n_fields)
    ]
    images = np.stack([f.image for f in fields]).astype(np.float32)
    scale = np.quantile(images.transpose(1, 0, 2, 3).reshape(len(names), -1), 0.9999, axis=1)
    images = np.clip(images / np.maximum(scale, 1e-12)[:, None, None], 0, 1).astype(np.float32)
    name = dataset or f"simulated{seed}"
    keys = tuple((name, f"field{i}") for i in range(n_fields))
    labels = np.stack([f.labels for f in fields]).astype(np.int32)
    positive = np.concatenate([f.positive for f in fields]).astype(np.float32)
    owner = np.repeat(np.arange(n_fields), [len(f.positive) for f in fields])
    sizes = np.repeat([len(f.positive) for f in fields], len(names))
    truth = ArraySource(
        images=images.reshape(-1, side, side),
        masks=np.stack([interior_mask(m) for m in labels]).astype(np.uint8),
        labels=labels,
        place=np.repeat(np.arange(n_fields), len(names)),
        group=np.tile(np.arange(len(names)), n_fields),
        targets=_by_tile(positive, owner),
        starts=np.concatenate([[0], np.cumsum(sizes)]),
        place_field=np.arange(n_fields),
        groups=tuple((name, marker.name) for marker in names),
        field_keys=keys,
        splits=dict(zip(keys, splits, strict=True)) if splits else {},
        preprocessing=Preprocessing(),
    )
    return SimulatedDataset(truth, positive, np.concatenate([f.cell_types for f in fields]), owner)


def _by_tile(positive: NDArray[Any], field: NDArray[Any]) -> NDArray[np.float32]:
    """Matrix (cells, markers) to the order of tiles: field by field, marker by marker."""
    parts = [positive[field == f].T.ravel() for f in range(int(field.max(initial=-1)) + 1)]
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)
