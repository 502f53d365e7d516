"""What a run computes, in a form that travels: samples, markers, scales, tiles, model, settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from nimbus_sd.arrays import Partials, Tile, TilePlan
from nimbus_sd.engine.settings import PredictConfig
from nimbus_sd.engine.source import Sample


class MapSink(Protocol):
    """Receives the probabilities of tiles, from any thread or process."""

    def write(self, tile: Tile, markers: Sequence[int], probabilities: np.ndarray) -> None:
        """Keep float32 ``(g, y, x)`` probabilities of the tile's core, in model px."""
        ...


class Block(NamedTuple):
    """The unit of scheduling: one tile of one sample, all markers."""

    sample: int
    tile: int


@dataclass(frozen=True)
class Scored:
    """What came of a block.

    Attributes
    ----------
    block
        Which one.
    partials
        Sums per label; None where the tile owns no labelled pixel.
    difference
        Largest difference of pixel probabilities from float32, where it was measured.
    """

    block: Block
    partials: Partials | None
    difference: float | None = None


@dataclass(frozen=True)
class Job:
    """Everything that decides the result; pickles without pixels or weights where those lie in files.

    Attributes
    ----------
    samples, plans
        Images with labels and the tiles of each.
    channels, scale
        Markers, and the intensity of each that maps to 1, ``(k,)``.
    config
        Settings.
    model
        Name, folder or file that :func:`nimbus_sd.models.load` takes.
    sinks
        One per sample where maps are wanted.
    key
        Tells jobs apart.
    """

    samples: tuple[Sample, ...]
    plans: tuple[TilePlan, ...]
    channels: tuple[str, ...]
    scale: np.ndarray = field(repr=False)
    config: PredictConfig
    model: str | Path = "nimbus-sd-s"
    sinks: tuple[MapSink, ...] = ()
    key: str = ""

    def blocks(self) -> Iterator[Block]:
        """All blocks, sample by sample, row by row."""
        for s, plan in enumerate(self.plans):
            yield from (Block(s, t) for t in range(len(plan)))

    def __len__(self) -> int:
        return sum(map(len, self.plans))
