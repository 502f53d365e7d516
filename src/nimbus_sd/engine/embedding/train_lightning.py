"""Lightning as the trainer around the same contrastive steps: several GPUs (extra ``train``).

The state, the batches, the views, the loss and the checkpoints are those of the plain
loop: a run may be begun with one trainer and ended with the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nimbus_sd._core.lazy import require
from nimbus_sd.engine.device import resolve_device
from nimbus_sd.engine.embedding.contrastive import gather_all
from nimbus_sd.engine.embedding.supply import PatchSupply
from nimbus_sd.engine.embedding.train_config import EmbeddingTrainConfig
from nimbus_sd.engine.embedding.train_loop import EmbeddingData, EmbeddingResult, EmbeddingRun, check_stop
from nimbus_sd.engine.embedding.train_step import check_finite, contrast, draw_views
from nimbus_sd.engine.training.lightning import check_share, launched_rank, make_trainer, quiet
from nimbus_sd.engine.training.report import Bar
from nimbus_sd.engine.training.step import set_rate

if TYPE_CHECKING:
    import lightning as L
else:
    L = require("lightning", extra="train")


class RawBatches(torch.utils.data.IterableDataset):
    """Raw patches of the steps that are left; every process draws its own share of each."""

    def __init__(self, supply: PatchSupply, *, first: int, end: int) -> None:
        self.supply, self.first, self.end = supply, first, end
        self.part, self.parts = 0, 1

    def __iter__(self) -> Iterator[Tensor]:
        """Batches in order."""
        for raw in self.supply.batches(self.first, self.end, part=self.part, parts=self.parts):
            yield torch.from_numpy(np.ascontiguousarray(raw))


class ContrastModule(L.LightningModule):
    """The steps of a run as a LightningModule.

    Parameters
    ----------
    run
        State, data and folder.
    end
        Step to stop at.
    show
        Show a progress bar.
    """

    def __init__(self, run: EmbeddingRun, *, end: int, show: bool) -> None:
        super().__init__()
        self.model = run.state.model
        # not a submodule: what else the run holds has no gradients to share
        self._held = (run,)
        self._end, self._show = end, show
        self._bar: Bar | None = None
        self._loss: Tensor | None = None
        self._shown = 0.0

    @property
    def run(self) -> EmbeddingRun:
        """The run."""
        return self._held[0]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser of the state, restored already."""
        return self.run.state.optimiser

    def train_dataloader(self) -> Any:
        """Batches, not batched again."""
        data = RawBatches(self.run.data.supply, first=self.run.state.step, end=self._end)
        data.part, data.parts = self.trainer.global_rank, self.trainer.world_size
        return torch.utils.data.DataLoader(data, batch_size=None)

    def on_fit_start(self) -> None:
        """Where the probe runs; the bar."""
        self.run.device = self.device
        show = self._show and self.trainer.is_global_zero
        self._bar = Bar(self._end, done=self.run.state.step, show=show)

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        """Learning rate and mode of the step."""
        set_rate(self.run.state.optimiser, self.run.rate)
        self.model.train()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Loss of this process's patches among the views of all."""
        run = self.run
        seen = draw_views(
            batch,
            run.config,
            scale=run.data.scale,
            step=run.state.step,
            part=self.trainer.global_rank,
            device=self.device,
        )
        self._loss = contrast(self.model, seen, run.config, gather=gather_all)
        return self._loss

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Nothing is clipped, but weights that are not finite are not made."""
        if self._loss is not None:
            self._shown = check_finite(self._loss, self.model, self.run.state.step)

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        """Count, probe, report, save."""
        run = self.run
        rate = run.rate
        run.state.step += 1
        run.after_step(self._shown, rate=rate, end=self._end)
        self.log("loss", self._shown, batch_size=len(batch), logger=True)
        if self._bar is not None:
            probe = {k: v for k, v in run.state.metrics.items() if k == "probe"}
            self._bar.advance({"loss": self._shown, **probe})

    def teardown(self, stage: str) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


def fit_embedding_lightning(
    data: EmbeddingData,
    config: EmbeddingTrainConfig,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    stop_at: int | None = None,
    progress: bool = True,
    devices: int | str = 1,
    strategy: str = "auto",
    logger: Any = False,
) -> EmbeddingResult:
    """Train with lightning; folder and result are those of the plain loop.

    Parameters
    ----------
    data, config, out, device, stop_at, progress
        See :func:`nimbus_sd.engine.embedding.train_loop.fit_embedding`. The batch is divided
        among the processes, and each patch is told apart from those of all; batch norms
        follow the whole batch on GPUs, a process's share of it on CPUs.
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
    check_stop(stop_at)
    where = resolve_device(device)
    # lightning moves the network itself
    start = torch.device("cpu") if where.type == "cuda" else where
    run = EmbeddingRun(
        data, config, None if out is None else Path(out), device=start, main=launched_rank() == 0
    )
    end = run.end(stop_at)
    if run.state.step >= end:
        run.close()
        return run.result()
    with quiet():
        trainer = make_trainer(
            where,
            steps=end - run.state.step,
            devices=devices,
            strategy=strategy,
            logger=logger,
            sync_batchnorm=where.type == "cuda",  # torch has it for GPUs alone
        )
        check_share("batch_size", run.config.batch, trainer)
        try:
            trainer.fit(ContrastModule(run, end=end, show=progress))
        finally:
            run.close()
    trainer.strategy.barrier()
    return run.result()
