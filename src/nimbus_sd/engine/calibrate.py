"""How fast this machine is: the network and the readers, timed on a small part of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from nimbus_sd.arrays import Tile, TilePlan
from nimbus_sd.engine.block import to_model_pixels
from nimbus_sd.engine.device import PRECISIONS
from nimbus_sd.engine.groups import chunk_groups
from nimbus_sd.engine.memory import reuse_memory
from nimbus_sd.engine.output import is_out_of_memory
from nimbus_sd.engine.predict import Predictor
from nimbus_sd.engine.readahead import read_ahead
from nimbus_sd.engine.source import Sample, check_planes

_PASS_SECONDS = 0.3  # a forward pass of this length is timed well enough
_REPEAT_SECONDS = 1.0  # one of this length is not timed twice
_READ_SECONDS, _READ_JOBS = 1.0, 8


def calibrate(
    predictor: Predictor,
    samples: Sequence[Sample],
    *,
    channels: Sequence[str] | None = None,
    plans: Sequence[TilePlan] | None = None,
) -> tuple[float, float]:
    """Time the network and the readers on a small part of the largest sample.

    Returns
    -------
    Model px per s of the forward pass, and bytes of raw pixels per s that the reader
    threads turn into its input (infinite where there is nothing to read).
    """
    if not samples:
        return _forward_rate(predictor, (256, 256)), math.inf
    at = max(range(len(samples)), key=lambda i: math.prod(samples[i].labels.shape))
    sample = samples[at]
    plan = predictor.plan(sample) if plans is None else plans[at]
    tile = plan[(plan.grid[0] // 2) * plan.grid[1] + plan.grid[1] // 2]
    wanted = sample.image.channels if channels is None else channels
    return _forward_rate(predictor, tile.outer_shape), _read_rate(predictor, sample, plan, tile, wanted)


def _forward_rate(predictor: Predictor, shape: tuple[int, int]) -> float:
    """Model px per s: the input grows to the tile, then the batch, until a pass is long enough."""
    stride = predictor.card.stride
    sides = [-(-s // stride) * stride for s in (256, 512, 1024, 2048)]
    inputs = [(1, *(min(s, n) for n in shape)) for s in sides if s < max(shape)] + [(1, *shape)]
    most = min(predictor.network.per_pass(shape), predictor.budget.pixels // math.prod(shape))
    inputs += [(2**i, *shape) for i in range(1, most.bit_length())]
    rate = 0.0
    # a process's first pass starts threads and builds kernels, which can take longer than a tile
    _pass_seconds(predictor.net, _noise(predictor, 1, *(min(4 * stride, n) for n in shape)))
    for n, y, x in inputs:
        try:
            took = _pass_seconds(predictor.net, _noise(predictor, n, y, x))
        except RuntimeError as error:
            if rate and is_out_of_memory(error):  # a run makes its batches smaller too
                break
            raise
        # the last counts: smaller inputs can be faster (caches) or slower (launches)
        rate = n * y * x / took
        if took >= _PASS_SECONDS:
            break
    return rate


def _noise(predictor: Predictor, n: int, y: int, x: int) -> torch.Tensor:
    batch = torch.rand((n, 2, y, x), device=predictor.device).to(PRECISIONS[predictor.precision])
    return batch.contiguous(memory_format=torch.channels_last)


def _pass_seconds(net: nn.Module, batch: torch.Tensor) -> float:
    """Seconds per pass, of two unless the first is long."""
    passes: list[float] = []
    with reuse_memory(), torch.inference_mode():
        while len(passes) < 2 and sum(passes) < _REPEAT_SECONDS:
            start = time.perf_counter()
            net(batch).flatten()[0].item()  # waits for the device
            passes.append(time.perf_counter() - start)
    # the first looks for kernels on a GPU; on a CPU it takes memory from the system, as in each channel group
    return sum(passes) / len(passes) if batch.device.type == "cpu" else min(passes)


def _read_rate(
    predictor: Predictor, sample: Sample, plan: TilePlan, tile: Tile, channels: Sequence[str]
) -> float:
    """Bytes per s of raw pixels read, checked and, on the host, resampled, by a run's number of threads."""
    image, start = sample.image, time.perf_counter()

    def jobs() -> Iterator[tuple[int, ...]]:
        for group in chunk_groups(image, channels)[:_READ_JOBS]:
            if time.perf_counter() - start < _READ_SECONDS:
                yield group

    def read(group: tuple[int, ...]) -> int:
        planes = image.read(list(group), *tile.read)
        check_planes(image, list(group), planes)
        for plane in () if predictor.on_device else planes:
            to_model_pixels(plane, plan, tile, scale=1.0, transform=predictor.card.transform)
        return planes.nbytes

    n_bytes = sum(read_ahead(read, jobs(), n_threads=predictor.config.n_threads))
    return n_bytes / (time.perf_counter() - start) if n_bytes else math.inf
