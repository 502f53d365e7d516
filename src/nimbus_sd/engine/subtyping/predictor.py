"""Tell the sub-types of cells on H&E from the patch around each."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from nimbus_sd.engine.device import PRECISIONS
from nimbus_sd.engine.embedding.margins import MarginCache
from nimbus_sd.engine.patch_job import PatchConfig
from nimbus_sd.engine.patch_scorer import PatchScorer, output_bytes
from nimbus_sd.engine.subtyping.inputs import prepare
from nimbus_sd.engine.subtyping.job import SubtypeJob
from nimbus_sd.models.subtyper import SubtypeModel


class SubtypePredictor(PatchScorer[nn.Module, SubtypeJob]):
    """A deployed network that turns blocks into one probability per cell and marker.

    Parameters
    ----------
    model
        From :func:`nimbus_sd.models.load_subtyper`.
    config, device, margins
        As of :class:`~nimbus_sd.engine.patch_scorer.PatchScorer`.
    """

    def __init__(
        self,
        model: SubtypeModel,
        config: PatchConfig | None = None,
        device: torch.device | None = None,
        *,
        margins: MarginCache | None = None,
    ) -> None:
        super().__init__(model.net, model.name, config, device, margins=margins)

    def _pass(self, job: SubtypeJob, raw: np.ndarray) -> dict[str, Tensor]:
        with torch.no_grad():
            return {"probability": self._answer(self.net, self._input(job, raw))}

    def _input(self, job: SubtypeJob, raw: np.ndarray) -> Tensor:
        # not made channels last: the first layer does that on its way
        return prepare(torch.from_numpy(raw).to(self.device), job.patch).to(PRECISIONS[self.precision])

    def _answer(self, net: nn.Module, x: Tensor) -> Tensor:
        return net(x).float().sigmoid()

    def _pass_bytes(self, job: SubtypeJob) -> int:
        native = max((job.size(i) for i in range(len(job.samples))), default=job.patch)
        # as they are cut, and as float32; then at the network's size, twice where the dtype differs
        own = 3 * (5 * native**2 + 8 * job.patch**2)
        return output_bytes(self.net, (1, 3, job.patch, job.patch)) + own
