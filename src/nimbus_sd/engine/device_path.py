"""Pixels go to the device as they were read, and only sums come back; the host is never waited for."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from nimbus_sd.arrays import Tile, TilePlan
from nimbus_sd.engine.block import TileLabels
from nimbus_sd.engine.device import PRECISIONS
from nimbus_sd.engine.forward import Network
from nimbus_sd.engine.label_sums import LabelSums
from nimbus_sd.engine.on_device import DeviceTile, RawTile, network_input, read_raw, upload
from nimbus_sd.engine.output import is_out_of_memory, no_memory
from nimbus_sd.engine.score_path import GroupSums
from nimbus_sd.engine.settings import PredictConfig
from nimbus_sd.engine.source import Sample
from nimbus_sd.engine.transfer import Pending


@dataclass(frozen=True)
class ScaledTile:
    """A raw tile, and the intensity of each of its channels that maps to 1, ``(g,)``."""

    raw: RawTile
    scale: np.ndarray


class DevicePath:
    """Normalise, resample, score and reduce on the device.

    The host runs ahead: while the device computes one group, the next is queued behind it
    and its pixels are copied on a stream of their own, and the host finishes the one before.

    Parameters
    ----------
    network
        Deployed; on a CPU the same is computed, without streams.
    config
        How to run.
    transform
        Of the card: ``"sqrt"`` or ``"identity"``.
    """

    ahead = 2

    def __init__(self, network: Network, config: PredictConfig, *, transform: str) -> None:
        self._network, self._config, self._transform = network, config, transform
        self._on_cuda = network.device.type == "cuda"
        self._copies = torch.cuda.Stream(network.device) if self._on_cuda else None
        self._sums: Callable[[], LabelSums | None] = lambda: None  # of the last tile, if they still live

    def prepare(
        self,
        sample: Sample,
        plan: TilePlan,
        tile: Tile,
        group: tuple[int, ...],
        labels: TileLabels,
        scale: np.ndarray,
    ) -> ScaledTile:
        """Read pixels into memory that the device copies from."""
        return ScaledTile(read_raw(sample, plan, tile, group, labels, pin=self._on_cuda), scale)

    def begin(self, item: ScaledTile, *, maps: bool) -> Callable[[], GroupSums]:
        """Queue all that a group needs, without waiting for any of it."""
        try:
            with torch.inference_mode():
                sums = self._label_sums(item.raw.labels)
                tile = upload(item.raw, self._network.device, stream=self._copies)
                difference, tensors = self._compute(tile, item.scale, sums, maps=maps)
                pending = Pending(tensors)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise no_memory(self._network.device) from error
            raise
        # with the sums of labels: their memory belongs to another stream and must outlive what reads it
        return partial(self._arrived, pending, sums, item.raw.tile, item.raw.group, difference)

    def memory(self) -> AbstractContextManager[None]:
        """Leave the host's memory as it is."""
        return nullcontext()

    def _label_sums(self, labels: TileLabels) -> LabelSums:
        """Those of the group before, if it was of the same tile."""
        sums = self._sums()
        if sums is None or sums.labels is not labels:
            with torch.cuda.stream(self._copies):  # before the pixels: who waits for those has both
                sums = LabelSums(labels, self._network.device, raw=self._config.intensity)
            self._sums = weakref.ref(sums)
        return sums

    def _compute(
        self, tile: DeviceTile, scale: np.ndarray, sums: LabelSums, *, maps: bool
    ) -> tuple[float | None, dict[str, Tensor]]:
        dtype = PRECISIONS[self._network.precision]
        batch = network_input(tile, scale=scale, transform=self._transform, dtype=dtype)
        difference = self._network.difference(batch)  # waits, once in a run
        by_view = self._network.probabilities(batch, self._config.views, tile.tile)
        # (views, g, y, x) to (n, views, g): planes are summed as one stack
        score = sums.sum(by_view.flatten(0, 1)).unflatten(1, by_view.shape[:2])
        out = {"score": score.transpose(1, 2).contiguous()}
        if self._config.intensity:
            out["intensity"] = sums.raw_sums(tile.owned)
        if maps:
            out["maps"] = by_view.mean(0)
        return difference, out

    def _arrived(
        self,
        pending: Pending,
        sums: LabelSums,
        tile: Tile,
        group: tuple[int, ...],
        difference: float | None,
    ) -> GroupSums:
        found = pending.result()
        return GroupSums(
            tile, group, sums.labels, found["score"], found.get("intensity"), found.get("maps"), difference
        )
