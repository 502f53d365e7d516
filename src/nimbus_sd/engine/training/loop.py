"""The plain training loop: draw, step, validate, save; interrupted runs go on where they stopped."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.device import PRECISIONS, resolve_device, resolve_precision
from nimbus_sd.engine.readahead import read_ahead
from nimbus_sd.engine.training.batch import Sampler
from nimbus_sd.engine.training.config import TrainConfig
from nimbus_sd.engine.training.network import fit_architecture
from nimbus_sd.engine.training.report import Bar, Report
from nimbus_sd.engine.training.sources import TileSource, check_disjoint
from nimbus_sd.engine.training.state import TrainState, save_atomic
from nimbus_sd.engine.training.step import train_step
from nimbus_sd.engine.training.validate import validate

log = logging.getLogger("nimbus_sd")

LAST, BEST, CONFIG = "last.pt", "best.pt", "config.toml"


@dataclass(frozen=True)
class TrainResult:
    """What a run gave.

    Parameters
    ----------
    net
        The kept network (best validation, else the last average), on the CPU in eval mode.
    config
        Its configuration, with the architecture as it was built.
    metrics
        Validation metrics of these weights, and their ``step``.
    step
        Steps done.
    finished
        Whether these are all.
    main
        Whether this is the process that writes.
    """

    net: nn.Module
    config: TrainConfig
    metrics: Mapping[str, float]
    step: int
    finished: bool
    main: bool = True


class Run:
    """One run in one folder: what both trainers share.

    Parameters
    ----------
    train, validation
        Tiles; without validation the last averaged weights are kept.
    config
        What decides the weights.
    out
        Folder for ``last.pt``, ``best.pt``, ``config.toml``, ``log.csv``.
    device, precision
        See :func:`fit`.
    weights
        To start from.
    main
        Whether this process writes.
    """

    def __init__(
        self,
        train: TileSource,
        validation: TileSource | None,
        config: TrainConfig,
        out: Path,
        *,
        device: torch.device,
        precision: str,
        weights: Mapping[str, Tensor] | None = None,
        main: bool = True,
    ) -> None:
        if validation is not None:
            check_disjoint(train, validation)
        self.sampler = Sampler(train, config)
        self.validation, self.out, self.main = validation, out, main
        self.config = config = fit_architecture(config, train)
        self.device, self.precision = device, PRECISIONS[precision]
        out.mkdir(parents=True, exist_ok=True)
        self.data = describe(train, validation)
        self.state = TrainState.fresh(config, len(train.groups), device=device, weights=weights)
        if (out / LAST).exists():
            self.state.restore(out / LAST, config, self.data)
        self._clock = (time.monotonic(), self.state.step)
        self.report: Report | None = None
        if main:
            (out / CONFIG).write_text(config.to_toml(), encoding="utf-8")
            self.report = Report(out, step=self.state.step)

    def after_step(self, shown: Mapping[str, float], *, end: int) -> None:
        """Count a step; validate, report and save when it is time to."""
        state, config = self.state, self.config
        running = state.running
        for key, value in shown.items():
            running[key] = running.get(key, 0.0) + value
        running["n"] = running.get("n", 0) + 1
        due = state.step % config.every == 0 or state.step == config.total_steps
        if due:
            self._report()
            state.running = {}
        if self.main and (due or state.step == end):
            state.save(self.out / LAST, config, self.data)

    def _report(self) -> None:
        if not self.main or self.report is None:
            return
        state, config = self.state, self.config
        metrics: dict[str, float] = {}
        if self.validation is not None:
            metrics = validate(
                state.average, self.validation, config, device=self.device, precision=self.precision
            )
            if not state.best or metrics["f1"] > state.best["f1"]:
                state.best = {**metrics, "step": state.step}
                save_atomic({"net": state.average.state_dict(), "metrics": state.best}, self.out / BEST)
        kept = {
            k: state.running[k] / max(state.running[k.removeprefix("kept_")], 1.0)
            for k in ("kept_negative", "kept_positive")
        }
        if config.is_robust(state.step - 1):
            warn_of_collapse(kept, config.selection.quantile(state.step - 1 - config.steps))
        seconds, first = time.monotonic() - self._clock[0], self._clock[1]
        self.report.add(
            {
                "step": state.step,
                "stage": "robust" if config.is_robust(state.step - 1) else "first",
                "learning_rate": config.rate(state.step - 1),
                "loss": state.running["loss"] / state.running["n"],
                **kept,
                **metrics,
                "steps_per_s": (state.step - first) / max(seconds, 1e-9),
            }
        )

    def result(self) -> TrainResult:
        """Load the kept weights."""
        state = self.state
        net = copy.deepcopy(state.average).cpu().requires_grad_(True)
        metrics: Mapping[str, float] = {"step": state.step}
        # other processes know of the best weights by the file alone
        if self.validation is not None and (self.out / BEST).exists():
            kept = torch.load(self.out / BEST, map_location="cpu", weights_only=True)
            net.load_state_dict(kept["net"])
            metrics = kept["metrics"]
        finished = state.step >= self.config.total_steps
        return TrainResult(net.eval(), self.config, metrics, state.step, finished, self.main)

    def close(self) -> None:
        """Close the reports."""
        if self.report is not None:
            self.report.close()


def fit(
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
) -> TrainResult:
    """Train, or go on from the checkpoint in `out`.

    Parameters
    ----------
    train, validation
        Tiles that share no field; without validation the last averaged weights are kept.
    config
        What decides the weights.
    out
        Folder for checkpoints (``last.pt``, ``best.pt``), ``config.toml`` and ``log.csv``.
    device
        ``"auto"``, ``"cpu"``, ``"cuda:0"``, …
    precision
        ``"float32"``, ``"bfloat16"`` (autocast), or ``"auto"``: bfloat16 where it is native.
    weights
        State dict to start from.
    n_threads
        Threads that read ahead.
    stop_at
        Stop after this step; a later call goes on.
    progress
        Show a progress bar.

    Returns
    -------
    The kept network and its metrics.

    Raises
    ------
    InputError
        If the sources share a field, tiles don't fit the network, the folder holds
        another run, or a loss is not finite.
    """
    where = resolve_device(device)
    run = Run(
        train,
        validation,
        config,
        Path(out),
        device=where,
        precision=resolve_precision(precision, where),
        weights=weights,
    )
    end = last_step(run.config, stop_at)
    bar = Bar(end, done=run.state.step, show=progress)
    try:
        for batch in read_ahead(run.sampler.draw, range(run.state.step, end), n_threads=n_threads):
            shown = train_step(run.state, batch, run.config, precision=run.precision)
            run.after_step(shown, end=end)
            bar.advance({"loss": shown["loss"], **{k: v for k, v in run.state.best.items() if k == "f1"}})
    finally:
        bar.close()
        run.close()
    return run.result()


def warn_of_collapse(kept: Mapping[str, float], expected: float) -> None:
    """Say so if the selection has all but given up one class: it cannot come back by itself."""
    for name, share in kept.items():
        if share < 0.3 * expected:
            log.warning(
                "the noise-robust stage learns from only %.0f %% of the %s cells (expected about %.0f %%): "
                "their loss rises faster than its running quantile. Train the first stage longer, lower "
                "robust_learning_rate, or raise selection.ema",
                100 * share,
                name.removeprefix("kept_"),
                100 * expected,
            )


def last_step(config: TrainConfig, stop_at: int | None) -> int:
    """Where to stop."""
    if stop_at is not None and stop_at < 1:
        msg = f"stop_at={stop_at} must be at least 1"
        raise InputError(msg)
    return min(config.total_steps if stop_at is None else stop_at, config.total_steps)


def describe(train: TileSource, validation: TileSource | None) -> dict[str, Any]:
    """What a run was trained on, to notice that a resumed one has other data."""
    out: dict[str, Any] = {}
    for name, source in (("train", train), ("validation", validation)):
        if source is not None:
            told = json.dumps([list(source.groups), sorted(source.fields)])
            digest = hashlib.sha256(told.encode()).hexdigest()[:16]
            out[name] = {"tiles": len(source), "groups_and_fields": digest}
    return out
