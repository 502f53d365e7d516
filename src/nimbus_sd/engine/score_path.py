"""How a channel group gets from pixels to sums: what the ways over the host and over the device share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nimbus_sd.arrays import Tile, TilePlan
from nimbus_sd.engine.block import TileLabels
from nimbus_sd.engine.source import Sample


@dataclass(frozen=True)
class GroupSums:
    """What came of one tile and channel group, on the host.

    Attributes
    ----------
    score
        Sums of probabilities per label and view, float64 ``(n, g, views)``.
    intensity
        Raw sums per label, float64 ``(n, g)``; None where not asked for.
    maps
        Probabilities of the core, mean over the views, float32 ``(g, y, x)``; None where not
        asked for.
    difference
        From float32, where it was measured.
    """

    tile: Tile
    group: tuple[int, ...]
    labels: TileLabels
    score: np.ndarray
    intensity: np.ndarray | None
    maps: np.ndarray | None
    difference: float | None


class ScorePath(Protocol):
    """Turns tiles and channel groups into sums.

    Attributes
    ----------
    ahead
        Groups that may be on their way while the next is begun.
    """

    ahead: int

    def prepare(
        self,
        sample: Sample,
        plan: TilePlan,
        tile: Tile,
        group: tuple[int, ...],
        labels: TileLabels,
        scale: np.ndarray,
    ) -> Any:
        """Read and check pixels, in a reader's thread; `scale` ``(g,)`` is what maps to 1."""
        ...

    def begin(self, item: Any, *, maps: bool) -> Callable[[], GroupSums]:
        """Begin to score what :meth:`prepare` gave; the function that is returned waits for the sums."""
        ...

    def memory(self) -> AbstractContextManager[None]:
        """Entered for each block, from its first group's beginning to its last group's sums."""
        ...
