"""Lightning as the trainer around the same steps: several GPUs, its strategies and loggers (extra ``train``).

The state, the batches, the loss and the checkpoints are those of the plain loop, so
that a run may be begun with one trainer and ended with the other.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.lazy import require
from nimbus_sd.engine.device import resolve_device, resolve_precision
from nimbus_sd.engine.readahead import read_ahead
from nimbus_sd.engine.training.batch import Batch, Sampler
from nimbus_sd.engine.training.config import TrainConfig
from nimbus_sd.engine.training.loop import Run, TrainResult, last_step
from nimbus_sd.engine.training.report import Bar
from nimbus_sd.engine.training.sources import TileSource
from nimbus_sd.engine.training.step import (
    Outcome,
    after_update,
    check_finite,
    clip_gradients,
    compute_loss,
    prepare,
    set_rate,
    shown,
    training_mode,
)

if TYPE_CHECKING:
    import lightning as L
else:
    L = require("lightning", extra="train")


class StepData(torch.utils.data.IterableDataset):
    """Batches of the steps that are left; every process draws its own share of each."""

    def __init__(self, sampler: Sampler, *, first: int, end: int, n_threads: int) -> None:
        self.sampler, self.first, self.end, self.n_threads = sampler, first, end, n_threads
        self.part, self.parts = 0, 1

    def __iter__(self) -> Iterator[Batch]:
        """Batches in order, read ahead on threads."""

        def draw(step: int) -> Batch:
            return self.sampler.draw(step, part=self.part, parts=self.parts)

        return read_ahead(draw, range(self.first, self.end), n_threads=self.n_threads)


class TrainModule(L.LightningModule):
    """The steps of a run as a LightningModule.

    Parameters
    ----------
    run
        State, data and folder.
    end
        Step to stop at.
    data
        Batches.
    show
        Show a progress bar.
    """

    def __init__(self, run: Run, *, end: int, data: StepData, show: bool) -> None:
        super().__init__()
        self.net = run.state.net
        # not a submodule: it has no gradients to share, and only the main process keeps it
        self._held = (run, data)
        self._end, self._show = end, show
        self._bar: Bar | None = None
        self._last: tuple[Outcome, Batch] | None = None
        self._shown: dict[str, float] = {}

    @property
    def run(self) -> Run:
        """The run."""
        return self._held[0]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser of the state, restored already."""
        return self.run.state.optimiser

    def train_dataloader(self) -> Any:
        """Batches, not batched again."""
        data = self._held[1]
        data.part, data.parts = self.trainer.global_rank, self.trainer.world_size
        return torch.utils.data.DataLoader(data, batch_size=None)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move and augment."""
        return prepare(batch, self.run.config, device)

    def on_fit_start(self) -> None:
        """Bring what is no parameter to the device."""
        state, device = self.run.state, self.device
        self.run.device = device
        state.average.to(device)
        state.quantiles = state.quantiles.to(device)
        state.anchor = {k: v.to(device) for k, v in state.anchor.items()}
        show = self._show and self.trainer.is_global_zero
        self._bar = Bar(self._end, done=state.step, show=show)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Learning rate and mode of the step."""
        run = self.run
        set_rate(run.state.optimiser, run.config.rate(run.state.step))
        training_mode(self.net, run.config)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        run = self.run
        outcome = compute_loss(
            self.net, batch, run.config, state=run.state, precision=run.precision, total=self._total
        )
        self._last = outcome, batch
        return outcome.loss

    def _total(self, value: Tensor) -> Tensor:
        """Sum over processes."""
        if self.trainer.world_size == 1:
            return value
        summed: Tensor = self.trainer.strategy.reduce(value, reduce_op="sum")
        return summed

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip, and stop before weights that are not finite are made."""
        if self._last is None:
            return
        outcome, batch = self._last
        norm = clip_gradients(self.net, self.run.config)
        loss = check_finite(outcome.loss, norm, outcome, batch)
        self._shown = shown(loss, outcome)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Average, count, report, save."""
        if self._last is None:
            return
        run = self.run
        after_update(run.state, self._last[0], run.config)
        run.after_step(self._shown, end=self._end)
        self.log("loss", self._shown["loss"], batch_size=len(batch.names), logger=True)
        if self._bar is not None:
            best = {k: v for k, v in run.state.best.items() if k == "f1"}
            self._bar.advance({"loss": self._shown["loss"], **best})

    def teardown(self, stage: str) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


def fit_lightning(
    train: TileSource,
    validation: TileSource | None,
    config: TrainConfig,
    *,
    out: str | Path,
    device: str = "auto",
    precision: str = "float32",
    weights: Mapping[str, Tensor] | None = None,
    n_threads: int = 2,
    stop_at: int | None = None,
    progress: bool = True,
    devices: int | str = 1,
    strategy: str = "auto",
    logger: Any = False,
) -> TrainResult:
    """Train with lightning; parameters, folder and result as :func:`nimbus_sd.engine.training.loop.fit`.

    Parameters
    ----------
    train, validation, config, out, device, precision, weights, n_threads, stop_at, progress
        See there. The batch is divided among the processes.
    devices, strategy, logger
        Handed to ``lightning.Trainer``; a strategy that keeps a whole copy of the
        network in each process (``"ddp"``, …).

    Raises
    ------
    MissingExtraError
        If lightning is not installed.
    InputError
        As the plain loop; or if the batch can't be divided.
    """
    where = resolve_device(device)
    run = Run(
        train,
        validation,
        config,
        Path(out),
        # lightning moves the network itself
        device=torch.device("cpu") if where.type == "cuda" else where,
        precision=resolve_precision(precision, where),
        weights=weights,
        main=launched_rank() == 0,
    )
    end = last_step(run.config, stop_at)
    if run.state.step >= end:
        run.close()
        return run.result()
    data = StepData(run.sampler, first=run.state.step, end=end, n_threads=n_threads)
    with quiet():
        trainer = make_trainer(
            where, steps=end - run.state.step, devices=devices, strategy=strategy, logger=logger
        )
        check_share("batch", run.config.batch, trainer)
        try:
            trainer.fit(TrainModule(run, end=end, data=data, show=progress))
        finally:
            run.close()
    trainer.strategy.barrier()
    return run.result()


@contextmanager
def quiet() -> Iterator[None]:
    """Without what lightning says of loader workers (threads read ahead instead) and of its own habits."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", category=UserWarning, message=".*isinstance.treespec.*")
        yield


def make_trainer(
    device: torch.device,
    *,
    steps: int,
    devices: int | str,
    strategy: str,
    logger: Any,
    sync_batchnorm: bool = False,
) -> L.Trainer:
    """A trainer for so many steps, of whose own habits only the parallel ones are kept."""
    return L.Trainer(
        accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=devices,
        strategy=strategy,
        max_steps=steps,
        max_epochs=1,
        precision="32-true",  # the steps do their own autocast, alike in both trainers
        use_distributed_sampler=False,
        sync_batchnorm=sync_batchnorm,
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def check_share(name: str, batch: int, trainer: L.Trainer) -> None:
    """Raise :class:`InputError` unless the batch can be divided among the processes."""
    if batch % trainer.world_size:
        msg = f"{name}={batch} can't be divided among {trainer.world_size} processes"
        raise InputError(msg)


def launched_rank() -> int:
    """Rank of this process, as launchers announce it."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", "0"))))
