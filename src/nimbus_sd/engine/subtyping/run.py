"""Where sub-types are predicted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from nimbus_sd.engine.embedding.margins import MarginCache
from nimbus_sd.engine.patch_runner import PatchRunner
from nimbus_sd.engine.subtyping.predictor import SubtypePredictor
from nimbus_sd.models.subtyper import SubtypeModel, is_stored, save_subtyper


@dataclass
class SubtypeRunner(PatchRunner[SubtypeModel]):
    """Runs networks that tell sub-types."""

    def scorer(
        self, device: torch.device | None = None, *, margins: MarginCache | None = None
    ) -> SubtypePredictor:
        """The model on a device."""
        return SubtypePredictor(self.model, self.config, device, margins=margins)

    def is_stored(self) -> bool:
        """Whether the model's folder holds its weights."""
        return is_stored(self.model)

    def save(self, folder: Path) -> None:
        """Write the model to a folder."""
        save_subtyper(self.model, folder)
