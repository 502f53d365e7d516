"""Training of the bundled network on simulated tissue: ``python -m nimbus_sd.engine.train --out FOLDER``."""

from __future__ import annotations

import argparse
import csv
import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from nimbus_sd.engine.train_batch import Batch, draw_batch
from nimbus_sd.engine.train_config import TrainConfig
from nimbus_sd.engine.train_export import export
from nimbus_sd.engine.train_pool import make_pool
from nimbus_sd.engine.train_state import TrainState
from nimbus_sd.engine.train_validate import held_out, validate

log = logging.getLogger("nimbus_sd")

__all__ = ["TrainConfig", "TrainState", "main", "pixel_loss", "train", "train_step", "update_average"]


def pixel_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Weighted mean binary cross-entropy."""
    loss = binary_cross_entropy_with_logits(logits.float(), batch.targets, reduction="none")
    return (loss * batch.weights).sum() / batch.weights.sum().clamp_min(1)


@torch.no_grad()
def update_average(average: nn.Module, net: nn.Module, *, step: int, decay: float) -> None:
    """Move the averaged weights and statistics towards the network's; young averages move faster."""
    rate = 1 - min(decay, (1 + step) / (10 + step))
    for old, new in zip(average.state_dict().values(), net.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, rate)
        else:
            old.copy_(new)


def train_step(state: TrainState, batch: Batch, config: TrainConfig, *, precision: torch.dtype) -> float:
    """Take one optimiser step and return the loss."""
    device = next(state.net.parameters()).device
    batch = Batch(
        batch.inputs.to(device, memory_format=torch.channels_last),
        batch.targets.to(device),
        batch.weights.to(device),
    )
    state.net.train()
    for group in state.optimiser.param_groups:
        group["lr"] = config.rate(state.step)
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        logits = state.net(batch.inputs)
    loss = pixel_loss(logits, batch)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(state.net.parameters(), 1.0)
    state.optimiser.step()
    update_average(state.average, state.net, step=state.step, decay=config.ema)
    state.step += 1
    return loss.item()


def train(
    config: TrainConfig,
    out: str | Path,
    *,
    device: str = "cpu",
    precision: str = "bfloat16",
    workers: int = 1,
    pool: str | Path | None = None,
    every: int = 250,
    stop_at: int | None = None,
    command: str = "",
) -> dict[str, float]:
    """Train, or go on from the checkpoint in `out`, and export the averaged weights.

    Parameters
    ----------
    config
        What decides the weights.
    out
        Folder for the pool, ``checkpoint.pt``, ``log.csv`` and the exported ``weights/``.
    device, precision
        Where, and ``"bfloat16"`` (autocast) or ``"float32"``.
    workers
        Processes that simulate the pool.
    pool
        Folder of the pool if not ``out/pool``.
    every
        Steps between checkpoint, validation and export.
    stop_at
        Stop after this step (a later call goes on).
    command
        For the card.

    Returns
    -------
    The last validation metrics.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    where, kind = torch.device(device), getattr(torch, precision)
    log.info("simulating %d tissues", config.tissues)
    samples = make_pool(pool or out / "pool", config.pool_config, workers=workers)
    tissues = held_out(config.validation, side=config.side // 2, batch=config.batch_config)
    state, checkpoint = TrainState.fresh(config, where), out / "checkpoint.pt"
    if checkpoint.exists():
        state.restore(checkpoint, config)
    end = min(stop_at or config.steps, config.steps)
    metrics: dict[str, float] = {}
    began, first, running = time.monotonic(), state.step, 0.0
    while state.step < end:
        batch = draw_batch(samples, config.batch_config, seed=config.seed, step=state.step)
        loss = train_step(state, batch, config, precision=kind)
        running = loss if not running else 0.98 * running + 0.02 * loss
        if state.step % every == 0 or state.step == end:
            metrics = validate(state.average, tissues, device=where, precision=kind)
            state.save(checkpoint, config)
            export(
                out / "weights",
                state.average,
                name=config.name,
                command=command,
                metrics={f"simulated_{k}": round(v, 4) for k, v in metrics.items()} | {"step": state.step},
            )
            _report(
                out / "log.csv",
                state.step,
                end,
                loss=running,
                metrics=metrics,
                rate=(state.step - first) / (time.monotonic() - began),
            )
    return metrics


def _report(path: Path, step: int, end: int, *, loss: float, metrics: dict[str, float], rate: float) -> None:
    """Add a line to the log and show progress."""
    row: dict[str, float] = {"step": step, "loss": loss, **metrics, "steps_per_s": rate}
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow({k: round(v, 5) for k, v in row.items()})
    shown = " ".join(f"{k} {v:.3f}" for k, v in metrics.items())
    log.info(
        "step %d/%d loss %.4f %s %.2f steps/s, %.0f s left", step, end, loss, shown, rate, (end - step) / rate
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m nimbus_sd.engine.train", description=__doc__)
    parser.add_argument("--out", required=True, help="folder for pool, checkpoint, log and weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--pool", help="folder of the pool (default: OUT/pool)")
    parser.add_argument("--every", type=int, default=250)
    for item in fields(TrainConfig):
        parser.add_argument(f"--{item.name.replace('_', '-')}", type=type(item.default), default=item.default)
    options = vars(parser.parse_args(arguments))
    config = replace(TrainConfig(), **{item.name: options.pop(item.name) for item in fields(TrainConfig)})
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    given = list(arguments) if arguments is not None else sys.argv[1:]
    train(config, command=shlex.join(["python", "-m", "nimbus_sd.engine.train", *given]), **options)


if __name__ == "__main__":
    main()
