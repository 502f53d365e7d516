"""Pools of simulated samples on disk, made once by worker processes and read as memory maps."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nimbus_sd._core.errors import InputError
from nimbus_sd.simulation import simulate_samples

ByteArray = NDArray[np.uint8]
AnyArray = NDArray[Any]

CEILING = 4.0
"""Intensity that the largest byte stands for; bytes hold square roots."""

NEGATIVE, POSITIVE, UNDEFINED, BACKGROUND = range(4)
_INTERIOR = 4
_SHARD = 8


@dataclass(frozen=True)
class PoolConfig:
    """What a pool holds.

    Parameters
    ----------
    seed
        First seed; tissue `i` is simulated from ``seed + i``.
    n_tissues, n_channels, side
        Tissues, random markers per tissue, px per side.
    """

    seed: int = 0
    n_tissues: int = 600
    n_channels: int = 6
    side: int = 512

    def __post_init__(self) -> None:
        for name in ("n_tissues", "n_channels", "side"):
            if getattr(self, name) < 1:
                msg = f"PoolConfig.{name} must be positive, got {getattr(self, name)!r}"
                raise InputError(msg)


@dataclass(frozen=True)
class Pool:
    """Memory maps of a pool.

    Parameters
    ----------
    pixels
        ``(tissue, channel, y, x)`` uint8, ``255 * sqrt(image / CEILING)``.
    codes
        ``(tissue, channel, y, x)`` uint8: truth of the pixel's cell (negative 0,
        positive 1, undefined 2, background 3), plus 4 where the mask plane is 1.
    """

    pixels: ByteArray
    codes: ByteArray


def encode(images: AnyArray) -> ByteArray:
    """Intensities to bytes."""
    return np.rint(np.sqrt(np.clip(images / CEILING, 0, 1)) * 255).astype(np.uint8)


def decode(pixels: ByteArray) -> AnyArray:
    """Bytes to intensities, float32."""
    root = pixels.astype(np.float32) / 255
    return CEILING * root * root


def truth_codes(labels: AnyArray, interior: AnyArray, positive: AnyArray) -> ByteArray:
    """Truth and mask of every pixel in one byte: ``(c, y, x)`` from labels (y, x) and positivity (n, c)."""
    known = np.where(np.isnan(positive), UNDEFINED, positive)
    table = np.concatenate([np.full((1, positive.shape[1]), BACKGROUND), known]).astype(np.uint8)
    return table.T[:, labels] + (_INTERIOR * interior).astype(np.uint8)


def split_codes(codes: ByteArray) -> tuple[AnyArray, AnyArray]:
    """Truth (0..3) and mask plane of coded pixels."""
    return codes & 3, codes >= _INTERIOR


def _write_shard(folder: str, config: PoolConfig, start: int) -> None:
    """Simulate tissues `start`, `start` + 1, … of one shard into the open maps."""
    shape = (config.n_tissues, config.n_channels, config.side, config.side)
    pixels = np.memmap(Path(folder) / "pixels.u8", np.uint8, "r+", shape=shape)
    codes = np.memmap(Path(folder) / "codes.u8", np.uint8, "r+", shape=shape)
    for i in range(start, min(start + _SHARD, config.n_tissues)):
        samples = simulate_samples(
            config.seed + i, shape=(config.side, config.side), n_channels=config.n_channels
        )
        pixels[i] = encode(samples.images)
        codes[i] = truth_codes(samples.labels, samples.interior, samples.positive)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes started inside use one BLAS thread, or they fight for the cores (three times slower)."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def make_pool(folder: str | Path, config: PoolConfig, *, workers: int = 1) -> Pool:
    """Simulate a pool, or open it if it is already complete.

    Parameters
    ----------
    folder
        Where the pool lives.
    config
        What it holds.
    workers
        Processes; 1 simulates in this one.

    Raises
    ------
    InputError
        If the folder holds a pool of another configuration.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "pool.json"
    if done.exists():
        found = json.loads(done.read_text(encoding="utf-8"))
        if found != asdict(config):
            msg = f"{folder} holds a pool of {found}, not {asdict(config)}; give another folder"
            raise InputError(msg)
        return open_pool(folder)
    size = config.n_tissues * config.n_channels * config.side**2
    for name in ("pixels.u8", "codes.u8"):
        with (folder / name).open("wb") as file:
            file.truncate(size)
    starts = range(0, config.n_tissues, _SHARD)
    if workers > 1:
        with _one_thread_each(), ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
            jobs = [executor.submit(_write_shard, str(folder), config, start) for start in starts]
            for job in jobs:
                job.result()
    else:
        for start in starts:
            _write_shard(str(folder), config, start)
    done.write_text(json.dumps(asdict(config)), encoding="utf-8")
    return open_pool(folder)


def open_pool(folder: str | Path) -> Pool:
    """Open a complete pool read-only."""
    folder = Path(folder)
    config = PoolConfig(**json.loads((folder / "pool.json").read_text(encoding="utf-8")))
    shape = (config.n_tissues, config.n_channels, config.side, config.side)
    return Pool(
        np.memmap(folder / "pixels.u8", np.uint8, "r", shape=shape),
        np.memmap(folder / "codes.u8", np.uint8, "r", shape=shape),
    )
