"""A whole run: skip what the journal holds, spread the rest over devices or workers, gather the cells."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nimbus_sd._core.errors import WeightsError
from nimbus_sd.arrays import TilePlan
from nimbus_sd.arrays.cells import Cells, gather_cells
from nimbus_sd.engine.device import MemoryBudget, resolve_devices
from nimbus_sd.engine.job import Block, Job, Scored
from nimbus_sd.engine.journal import Journal
from nimbus_sd.engine.local import run_local
from nimbus_sd.engine.predict import Predictor
from nimbus_sd.engine.settings import PredictConfig
from nimbus_sd.engine.source import Sample
from nimbus_sd.engine.work import Runs, Work
from nimbus_sd.models.loading import LoadedModel, save, sha256

if TYPE_CHECKING:
    from distributed import Client

    from nimbus_sd.engine.cluster import Workers

W = TypeVar("W", bound=Work)


@dataclass
class Runner:
    """Where blocks are computed: the devices of this process, or a cluster's workers.

    Attributes
    ----------
    model, config
        What runs, and how; the precision is resolved.
    predictor
        Plans here; on a cluster it computes nothing.
    precision, devices
        For the record.
    """

    model: LoadedModel
    config: PredictConfig
    predictor: Predictor
    precision: str
    devices: tuple[str, ...]
    client: Client | None = None
    workers: Workers | None = None

    @classmethod
    def make(cls, model: LoadedModel, config: PredictConfig, client: Client | None) -> Runner:
        """Look at the devices or workers.

        Raises
        ------
        InputError, ClusterError
            If a device is not there, or there are no workers.
        """
        if client is None:
            devices = resolve_devices(config.device)
            predictor = Predictor(model, config, devices[0])
            config = replace(config, precision=predictor.precision)
            return cls(model, config, predictor, predictor.precision, tuple(map(str, devices)))
        from nimbus_sd.engine.cluster import survey

        workers = survey(client, config.device, config.precision)
        config = replace(config, precision=workers.precision)
        predictor = Predictor(model, config, resolve_devices("cpu")[0])
        devices_there = (workers.described(config.device),)
        return cls(model, config, predictor, workers.precision, devices_there, client, workers)

    def plan(self, sample: Sample, tile: int | None = None) -> TilePlan:
        """Tiles of a sample, for the memory and the number of those who compute."""
        if self.workers is None:
            return self.predictor.plan(sample, tile=tile, n_workers=len(self.devices))
        budget = MemoryBudget(self.workers.memory // 3, self.predictor.budget.per_pixel)
        pixels = None if self.config.memory else budget.pixels
        return self.predictor.plan(sample, tile=tile, n_workers=self.workers.slots, pixels=pixels)

    def run(self, job: Job, blocks: Iterator[Block]) -> Iterator[Scored]:
        """Score blocks as they come."""
        if self.client is None or self.workers is None:
            others = resolve_devices(self.config.device)[1:]
            predictors = [self.predictor, *(Predictor(self.model, self.config, d) for d in others)]
            yield from run_local(job, blocks, predictors)
            return
        from nimbus_sd.engine.cluster import run_on_cluster

        with self._model_file() as path:
            yield from run_on_cluster(replace(job, model=path), blocks, self.client, self.workers)

    @contextmanager
    def _model_file(self) -> Iterator[str | Path]:
        """What the workers load the model from: its file, or a copy if that does not hold it (any more)."""
        if self.model.path is not None and _is_stored(self.model, self.model.path):
            yield self.model.path
            return
        with tempfile.TemporaryDirectory(prefix="nimbus-sd-model-") as folder:
            save(self.model.net, folder, self.model.card, half=False, head=self.model.head)
            yield folder


def _is_stored(model: LoadedModel, path: Path) -> bool:
    """Whether the file holds these weights: another training may have written there since."""
    try:
        return sha256(path) == model.card.sha256
    except WeightsError:
        return False


def plan_all(runner: Runner, samples: Sequence[Sample], journal: Journal) -> tuple[TilePlan, ...]:
    """Tiles of all samples: those of the interrupted run, if there is one, whatever memory is free now."""
    recorded = journal.noted("tiles") or [None] * len(samples)
    plans = tuple(runner.plan(s, tile) for s, tile in zip(samples, recorded, strict=True))
    if journal.noted("tiles") is None:
        journal.note("tiles", [p.tile for p in plans])
    return plans


def run_job(
    runner: Runs[W], job: W, journal: Journal, *, on_progress: Callable[[int], None] | None = None
) -> list[Cells]:
    """Compute the blocks that the journal lacks, and gather the cells of every sample.

    Parameters
    ----------
    runner, job, journal
        Of one run.
    on_progress
        Called with the units of progress (see :class:`~nimbus_sd.engine.work.Work`) since the last call.
    """
    todo = (block for block in job.blocks() if block not in journal)
    for scored in runner.run(job, todo):
        journal.add(scored)
        if on_progress:
            on_progress(job.units(scored.block))
    return [gather_cells(partial(journal.partials, i)) for i in range(len(job.samples))]
