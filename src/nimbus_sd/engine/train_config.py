"""What decides trained weights, in one frozen object."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.train_batch import BatchConfig
from nimbus_sd.engine.train_pool import PoolConfig


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights.

    Parameters
    ----------
    name
        Name on the card.
    width, depth
        Of the network.
    steps
        Optimiser steps.
    batch, crop, background, gain_low, gain_high, thinning
        See :class:`~nimbus_sd.engine.train_batch.BatchConfig`.
    learning_rate, weight_decay, warmup
        AdamW; linear warm-up over `warmup` steps, then cosine to zero.
    ema
        Decay of the averaged weights, reached gradually.
    tissues, channels, side
        Size of the pool (see :class:`~nimbus_sd.engine.train_pool.PoolConfig`).
    seed
        Of pool, network and batches.
    validation
        Held-out tissues.
    """

    name: str = "nimbus-sd-s"
    width: int = 16
    depth: int = 5
    steps: int = 3600
    batch: int = 12
    crop: int = 160
    background: float = 0.1
    gain_low: float = 0.06
    gain_high: float = 1.5
    thinning: float = 0.4
    learning_rate: float = 2e-3
    weight_decay: float = 1e-3
    warmup: int = 100
    ema: float = 0.998
    tissues: int = 480
    channels: int = 6
    side: int = 512
    seed: int = 0
    validation: int = 8

    def __post_init__(self) -> None:
        for name in ("steps", "tissues", "channels", "validation"):
            if getattr(self, name) < 1:
                msg = f"TrainConfig.{name} must be positive, got {getattr(self, name)!r}"
                raise InputError(msg)
        if self.side < self.crop:
            msg = f"TrainConfig: crop ({self.crop}) must not exceed side ({self.side})"
            raise InputError(msg)
        if not 0 <= self.ema < 1 or self.learning_rate <= 0:
            msg = (
                f"TrainConfig: ema must lie in [0, 1), got {self.ema}; "
                f"learning_rate must be positive, got {self.learning_rate}"
            )
            raise InputError(msg)

    @property
    def batch_config(self) -> BatchConfig:
        """How batches are drawn."""
        return BatchConfig(
            size=self.batch,
            crop=self.crop,
            background=self.background,
            gain_low=self.gain_low,
            gain_high=self.gain_high,
            thinning=self.thinning,
        )

    @property
    def pool_config(self) -> PoolConfig:
        """What is simulated."""
        return PoolConfig(
            seed=self.seed * 1_000_000, n_tissues=self.tissues, n_channels=self.channels, side=self.side
        )

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1)))
