"""Where embeddings are computed: the devices of this process, or a cluster's workers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nimbus_sd.engine.device import resolve_devices
from nimbus_sd.engine.embedding.embedder import Embedder
from nimbus_sd.engine.embedding.job import EmbedConfig, EmbedJob
from nimbus_sd.engine.embedding.margins import MarginCache
from nimbus_sd.engine.local import run_local
from nimbus_sd.engine.work import Block, Scored
from nimbus_sd.models.embedding import EmbeddingModel, is_stored, save_embedding

if TYPE_CHECKING:
    from distributed import Client

    from nimbus_sd.engine.cluster import Workers


@dataclass
class EmbedRunner:
    """As :class:`~nimbus_sd.engine.run.Runner`, for embedding networks.

    Attributes
    ----------
    model, config
        What runs, and how; the precision is resolved.
    devices
        For the record.
    """

    model: EmbeddingModel
    config: EmbedConfig
    devices: tuple[str, ...]
    client: Client | None = None
    workers: Workers | None = None

    @classmethod
    def make(cls, model: EmbeddingModel, config: EmbedConfig, client: Client | None) -> EmbedRunner:
        """Look at the devices or workers.

        Raises
        ------
        InputError, ClusterError
            If a device is not there, or there are no workers.
        """
        if client is None:
            embedder = Embedder(model, config)
            devices = tuple(map(str, resolve_devices(config.device)))
            return cls(model, replace(config, precision=embedder.precision), devices)
        from nimbus_sd.engine.cluster import survey

        workers = survey(client, config.device, config.precision)
        config = replace(config, precision=workers.precision)
        return cls(model, config, (workers.described(config.device),), client, workers)

    def run(self, job: EmbedJob, blocks: Iterator[Block]) -> Iterator[Scored]:
        """Compute blocks as they come."""
        if self.client is None or self.workers is None:
            margins, devices = MarginCache(job.crop), resolve_devices(self.config.device)
            embedders = [Embedder(self.model, self.config, d, margins=margins) for d in devices]
            yield from run_local(job, blocks, embedders)
            return
        from nimbus_sd.engine.cluster import run_on_cluster

        with self._model_folder() as folder:
            yield from run_on_cluster(replace(job, model=folder), blocks, self.client, self.workers)

    @contextmanager
    def _model_folder(self) -> Iterator[Path]:
        """What the workers load the model from: its folder, or a copy if that does not hold it (any more)."""
        if self.model.path is not None and is_stored(self.model):
            yield self.model.path
            return
        with tempfile.TemporaryDirectory(prefix="nimbus-sd-model-") as folder:
            yield save_embedding(self.model, folder).path or Path(folder)
