"""What a run computes that shows a network the patch around each cell, in a form that travels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nimbus_sd.engine.embedding.patches import PatchBlock, PatchSample, plan_blocks
from nimbus_sd.engine.settings import check_limits
from nimbus_sd.engine.work import Block, Scorer


@dataclass(frozen=True)
class PatchConfig:
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


@dataclass(frozen=True, kw_only=True)
class PatchJob(ABC):
    """Everything that decides the result; pickles without pixels or weights where those lie in files.

    Attributes
    ----------
    samples
        Images with centres.
    config
        Settings.
    model
        Folder that a worker loads the model from.
    key
        Tells jobs apart.
    """

    samples: tuple[PatchSample, ...]
    config: PatchConfig
    model: str | Path = ""
    key: str = ""

    @abstractmethod
    def channels(self, sample: int) -> list[int]:
        """Positions of the channels that are read of a sample's image."""

    @abstractmethod
    def size(self, sample: int) -> int:
        """Side of the patches that are cut of a sample's image, px."""

    @abstractmethod
    def scorer(self) -> Scorer[Any]:
        """Load the model; called on a worker."""

    @cached_property
    def plans(self) -> tuple[list[PatchBlock], ...]:
        """Blocks of every sample; each worker makes them itself."""
        return tuple(plan_blocks(sample, self.size(i)) for i, sample in enumerate(self.samples))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "plans"}

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
