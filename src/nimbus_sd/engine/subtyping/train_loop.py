"""The plain loop of a sub-typing network: draw, step, validate, save; interrupted runs go on."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nimbus_sd.engine.device import resolve_device, resolve_precision
from nimbus_sd.engine.embedding.train_loop import CONFIG, LAST, check_stop
from nimbus_sd.engine.subtyping.loss import positive_weights
from nimbus_sd.engine.subtyping.train_config import SubtypeTrainConfig
from nimbus_sd.engine.subtyping.train_data import SubtypeData, check_data
from nimbus_sd.engine.subtyping.train_step import StepBatch, SubtypeState, train_step
from nimbus_sd.engine.subtyping.validate import KINDS, judge, probabilities
from nimbus_sd.engine.training.report import Bar, Report
from nimbus_sd.models.subtyper import SubtypeNet


@dataclass(frozen=True)
class SubtypeResult:
    """What a run gave.

    Parameters
    ----------
    net
        The network with its best weights, on the CPU in eval mode.
    config
        Its configuration.
    metrics
        Of the best validation, with its ``step``.
    origin
        Where the backbone's first weights come from.
    precision
        Of the forward passes.
    step
        Steps done.
    finished
        Whether these are all, or training stopped early.
    main
        Whether this is the process that writes.
    """

    net: SubtypeNet
    config: SubtypeTrainConfig
    metrics: Mapping[str, float]
    origin: str
    precision: str
    step: int
    finished: bool
    main: bool = True


class SubtypeRun:
    """One run, in one folder if it has one: what both trainers share.

    Parameters
    ----------
    data
        Patches and labels.
    config
        What decides the weights.
    out
        Folder for ``last.pt``, ``config.json``, ``log.csv``; None writes nothing.
    device, precision
        Where and how to train.
    main
        Whether this process validates and writes.
    """

    def __init__(
        self,
        data: SubtypeData,
        config: SubtypeTrainConfig,
        out: Path | None,
        *,
        device: torch.device,
        precision: str = "float32",
        main: bool = True,
    ) -> None:
        check_data(data, config)
        self.data, self.config, self.device, self.main = data, config, device, main
        self.precision = resolve_precision(precision, device)
        n = len(data.supply)
        self.total, self.every = config.total_steps(n), config.validate_every(n)
        self.weights = torch.from_numpy(positive_weights(data.targets, weighted=config.weighted)).to(device)
        there = out is not None and (out / LAST).exists()
        self.state = SubtypeState.fresh(config, data.markers, device=device, pretrained=not there)
        self.out = out
        self.report: Report | None = None
        if out is not None:
            if there:
                self.state.restore(out / LAST, config, self.told)
            if main:
                self._open(out)
        self._clock = (time.monotonic(), self.state.step)

    def _open(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.config.write(out / CONFIG)
        each = [f"{kind} {m}" for m in self.data.markers for kind in KINDS]
        columns = ("step", "epoch", "learning_rate", "loss", *KINDS, *each, "undefined", "patches_per_s")
        self.report = Report(out, step=self.state.step, columns=columns)

    @property
    def told(self) -> dict[str, str | int]:
        """What a checkpoint says about the data."""
        markers = ", ".join(self.data.markers)
        return {
            "cells": len(self.data.supply),
            "markers": markers,
            "precision": self.precision,
            **self.data.told,
        }

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return self.config.rate(self.state.step, len(self.data.supply))

    @property
    def stopped(self) -> bool:
        """Whether validation has not become better for too long."""
        return bool(self.config.patience) and self.state.stale >= self.config.patience

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.state.step >= self.total or self.stopped

    def end(self, stop_at: int | None) -> int:
        """Where to stop."""
        if self.stopped:
            return self.state.step
        return self.total if stop_at is None else min(stop_at, self.total)

    def batch(self, rows: np.ndarray, raw: np.ndarray, *, part: int = 0, parts: int = 1) -> StepBatch:
        """Labels to the patches of a step."""
        targets = torch.from_numpy(self.data.targets[rows])
        return StepBatch(torch.from_numpy(np.ascontiguousarray(raw)), targets, part, parts)

    def after_step(self, loss: float, *, rate: float, end: int) -> bool:
        """Validate, report and save when it is time to; return whether it was."""
        state, running = self.state, self.state.running
        running["loss"] = running.get("loss", 0.0) + loss
        running["n"] = running.get("n", 0) + 1
        due = state.step % self.every == 0 or state.step == self.total
        if due and self.main:
            self._validate(rate)
        if due:
            state.running = {}
        if self.main and self.out is not None and (due or state.step == end):
            state.save(self.out / LAST, self.config, self.told)
        return due

    def _validate(self, rate: float) -> None:
        state, data, config = self.state, self.data, self.config
        scores = probabilities(
            state.net,
            data.validation.patches,
            len(data.markers),
            patch=config.patch,
            device=self.device,
            precision=self.precision,
        )
        found = judge(data.validation.targets, scores, data.markers, threshold=config.threshold)
        loss = state.running["loss"] / state.running["n"]
        state.keep_best({"loss": loss, **found})
        if self.report is None:
            return
        patches = (state.step - self._clock[1]) * config.effective_batch
        reasons = data.validation.reasons(data.markers)
        self.report.add(
            {
                "step": state.step,
                "epoch": state.step / config.steps_of(len(data.supply)),
                "learning_rate": rate,
                "loss": loss,
                **{k: "" if math.isnan(v) else v for k, v in found.items()},
                "undefined": "; ".join(f"{m}: {why}" for m, why in reasons.items()),
                "patches_per_s": patches / max(time.monotonic() - self._clock[0], 1e-9),
            }
        )

    def result(self) -> SubtypeResult:
        """The best network so far; the last one where nothing was validated yet."""
        state = self.state
        with torch.random.fork_rng(devices=[]):
            net = SubtypeNet(state.net.config)
        kept = state.best_weights or state.net.state_dict()
        net.load_state_dict({k: v.detach().cpu().contiguous() for k, v in kept.items()})
        return SubtypeResult(
            net=net.eval(),
            config=self.config,
            metrics=dict(state.best),
            origin=state.origin,
            precision=self.precision,
            step=state.step,
            finished=self.finished,
            main=self.main,
        )

    def close(self) -> None:
        """Close the reports."""
        if self.report is not None:
            self.report.close()


def fit_subtyper(
    data: SubtypeData,
    config: SubtypeTrainConfig,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    precision: str = "float32",
    stop_at: int | None = None,
    progress: bool = True,
) -> SubtypeResult:
    """Train, or go on from the checkpoint in `out`.

    Parameters
    ----------
    data
        Patches and labels.
    config
        What decides the weights.
    out
        Folder for the checkpoint (``last.pt``), ``config.json`` and ``log.csv``; None
        writes nothing.
    device
        ``"auto"``, ``"cpu"``, ``"cuda:0"``, …
    precision
        Of forward passes: ``"float32"``, ``"bfloat16"``, ``"auto"``.
    stop_at
        Stop after this step; a later call goes on.
    progress
        Show a progress bar.

    Raises
    ------
    InputError
        If cells or classes are missing, the folder holds another run, or a loss is not finite.
    """
    check_stop(stop_at)
    run = SubtypeRun(
        data, config, None if out is None else Path(out), device=resolve_device(device), precision=precision
    )
    end = run.end(stop_at)
    bar = Bar(end, done=run.state.step, show=progress)
    try:
        for rows, raw in data.supply.numbered(run.state.step, end):
            rate = run.rate
            batch = run.batch(rows, raw)
            loss = train_step(
                run.state, batch, config, weights=run.weights, rate=rate, precision=run.precision
            )
            run.after_step(loss, rate=rate, end=end)
            bar.advance({"loss": loss, **{k: v for k, v in run.state.best.items() if k == "auroc"}})
            if run.stopped:
                break
    finally:
        bar.close()
        run.close()
    return run.result()
