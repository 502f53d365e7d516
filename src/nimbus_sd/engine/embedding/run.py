"""Where embeddings are computed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from nimbus_sd.engine.embedding.embedder import Embedder
from nimbus_sd.engine.embedding.margins import MarginCache
from nimbus_sd.engine.patch_runner import PatchRunner
from nimbus_sd.models.embedding import EmbeddingModel, is_stored, save_embedding


@dataclass
class EmbedRunner(PatchRunner[EmbeddingModel]):
    """Runs embedding networks."""

    def scorer(self, device: torch.device | None = None, *, margins: MarginCache | None = None) -> Embedder:
        """The model on a device."""
        return Embedder(self.model, self.config, device, margins=margins)

    def is_stored(self) -> bool:
        """Whether the model's folder holds its weights."""
        return is_stored(self.model)

    def save(self, folder: Path) -> None:
        """Write the model to a folder."""
        save_embedding(self.model, folder)
