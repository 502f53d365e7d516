"""Inputs are made and probabilities reduced on the host, in NumPy: fastest where the network runs there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np

from nimbus_sd.arrays import Tile, TilePlan
from nimbus_sd.engine.block import TileInput, TileLabels, prepare
from nimbus_sd.engine.device import PRECISIONS
from nimbus_sd.engine.forward import Network
from nimbus_sd.engine.memory import reuse_memory
from nimbus_sd.engine.output import sum_planes
from nimbus_sd.engine.score_path import GroupSums
from nimbus_sd.engine.settings import PredictConfig
from nimbus_sd.engine.source import Sample


class HostPath:
    """Only the network's passes run on the device; a group is finished when it was begun.

    Parameters
    ----------
    network
        Deployed.
    config
        How to run.
    transform
        Of the card: ``"sqrt"`` or ``"identity"``.
    """

    ahead = 0

    def __init__(self, network: Network, config: PredictConfig, *, transform: str) -> None:
        self._network, self._config, self._transform = network, config, transform

    def prepare(
        self,
        sample: Sample,
        plan: TilePlan,
        tile: Tile,
        group: tuple[int, ...],
        labels: TileLabels,
        scale: np.ndarray,
    ) -> TileInput:
        """Read pixels and build the network's input."""
        return prepare(
            sample,
            plan,
            tile,
            group,
            labels,
            scale=scale,
            transform=self._transform,
            dtype=PRECISIONS[self._network.precision],
            intensity=self._config.intensity,
        )

    def begin(self, item: TileInput, *, maps: bool) -> Callable[[], GroupSums]:
        """Score a group."""
        difference = self._network.difference(item.batch)
        by_view = self._network.probabilities(item.batch, self._config.views, item.tile).cpu().numpy()
        score = np.stack([sum_planes(item.labels.gather, p) for p in by_view], axis=-1)
        mean = by_view.mean(axis=0) if maps else None
        found = GroupSums(item.tile, item.group, item.labels, score, item.intensity, mean, difference)
        return lambda: found

    def memory(self) -> AbstractContextManager[None]:
        """Keep the memory of one layer for the next."""
        return reuse_memory()
