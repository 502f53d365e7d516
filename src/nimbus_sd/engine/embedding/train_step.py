"""One contrastive step, the same for the plain loop and for lightning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.embedding.augment import views
from nimbus_sd.engine.embedding.contrastive import Gather, alone, nt_xent
from nimbus_sd.engine.embedding.inputs import normalise
from nimbus_sd.engine.embedding.lars import LARS, decay_groups
from nimbus_sd.engine.embedding.train_config import EmbeddingTrainConfig
from nimbus_sd.engine.training.state import read_checkpoint, save_atomic
from nimbus_sd.engine.training.step import set_rate
from nimbus_sd.models.channelwise import ChannelwiseNet
from nimbus_sd.models.embedding import build_embedding

_ADVICE = "lower learning_rate, raise temperature or warmup_epochs in the configuration"


class Contrast(nn.Module):
    """An embedding network with the projection that only training needs.

    Parameters
    ----------
    net
        Patches to embeddings.
    widths
        Of the projection's layers; none compares the embeddings themselves.
    """

    def __init__(self, net: ChannelwiseNet, widths: Sequence[int]) -> None:
        super().__init__()
        self.net = net
        layers: list[nn.Module] = []
        n = net.config.embedding
        for width in widths[:-1]:
            layers += [nn.Linear(n, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
            n = width
        if widths:
            layers.append(nn.Linear(n, widths[-1], bias=False))
        self.head = nn.Sequential(*layers)

    def forward(self, seen: Sequence[Tensor]) -> Tensor:
        """Views ``(b, c, k, k)`` to ``(b, views, d)``; those of one size go through together."""
        embedded: list[Tensor] = [seen[0]] * len(seen)
        for side in sorted({v.shape[-1] for v in seen}):
            mine = [i for i, v in enumerate(seen) if v.shape[-1] == side]
            x = torch.cat([seen[i] for i in mine]).contiguous(memory_format=torch.channels_last)
            for i, z in zip(mine, self.net(x).chunk(len(mine)), strict=True):
                embedded[i] = z
        stacked = torch.stack(embedded, dim=1)
        projected: Tensor = self.head(stacked.flatten(0, 1))
        return projected.unflatten(0, stacked.shape[:2])


@dataclass
class EmbeddingState:
    """What a checkpoint holds.

    Parameters
    ----------
    model
        Network and projection.
    optimiser
        LARS or AdamW.
    step
        Steps done.
    running
        Sums of what is reported since the last report.
    metrics
        ``loss`` and ``probe`` when they were last looked at.
    """

    model: Contrast
    optimiser: torch.optim.Optimizer
    step: int = 0
    running: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def fresh(
        cls, config: EmbeddingTrainConfig, markers: Sequence[str], *, device: torch.device | str = "cpu"
    ) -> EmbeddingState:
        """Network, projection and optimiser before the first step; the seed draws the weights."""
        # the global generator is left as it was found
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            net = build_embedding({**config.architecture, "markers": tuple(markers), "size": config.size})
            model = Contrast(net, config.projection)
        model.to(device=torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
        groups = decay_groups(model)
        if config.optimiser == "adamw":
            optimiser: torch.optim.Optimizer = torch.optim.AdamW(
                groups, lr=config.learning_rate, weight_decay=config.weight_decay
            )
        else:
            optimiser = LARS(
                groups,
                lr=config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                trust=config.trust,
            )
        return cls(model, optimiser)

    def save(self, path: Path, config: EmbeddingTrainConfig, data: Mapping[str, Any]) -> None:
        """Write a checkpoint; a reader sees the old one or the new one, never half of either."""
        content = {
            "config": config.to_dict(),
            "data": dict(data),
            "step": self.step,
            "running": self.running,
            "metrics": self.metrics,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        save_atomic(content, path)

    def restore(self, path: Path, config: EmbeddingTrainConfig, data: Mapping[str, Any]) -> None:
        """Continue from a checkpoint of the same configuration and data.

        Raises
        ------
        InputError
            If it was made with another configuration or other data.
        """
        saved = read_checkpoint(path, config.to_dict(), data)
        self.model.load_state_dict(saved["model"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step, self.running, self.metrics = saved["step"], saved["running"], saved["metrics"]


def draw_views(
    raw: np.ndarray | Tensor,
    config: EmbeddingTrainConfig,
    *,
    scale: np.ndarray,
    step: int,
    part: int = 0,
    device: torch.device,
) -> list[Tensor]:
    """Move raw patches ``(b, c, S, S)`` to the device, normalise them there and draw their views."""
    tensor = torch.from_numpy(raw) if isinstance(raw, np.ndarray) else raw
    patches = normalise(tensor.to(device), scale, config.transform)
    return views(patches, config.views, config.crops, seed=config.seed, step=step, part=part)


def contrast(
    model: nn.Module, seen: Sequence[Tensor], config: EmbeddingTrainConfig, gather: Gather = alone
) -> Tensor:
    """Loss of a batch of views."""
    return nt_xent(model(seen), temperature=config.temperature, gather=gather)


def check_finite(loss: Tensor, model: nn.Module, step: int, *, advice: str = _ADVICE) -> float:
    """Return the loss as a number; `advice` says what to change where it is none.

    Raises
    ------
    InputError
        If loss or gradients are not finite, before they reach the weights.
    """
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    both = torch.stack([loss.detach().float(), norm.float()]).cpu()
    if bool(torch.isfinite(both).all()):
        return float(both[0])
    what = "gradients" if bool(torch.isfinite(both[0])) else "loss"
    msg = (
        f"training stopped at step {step}: {what} not finite. The last checkpoint is untouched; {advice}, "
        "and train into another out folder"
    )
    raise InputError(msg)


def train_step(
    state: EmbeddingState, raw: np.ndarray, config: EmbeddingTrainConfig, *, scale: np.ndarray, rate: float
) -> float:
    """Take one optimiser step with the batch of ``state.step`` and return its loss."""
    state.model.train()
    set_rate(state.optimiser, rate)
    device = next(state.model.parameters()).device
    seen = draw_views(raw, config, scale=scale, step=state.step, device=device)
    loss = contrast(state.model, seen, config)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    shown = check_finite(loss, state.model, state.step)
    state.optimiser.step()
    state.step += 1
    return shown
