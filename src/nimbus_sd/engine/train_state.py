"""The state of a training run, saved and restored so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.train_config import TrainConfig
from nimbus_sd.models.unet import UNet, UNetConfig


@dataclass
class TrainState:
    """What a checkpoint holds: networks, optimiser, steps done."""

    net: UNet
    average: UNet
    optimiser: torch.optim.AdamW
    step: int = 0

    @classmethod
    def fresh(cls, config: TrainConfig, device: torch.device) -> TrainState:
        """Networks and optimiser before the first step."""
        torch.manual_seed(config.seed)
        shape = UNetConfig(width=config.width, depth=config.depth)
        net, average = UNet(shape), UNet(shape)
        average.load_state_dict(net.state_dict())
        for each in (net, average):
            each.to(device)
            # parameters follow the layout of the batches, or every convolution converts them
            for module in each.modules():
                if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                    module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(
            net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        return cls(net, average.eval().requires_grad_(False), optimiser)

    def save(self, path: Path, config: TrainConfig) -> None:
        """Write a checkpoint; a reader sees the old one or the new one, never half of either."""
        temporary = path.with_suffix(".tmp")
        torch.save(
            {
                "config": asdict(config),
                "step": self.step,
                "net": self.net.state_dict(),
                "average": self.average.state_dict(),
                "optimiser": self.optimiser.state_dict(),
            },
            temporary,
        )
        temporary.replace(path)

    def restore(self, path: Path, config: TrainConfig) -> None:
        """Continue from a checkpoint of the same configuration.

        Raises
        ------
        InputError
            If the checkpoint was made with another configuration.
        """
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["config"] != asdict(config):
            changed = sorted(k for k, v in asdict(config).items() if saved["config"].get(k) != v)
            msg = f"{path} comes from another configuration ({', '.join(changed)} differ); use another folder"
            raise InputError(msg)
        self.net.load_state_dict(saved["net"])
        self.average.load_state_dict(saved["average"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step = saved["step"]
