"""Training batches: random crops of a pool, each at a gain, count depth and orientation of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.train_pool import BACKGROUND, POSITIVE, UNDEFINED, Pool, decode, split_codes


@dataclass(frozen=True)
class BatchConfig:
    """How crops are drawn and weighted.

    Parameters
    ----------
    size, crop
        Crops per batch, px per side.
    gain_low, gain_high
        Limits of the log-uniform gain on normalised intensity.
    thinning
        Share of crops that are redrawn as Poisson counts.
    counts_low, counts_high
        Limits of the log-uniform counts per unit of intensity when thinning.
    background
        Weight of pixels outside cells (negatives).
    smoothing
        Label smoothing.
    """

    size: int = 8
    crop: int = 256
    gain_low: float = 0.06
    gain_high: float = 1.5
    thinning: float = 0.4
    counts_low: float = 3.0
    counts_high: float = 200.0
    background: float = 0.1
    smoothing: float = 0.05

    def __post_init__(self) -> None:
        if self.size < 1 or self.crop < 16 or self.crop % 16:
            msg = (
                f"BatchConfig: size must be positive, crop a multiple of 16, got {self.size} and {self.crop}"
            )
            raise InputError(msg)
        if not 0 < self.gain_low <= self.gain_high or not 0 < self.counts_low <= self.counts_high:
            msg = "BatchConfig: limits of gain and counts must be positive and in order"
            raise InputError(msg)
        if not (0 <= self.thinning <= 1 and 0 <= self.smoothing < 1 and self.background >= 0):
            msg = "BatchConfig: thinning and smoothing must lie in [0, 1], background must not be negative"
            raise InputError(msg)


@dataclass(frozen=True)
class Batch:
    """One step's data.

    Parameters
    ----------
    inputs
        ``(b, 2, y, x)`` float32: square root of the intensity, mask.
    targets, weights
        ``(b, 1, y, x)`` float32.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor


def intensity_plane(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The network's first plane: ``sqrt(clip(image, 0, 1))``."""
    return np.sqrt(np.clip(image, 0, 1))


def degrade(rng: np.random.Generator, image: NDArray[np.float32], config: BatchConfig) -> NDArray[np.float32]:
    """Redraw as fewer counts (sometimes), then scale by a random gain."""
    if rng.random() < config.thinning:
        counts = np.exp(rng.uniform(np.log(config.counts_low), np.log(config.counts_high)))
        image = rng.poisson(image * counts).astype(np.float32) / np.float32(counts)
    gain = np.exp(rng.uniform(np.log(config.gain_low), np.log(config.gain_high)))
    return image * np.float32(gain)


def draw_batch(pool: Pool, config: BatchConfig, *, seed: int, step: int) -> Batch:
    """Draw the batch of one step; it depends on nothing but the arguments, so that runs can resume.

    Parameters
    ----------
    pool
        Where from.
    config
        How.
    seed, step
        Which.
    """
    rng = np.random.default_rng((seed, step))
    inputs = np.empty((config.size, 2, config.crop, config.crop), np.float32)
    truth = np.empty((config.size, 1, config.crop, config.crop), np.uint8)
    tissues, channels, height, width = pool.pixels.shape
    for i in range(config.size):
        tissue, channel = rng.integers(tissues), rng.integers(channels)
        top, left = rng.integers(height - config.crop + 1), rng.integers(width - config.crop + 1)
        at = (tissue, channel, slice(top, top + config.crop), slice(left, left + config.crop))
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        pixels, codes = (np.rot90(np.asarray(a[at]), turns) for a in (pool.pixels, pool.codes))
        if flip:
            pixels, codes = pixels[:, ::-1], codes[:, ::-1]
        truth[i, 0], mask = split_codes(codes)
        inputs[i, 0] = intensity_plane(degrade(rng, decode(pixels), config))
        inputs[i, 1] = mask
    positive = (truth == POSITIVE).astype(np.float32)
    weights = np.where(truth == UNDEFINED, 0, np.where(truth == BACKGROUND, config.background, 1))
    return Batch(
        torch.from_numpy(inputs),
        torch.from_numpy(positive * (1 - config.smoothing) + config.smoothing / 2),
        torch.from_numpy(weights.astype(np.float32)),
    )
