"""The cell head: from what the U-Net and the intensity say of a cell, among all cells, to its score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays.cell_context import N_FEATURES

PREFIX = "cell_head."
"""Of the head's entries in a weight file."""
_LIMIT = 4.0


@dataclass(frozen=True)
class HeadConfig:
    """Shape of a :class:`CellHead`.

    Parameters
    ----------
    hidden
        Width of both hidden layers.
    n_features
        Features per cell and marker (``nimbus_sd.arrays.cell_context.cell_features``).
    """

    hidden: int = 48
    n_features: int = N_FEATURES

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.n_features != N_FEATURES:
            msg = (
                f"HeadConfig: hidden={self.hidden} must be positive and n_features={self.n_features} must be "
                f"{N_FEATURES}, what this version computes; load weights of this version"
            )
            raise InputError(msg)

    def to_dict(self) -> Mapping[str, Any]:
        """For the card."""
        return asdict(self)


class CellHead(nn.Module):
    """Two hidden layers on standardised features; returns one logit per cell.

    Its context is computed once over all cells of a dataset, after tiles have been
    reduced, so that scores do not depend on tiles.

    Parameters
    ----------
    config
        Widths.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, config: HeadConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or HeadConfig()
        self.register_buffer("mean", torch.zeros(config.n_features))
        self.register_buffer("spread", torch.ones(config.n_features))
        self.layers = nn.Sequential(
            nn.Linear(config.n_features, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Dropout(0.05),
            nn.Linear(config.hidden, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(n, n_features) to logits (n,)."""
        standard = ((features - self.mean) / self.spread).clamp(-_LIMIT, _LIMIT)
        logits: Tensor = self.layers(standard)[:, 0]
        return logits
