"""Where patches go through networks: the devices of this process, or a cluster's workers."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

import torch

from nimbus_sd.engine.device import resolve_devices
from nimbus_sd.engine.embedding.margins import MarginCache
from nimbus_sd.engine.local import run_local
from nimbus_sd.engine.patch_job import PatchConfig, PatchJob
from nimbus_sd.engine.patch_scorer import PatchScorer
from nimbus_sd.engine.work import Block, Scored

if TYPE_CHECKING:
    from distributed import Client

    from nimbus_sd.engine.cluster import Workers


class Stored(Protocol):
    """A model that may lie in a folder."""

    @property
    def path(self) -> Path | None:
        """The folder; None in memory."""
        ...


M = TypeVar("M", bound=Stored)


@dataclass
class PatchRunner(ABC, Generic[M]):
    """As :class:`~nimbus_sd.engine.run.Runner`, for networks that see one patch per cell.

    Attributes
    ----------
    model, config
        What runs, and how; the precision is resolved.
    devices
        For the record.
    """

    model: M
    config: PatchConfig
    devices: tuple[str, ...]
    client: Client | None = None
    workers: Workers | None = None

    @abstractmethod
    def scorer(
        self, device: torch.device | None = None, *, margins: MarginCache | None = None
    ) -> PatchScorer[Any, Any]:
        """The model on a device; None takes the first that the settings name."""

    @abstractmethod
    def is_stored(self) -> bool:
        """Whether the model's folder holds its weights: another training may have written there since."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model to a folder."""

    @classmethod
    def make(cls, model: M, config: PatchConfig, client: Client | None) -> Self:
        """Look at the devices or workers.

        Raises
        ------
        InputError, ClusterError
            If a device is not there, or there are no workers.
        """
        if client is None:
            here = cls(model, config, tuple(map(str, resolve_devices(config.device))))
            return replace(here, config=replace(config, precision=here.scorer().precision))
        from nimbus_sd.engine.cluster import survey

        workers = survey(client, config.device, config.precision)
        config = replace(config, precision=workers.precision)
        return cls(model, config, (workers.described(config.device),), client, workers)

    def run(self, job: PatchJob, blocks: Iterator[Block]) -> Iterator[Scored]:
        """Compute blocks as they come."""
        if self.client is None or self.workers is None:
            widest = max((job.size(i) for i in range(len(job.samples))), default=1)
            margins = MarginCache(widest, in_order=True)
            devices = resolve_devices(self.config.device)
            yield from run_local(job, blocks, [self.scorer(d, margins=margins) for d in devices])
            return
        from nimbus_sd.engine.cluster import run_on_cluster

        with self._model_folder() as folder:
            yield from run_on_cluster(replace(job, model=folder), blocks, self.client, self.workers)

    @contextmanager
    def _model_folder(self) -> Iterator[Path]:
        """What the workers load the model from: its folder, or a copy if that does not hold it (any more)."""
        if self.model.path is not None and self.is_stored():
            yield self.model.path
            return
        with tempfile.TemporaryDirectory(prefix="nimbus-sd-model-") as folder:
            self.save(Path(folder))
            yield Path(folder)
