"""What an embedding run computes, in a form that travels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.patch_job import PatchJob

if TYPE_CHECKING:
    from nimbus_sd.engine.embedding.embedder import Embedder

QUANTITIES = ("embedding", "activation", "occlusion", "gradient_x_input")


@dataclass(frozen=True, kw_only=True)
class EmbedJob(PatchJob):
    """As :class:`~nimbus_sd.engine.patch_job.PatchJob`, for embedding networks.

    Attributes
    ----------
    markers, scale
        The network's channels, in its order, and the intensity of each that maps to 1, ``(k,)``.
    transform
        Applied after the scale, see :class:`~nimbus_sd.models.EmbeddingCard`.
    crop
        Side of the patches that the network sees, px.
    model
        Folder that :func:`nimbus_sd.models.load_embedding` takes.
    quantities
        What to compute for each cell, of :data:`QUANTITIES`.
    """

    markers: tuple[str, ...]
    scale: np.ndarray = field(repr=False)
    transform: str
    crop: int
    quantities: tuple[str, ...] = ("embedding", "activation")

    def __post_init__(self) -> None:
        unknown = [q for q in self.quantities if q not in QUANTITIES]
        if unknown or not self.quantities:
            msg = f"quantities={self.quantities}: give some of {', '.join(QUANTITIES)}"
            raise InputError(msg)

    def channels(self, sample: int) -> list[int]:
        """Where a sample's image has the markers, by name."""
        mine = self.samples[sample].image.channels
        return [mine.index(m) for m in self.markers]

    def size(self, sample: int) -> int:
        """The crop: embedding networks see px as they are."""
        return self.crop

    def scorer(self) -> Embedder:
        """Load the model; called on a worker."""
        from nimbus_sd.engine.embedding.embedder import Embedder  # which imports this module
        from nimbus_sd.models.embedding import load_embedding

        return Embedder(load_embedding(self.model), self.config)
