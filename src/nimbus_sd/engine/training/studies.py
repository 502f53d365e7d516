"""Tiles of simulated studies: whole datasets, labelled by the truth or as clustering would label them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.training.array_source import ArraySource
from nimbus_sd.engine.training.array_write import write_npy
from nimbus_sd.engine.training.sources import ConcatSource, FieldKey, Group, Preprocessing, TrainTile
from nimbus_sd.simulation import Dataset, simulate_dataset

LABELS = ("truth", "silver", "both")


@dataclass(frozen=True)
class StudyConfig:
    """Which studies.

    Parameters
    ----------
    first, n_datasets
        Study `i` is simulated from seed ``first + i``.
    n_fields, n_channels, side
        Fields of each, markers, px per side.
    labels
        ``"truth"``; ``"silver"``: as clustering would give them, some 10 % wrong; or
        ``"both"``: silver for one study in `silver_every`.
    silver_every
        See `labels`.
    """

    first: int = 0
    n_datasets: int = 160
    n_fields: int = 4
    n_channels: int = 6
    side: int = 384
    labels: str = "both"
    silver_every: int = 2

    def __post_init__(self) -> None:
        if self.labels not in LABELS:
            msg = f"StudyConfig.labels={self.labels!r}; valid: {', '.join(LABELS)}"
            raise InputError(msg)
        if (
            min(self.n_datasets, self.n_fields, self.n_channels) < 1
            or self.side < 32
            or self.silver_every < 2
        ):
            msg = (
                f"StudyConfig needs positive numbers, silver_every ≥ 2 and at least 32 px a side, got {self}"
            )
            raise InputError(msg)

    def is_silver(self, study: int) -> bool:
        """Whether a study's cells carry silver labels."""
        return self.labels == "silver" or (
            self.labels == "both" and (self.first + study) % self.silver_every == 1
        )


class StudySource:
    """Tiles of simulated studies in the order study, field, marker; each tile is a whole field.

    Parameters
    ----------
    config
        Which.
    """

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self.preprocessing = Preprocessing()
        studies = range(config.first, config.first + config.n_datasets)
        self.groups: tuple[Group, ...] = tuple(
            (f"study{s}", f"marker{c}") for s in studies for c in range(config.n_channels)
        )
        self.fields: frozenset[FieldKey] = frozenset(
            (f"study{s}", f"field{f}") for s in studies for f in range(config.n_fields)
        )
        shape = (config.side, config.side)

        @lru_cache(maxsize=1)
        def study(i: int) -> Dataset:
            return simulate_dataset(
                config.first + i, n_fields=config.n_fields, shape=shape, n_channels=config.n_channels
            )

        self._study = study

    def __len__(self) -> int:
        """Return the number of tiles."""
        return self.config.n_datasets * self.config.n_fields * self.config.n_channels

    def tile(self, index: int) -> TrainTile:
        """Return one tile."""
        if not 0 <= index < len(self):
            msg = f"tile {index} of {len(self)}"
            raise IndexError(msg)
        place, channel = divmod(index, self.config.n_channels)
        study, field = divmod(place, self.config.n_fields)
        data = self._study(study)
        found = data.fields[field]
        known = data.silver[field] if self.config.is_silver(study) else found.positive
        return TrainTile(
            image=found.images[channel],
            mask=found.interior.astype(np.uint8),
            labels=found.labels,
            target=known[:, channel].astype(np.float32),
            dataset=f"study{self.config.first + study}",
            marker=f"marker{channel}",
            field=f"field{field}",
        )


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes started inside use one BLAS thread, or they fight for the cores (three times slower)."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _write(config: StudyConfig, folder: str) -> None:
    write_npy(StudySource(config), folder)


def simulate_studies(
    folder: str | Path, config: StudyConfig, *, workers: int = 1, shard: int = 10
) -> ConcatSource:
    """Simulate studies into `folder`, or open those that are there; an interrupted call goes on.

    Parameters
    ----------
    folder
        Holds one folder of ``.npy`` files per shard.
    config
        Which studies.
    workers
        Processes.
    shard
        Studies per folder.

    Returns
    -------
    The tiles, memory-mapped.
    """
    folder = Path(folder)
    parts = [
        StudyConfig(**{**vars(config), "first": config.first + at, "n_datasets": n})
        for at in range(0, config.n_datasets, shard)
        if (n := min(shard, config.n_datasets - at))
    ]
    names = [
        folder / f"{p.labels}{p.silver_every}-{p.first}-{p.n_datasets}x{p.n_fields}x{p.n_channels}x{p.side}"
        for p in parts
    ]
    todo = [(p, str(n)) for p, n in zip(parts, names, strict=True) if not n.exists()]
    if workers > 1 and len(todo) > 1:
        with _one_thread_each(), ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
            for job in [executor.submit(_write, *each) for each in todo]:
                job.result()
    else:
        for each in todo:
            _write(*each)
    return ConcatSource([ArraySource.open(name) for name in names])
