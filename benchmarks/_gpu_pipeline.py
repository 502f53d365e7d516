"""The engine end to end on one device, fed from memory and from a file, and how busy the device was."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from _plain import simulated_marker, square_cells
from nimbus_sd.arrays import Partials
from nimbus_sd.engine.predict import Predictor
from nimbus_sd.engine.settings import PredictConfig
from nimbus_sd.engine.source import ArrayImage, ArrayLabels, Sample
from nimbus_sd.models import LoadedModel

SCALE = 1000.0


def field(side: int, n_markers: int, *, pitch: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Image ``(c, y, x)`` uint16 that repeats simulated tissue, shifted per channel, and square cells."""
    marker = simulated_marker(min(512, side))[0][0]
    reps = -(-side // marker.shape[0])
    tiled = np.tile(marker, (reps, reps))[:side, :side]
    image = np.empty((n_markers, side, side), np.uint16)
    for i in range(n_markers):
        image[i] = np.roll(tiled, 37 * i, axis=(0, 1))
    return image, square_cells((side, side), side=pitch * 3 // 4, pitch=pitch)


def sample_of(image: np.ndarray, labels: np.ndarray) -> Sample:
    """Arrays in memory or memory-mapped, at 1 µm per px."""
    names = tuple(f"marker{i}" for i in range(len(image)))
    return Sample("cells", ArrayImage("image", image, names), ArrayLabels("cells", labels), 1.0)


def pipeline(model: LoadedModel, device: torch.device, folder: Path, args: argparse.Namespace) -> list[dict]:
    """One row per source, tile and number of reader threads."""
    image, labels = field(args.side, args.markers)
    path = folder / "image.raw"
    image.tofile(path)
    mapped = np.memmap(path, dtype=image.dtype, mode="r", shape=image.shape)
    rows = []
    for tile in args.pipeline_tiles or [None]:
        for threads in args.threads:
            for compiled in (False, True) if args.compiled else (False,):
                config = PredictConfig(
                    tile=tile,
                    n_threads=threads,
                    batch_size=args.batch,
                    device=str(device),
                    precision=args.precision,
                    compiled=compiled,
                )
                predictor = Predictor(model, config)
                warm_up(predictor, image, labels)
                for name, source in (("memory", image), ("file", mapped)):
                    if name == "file":
                        forget(path)
                    rows.append(measured(predictor, sample_of(source, labels), name, threads))
    return rows


def warm_up(predictor: Predictor, image: np.ndarray, labels: np.ndarray) -> None:
    """Let libraries and the allocator set themselves up; the compiler wants to see every shape."""
    if not predictor.config.compiled:
        side = predictor.plan(sample_of(image, labels)).tile + 1
        image, labels = image[:, :side, :side], labels[:side, :side]
    run(predictor, sample_of(image, labels))


def run(predictor: Predictor, sample: Sample) -> Partials:
    """Score everything."""
    channels = sample.image.channels
    return predictor.run(sample, channels, np.full(len(channels), SCALE))


def measured(predictor: Predictor, sample: Sample, name: str, threads: int) -> dict:
    """Wall time of a run and how much of it the network took; a second run under the profiler."""
    plan = predictor.plan(sample)
    compiled = predictor.config.compiled
    with ExitStack() as stack:
        in_network = [float("nan")]
        if not compiled:
            in_network = stack.enter_context(forward_time(predictor.net, predictor.device))
        start = time.perf_counter()
        cells = run(predictor, sample)
        wall = time.perf_counter() - start
    kernels, profiled = kernel_share(predictor, sample)
    pixels = plan.y.size * plan.x.size * len(sample.image.channels)
    return {
        "fed from": name,
        "tile": plan.tile,
        "tiles": len(plan),
        "readers": threads,
        "compiled": compiled,
        "cells": cells.ids.size,
        "wall s": wall,
        "Mpx·markers/s": pixels / wall / 1e6,
        "network busy": sum(in_network) / wall,
        "any kernel busy": kernels,
        "wall s profiled": profiled,
        "halo work": plan.halo_ratio,
    }


@contextmanager
def forward_time(net: nn.Module, device: torch.device) -> Iterator[list[float]]:
    """Fill a list with the seconds of every pass through `net`, on the device's own clock.

    Not for a compiled network: its hooks would be compiled with it.
    """
    marks: list[tuple] = []
    out: list[float] = []

    def mark() -> object:
        if device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    hooks = [
        net.register_forward_pre_hook(lambda *_: marks.append((mark(),))),
        net.register_forward_hook(lambda *_: marks.append((mark(),))),
    ]
    try:
        yield out
    finally:
        for hook in hooks:
            hook.remove()
    times = [m[0] for m in marks]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        out += [a.elapsed_time(b) / 1e3 for a, b in zip(times[::2], times[1::2], strict=True)]
    else:
        out += [b - a for a, b in zip(times[::2], times[1::2], strict=True)]


def kernel_share(predictor: Predictor, sample: Sample) -> tuple[float, float]:
    """Part of the wall time in which any kernel ran, by torch's profiler, and that wall time; nan without."""
    if predictor.device.type != "cuda":
        return float("nan"), float("nan")
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        start = time.perf_counter()
        run(predictor, sample)
        torch.cuda.synchronize(predictor.device)
        wall = time.perf_counter() - start
    spans = sorted(
        (e.time_range.start, e.time_range.end)
        for e in seen.events()
        if e.device_type == torch.autograd.DeviceType.CUDA and not e.name.startswith(("Memcpy", "Memset"))
    )
    busy, until = 0.0, 0.0
    for begin, end in spans:
        busy += max(end - max(begin, until), 0.0)
        until = max(until, end)
    return (busy / 1e6 / wall if spans else float("nan")), wall


def forget(path: Path) -> None:
    """Drop a file's pages from the page cache, where the system lets one."""
    if not hasattr(os, "posix_fadvise"):
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def agreement(model: LoadedModel, device: torch.device, *, side: int = 512) -> list[dict]:
    """Largest difference of cell scores between the device and the CPU in float32."""
    small = min(side, 256 if device.type == "cpu" else side)
    sample = sample_of(*field(small, 1, pitch=12))

    def scores(where: str, precision: str) -> np.ndarray:
        found = run(Predictor(model, PredictConfig(device=where, precision=precision, tile=256)), sample)
        return found.sums["score"] / found.count[:, None]

    exact = scores("cpu", "float32")
    rows = []
    for precision in ("float32", "bfloat16"):
        gap = np.abs(scores(str(device), precision) - exact)
        rows.append(
            {
                "precision": precision,
                "cells": len(gap),
                "largest": float(gap.max()),
                "mean": float(gap.mean()),
                "spread of scores": float(exact.std()),
            }
        )
    return rows
