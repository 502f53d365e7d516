"""Score the labels of samples: readers feed a device, probabilities become partials at once.

The result does not depend on tile size, chunks, batch size or thread count: it
equals one forward pass over the whole padded image.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from nimbus_sd._core.errors import InputError, NimbusWarning, WeightsError
from nimbus_sd.arrays import Partials, TilePlan, merge_partials, plan_tiles
from nimbus_sd.arrays.reduce import check_label_dtype
from nimbus_sd.arrays.rescale import scale_factor
from nimbus_sd.engine.block import TileLabelCache
from nimbus_sd.engine.block_sums import BlockSums
from nimbus_sd.engine.device import MemoryBudget, resolve_devices, resolve_precision
from nimbus_sd.engine.device_path import DevicePath
from nimbus_sd.engine.forward import Network
from nimbus_sd.engine.groups import channel_groups
from nimbus_sd.engine.host_path import HostPath
from nimbus_sd.engine.job import Block, Job, MapSink, Scored
from nimbus_sd.engine.readahead import read_ahead
from nimbus_sd.engine.score_path import GroupSums, ScorePath
from nimbus_sd.engine.settings import PredictConfig
from nimbus_sd.engine.source import Sample
from nimbus_sd.models.loading import LoadedModel

_TILES = (2048, 1024, 512, 256, 128)


@dataclass(frozen=True)
class _Read:
    """A channel group of a block: what a reader is asked for, and what it gives for the path's `begin`."""

    block: Block
    group: tuple[int, ...]
    first: bool
    last: bool
    input: Any = None


@dataclass(frozen=True)
class _Begun:
    """A channel group of a block whose sums are on their way; None for a tile without labels."""

    block: Block
    last: bool
    sums: Callable[[], GroupSums] | None


