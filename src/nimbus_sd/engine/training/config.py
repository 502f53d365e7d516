"""Everything that decides trained weights, in one frozen object that TOML can hold."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.training.config_checks import toml, within
from nimbus_sd.engine.training.config_parts import AugmentConfig, SelectionConfig
from nimbus_sd.engine.training.presets import Presets

__all__ = ["AugmentConfig", "SelectionConfig", "TrainConfig"]


@dataclass(frozen=True)
class TrainConfig(Presets):
    """Everything that decides the weights; the default is the recipe of the paper.

    Parameters
    ----------
    name
        Name on the card.
    architecture
        What is built (see :mod:`nimbus_sd.models`); the default is the published network.
    transform
        Applied to the clipped intensity: ``"identity"`` or ``"sqrt"``.
    steps, robust_steps
        Steps of the first stage (all defined cells) and of the noise-robust one.
    batch, crop
        Tiles per step; px per side of the random crop taken of each (0: whole tiles).
    learning_rate, robust_learning_rate, final_rate, warmup
        Adam's rate at the start of each stage; the share of it that the cosine ends
        at; steps of linear warm-up of the first stage.
    weight_decay, clip, l2_sp
        Decoupled weight decay; largest gradient norm (0: no limit); weight of half
        the squared distance from the first weights (keeps fine-tuning near them).
    freeze_norm
        Keep the statistics of batch norms as they are.
    ema
        Decay of the averaged weights that are validated and kept, reached gradually.
    smoothing, background, cell_balance
        Label smoothing; weight of pixels outside cells, which are negative; 0 gives
        every pixel of a cell the same weight, 1 every cell.
    sampling
        ``"uniform"`` over tiles, or ``"balanced"`` over (dataset, marker) groups.
    every, validation_tiles
        Steps between validations and checkpoints; most tiles to validate on.
    seed
        Of first weights, batches and augmentation.
    augment, selection
        See :class:`AugmentConfig`, :class:`SelectionConfig`.
    """

    PRESETS: ClassVar = ("paper", "small", "finetune")
    PARTS: ClassVar = {"augment": AugmentConfig, "selection": SelectionConfig}

    name: str = "nimbus-trained"
    architecture: Mapping[str, Any] = field(default_factory=lambda: {"depth": 5, "width": 64})
    transform: str = "identity"
    steps: int = 300_000
    robust_steps: int = 100_000
    batch: int = 16
    crop: int = 0
    learning_rate: float = 3e-4
    robust_learning_rate: float = 3e-4
    final_rate: float = 0.0
    warmup: int = 0
    weight_decay: float = 1e-3
    clip: float = 1.0
    l2_sp: float = 0.0
    freeze_norm: bool = False
    ema: float = 0.999
    smoothing: float = 0.05
    background: float = 1.0
    cell_balance: float = 0.0
    sampling: str = "uniform"
    every: int = 2_000
    validation_tiles: int = 512
    seed: int = 0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            msg = f"TrainConfig.name must be a plain name, got {self.name!r}"
            raise InputError(msg)
        for name in ("steps", "robust_steps", "batch", "crop", "warmup", "every", "validation_tiles", "seed"):
            if not isinstance(getattr(self, name), int):
                msg = f"TrainConfig.{name} must be an int, got {getattr(self, name)!r}"
                raise InputError(msg)
        within(self, 0, 1e9, "steps", "robust_steps", "warmup", "seed", "crop")
        within(self, 1, 1e9, "batch", "every", "validation_tiles")
        within(self, 1e-12, 10, "learning_rate", "robust_learning_rate")
        within(self, 0, 1e6, "weight_decay", "clip", "l2_sp", "background")
        within(self, 0, 1, "final_rate", "cell_balance")
        within(self, 0, 0.9999999, "ema", "smoothing")
        if self.total_steps < 1:
            msg = "TrainConfig: steps + robust_steps must be at least 1"
            raise InputError(msg)
        for name, valid in (("transform", ("identity", "sqrt")), ("sampling", ("uniform", "balanced"))):
            if getattr(self, name) not in valid:
                msg = f"TrainConfig.{name}={getattr(self, name)!r}; valid: {', '.join(valid)}"
                raise InputError(msg)

    @property
    def total_steps(self) -> int:
        """Steps of both stages."""
        return self.steps + self.robust_steps

    def is_robust(self, step: int) -> bool:
        """Whether a step belongs to the noise-robust stage."""
        return step >= self.steps

    def rate(self, step: int) -> float:
        """Learning rate of a step: warm-up and cosine, then a second cosine for the robust stage."""
        if self.is_robust(step):
            return self._cosine(self.robust_learning_rate, (step - self.steps) / max(self.robust_steps, 1))
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        return self._cosine(self.learning_rate, (step - self.warmup) / max(self.steps - self.warmup, 1))

    def _cosine(self, first: float, done: float) -> float:
        share = 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))
        return first * (self.final_rate + (1 - self.final_rate) * share)

    @classmethod
    def paper(cls) -> TrainConfig:
        """The paper's recipe: 300,000 steps and 100,000 noise-robust ones of 16 tiles."""
        return cls()

    @classmethod
    def small(cls) -> TrainConfig:
        """A network of 0.5 M parameters that trains on two CPU cores in minutes."""
        return cls(
            name="nimbus-small",
            architecture={"depth": 5, "width": 8},
            transform="sqrt",
            steps=900,
            robust_steps=300,
            batch=8,
            crop=128,
            learning_rate=2e-3,
            robust_learning_rate=5e-4,
            warmup=50,
            ema=0.99,
            background=0.1,
            every=150,
            validation_tiles=64,
            # the running quantile must keep up with a network that changes in tens of steps
            selection=SelectionConfig(ema=0.5, quantile_steps=300),
        )

    @classmethod
    def finetune(cls) -> TrainConfig:
        """A short run that stays near the weights it starts from."""
        return cls(
            name="nimbus-finetuned",
            architecture={},
            steps=200,
            robust_steps=0,
            batch=8,
            crop=192,
            learning_rate=2e-4,
            robust_learning_rate=1e-4,
            warmup=10,
            weight_decay=0.0,
            l2_sp=1e-2,
            freeze_norm=True,
            ema=0.98,
            background=0.1,
            every=50,
            validation_tiles=64,
            selection=SelectionConfig(ema=0.5, quantile_steps=100),
        )

    def to_toml(self) -> str:
        """As TOML."""
        values = self.to_dict()
        tables = {k: values.pop(k) for k in ("architecture", "augment", "selection")}
        lines = [f"{k} = {toml(v)}" for k, v in values.items()]
        for name, table in tables.items():
            lines += ["", f"[{name}]", *(f"{k} = {toml(v)}" for k, v in table.items())]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, path: str | Path) -> TrainConfig:
        """Read a TOML file; ``preset = "small"`` in it starts from that preset.

        Raises
        ------
        InputError
            If it is not TOML, or holds unknown keys or invalid values.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            msg = f"{path} is not TOML ({error})"
            raise InputError(msg) from error
        try:
            return cls.from_dict(values)
        except (InputError, TypeError) as error:
            msg = f"{path}: {error}"
            raise InputError(msg) from error
