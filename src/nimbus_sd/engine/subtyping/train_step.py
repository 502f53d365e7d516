"""One step of a sub-typing network, the same for the plain loop and for lightning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nimbus_sd.engine.device import PRECISIONS
from nimbus_sd.engine.embedding.supply import share
from nimbus_sd.engine.embedding.train_step import check_finite
from nimbus_sd.engine.subtyping.augment import augment, draw
from nimbus_sd.engine.subtyping.inputs import prepare
from nimbus_sd.engine.subtyping.loss import defined_counts, masked_bce
from nimbus_sd.engine.subtyping.train_config import SubtypeTrainConfig
from nimbus_sd.engine.subtyping.validate import KINDS, means
from nimbus_sd.engine.training.state import read_checkpoint, save_atomic
from nimbus_sd.engine.training.step import set_rate
from nimbus_sd.models.subtype_weights import load_pretrained
from nimbus_sd.models.subtyper import SubtypeConfig, SubtypeNet

_LAYERS = 19
_ADVICE = "lower learning_rate, or set clip=1.0, in the configuration"

Total = Callable[[Tensor], Tensor]


@dataclass
class SubtypeState:
    """What a checkpoint holds.

    Parameters
    ----------
    net
        The network that learns.
    optimiser
        AdamW.
    origin
        Where the backbone's first weights come from.
    step
        Steps done.
    running
        Sums of what is reported since the last report.
    best
        Metrics of the best validation so far, with its ``step``.
    best_weights
        State dict of that time, on the CPU.
    stale
        Validations since then.
    """

    net: SubtypeNet
    optimiser: torch.optim.Optimizer
    origin: str = "random"
    step: int = 0
    running: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    stale: int = 0

    @classmethod
    def fresh(
        cls,
        config: SubtypeTrainConfig,
        markers: Sequence[str],
        *,
        device: torch.device | str = "cpu",
        pretrained: bool = True,
    ) -> SubtypeState:
        """Network and optimiser before the first step; the seed draws what is not pretrained.

        Parameters
        ----------
        config, markers
            What to build.
        device
            Where to train.
        pretrained
            Whether to look for pretrained weights at all; not before a checkpoint replaces them.
        """
        # the global generator is left as it was found
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            net = SubtypeNet(
                SubtypeConfig(
                    markers=tuple(markers),
                    backbone=config.backbone,  # type: ignore[arg-type]
                    multitask=config.multitask,
                    hidden=config.hidden,
                )
            )
            origin = load_pretrained(net, config.backbone, config.pretrained) if pretrained else ""
        net.to(device=torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = torch.optim.AdamW(
            net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        return cls(net, optimiser, origin)

    def keep_best(self, metrics: Mapping[str, float]) -> None:
        """Compare a validation with the best one, by the mean AUROC; independent networks each by its own."""
        parts = parts_of(self.net)
        better = [name for name in parts if not self.best or metrics[_key(name)] > self.best[_key(name)]]
        self.stale = 0 if better else self.stale + 1
        if not better:
            return
        # a marker that can't be judged follows the others
        better += [name for name in parts if math.isnan(metrics[_key(name)])]
        prefixes = tuple(p for name in better for p in parts[name])
        for key, value in self.net.state_dict().items():
            if key.startswith(prefixes):
                self.best_weights[key] = value.detach().cpu().clone()
        theirs = {f"{kind} {name}" for kind in KINDS for name in better}
        self.best |= {k: v for k, v in metrics.items() if "" in better or k in theirs}
        self.best |= {"loss": metrics["loss"], "step": self.step}
        if not self.net.config.multitask:
            self.best |= means(self.best)

    def save(self, path: Path, config: SubtypeTrainConfig, data: Mapping[str, Any]) -> None:
        """Write a checkpoint; a reader sees the old one or the new one, never half of either."""
        content = {
            "config": config.to_dict(),
            "data": dict(data),
            **{k: getattr(self, k) for k in _PLAIN},
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        save_atomic(content, path)

    def restore(self, path: Path, config: SubtypeTrainConfig, data: Mapping[str, Any]) -> None:
        """Continue from a checkpoint of the same configuration and data.

        Raises
        ------
        InputError
            If it was made with another configuration or other data.
        """
        saved = read_checkpoint(path, config.to_dict(), data)
        self.net.load_state_dict(saved["net"])
        self.optimiser.load_state_dict(saved["optimiser"])
        for name in _PLAIN:
            setattr(self, name, saved[name])


def parts_of(net: SubtypeNet) -> dict[str, tuple[str, ...]]:
    """Marker to the beginnings of the names of its network's weights; one network for all is no marker's."""
    if net.config.multitask:
        return {"": ("",)}
    return {m: (f"backbones.{i}.", f"heads.{i}.") for i, m in enumerate(net.config.markers)}


def _key(marker: str) -> str:
    """Of the figure that decides: a marker's, or the mean."""
    return f"auroc {marker}" if marker else "auroc"


