"""Lightning as the trainer around the same steps of a sub-typing network: several GPUs (extra ``train``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nimbus_sd._core.lazy import require
from nimbus_sd.engine.device import resolve_device, resolve_precision
from nimbus_sd.engine.embedding.train_loop import check_stop
from nimbus_sd.engine.subtyping.train_config import SubtypeTrainConfig
from nimbus_sd.engine.subtyping.train_data import SubtypeData
from nimbus_sd.engine.subtyping.train_loop import SubtypeResult, SubtypeRun
from nimbus_sd.engine.subtyping.train_step import StepBatch, finish, losses, seeded
from nimbus_sd.engine.training.lightning import check_share, launched_rank, make_trainer, quiet
from nimbus_sd.engine.training.report import Bar
from nimbus_sd.engine.training.step import set_rate

if TYPE_CHECKING:
    import lightning as L
else:
    L = require("lightning", extra="train")


class StepBatches(torch.utils.data.IterableDataset):
    """Patches and labels of the steps that are left; every process draws its own share of each."""

    def __init__(self, run: SubtypeRun, *, end: int) -> None:
        self.run, self.end = run, end
        self.part, self.parts = 0, 1

    def __iter__(self) -> Iterator[StepBatch]:
        """Steps in order."""
        share = {"part": self.part, "parts": self.parts}
        for rows, raw in self.run.data.supply.numbered(self.run.state.step, self.end, **share):
            yield self.run.batch(rows, raw, **share)


class SubtypeModule(L.LightningModule):
    """The steps of a run as a LightningModule; it divides them into pieces itself.

    Parameters
    ----------
    run
        State, data and folder.
    end
        Step to stop at.
    show
        Show a progress bar.
    """

    def __init__(self, run: SubtypeRun, *, end: int, show: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = run.state.net
        # not a submodule: what else the run holds has no gradients to share
        self._held = (run,)
        self._end, self._show = end, show
        self._bar: Bar | None = None

    @property
    def run(self) -> SubtypeRun:
        """The run."""
        return self._held[0]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser of the state, restored already."""
        return self.run.state.optimiser

    def train_dataloader(self) -> Any:
        """Steps, not batched again."""
        data = StepBatches(self.run, end=self._end)
        data.part, data.parts = self.trainer.global_rank, self.trainer.world_size
        return torch.utils.data.DataLoader(data, batch_size=None)

    def transfer_batch_to_device(
        self, batch: StepBatch, device: torch.device, dataloader_idx: int
    ) -> StepBatch:
        """Pieces are moved one by one."""
        return batch

    def on_fit_start(self) -> None:
        """Where validation runs; the bar."""
        run = self.run
        run.device, run.weights = self.device, run.weights.to(self.device)
        self._bar = Bar(self._end, done=run.state.step, show=self._show and self.trainer.is_global_zero)

    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """A whole step: its pieces forward and back, then the optimiser."""
        run, optimiser = self.run, self.optimizers()
        rate = run.rate
        self.net.train()
        set_rate(run.state.optimiser, rate)
        run.state.optimiser.zero_grad(set_to_none=True)
        loss = self._backward(batch)
        shown = finish(run.state, loss, run.config)
        optimiser.step()  # type: ignore[union-attr]
        run.state.step += 1
        self._report(shown, rate, len(batch.raw))

    def _backward(self, batch: StepBatch) -> Tensor:
        run = self.run
        loss = torch.zeros((), device=self.device)
        pieces = -(-len(batch.raw) // run.config.batch)
        given: dict[str, Any] = {"weights": run.weights, "step": run.state.step, "precision": run.precision}
        with seeded(run.config, run.state.step, batch.part, self.device):
            each = losses(self.net, batch, run.config, total=self._total, **given)
            for i in range(pieces):
                # gradients are shared with the last piece alone
                with self._alone() if i < pieces - 1 else nullcontext():
                    piece = next(each)
                    self.manual_backward(piece)
                loss += piece.detach()
        return self._total(loss) / batch.parts

    def _alone(self) -> Any:
        blocked = getattr(self.trainer.strategy, "block_backward_sync", nullcontext)
        return blocked()

    def _total(self, value: Tensor) -> Tensor:
        """Sum over processes."""
        if self.trainer.world_size == 1:
            return value
        summed: Tensor = self.trainer.strategy.reduce(value.clone(), reduce_op="sum")
        return summed

    def _report(self, loss: float, rate: float, n: int) -> None:
        run = self.run
        due = run.after_step(loss, rate=rate, end=self._end)
        self.log("loss", loss, batch_size=n, logger=True)
        if self._bar is not None:
            best = {k: v for k, v in run.state.best.items() if k == "auroc"}
            self._bar.advance({"loss": loss, **best})
        # only the main process has looked, and all must agree
        if due and self.trainer.strategy.broadcast(run.stopped):
            self.trainer.should_stop = True

    def teardown(self, stage: str) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


def fit_subtyper_lightning(
    data: SubtypeData,
    config: SubtypeTrainConfig,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    precision: str = "float32",
    stop_at: int | None = None,
    progress: bool = True,
    devices: int | str = 1,
    strategy: str = "auto",
    logger: Any = False,
) -> SubtypeResult:
    """Train with lightning; folder and result are those of the plain loop.

    Parameters
    ----------
    data, config, out, device, precision, stop_at, progress
        See :func:`nimbus_sd.engine.subtyping.train_loop.fit_subtyper`. The patches of a step
        are divided among the processes; batch norms follow a piece's share on each.
    devices, strategy, logger
        Handed to ``lightning.Trainer``; a strategy that keeps a whole copy of the
        network in each process (``"ddp"``, …).

    Raises
    ------
    MissingExtraError
        If lightning is not installed.
    InputError
        As the plain loop; or if a step can't be divided.
    """
    check_stop(stop_at)
    where = resolve_device(device)
    # lightning moves the network itself
    start = torch.device("cpu") if where.type == "cuda" else where
    run = SubtypeRun(
        data,
        config,
        None if out is None else Path(out),
        device=start,
        precision=resolve_precision(precision, where),
        main=launched_rank() == 0,
    )
    end = run.end(stop_at)
    if run.state.step >= end:
        run.close()
        return run.result()
    with quiet():
        trainer = make_trainer(
            where, steps=end - run.state.step, devices=devices, strategy=strategy, logger=logger
        )
        check_share("batch_size", config.effective_batch, trainer)
        try:
            trainer.fit(SubtypeModule(run, end=end, show=progress))
        finally:
            run.close()
    trainer.strategy.barrier()
    return run.result()
