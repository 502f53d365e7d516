"""``nimbus-sd train`` and ``nimbus-sd finetune``: models from labelled cells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd.cli._options import is_store, open_store

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from nimbus_sd.models import LoadedModel

Store = Annotated[Path, typer.Argument(help="SpatialData zarr store with labels, or training tiles.")]
Out = Annotated[Path, typer.Option(help="Folder for the model and its checkpoints.")]
Layer = Annotated[str, typer.Option(help="Layer with 1 positive, 0 negative, NaN undefined.")]
Table = Annotated[str | None, typer.Option(help="Table that has the layer.")]
Mpp = Annotated[float | None, typer.Option(help="µm per px, if the store does not say.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda:0, mps.")]
Precision = Annotated[str, typer.Option(help="auto, float32, bfloat16.")]
Threads = Annotated[int, typer.Option(help="Reader threads.")]
Progress = Annotated[bool, typer.Option(help="Show progress bars.")]


def train(
    store: Store,
    out: Out,
    config: Annotated[Path | None, typer.Option(help="TOML file; its keys are those of TrainConfig.")] = None,
    preset: Annotated[str, typer.Option(help="small, paper: used without --config.")] = "small",
    labels_layer: Layer = "silver",
    table: Table = None,
    model: Annotated[str | None, typer.Option(help="Weights to start from.")] = None,
    mpp: Mpp = None,
    trainer: Annotated[str, typer.Option(help="plain, lightning.")] = "plain",
    devices: Annotated[str, typer.Option(help="How many devices, for lightning.")] = "1",
    strategy: Annotated[str, typer.Option(help="How they work together, for lightning.")] = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    n_threads: Threads = 2,
    stop_at: Annotated[int | None, typer.Option(help="Stop after this step.")] = None,
    progress: Progress = True,
) -> None:
    """Train a network on labelled cells, or go on with a run that was interrupted."""
    from nimbus_sd import tl

    trained = tl.train(
        _data(store),
        out=out,
        labels_layer=labels_layer,
        table=table,
        config=preset if config is None else _toml(config),
        model=model,
        mpp=mpp,
        trainer=trainer,
        devices=int(devices) if devices.isdigit() else devices,
        strategy=strategy,
        device=device,
        precision=precision,
        n_threads=n_threads,
        stop_at=stop_at,
        progress=progress,
    )
    _say(trained, out)


def finetune(
    store: Store,
    out: Out,
    labels_layer: Layer = "silver",
    table: Table = None,
    model: Annotated[str, typer.Option(help="Weights to start from.")] = "nimbus-sd-s",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 200,
    l2_sp: Annotated[float, typer.Option(help="How strongly the first weights hold.")] = 1e-2,
    mpp: Mpp = None,
    device: Device = "auto",
    precision: Precision = "auto",
    n_threads: Threads = 2,
    progress: Progress = True,
) -> None:
    """Fit a trained network to a few labelled fields."""
    from nimbus_sd import tl

    tuned = tl.finetune(
        _data(store),
        out=out,
        labels_layer=labels_layer,
        table=table,
        model=model,
        steps=steps,
        l2_sp=l2_sp,
        mpp=mpp,
        device=device,
        precision=precision,
        n_threads=n_threads,
        progress=progress,
    )
    _say(tuned, out)


def _toml(path: Path) -> Path:
    if not path.is_file():
        msg = f"--config {path}: there is no such file; or pass --preset small"
        raise InputError(msg)
    return path


def _data(path: Path) -> SpatialData | Path:
    """A SpatialData store opened, training tiles as their path."""
    from nimbus_sd._sdata.training import is_tiles

    return path if is_tiles(path) or not is_store(path) else open_store(path)


def _say(model: LoadedModel, out: Path) -> None:
    shown = ", ".join(f"{k.removeprefix('validation_')} {v}" for k, v in model.card.metrics.items())
    typer.echo(f"{model.name}: {shown}\nnext: nimbus-sd predict STORE --model {out}")