_PLAIN = ("origin", "step", "running", "best", "best_weights", "stale")


@dataclass(frozen=True)
class StepBatch:
    """Patches and labels of a step, or of a process's share of it.

    Attributes
    ----------
    raw
        uint8 ``(n, 3, S, S)``.
    targets
        float32 ``(n, m)``: 1, 0, NaN.
    part, parts
        Which share of the step this is.
    """

    raw: Tensor
    targets: Tensor
    part: int = 0
    parts: int = 1


@contextmanager
def seeded(config: SubtypeTrainConfig, step: int, part: int, device: torch.device) -> Iterator[None]:
    """Layers that draw (dropout) do so by seed and step; torch's generators are as before after it."""
    key = np.random.SeedSequence((config.seed, _LAYERS, step, part)).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(key[0] >> 1))
        yield


def losses(
    net: nn.Module,
    batch: StepBatch,
    config: SubtypeTrainConfig,
    *,
    weights: Tensor,
    step: int,
    precision: str = "float32",
    total: Total = lambda x: x,
) -> Iterator[Tensor]:
    """Loss of each piece of a step in turn, so that its graph can be freed before the next.

    Their sum is the loss of the whole step, however it is divided: labelled cells are counted,
    and changes of patches drawn, for the whole step.

    Parameters
    ----------
    net
        In training mode.
    batch
        Raw patches, which are changed on the network's device.
    config
        Size of the pieces, augmentation.
    weights
        ``(m,)`` of positive cells.
    step
        Decides the augmentation.
    precision
        Of the forward pass.
    total
        Sums over processes; each process's loss is multiplied by their number, as their
        gradients are averaged.
    """
    device, kind = weights.device, PRECISIONS[precision]
    n = len(batch.raw)
    mine = share(n * batch.parts, part=batch.part, parts=batch.parts)
    draws = draw(config.augment, n * batch.parts, seed=config.seed, step=step)[mine]
    targets = batch.targets.to(device)
    counts = total(defined_counts(targets))
    for start in range(0, n, config.batch):
        piece = slice(start, start + config.batch)
        x = augment(prepare(batch.raw[piece].to(device), config.patch), config.augment, draws[piece])
        x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, kind, enabled=kind != torch.float32):
            logits = net(x)
        yield batch.parts * masked_bce(logits, targets[piece], weights, counts)


def finish(state: SubtypeState, loss: Tensor, config: SubtypeTrainConfig) -> float:
    """Check loss and gradients of a whole step, clip each network's, and return the loss as a number.

    Raises
    ------
    InputError
        If either is not finite, before it reaches the weights.
    """
    shown = check_finite(loss, state.net, state.step, advice=_ADVICE)
    if config.clip:
        for prefixes in parts_of(state.net).values():
            own = [p for name, p in state.net.named_parameters() if name.startswith(prefixes)]
            nn.utils.clip_grad_norm_(own, config.clip)
    return shown


def train_step(
    state: SubtypeState,
    batch: StepBatch,
    config: SubtypeTrainConfig,
    *,
    weights: Tensor,
    rate: float,
    precision: str = "float32",
) -> float:
    """Take the optimiser step of ``state.step`` and return its loss."""
    state.net.train()
    set_rate(state.optimiser, rate)
    state.optimiser.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=weights.device)
    with seeded(config, state.step, batch.part, weights.device):
        for piece in losses(state.net, batch, config, weights=weights, step=state.step, precision=precision):
            piece.backward()
            loss += piece.detach()
    shown = finish(state, loss, config)
    state.optimiser.step()
    state.step += 1
    return shown