class Predictor:
    """A deployed network that turns blocks into partials.

    Parameters
    ----------
    model
        From :func:`nimbus_sd.models.load`.
    config
        How to run.
    device
        One of the devices that the config names; None takes the first.
    on_device
        Whether inputs are made and probabilities reduced on the device, too; None does so on CUDA.
    """

    def __init__(
        self,
        model: LoadedModel,
        config: PredictConfig | None = None,
        device: torch.device | None = None,
        *,
        on_device: bool | None = None,
    ) -> None:
        self.card, self.head = model.card, model.head
        planes = int(self.card.architecture.get("in_channels", 2))
        if planes != 2:
            msg = (
                f"model {self.card.name!r} reads {planes} planes; prediction gives marker and mask, no extra "
                "channels (nuclei, membrane): use a model trained without them"
            )
            raise WeightsError(msg)
        self.config = config or PredictConfig()
        if not self.card.exact:
            warnings.warn(
                f"model {self.card.name!r} sees beyond its tiles (exact=false): scores depend on tile=",
                NimbusWarning,
                stacklevel=2,
            )
        self.device = device or resolve_devices(self.config.device)[0]
        self.precision = resolve_precision(self.config.precision, self.device)
        self.network = Network(
            model,
            self.device,
            self.precision,
            batch_size=self.config.batch_size,
            memory=self.config.memory,
            compiled=self.config.compiled,
        )
        self.on_device = self.device.type == "cuda" if on_device is None else on_device
        way = DevicePath if self.on_device else HostPath
        self._path: ScorePath = way(self.network, self.config, transform=self.card.transform)

    @property
    def net(self) -> nn.Module:
        """The deployed network."""
        return self.network.net

    @property
    def budget(self) -> MemoryBudget:
        """What activations may take."""
        return self.network.budget

    def plan(
        self, sample: Sample, *, tile: int | None = None, n_workers: int = 1, pixels: int | None = None
    ) -> TilePlan:
        """Tiles of a sample, from its metadata alone.

        Parameters
        ----------
        sample
            Image and labels on one grid.
        tile
            Side of a core in model px; None takes the config's, else the largest that fits.
        n_workers
            How many share the blocks: among the tiles that fit, the one that ends first is taken.
        pixels
            Model px that fit where the network will run; None takes what fits here.
        """
        check_label_dtype(sample.labels.dtype)
        if sample.mpp is None:
            msg = f"labels {sample.region!r}: the pixel size is unknown; pass mpp= (µm per px)"
            raise InputError(msg)
        factor = scale_factor(sample.mpp, self.card.mpp)
        tile = tile or self.config.tile
        if tile is None:
            tile = self._auto_tile(sample, factor, n_workers, pixels or self.network.pixels)
        return plan_tiles(
            sample.labels.shape, factor=factor, tile=tile, halo=self.card.halo, stride=self.card.stride
        )

    def _auto_tile(self, sample: Sample, factor: float, n_workers: int, pixels: int) -> int:
        stride, halo = self.card.stride, self.card.halo
        sides = [n / factor + stride for n in sample.labels.shape]
        best, least = _TILES[-1], math.inf
        for tile in _TILES:
            outer = math.prod(min(tile + 2 * halo, side) for side in sides)
            if outer > pixels:
                continue
            # with one worker, this is the work with its halo; with more, the last round counts whole
            rounds = -(-math.prod(math.ceil(side / tile) for side in sides) // n_workers)
            if rounds * outer < least:
                best, least = tile, rounds * outer
        return max(best // stride, 1) * stride

    def run(
        self,
        sample: Sample,
        channels: Sequence[str],
        scale: np.ndarray,
        *,
        on_progress: Callable[[int], None] | None = None,
        sink: MapSink | None = None,
    ) -> Partials:
        """Score all labels of a sample.

        Parameters
        ----------
        sample
            Image and labels on one grid.
        channels
            Markers to score.
        scale
            Intensity of each that maps to 1, ``(k,)``.
        on_progress
            Called with the number of tiles x markers done since the last call.
        sink
            Receives the probabilities.

        Returns
        -------
        Partials with sums ``score`` ``(n, k)``, ``position`` (y, x in px)
        ``(n, 2)``, ``n_tiles`` ``(n, 1)`` and, as configured, ``intensity``
        ``(n, k)`` and ``score_view`` ``(n, k, views)``.
        """
        job = Job(
            (sample,),
            (self.plan(sample),),
            tuple(channels),
            np.asarray(scale),
            self.config,
            sinks=() if sink is None else (sink,),
        )
        parts = []
        for scored in self.score(job, job.blocks()):
            if scored.partials is not None:
                parts.append(scored.partials)
            if on_progress:
                on_progress(len(channels))
        return merge_partials(parts)

    def score(self, job: Job, blocks: Iterable[Block]) -> Iterator[Scored]:
        """Score blocks in their order; readers run ahead, across samples too.

        Parameters
        ----------
        job
            What to compute.
        blocks
            Consumed lazily.
        """
        sums = None
        with ExitStack() as memory:
            for begun in self._begin(job, blocks, memory):
                if sums is None:
                    sums = BlockSums(job, begun.block, name=self.card.name)
                if begun.sums is not None:
                    sums.add(begun.sums())
                block, last = begun.block, begun.last
                del begun  # with its maps
                if last:
                    memory.close()  # after each block: sums that stay would break up the heap
                    yield Scored(block, sums.partials(), sums.difference)
                    sums = None

    def _begin(self, job: Job, blocks: Iterable[Block], memory: ExitStack) -> Iterator[_Begun]:
        """Begin all channel groups of all blocks in their order; the path says how far ahead."""
        waiting: deque[_Begun] = deque()
        for read in self._read(job, blocks):
            if read.first:
                memory.enter_context(self._path.memory())
            sums = None if read.input is None else self._path.begin(read.input, maps=bool(job.sinks))
            waiting.append(_Begun(read.block, read.last, sums))
            del read, sums  # its input goes before the next one is taken
            if len(waiting) > self._path.ahead:
                yield waiting.popleft()
        yield from waiting

    def _read(self, job: Job, blocks: Iterable[Block]) -> Iterator[_Read]:
        """Yield the inputs of all channel groups of all blocks; None where a tile has no labels."""
        window = self.config.n_threads + 1
        cache = TileLabelCache(keep=window + 1)
        groups = {}
        scales = dict(zip(job.channels, np.asarray(job.scale), strict=True))

        def jobs() -> Iterator[_Read]:
            for block in blocks:
                s = block.sample
                if s not in groups:
                    groups[s] = channel_groups(job.samples[s].image, job.plans[s], job.channels)
                for i, group in enumerate(groups[s]):
                    yield _Read(block, group, i == 0, i == len(groups[s]) - 1)

        def read(wanted: _Read) -> _Read:
            sample, plan = job.samples[wanted.block.sample], job.plans[wanted.block.sample]
            tile = plan[wanted.block.tile]
            labels = cache.get(wanted.block, sample.labels, plan, tile)
            if labels is None:
                return wanted
            scale = np.array([scales[sample.image.channels[i]] for i in wanted.group])
            item = self._path.prepare(sample, plan, tile, wanted.group, labels, scale)
            return replace(wanted, input=item)

        return read_ahead(read, jobs(), n_threads=self.config.n_threads, window=window)
