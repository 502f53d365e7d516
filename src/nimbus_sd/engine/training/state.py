"""The state of a run, saved and restored so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.files import whole_file
from nimbus_sd.engine.training.config import TrainConfig
from nimbus_sd.engine.training.selection import fresh_quantiles
from nimbus_sd.models.architectures import build


@dataclass
class TrainState:
    """What a checkpoint holds.

    Parameters
    ----------
    net, average
        The network, and the averaged one that is validated and kept.
    optimiser
        Adam with decoupled weight decay.
    quantiles
        Running loss quantiles of the noise-robust selection, ``(groups, 2)``.
    anchor
        First weights, where the configuration keeps near them.
    step
        Steps done.
    best
        Metrics of the best validation so far, with its ``step``.
    running
        Sums of what is reported since the last report.
    """

    net: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    quantiles: Tensor
    anchor: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    best: dict[str, float] = field(default_factory=dict)
    running: dict[str, float] = field(default_factory=dict)

    @classmethod
    def fresh(
        cls,
        config: TrainConfig,
        n_groups: int,
        *,
        device: torch.device | str = "cpu",
        weights: Mapping[str, Tensor] | None = None,
    ) -> TrainState:
        """Networks and optimiser before the first step.

        Parameters
        ----------
        config
            Architecture, seed, rates.
        n_groups
            (dataset, marker) groups of the source.
        device
            Where to train.
        weights
            State dict to start from; None draws one from the seed.
        """
        device = torch.device(device)
        # the global generator is left as it was found
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            net = build(config.architecture)
        if weights is not None:
            net.load_state_dict({**net.state_dict(), **weights})
        average = copy.deepcopy(net)
        for each in (net, average):
            each.to(device)
            # parameters follow the layout of the batches, or every convolution converts them
            for module in each.modules():
                if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                    module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(
            net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        anchor = {n: p.detach().clone() for n, p in net.named_parameters()} if config.l2_sp else {}
        average.eval().requires_grad_(False)
        return cls(net, average, optimiser, fresh_quantiles(n_groups).to(device), anchor)

    def save(self, path: Path, config: TrainConfig, data: Mapping[str, Any]) -> None:
        """Write a checkpoint; a reader sees the old one or the new one, never half of either."""
        save_atomic(
            {
                "config": config.to_dict(),
                "data": dict(data),
                "step": self.step,
                "best": self.best,
                "running": self.running,
                "net": self.net.state_dict(),
                "average": self.average.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "quantiles": self.quantiles,
                "anchor": self.anchor,
            },
            path,
        )

    def restore(self, path: Path, config: TrainConfig, data: Mapping[str, Any]) -> None:
        """Continue from a checkpoint of the same configuration and data.

        Raises
        ------
        InputError
            If it was made with another configuration or other data.
        """
        saved = read_checkpoint(path, config.to_dict(), data)
        self.net.load_state_dict(saved["net"])
        self.average.load_state_dict(saved["average"])
        self.optimiser.load_state_dict(saved["optimiser"])
        device = self.quantiles.device
        self.quantiles = saved["quantiles"].to(device)
        self.anchor = {k: v.to(device) for k, v in saved["anchor"].items()}
        self.step, self.best, self.running = saved["step"], saved["best"], saved["running"]


def read_checkpoint(path: Path, config: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`save_atomic` wrote for the same configuration and data.

    Raises
    ------
    InputError
        If it was made with another configuration or other data.
    """
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    for key, now in (("config", config), ("data", data)):
        _compare(path, key, saved.get(key, {}), now)
    return saved


def check_checkpoint(
    path: Path, *, config: Mapping[str, Any] | None = None, data: Mapping[str, Any] | None = None
) -> None:
    """Compare what is known so far with what a checkpoint was made with; its weights are not read.

    Raises
    ------
    InputError
        If any of these differs.
    """
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    for key, now in (("config", config or {}), ("data", data or {})):
        _compare(path, key, {k: v for k, v in saved.get(key, {}).items() if k in now}, now)


def steps_done(path: Path) -> int:
    """Steps that a checkpoint's run has done; 0 where there is none."""
    if not path.exists():
        return 0
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return int(saved["step"])


_OTHER = {"config": "another configuration", "data": "other data"}


def _compare(path: Path, key: str, old: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if old == dict(now):
        return
    changed = ", ".join(sorted(k for k in {*old, *now} if old.get(k) != now.get(k)))
    msg = (
        f"{path} comes from {_OTHER[key]} ({changed} differ); give another out folder, or delete this one "
        "to start anew"
    )
    raise InputError(msg)


def save_atomic(content: Mapping[str, Any], path: Path) -> None:
    """Write a torch file that appears whole or not at all."""
    with whole_file(path) as partial:
        torch.save(dict(content), partial)
