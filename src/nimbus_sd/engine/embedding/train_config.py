"""Everything that decides a trained embedding, in one frozen object that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.training.config_checks import ranges, within
from nimbus_sd.engine.training.presets import Presets
from nimbus_sd.models.embedding import TRANSFORMS

OPTIMISERS = ("lars", "adamw")
SCALINGS = ("linear", "sqrt", "none")


@dataclass(frozen=True)
class ViewConfig:
    """The five augmentations; every view of a patch has draws of its own.

    Parameters
    ----------
    intensity
        Factor of the normalised (and transformed) intensity, log-uniform: halving is as likely as doubling.
    per_marker
        Draw that factor for each marker by itself, not for the patch.
    noise_sd
        Standard deviation of Gaussian noise in normalised units, uniform.
    rotation
        Degrees, counterclockwise, uniform.
    scale
        Magnification, uniform.
    flip
        Probability of a flip, for each axis.
    """

    intensity: tuple[float, float] = (0.5, 2.0)
    per_marker: bool = False
    noise_sd: tuple[float, float] = (0.0, 0.1)
    rotation: tuple[float, float] = (0.0, 360.0)
    scale: tuple[float, float] = (0.9, 1.1)
    flip: float = 0.5

    def __post_init__(self) -> None:
        ranges(self, 1e-3, "intensity", "scale")
        ranges(self, 0, "noise_sd")
        ranges(self, -360, "rotation")
        within(self, 0, 1, "flip")

    @property
    def turns(self) -> bool:
        """Whether patches are resampled at all; flips alone move px exactly."""
        return (self.rotation, self.scale) != ((0.0, 0.0), (1.0, 1.0))


@dataclass(frozen=True)
class EmbeddingTrainConfig(Presets):
    """Everything that decides the weights.

    Parameters
    ----------
    name
        Name on the card.
    architecture
        ``"kind"`` (``"next_channel"`` or ``"cim"``) and its parameters, without the markers.
    transform
        Applied to the clipped intensity: ``"identity"`` or ``"sqrt"``.
    size
        Side of the patches in px: what an augmentation may look at.
    crops
        Sides in px of the centres that are seen; as many views has each patch.
    crop
        Side in px that the trained network embeds; 0 takes the largest of `crops`.
    epochs, steps_per_epoch
        Length; an epoch sees every cell once, or has as many steps as are named.
    batch
        Patches per step.
    temperature
        Of the contrastive loss.
    optimiser
        ``"lars"`` (the paper) or ``"adamw"``.
    learning_rate, reference_views, scaling
        Rate at `reference_views` views per step, and how it follows their number: ``"linear"``,
        ``"sqrt"`` or ``"none"``. The paper's 4.6 belongs to 3,072 views.
    momentum, trust, weight_decay
        Momentum and trust coefficient of LARS; decay of weights, biases and norms left out.
    warmup_epochs
        Epochs of linear warm-up; a cosine to 0 follows.
    projection
        Widths of the layers between embedding and loss, dropped after training; ``()`` compares
        the embeddings themselves.
    every
        Steps between rows of the log, probes and checkpoints; 0 takes a twentieth of the run,
        from 5 to 200.
    probe_cells
        Most cells that are held out, to judge the embedding.
    seed
        Of first weights, order and augmentation.
    views
        See :class:`ViewConfig`.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    PRESETS: ClassVar = ("small", "paper", "cim")
    PARTS: ClassVar = {"views": ViewConfig}

    name: str = "embedding-trained"
    architecture: Mapping[str, Any] = field(default_factory=lambda: {"kind": "next_channel"})
    transform: str = "identity"
    size: int = 32
    crops: tuple[int, ...] = (16, 16, 14, 12)
    crop: int = 0
    epochs: int = 5000
    steps_per_epoch: int = 1
    batch: int = 768
    temperature: float = 0.1
    optimiser: str = "lars"
    learning_rate: float = 4.6
    reference_views: int = 3072
    scaling: str = "linear"
    momentum: float = 0.9
    trust: float = 1e-3
    weight_decay: float = 1e-6
    warmup_epochs: float = 10
    projection: tuple[int, ...] = (256, 128)
    every: int = 0
    probe_cells: int = 2000
    seed: int = 0
    views: ViewConfig = field(default_factory=ViewConfig)

    def __post_init__(self) -> None:
        for name in ("crops", "projection"):
            value = getattr(self, name)
            good = isinstance(value, list | tuple) and all(type(v) is int and v >= 1 for v in value)
            if not good or (name == "crops" and len(value) < 2):
                valid = "at least two, one per view" if name == "crops" else "a width per layer, or ()"
                msg = f"EmbeddingTrainConfig.{name}={value!r} must hold whole numbers from 1: {valid}"
                raise InputError(msg)
            object.__setattr__(self, name, tuple(value))
        for name in ("size", "crop", "epochs", "steps_per_epoch", "batch", "every", "probe_cells", "seed"):
            if type(getattr(self, name)) is not int:
                msg = f"EmbeddingTrainConfig.{name} must be an int, got {getattr(self, name)!r}"
                raise InputError(msg)
        within(self, 0, 1e9, "steps_per_epoch", "probe_cells", "seed", "crop", "warmup_epochs", "every")
        within(self, 1, 1e9, "size", "epochs", "reference_views")
        within(self, 2, 1e9, "batch")
        within(self, 1e-3, 1e3, "temperature")
        within(self, 1e-12, 1e3, "learning_rate", "trust")
        within(self, 0, 0.9999999, "momentum")
        within(self, 0, 1e3, "weight_decay")
        self._check_names()
        if max(*self.crops, self.crop) > self.size:
            msg = f"crops={self.crops}, crop={self.crop}: none can be larger than the patch, size={self.size}"
            raise InputError(msg)

    def _check_names(self) -> None:
        if not isinstance(self.name, str) or not self.name or "/" in self.name:
            msg = f"EmbeddingTrainConfig.name must be a plain name, got {self.name!r}"
            raise InputError(msg)
        choices = (("transform", TRANSFORMS), ("optimiser", OPTIMISERS), ("scaling", SCALINGS))
        for name, valid in choices:
            if getattr(self, name) not in valid:
                msg = f"EmbeddingTrainConfig.{name}={getattr(self, name)!r}; valid: {', '.join(valid)}"
                raise InputError(msg)

    @property
    def embedded_crop(self) -> int:
        """Side in px that the trained network embeds."""
        return self.crop or max(self.crops)

    @property
    def reach(self) -> int:
        """Side in px of what views may look at: turned, shrunk, interpolated; at most `size`."""
        least = max(*self.crops, self.crop)
        if self.views.turns:
            least = max(least, math.ceil(max(self.crops) * math.sqrt(2) / self.views.scale[0]) + 2)
        return min(self.size, least)

    def steps_of(self, n_cells: int) -> int:
        """Steps of an epoch over `n_cells`; what does not fill a batch waits for the next epoch's order."""
        return self.steps_per_epoch or max(n_cells // self.batch, 1)

    def total_steps(self, n_cells: int) -> int:
        """Steps of the run."""
        return self.epochs * self.steps_of(n_cells)

    def report_every(self, n_cells: int) -> int:
        """Steps between reports."""
        return self.every or min(max(self.total_steps(n_cells) // 20, 5), 200)

    def rate(self, step: int, n_cells: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine to 0."""
        views = self.batch * len(self.crops) / self.reference_views
        peak = self.learning_rate * {"linear": views, "sqrt": math.sqrt(views), "none": 1.0}[self.scaling]
        total = self.total_steps(n_cells)
        warm = min(round(self.warmup_epochs * self.steps_of(n_cells)), total // 2)
        if step < warm:
            return peak * (step + 1) / warm
        return peak * 0.5 * (1 + math.cos(math.pi * min((step - warm) / max(total - warm, 1), 1.0)))

    @classmethod
    def paper(cls) -> EmbeddingTrainConfig:
        """The paper's recipe: 5,000 steps (its "epochs") of 768 patches in four views.

        The paper does not name the temperature; 0.1 is SimCLR's usual one.
        """
        return cls(name="nextchannel-paper")

    @classmethod
    def cim(cls) -> EmbeddingTrainConfig:
        """The shallow network of the same authors: 2,000 steps of 512 patches in two views."""
        return cls(
            name="cim",
            architecture={"kind": "cim"},
            crops=(20, 18),
            epochs=2000,
            batch=512,
            temperature=0.2,
            learning_rate=0.3,
            reference_views=1024,
            weight_decay=1e-5,
            warmup_epochs=200,
        )

    @classmethod
    def small(cls) -> EmbeddingTrainConfig:
        """For two CPU cores: a few thousand cells take minutes.

        Found on MIBI images (ion counts): beside the paper's settings, the square root of
        intensities, no layers between embedding and loss, less noise and somewhat larger crops
        gave better cell types.
        """
        return cls(
            name="nextchannel-small",
            transform="sqrt",
            crops=(20, 16),
            crop=18,
            epochs=10,
            steps_per_epoch=0,
            batch=256,
            projection=(),
            warmup_epochs=1,
            views=ViewConfig(noise_sd=(0.0, 0.02)),
        )
