"""Score the labels of samples: readers feed a device, probabilities become partials at once.

The result does not depend on tile size, chunks, batch size or thread count: it
equals one forward pass over the whole padded image.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import nn

from nimbus_sd._core.errors import InputError, NimbusWarning, WeightsError
from nimbus_sd.arrays import Partials, Tile, TilePlan, merge_partials, plan_tiles
from nimbus_sd.arrays.reduce import check_label_dtype
from nimbus_sd.arrays.rescale import scale_factor
from nimbus_sd.engine.block import TileInput, TileLabelCache, TileLabels, prepare
from nimbus_sd.engine.device import PRECISIONS, MemoryBudget, resolve_devices, resolve_precision
from nimbus_sd.engine.forward import Network
from nimbus_sd.engine.job import Block, Job, MapSink, Scored
from nimbus_sd.engine.memory import reuse_memory
from nimbus_sd.engine.output import check_finite, sum_planes
from nimbus_sd.engine.readahead import read_ahead
from nimbus_sd.engine.settings import PredictConfig
from nimbus_sd.engine.source import Sample
from nimbus_sd.models.loading import LoadedModel

_TILES = (2048, 1024, 512, 256, 128)
_GROUP_BYTES = 256 << 20


@dataclass(frozen=True)
class _Read:
    """A channel group of a block: what a reader is asked for, and what it gives."""

    block: Block
    group: tuple[int, ...]
    last: bool
    input: TileInput | None = None


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
    """

    def __init__(
        self,
        model: LoadedModel,
        config: PredictConfig | None = None,
        device: torch.device | None = None,
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
        self._checked = False

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
            tile = self._auto_tile(sample, factor, n_workers, pixels or self.budget.pixels)
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
        with ExitStack() as heap:
            for read in self._read(job, blocks):
                if sums is None:
                    sums = _BlockSums(job, read.block)
                    heap.enter_context(reuse_memory())
                if read.input is not None:
                    self._add(sums, read.input)
                if read.last:
                    heap.close()  # after each block: sums that stay would break up the heap
                    yield Scored(read.block, sums.partials(), sums.difference)
                    sums = None
                del read  # its input goes before the next one is taken

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
                    groups[s] = self._groups(job.samples[s], job.plans[s], job.channels)
                for i, group in enumerate(groups[s]):
                    yield _Read(block, group, i == len(groups[s]) - 1)

        def read(wanted: _Read) -> _Read:
            sample, plan = job.samples[wanted.block.sample], job.plans[wanted.block.sample]
            tile = plan[wanted.block.tile]
            labels = cache.get(wanted.block, sample.labels, plan, tile)
            if labels is None:
                return wanted
            scale = np.array([scales[sample.image.channels[i]] for i in wanted.group])
            return replace(wanted, input=self._prepare(sample, plan, tile, wanted.group, labels, scale))

        return read_ahead(read, jobs(), n_threads=self.config.n_threads, window=window)

    def _prepare(
        self,
        sample: Sample,
        plan: TilePlan,
        tile: Tile,
        group: tuple[int, ...],
        labels: TileLabels,
        scale: np.ndarray,
    ) -> TileInput:
        return prepare(
            sample,
            plan,
            tile,
            group,
            labels,
            scale=scale,
            transform=self.card.transform,
            dtype=PRECISIONS[self.precision],
            intensity=self.config.intensity,
        )

    def _groups(self, sample: Sample, plan: TilePlan, channels: Sequence[str]) -> list[tuple[int, ...]]:
        """Split the channels so that a group's pixels stay small, and chunks are not read twice."""
        position = {c: i for i, c in enumerate(sample.image.channels)}
        wanted = [position[c] for c in channels]
        y, x = plan[0].outer_shape
        pixels = y * x * max(plan.y.factor, 1) ** 2
        fits = max(int(_GROUP_BYTES // (pixels * (sample.image.dtype.itemsize + 8))), 1)
        chunk_of = np.repeat(np.arange(len(sample.image.chunks[0])), sample.image.chunks[0])
        groups: list[list[int]] = []
        for _, members in groupby(wanted, key=lambda i: chunk_of[i]):
            together = list(members)
            if groups and len(groups[-1]) + len(together) <= fits:
                groups[-1] += together
            else:
                groups.append(together)
        return [tuple(group) for group in groups]

    def _add(self, sums: _BlockSums, item: TileInput) -> None:
        if not self._checked:
            sums.difference = self.network.difference(item.batch)
            self._checked = True
        by_view = self.network.probabilities(item.batch, self.config.views, item.tile).cpu().numpy()
        totals = np.stack([sum_planes(item.labels.gather, p) for p in by_view], axis=-1)
        check_finite(totals, self.card.name)
        sums.add(item, totals, by_view)


class _BlockSums:
    """Sums of one block, group by group."""

    def __init__(self, job: Job, block: Block) -> None:
        self._config, self._block = job.config, block
        self._sink = job.sinks[block.sample] if job.sinks else None
        self._score: list[np.ndarray] = []
        self._views: list[np.ndarray] = []
        self._intensity: list[np.ndarray] = []
        self._labels: TileLabels | None = None
        self._tile: Tile | None = None
        self._done = 0
        self.difference: float | None = None

    def add(self, item: TileInput, totals: np.ndarray, by_view: np.ndarray) -> None:
        """Add the sums ``(n, g, views)`` of a group; its probabilities ``(views, g, y, x)`` go to the map."""
        self._tile, self._labels = item.tile, item.labels
        self._score.append(totals.mean(axis=-1))
        if self._config.per_view:
            self._views.append(totals)
        if item.intensity is not None:
            self._intensity.append(item.intensity)
        if self._sink is not None:
            markers = range(self._done, self._done + len(item.group))
            self._sink.write(item.tile, markers, by_view.mean(axis=0))
        self._done += len(item.group)

    def partials(self) -> Partials | None:
        """Sums of all groups; None for a tile without labels."""
        if self._tile is None or self._labels is None:
            return None
        index = self._labels.index
        origin = np.array([o.start for o in self._tile.owned], dtype=np.float64)
        out = {
            "score": np.concatenate(self._score, axis=1),
            "position": index.centroid_sums + origin * index.count[:, None],
            "n_tiles": np.ones((index.ids.size, 1)),
        }
        if self._views:
            out["score_view"] = np.concatenate(self._views, axis=1)
        if self._intensity:
            out["intensity"] = np.concatenate(self._intensity, axis=1)
        return Partials(index.ids, index.count, out)
