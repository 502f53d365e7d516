"""Everything that decides a trained sub-typing network, in one frozen object that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.subtyping.augment import StainConfig
from nimbus_sd.engine.training.config_checks import within
from nimbus_sd.engine.training.presets import Presets

SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class SubtypeTrainConfig(Presets):
    """Everything that decides the weights, besides the data.

    Parameters
    ----------
    name
        Name on the card.
    backbone
        One of ``nimbus_sd.models.subtype_backbones.BACKBONES`` by name, or its parameters.
    pretrained
        What the backbone starts from: its published weights (True; None where they can be had),
        random ones (False), or those at a path. See
        ``nimbus_sd.models.subtype_weights.load_pretrained``.
    multitask
        One backbone for all markers; else one for each.
    hidden
        Width of the hidden layer of each marker's head.
    weighted
        Weigh each marker's positive cells by its ratio of negative to positive training cells.
    mpp, patch
        Pixel size in µm and side in px of what the network sees.
    epochs
        At most so often every training cell is seen.
    batch, accumulation
        Patches that go through the network together, and how many such batches a step adds up.
    learning_rate, weight_decay
        Of AdamW.
    schedule, warmup_epochs
        After a linear warm-up the rate is ``"constant"``, or follows a ``"cosine"`` to 0.
    clip
        Largest norm of a network's gradients; 0 does not limit it.
    patience
        Validations without a better mean AUROC after which training stops; 0 never stops early.
    every
        Steps between validations; 0 validates after each epoch.
    threshold
        Probability above which a cell is called positive; neither 0 nor 1.
    seed
        Of first weights, order and augmentation.
    augment
        See :class:`~nimbus_sd.engine.subtyping.augment.StainConfig`.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    PRESETS: ClassVar = ("finetune", "paper", "small")
    PARTS: ClassVar = {"augment": StainConfig}

    name: str = "subtyper"
    backbone: str | Mapping[str, Any] = "convnext-tiny"
    pretrained: bool | str | None = None
    multitask: bool = True
    hidden: int = 512
    weighted: bool = True
    mpp: float = 0.325
    patch: int = 112
    epochs: int = 30
    batch: int = 32
    accumulation: int = 16
    learning_rate: float = 5e-5
    weight_decay: float = 1e-5
    schedule: str = "constant"
    warmup_epochs: float = 0.0
    clip: float = 0.0
    patience: int = 5
    every: int = 0
    threshold: float = 0.5
    seed: int = 0
    augment: StainConfig = field(default_factory=StainConfig)

    def __post_init__(self) -> None:
        for name in ("hidden", "patch", "epochs", "batch", "accumulation", "patience", "every", "seed"):
            if type(getattr(self, name)) is not int:
                msg = f"SubtypeTrainConfig.{name} must be an int, got {getattr(self, name)!r}"
                raise InputError(msg)
        for name in ("multitask", "weighted"):
            if not isinstance(getattr(self, name), bool):
                msg = f"SubtypeTrainConfig.{name} must be True or False, got {getattr(self, name)!r}"
                raise InputError(msg)
        if not isinstance(self.pretrained, bool | str | None):
            msg = f"SubtypeTrainConfig.pretrained={self.pretrained!r}; valid: None, True, False or a path"
            raise InputError(msg)
        within(self, 1, 1e9, "hidden", "epochs", "batch", "accumulation")
        within(self, 8, 4096, "patch")
        within(self, 1e-3, 1e3, "mpp")
        within(self, 0, 1e9, "patience", "every", "seed", "warmup_epochs", "clip")
        within(self, 1e-12, 1e3, "learning_rate")
        within(self, 0, 1e3, "weight_decay")
        within(self, 0, 1, "threshold")
        if self.threshold in (0, 1):
            msg = f"SubtypeTrainConfig.threshold must lie between 0 and 1, got {self.threshold!r}"
            raise InputError(msg)
        if not isinstance(self.name, str) or not self.name or "/" in self.name:
            msg = f"SubtypeTrainConfig.name must be a plain name, got {self.name!r}"
            raise InputError(msg)
        if self.schedule not in SCHEDULES:
            msg = f"SubtypeTrainConfig.schedule={self.schedule!r}; valid: {', '.join(SCHEDULES)}"
            raise InputError(msg)

    @property
    def effective_batch(self) -> int:
        """Patches of a step."""
        return self.batch * self.accumulation

    def steps_of(self, n_cells: int) -> int:
        """Steps of an epoch over `n_cells`; what does not fill a step waits for the next epoch's order."""
        return max(n_cells // self.effective_batch, 1)

    def total_steps(self, n_cells: int) -> int:
        """Steps of the run, if it does not stop early."""
        return self.epochs * self.steps_of(n_cells)

    def validate_every(self, n_cells: int) -> int:
        """Steps between validations."""
        return self.every or self.steps_of(n_cells)

    def rate(self, step: int, n_cells: int) -> float:
        """Learning rate of a step."""
        total = self.total_steps(n_cells)
        warm = min(round(self.warmup_epochs * self.steps_of(n_cells)), total // 2)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        if self.schedule == "constant":
            return self.learning_rate
        done = min((step - warm) / max(total - warm, 1), 1.0)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    @classmethod
    def finetune(cls) -> SubtypeTrainConfig:
        """The paper's recipe on a smaller ConvNeXt, for pretrained weights and a GPU."""
        return cls()

    @classmethod
    def paper(cls) -> SubtypeTrainConfig:
        """The paper's recipe: ConvNeXt-Base, AdamW at 5e-5, steps of 32 x 16 patches of 112 px.

        The paper names neither the number of epochs nor the patience, nor augmentation.
        """
        return cls(name="subtyper-paper", backbone="convnext-base")

    @classmethod
    def small(cls) -> SubtypeTrainConfig:
        """For two CPU cores and weights from scratch: tens of thousands of cells take some minutes."""
        return cls(
            name="subtyper-small",
            backbone="convnext-atto",
            pretrained=False,
            epochs=12,
            batch=64,
            accumulation=1,
            learning_rate=1e-3,
            weight_decay=0.02,
            schedule="cosine",
            warmup_epochs=0.5,
            clip=1.0,
            patience=0,
        )
