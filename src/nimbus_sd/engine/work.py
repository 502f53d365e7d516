"""What runners ask of a run, whatever it computes: its blocks, what scores them, how to speak of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from nimbus_sd.arrays import Partials


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


J_contra = TypeVar("J_contra", contravariant=True)


class Scorer(Protocol[J_contra]):
    """A network on a device, which turns blocks of a run into partials."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def score(self, job: J_contra, blocks: Iterable[Block]) -> Iterator[Scored]:
        """Score blocks in their order, consumed lazily."""
        ...


class Work(Protocol):
    """A run; where it is sent to workers it pickles, and its images lie where they can read them."""

    @property
    def samples(self) -> Sized:
        """What the blocks' first numbers count."""
        ...

    @property
    def key(self) -> str:
        """Tells runs apart."""
        ...

    @property
    def config(self) -> Hashable:
        """Settings; with the key, what a worker's scorer depends on."""
        ...

    def blocks(self) -> Iterator[Block]:
        """All blocks."""
        ...

    def __len__(self) -> int:
        """How many."""
        ...

    @property
    def n_bytes(self) -> int:
        """Bytes it holds that have to be sent along, besides pixels."""
        ...

    def scorer(self) -> Scorer[Any]:
        """Load what scores the blocks; called on a worker."""
        ...

    def named(self, block: Block) -> str:
        """Element and place of a block, for messages."""
        ...

    def advice(self, block: Block) -> str:
        """What to do where workers have no memory for a block."""
        ...

    def units(self, block: Block) -> int:
        """What a block adds to the progress."""
        ...


W_contra = TypeVar("W_contra", bound=Work, contravariant=True)


class Runs(Protocol[W_contra]):
    """Computes the blocks of a run, here or elsewhere."""

    def run(self, job: W_contra, blocks: Iterator[Block]) -> Iterator[Scored]:
        """Score blocks as they come."""
        ...
