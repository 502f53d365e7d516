"""What an embedding run computes, in a form that travels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.embedding.patches import PatchBlock, PatchSample, plan_blocks
from nimbus_sd.engine.settings import check_limits
from nimbus_sd.engine.work import Block

if TYPE_CHECKING:
    from nimbus_sd.engine.embedding.embedder import Embedder

QUANTITIES = ("embedding", "activation", "occlusion", "gradient_x_input")


@dataclass(frozen=True)
class EmbedConfig:
    """How to run; none of it but `precision` changes the result.

    Parameters
    ----------
    batch_size
        Patches per forward pass; None finds it from memory.
    n_threads
        Reader threads per device.
    device
        ``"auto"`` or a name; several devices share the blocks.
    precision
        ``"auto"`` is float32: faint and empty differ by what bfloat16 rounds away.
    memory
        Bytes that activations may take; None takes a third of what is free.
    """

    batch_size: int | None = None
    n_threads: int = 2
    device: str | tuple[str, ...] = "auto"
    precision: str = "auto"
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.precision == "auto":
            object.__setattr__(self, "precision", "float32")
        check_limits(self)


@dataclass(frozen=True)
class EmbedJob:
    """Everything that decides the result; pickles without pixels or weights where those lie in files.

    Attributes
    ----------
    samples
        Images with centres.
    markers, scale
        The network's channels, in its order, and the intensity of each that maps to 1, ``(k,)``.
    transform
        Applied after the scale, see :class:`~nimbus_sd.models.EmbeddingCard`.
    crop
        Side of the patches that the network sees, px.
    config
        Settings.
    model
        Folder that :func:`nimbus_sd.models.load_embedding` takes.
    quantities
        What to compute for each cell, of :data:`QUANTITIES`.
    key
        Tells jobs apart.
    """

    samples: tuple[PatchSample, ...]
    markers: tuple[str, ...]
    scale: np.ndarray = field(repr=False)
    transform: str
    crop: int
    config: EmbedConfig
    model: str | Path = ""
    quantities: tuple[str, ...] = ("embedding", "activation")
    key: str = ""

    def __post_init__(self) -> None:
        unknown = [q for q in self.quantities if q not in QUANTITIES]
        if unknown or not self.quantities:
            msg = f"quantities={self.quantities}: give some of {', '.join(QUANTITIES)}"
            raise InputError(msg)

    @cached_property
    def plans(self) -> tuple[list[PatchBlock], ...]:
        """Blocks of every sample; each worker makes them itself."""
        return tuple(plan_blocks(sample, self.crop) for sample in self.samples)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "plans"}

    def channels(self, sample: int) -> list[int]:
        """Where a sample's image has the markers, by name."""
        mine = self.samples[sample].image.channels
        return [mine.index(m) for m in self.markers]

    def blocks(self) -> Iterator[Block]:
        """All blocks, sample by sample, in the order of the images' chunks."""
        for s, plan in enumerate(self.plans):
            yield from (Block(s, b) for b in range(len(plan)))

    def __len__(self) -> int:
        return sum(map(len, self.plans))

    @property
    def n_bytes(self) -> int:
        """Bytes of the centres, which are sent along."""
        return sum(s.ids.nbytes + s.centers.nbytes for s in self.samples)

    def scorer(self) -> Embedder:
        """Load the model; called on a worker."""
        from nimbus_sd.engine.embedding.embedder import Embedder  # which imports this module
        from nimbus_sd.models.embedding import load_embedding

        return Embedder(load_embedding(self.model), self.config)

    def named(self, block: Block) -> str:
        """Image and place of a block, for messages."""
        at = self.plans[block.sample][block.tile]
        name = self.samples[block.sample].image.name
        return (
            f"image {name!r}, block {block.tile} (y {at.y.start}–{at.y.stop}, x {at.x.start}–{at.x.stop}, "
            f"{len(at.rows)} cells)"
        )

    def advice(self, block: Block) -> str:
        """What to do where workers have no memory for a block."""
        return (
            "finished blocks are kept. Give the workers more memory, or pass a smaller batch_size=, and run "
            "again, which goes on from there"
        )

    def units(self, block: Block) -> int:
        """Cells of a block."""
        return len(self.plans[block.sample][block.tile].rows)
