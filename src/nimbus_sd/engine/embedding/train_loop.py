"""The plain contrastive loop: draw, step, probe, save; interrupted runs go on where they stopped."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.device import resolve_device
from nimbus_sd.engine.embedding.probe import Probe, measure
from nimbus_sd.engine.embedding.supply import PatchSupply
from nimbus_sd.engine.embedding.train_config import EmbeddingTrainConfig
from nimbus_sd.engine.embedding.train_step import EmbeddingState, train_step
from nimbus_sd.engine.training.report import Bar, Report
from nimbus_sd.models.channelwise import ChannelwiseNet
from nimbus_sd.models.embedding import architecture_of, build_embedding

LAST, CONFIG = "last.pt", "config.json"
COLUMNS = ("step", "epoch", "learning_rate", "loss", "probe", "views_per_s")


@dataclass(frozen=True)
class EmbeddingData:
    """What a run learns from.

    Parameters
    ----------
    supply
        Raw patches.
    markers
        Their channels.
    scale
        ``(c,)`` intensity of each that maps to 1.
    probe
        Held-out cells; None judges by the loss alone.
    told
        What identifies the data, to notice that a resumed run has other.
    """

    supply: PatchSupply
    markers: tuple[str, ...]
    scale: np.ndarray
    probe: Probe | None = None
    told: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class EmbeddingResult:
    """What a run gave.

    Parameters
    ----------
    net
        The network on the CPU in eval mode, without the projection.
    config
        Its configuration.
    metrics
        Last ``loss`` and ``probe`` that were reported.
    step
        Steps done.
    finished
        Whether these are all.
    main
        Whether this is the process that writes.
    """

    net: ChannelwiseNet
    config: EmbeddingTrainConfig
    metrics: Mapping[str, float]
    step: int
    finished: bool
    main: bool = True


class EmbeddingRun:
    """One run, in one folder if it has one: what both trainers share.

    Parameters
    ----------
    data
        Patches.
    config
        What decides the weights.
    out
        Folder for ``last.pt``, ``config.json``, ``log.csv``; None writes nothing.
    device
        Where to train.
    main
        Whether this process writes.
    """

    def __init__(
        self,
        data: EmbeddingData,
        config: EmbeddingTrainConfig,
        out: Path | None,
        *,
        device: torch.device,
        main: bool = True,
    ) -> None:
        check_data(data, config)
        self.data, self.config, self.device, self.main = data, config, device, main
        self.total = config.total_steps(len(data.supply))
        self.every = config.report_every(len(data.supply))
        self.state = EmbeddingState.fresh(config, data.markers, device=device)
        check_crops(self.state.model.net, config)
        self.out = out
        self.report: Report | None = None
        if out is not None:
            if (out / LAST).exists():
                self.state.restore(out / LAST, config, self.told)
            if main:
                out.mkdir(parents=True, exist_ok=True)
                config.write(out / CONFIG)
                self.report = Report(out, step=self.state.step, columns=COLUMNS)
        self._clock = (time.monotonic(), self.state.step)

    @property
    def told(self) -> dict[str, str | int]:
        """What a checkpoint says about the data."""
        return {"cells": len(self.data.supply), **self.data.told}

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return self.config.rate(self.state.step, len(self.data.supply))

    def end(self, stop_at: int | None) -> int:
        """Where to stop."""
        return self.total if stop_at is None else min(stop_at, self.total)

    def after_step(self, loss: float, *, rate: float, end: int) -> None:
        """Report, probe and save when it is time to."""
        state, running = self.state, self.state.running
        running["loss"] = running.get("loss", 0.0) + loss
        running["n"] = running.get("n", 0) + 1
        due = state.step % self.every == 0 or state.step == self.total
        if self.main and (due or state.step == end):
            self._measure(rate, log=due)
        if due:
            state.running = {}
        if self.main and self.out is not None and (due or state.step == end):
            state.save(self.out / LAST, self.config, self.told)

    def _measure(self, rate: float, *, log: bool) -> None:
        state, config, data = self.state, self.config, self.data
        state.metrics = {"loss": state.running["loss"] / state.running["n"]}
        if data.probe is not None:
            state.metrics["probe"] = measure(
                state.model.net, data.probe, config, scale=data.scale, device=self.device
            )
        if self.report is None or not log:
            return
        views = (state.step - self._clock[1]) * config.batch * len(config.crops)
        self.report.add(
            {
                "step": state.step,
                "epoch": state.step / config.steps_of(len(data.supply)),
                "learning_rate": rate,
                **state.metrics,
                "views_per_s": views / max(time.monotonic() - self._clock[0], 1e-9),
            }
        )

    def result(self) -> EmbeddingResult:
        """The network as it is now."""
        trained = self.state.model.net
        # built anew: lightning may have changed the kind of its norms, training its memory's layout
        with torch.random.fork_rng(devices=[]):
            net = build_embedding(architecture_of(trained))
        net.load_state_dict({k: v.cpu().contiguous() for k, v in trained.state_dict().items()})
        finished = self.state.step >= self.total
        return EmbeddingResult(
            net.eval(), self.config, dict(self.state.metrics), self.state.step, finished, self.main
        )

    def close(self) -> None:
        """Close the reports."""
        if self.report is not None:
            self.report.close()


def fit_embedding(
    data: EmbeddingData,
    config: EmbeddingTrainConfig,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    stop_at: int | None = None,
    progress: bool = True,
) -> EmbeddingResult:
    """Train, or go on from the checkpoint in `out`.

    Parameters
    ----------
    data
        Patches, scales, held-out cells.
    config
        What decides the weights.
    out
        Folder for the checkpoint (``last.pt``), ``config.json`` and ``log.csv``; None
        writes nothing.
    device
        ``"auto"``, ``"cpu"``, ``"cuda:0"``, …
    stop_at
        Stop after this step; a later call goes on.
    progress
        Show a progress bar.

    Raises
    ------
    InputError
        If there are fewer cells than a batch has, crops are too small for the network,
        the folder holds another run, or a loss is not finite.
    """
    check_stop(stop_at)
    run = EmbeddingRun(data, config, None if out is None else Path(out), device=resolve_device(device))
    end = run.end(stop_at)
    bar = Bar(end, done=run.state.step, show=progress)
    try:
        for raw in data.supply.batches(run.state.step, end):
            rate = run.rate
            loss = train_step(run.state, raw, config, scale=data.scale, rate=rate)
            run.after_step(loss, rate=rate, end=end)
            bar.advance({"loss": loss, **{k: v for k, v in run.state.metrics.items() if k == "probe"}})
    finally:
        bar.close()
        run.close()
    return run.result()


def check_data(data: EmbeddingData, config: EmbeddingTrainConfig) -> None:
    """Raise :class:`InputError` unless a batch can be filled."""
    if len(data.supply) < config.batch:
        msg = (
            f"{len(data.supply)} cells to train on, fewer than the {config.batch} of a batch; take a smaller "
            "batch_size= (at least 2), or more cells"
        )
        raise InputError(msg)


def check_stop(stop_at: int | None) -> None:
    """Raise :class:`InputError` unless there is at least one step before the stop."""
    if stop_at is not None and (isinstance(stop_at, bool) or stop_at < 1):
        msg = f"stop_at={stop_at} must be at least 1"
        raise InputError(msg)


def check_crops(net: ChannelwiseNet, config: EmbeddingTrainConfig) -> None:
    """Raise :class:`InputError` if a crop is too small for the network."""
    least = net.config.min_size
    if min(config.crops) < least or config.embedded_crop < least:
        msg = f"crops={config.crops}, crop={config.crop}: this network needs at least {least} px a side"
        raise InputError(msg)
