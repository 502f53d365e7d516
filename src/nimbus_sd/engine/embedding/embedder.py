"""Embed the cells of samples: one pass gives activations and from these the embedding."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nimbus_sd.engine.device import PRECISIONS
from nimbus_sd.engine.embedding.attribution import gradient_x_input, occlusion
from nimbus_sd.engine.embedding.inputs import normalise
from nimbus_sd.engine.embedding.job import EmbedJob
from nimbus_sd.engine.embedding.margins import MarginCache
from nimbus_sd.engine.patch_job import PatchConfig
from nimbus_sd.engine.patch_scorer import PatchScorer, output_bytes
from nimbus_sd.models.channelwise import ChannelwiseNet, magnitude
from nimbus_sd.models.embedding import EmbeddingModel


class Embedder(PatchScorer[ChannelwiseNet, EmbedJob]):
    """A deployed network that turns blocks into embeddings, activations or attributions.

    Parameters
    ----------
    model
        From :func:`nimbus_sd.models.load_embedding`.
    config, device, margins
        As of :class:`~nimbus_sd.engine.patch_scorer.PatchScorer`.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        config: PatchConfig | None = None,
        device: torch.device | None = None,
        *,
        margins: MarginCache | None = None,
    ) -> None:
        super().__init__(model.net, model.name, config, device, margins=margins)

    def _pass(self, job: EmbedJob, raw: np.ndarray) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            x = self._input(job, raw)
            if "embedding" in job.quantities or "activation" in job.quantities:
                activations = self.net.activations(x)
                found["embedding"] = self.net.mix(activations)
                found["activation"] = magnitude(activations)
            if "occlusion" in job.quantities:
                found["occlusion"] = occlusion(self.net, x)
        if "gradient_x_input" in job.quantities:
            found["gradient_x_input"] = gradient_x_input(self.net, x)
        return {name: found[name] for name in job.quantities}

    def _input(self, job: EmbedJob, raw: np.ndarray) -> Tensor:
        """Normalised patches ``(b, c, y, x)`` on the device, in the network's dtype and layout."""
        there = torch.from_numpy(raw).to(self.device)
        x = torch.empty(
            there.shape, dtype=torch.float32, device=self.device, memory_format=torch.channels_last
        )
        return normalise(there, job.scale, job.transform, out=x).to(PRECISIONS[self.precision])

    def _answer(self, net: ChannelwiseNet, x: Tensor) -> Tensor:
        return net(x).float()

    def _pass_bytes(self, job: EmbedJob) -> int:
        return pass_bytes(self.net, job.crop) * (2 if "gradient_x_input" in job.quantities else 1)


def pass_bytes(net: ChannelwiseNet, crop: int) -> int:
    """Bytes of all outputs of all layers for one patch: as much as a pass can need.

    Examples
    --------
    >>> from nimbus_sd.models.cim import CIM, CIMConfig
    >>> pass_bytes(CIM(CIMConfig(markers=("a", "b"))), 16) > 16 * 16 * 2 * 4
    True
    """
    n_channels = len(net.config.markers)
    x = n_channels * crop * crop * next(net.parameters()).element_size()
    # the passes see an empty patch as well; the input is there twice, raw and normalised
    return output_bytes(net, (1, n_channels, crop, crop)) // 2 + 3 * x
