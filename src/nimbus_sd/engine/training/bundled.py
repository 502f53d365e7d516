"""Training of the bundled weights: ``python -m nimbus_sd.engine.training.bundled --out FOLDER``.

Simulated studies only, in three steps that each go on where they were interrupted:
the U-Net on studies of which every other one carries silver labels, the cell head on
studies that the U-Net has not seen, of which one in three does, and metrics on held-out studies with shifted
parameters, against the truth.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nimbus_sd.engine.device import resolve_device
from nimbus_sd.engine.training.cell_head import HeadTraining, fit_head, marker_cells
from nimbus_sd.engine.training.config import AugmentConfig, TrainConfig
from nimbus_sd.engine.training.held_out import held_out_metrics
from nimbus_sd.engine.training.loop import fit
from nimbus_sd.engine.training.network import tiling
from nimbus_sd.engine.training.studies import StudyConfig, simulate_studies
from nimbus_sd.models.card import ModelCard
from nimbus_sd.models.loading import load, save

log = logging.getLogger("nimbus_sd")

TRAINING_DATA = (
    "Studies simulated by nimbus_sd.simulation (tissue, segmentation errors, markers and platforms with "
    "known truth), one in two (U-Net) or three (cell head) labelled by clustering integrated expression "
    "instead; no measured image was used."
)
LIMITS = (
    "Trained on simulated tissue only. Scores depend on the dataset they are computed over: predict a "
    "cohort together. Look at stains whose background is as bright as the cells, and at markers that hardly "
    "any cell of the dataset is positive for, before trusting their scores. Not for H&E, brightfield stains "
    "or transcripts."
)
AUGMENT = AugmentConfig(
    affine=0.0,
    elastic=0.0,
    noise=0.0,
    blur=0.1,
    contrast=0.0,
    thinning=0.3,
    counts=(5.0, 300.0),
    gain=1.0,
    gain_factor=(0.3, 1.5),
)
"""Simulated cells vary in shape already; what differs between instruments is gain and counts."""

VALIDATION, HEAD, HELD_OUT = 900_000, 1_000_000, 2_000_000
"""First seeds of the studies that the U-Net doesn't learn from."""


def unet_config(*, width: int, steps: int, name: str, seed: int) -> TrainConfig:
    """How the U-Net is trained."""
    return TrainConfig(
        name=name,
        architecture={"in_channels": 2, "out_channels": 1, "depth": 5, "width": width, "padding": "reflect"},
        transform="sqrt",
        steps=steps,
        robust_steps=0,
        batch=12,
        crop=160,
        learning_rate=1e-3,
        warmup=50,
        weight_decay=1e-3,
        ema=0.99,
        background=0.1,
        cell_balance=0.5,
        smoothing=0.05,
        every=200,
        validation_tiles=72,
        seed=seed,
        augment=AUGMENT,
    )


def first_weights(parent: str | None) -> tuple[Mapping[str, Tensor] | None, str]:
    """Weights to start from, and what the card says of them."""
    if parent is None:
        return None, ""
    model = load(parent)
    return model.net.state_dict(), f" The U-Net started from {model.name} (sha256 {model.card.sha256})."


def commit() -> str:
    """Commit of the checkout this runs from, if it is one."""
    found = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip()


def train(
    out: Path,
    *,
    name: str = "nimbus-sd-s",
    width: int = 16,
    steps: int = 2400,
    datasets: int = 160,
    head_datasets: int = 100,
    held_out: int = 24,
    validation: int = 6,
    side: int = 384,
    parent: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    workers: int = 1,
    seed: int = 0,
    command: str = "",
) -> ModelCard:
    """Train U-Net and head, measure, and write ``out/weights``.

    Parameters
    ----------
    out
        Folder for studies, checkpoints, logs and weights.
    name, width
        Of the model.
    steps
        Of the U-Net.
    datasets, head_datasets, held_out, validation, side
        Studies for the U-Net, for the head, for the metrics, and to choose the checkpoint by;
        px per side of the fields of all but those for the metrics.
    parent
        Model whose weights the U-Net starts from.
    device, precision
        Where and how precisely.
    workers
        Processes that simulate.
    seed
        Of everything.
    command
        For the card.
    """
    config = unet_config(width=width, steps=steps, name=name, seed=seed)
    pool = out / "studies"
    log.info("simulating %d studies", datasets)
    source = simulate_studies(pool, StudyConfig(seed * 10_000, datasets, side=side), workers=workers)
    check = simulate_studies(
        pool, StudyConfig(VALIDATION, validation, side=side, labels="truth"), workers=workers
    )
    weights, said = first_weights(parent)
    result = fit(source, check, config, out=out / "unet", device=device, precision=precision, weights=weights)
    log.info("U-Net done: %s; simulating %d studies for the head", dict(result.metrics), head_datasets)
    others = StudyConfig(HEAD, head_datasets, side=side, silver_every=3)
    unseen = simulate_studies(pool, others, workers=workers)
    where = resolve_device(device)
    net = result.net.to(where)
    markers = list(marker_cells(net, unseen, HeadTraining(seed=seed), device=where))
    head = fit_head(markers, HeadTraining(seed=seed))
    log.info("head done; measuring")
    metrics = held_out_metrics(net, head, HELD_OUT, n_datasets=held_out, device=where)
    stride, halo, exact = tiling(config.architecture)
    card = ModelCard(
        name=name,
        architecture=dict(config.architecture),
        transform=config.transform,
        stride=stride,
        halo=halo,
        exact=exact,
        licence="BSD-3-Clause",
        training_data=TRAINING_DATA + said,
        command=command,
        commit=commit(),
        metrics={"step": int(result.metrics["step"]), "simulated_held_out": metrics},
        limits=LIMITS,
    )
    card = save(net.cpu(), out / "weights", card, half=True, head=head)
    # safetensors writes files that only their owner can read; weights go into packages
    (out / "weights" / card.weights_file).chmod(0o644)
    log.info("%s", json.dumps(metrics))
    return card


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m nimbus_sd.engine.training.bundled", description=__doc__)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--name", default="nimbus-sd-s")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--datasets", type=int, default=160)
    parser.add_argument("--head-datasets", type=int, default=100)
    parser.add_argument("--parent", help="model that the U-Net starts from")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_float32_matmul_precision("high")
    given = list(arguments) if arguments is not None else sys.argv[1:]
    train(command=shlex.join(["python", "-m", "nimbus_sd.engine.training.bundled", *given]), **options)


if __name__ == "__main__":
    main()
