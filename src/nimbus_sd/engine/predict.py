"""Score every label of a sample: readers feed one device, probabilities become partials at once.

The result does not depend on tile size, chunks, batch size or thread count: it
equals one forward pass over the whole padded image.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import torch
from torch import Tensor

from nimbus_sd._core.errors import InputError, NimbusWarning, WeightsError
from nimbus_sd.arrays import (
    VIEWS,
    Partials,
    Tile,
    TilePlan,
    apply_view,
    invert_view,
    merge_partials,
    plan_tiles,
)
from nimbus_sd.arrays.reduce import check_label_dtype
from nimbus_sd.arrays.rescale import scale_factor
from nimbus_sd.engine.block import TileInput, TileLabelCache, prepare
from nimbus_sd.engine.device import PRECISIONS, deploy, memory_budget, resolve_device, resolve_precision
from nimbus_sd.engine.memory import reuse_memory
from nimbus_sd.engine.output import check_finite, full_resolution, is_out_of_memory, sum_planes
from nimbus_sd.engine.readahead import read_ahead
from nimbus_sd.engine.source import Sample
from nimbus_sd.models.loading import LoadedModel

_TILES = (2048, 1024, 512, 256, 128)
_GROUP_BYTES = 256 << 20
_CPU_BATCH_PIXELS = 1 << 20  # more per pass is no faster on a CPU and takes memory

MapWriter = Callable[[Tile, Sequence[int], np.ndarray], None]


@dataclass(frozen=True)
class PredictConfig:
    """How to run; none of it but `views` and `precision` changes the scores.

    Parameters
    ----------
    views
        Test-time views to average, keys of :data:`nimbus_sd.arrays.VIEWS`.
    tile
        Side of a tile's core in model px; None takes the largest that memory allows.
    batch_size
        Markers per forward pass; None finds it from memory.
    n_threads
        Reader threads.
    device, precision
        ``"auto"`` or a name.
    per_view
        Keep the sums of every view, for the spread over them.
    intensity
        Sum raw intensities as well.
    """

    views: tuple[str, ...] = ("identity",)
    tile: int | None = None
    batch_size: int | None = None
    n_threads: int = 2
    device: str = "auto"
    precision: str = "auto"
    per_view: bool = False
    intensity: bool = True

    def __post_init__(self) -> None:
        unknown = [v for v in self.views if v not in VIEWS]
        if unknown or not self.views or len(set(self.views)) < len(self.views):
            msg = f"views={self.views!r}: give each view once; valid: {', '.join(VIEWS)}"
            raise InputError(msg)
        for name in ("tile", "batch_size", "n_threads"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                msg = f"{name}={value!r} must be a whole number"
                raise InputError(msg)
        if self.batch_size is not None and self.batch_size < 1:
            msg = f"batch_size={self.batch_size} must be at least 1, or None to find it from memory"
            raise InputError(msg)
        if self.per_view and len(self.views) < 2:
            msg = "score_std needs at least two views; pass views=8"
            raise InputError(msg)
        if self.n_threads < 0:
            msg = f"n_threads={self.n_threads} must be 0 (read in the main thread) or more"
            raise InputError(msg)


class Predictor:
    """A deployed network that turns samples into partials.

    Parameters
    ----------
    model
        From :func:`nimbus_sd.models.load`.
    config
        How to run.
    """

    def __init__(self, model: LoadedModel, config: PredictConfig | None = None) -> None:
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
        self.device = resolve_device(self.config.device)
        self.precision = resolve_precision(self.config.precision, self.device)
        self.net = deploy(model.net, self.device, self.precision)
        self.budget = memory_budget(model.net, self.device, self.precision)
        self._batch_limit = self.config.batch_size

    def plan(self, sample: Sample) -> TilePlan:
        """Tiles of a sample, from its metadata alone."""
        check_label_dtype(sample.labels.dtype)
        if sample.mpp is None:
            msg = f"labels {sample.region!r}: the pixel size is unknown; pass mpp= (µm per px)"
            raise InputError(msg)
        factor = scale_factor(sample.mpp, self.card.mpp)
        tile = self._auto_tile(sample, factor) if self.config.tile is None else self.config.tile
        return plan_tiles(
            sample.labels.shape, factor=factor, tile=tile, halo=self.card.halo, stride=self.card.stride
        )

    def _auto_tile(self, sample: Sample, factor: float) -> int:
        side = max(sample.labels.shape) / factor
        stride = self.card.stride
        for tile in _TILES:
            needed = min(tile + 2 * self.card.halo, side + stride)
            if needed**2 <= self.budget.pixels:
                return max(tile // stride, 1) * stride
        return max(_TILES[-1] // stride, 1) * stride

    def run(
        self,
        sample: Sample,
        channels: Sequence[str],
        scale: np.ndarray,
        *,
        on_progress: Callable[[int], None] | None = None,
        on_map: MapWriter | None = None,
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
        on_map
            Called with tile, marker positions and full-resolution probabilities
            ``(g, y, x)`` of the tile's owned pixels.

        Returns
        -------
        Partials with sums ``score`` ``(n, k)``, ``position`` (y, x in px)
        ``(n, 2)``, ``n_tiles`` ``(n, 1)`` and, as configured, ``intensity``
        ``(n, k)`` and ``score_view`` ``(n, k, views)``.
        """
        plan = self.plan(sample)
        parts = []
        for inputs in self._tiles(sample, plan, channels, scale):
            with reuse_memory():  # left after each tile: partials that stay would break up the heap
                part = self._score_tile(inputs, plan, on_map)
            if part is not None:
                parts.append(part)
            if on_progress:
                on_progress(len(channels))
        return merge_partials(parts)

    def _tiles(
        self, sample: Sample, plan: TilePlan, channels: Sequence[str], scale: np.ndarray
    ) -> Iterator[Iterator[TileInput | None]]:
        """Yield, for every tile, the inputs of its channel groups; None where it has no labels."""
        position = {c: i for i, c in enumerate(sample.image.channels)}
        groups = self._groups(sample, plan, [position[c] for c in channels])
        where = {position[c]: k for k, c in enumerate(channels)}
        window = self.config.n_threads + 1
        cache = TileLabelCache(sample.labels, plan, keep=window + 1)

        def read(job: tuple[Tile, tuple[int, ...]]) -> TileInput | None:
            tile, group = job
            tile_labels = cache.get(tile)
            if tile_labels is None:
                return None
            return prepare(
                sample,
                plan,
                tile,
                group,
                tile_labels,
                scale=scale[[where[i] for i in group]],
                transform=self.card.transform,
                dtype=PRECISIONS[self.precision],
                intensity=self.config.intensity,
            )

        jobs = ((tile, group) for tile in plan for group in groups)
        stream = read_ahead(read, jobs, n_threads=self.config.n_threads, window=window)
        for _ in range(len(plan)):
            # consumed one by one, so that a group's input goes before the next one is taken
            yield islice(stream, len(groups))

    def _groups(self, sample: Sample, plan: TilePlan, wanted: list[int]) -> list[tuple[int, ...]]:
        """Split the channels so that a group's pixels stay small, and chunks are not read twice."""
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

    def _score_tile(
        self, inputs: Iterator[TileInput | None], plan: TilePlan, on_map: MapWriter | None
    ) -> Partials | None:
        score, views, intensity = [], [], []
        tile, labels, done = None, None, 0
        for item in inputs:
            if item is None:
                continue
            tile, labels = item.tile, item.labels
            by_view = [self._forward_view(item, view) for view in self.config.views]
            sums = np.stack([sum_planes(labels.gather, p) for p in by_view], axis=-1)
            check_finite(sums, self.card.name)
            score.append(sums.mean(axis=-1))
            if self.config.per_view:
                views.append(sums)
            if item.intensity is not None:
                intensity.append(item.intensity)
            if on_map:
                on_map(tile, range(done, done + len(item.group)), full_resolution(by_view, plan, tile))
            done += len(item.group)
        if tile is None or labels is None:
            return None
        index = labels.index
        origin = np.array([o.start for o in tile.owned], dtype=np.float64)
        out = {
            "score": np.concatenate(score, axis=1),
            "position": index.centroid_sums + origin * index.count[:, None],
            "n_tiles": np.ones((index.ids.size, 1)),
        }
        if views:
            out["score_view"] = np.concatenate(views, axis=1)
        if intensity:
            out["intensity"] = np.concatenate(intensity, axis=1)
        return Partials(index.ids, index.count, out)

    def _forward_view(self, item: TileInput, view: str) -> np.ndarray:
        """Probabilities of the tile's core, float32 ``(g, y, x)``."""
        batch, core = item.batch, item.tile.core
        out = np.empty((len(batch), core[0].size, core[1].size), dtype=np.float32)
        start = 0
        while start < len(batch):
            step = min(self._batch_size(batch), len(batch) - start)
            try:
                out[start : start + step] = self._forward_batch(batch[start : start + step], view, item.tile)
            except RuntimeError as error:
                self._shrink(error, step)
                continue
            start += step
        return out

    def _forward_batch(self, batch: Tensor, view: str, tile: Tile) -> np.ndarray:
        # TF32 has ten mantissa bits: "float32" must mean float32 on CUDA too
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            x = apply_view(batch.to(self.device, non_blocking=True), view)
            logits = self.net(x.contiguous(memory_format=torch.channels_last))
            core = invert_view(logits, view)[:, 0, *tile.kept]
            return core.float().sigmoid_().cpu().numpy()

    def _batch_size(self, batch: Tensor) -> int:
        if self._batch_limit is not None:
            return self._batch_limit
        pixels = batch.shape[-1] * batch.shape[-2]
        fits = self.budget.pixels
        if self.device.type == "cpu":
            fits = min(fits, _CPU_BATCH_PIXELS)
        return max(min(fits // pixels, len(batch), 16), 1)

    def _shrink(self, error: RuntimeError, step: int) -> None:
        if not is_out_of_memory(error):
            raise error
        if step == 1:
            msg = (
                f"the device {self.device} ran out of memory with one marker per batch; pass a smaller tile= "
                "(a multiple of 16, such as 256), precision='bfloat16' or another device="
            )
            raise InputError(msg) from error
        self._batch_limit = step // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(
            f"out of memory on {self.device}: batch size halved to {self._batch_limit}",
            NimbusWarning,
            stacklevel=2,
        )
