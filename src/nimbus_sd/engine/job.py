"""What a run computes, in a form that travels: samples, markers, scales, tiles, model, settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nimbus_sd.arrays import Tile, TilePlan
from nimbus_sd.engine.settings import PredictConfig
from nimbus_sd.engine.source import Sample
from nimbus_sd.engine.work import Block, Scored

if TYPE_CHECKING:
    from nimbus_sd.engine.predict import Predictor

__all__ = ["Block", "Job", "MapSink", "Scored"]


class MapSink(Protocol):
    """Receives the probabilities of tiles, from any thread or process."""

    def write(self, tile: Tile, markers: Sequence[int], probabilities: np.ndarray) -> None:
        """Keep float32 ``(g, y, x)`` probabilities of the tile's core, in model px."""
        ...


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

    @property
    def n_bytes(self) -> int:
        """Bytes that have to be sent along, besides pixels: next to none."""
        return 0

    def scorer(self) -> Predictor:
        """Load the model; called on a worker."""
        from nimbus_sd.engine.predict import Predictor  # which imports this module
        from nimbus_sd.models.loading import load

        return Predictor(load(self.model), self.config)

    def named(self, block: Block) -> str:
        """Labels and place of a block, for messages."""
        y, x = self.plans[block.sample][block.tile].owned
        region = self.samples[block.sample].region
        return f"labels {region!r}, block {block.tile} (y {y.start}–{y.stop}, x {x.start}–{x.stop})"

    def advice(self, block: Block) -> str:
        """What to do where workers have no memory for a block."""
        return (
            "finished blocks are kept. Give the workers more memory and run again, which goes on from there; "
            f"or pass a smaller tile= (now {self.plans[block.sample].tile}), which starts afresh"
        )

    def units(self, block: Block) -> int:
        """Tiles x markers of a block."""
        return len(self.channels)
