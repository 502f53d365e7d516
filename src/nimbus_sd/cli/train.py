"""``nimbus-sd train`` and ``nimbus-sd finetune``: models from labelled cells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd.cli._answer import answer
from nimbus_sd.cli._files import configuration, network
from nimbus_sd.cli._options import (
    AsJson,
    Device,
    DryRun,
    Model,
    Mpp,
    Precision,
    Progress,
    Threads,
    device_count,
    is_store,
    open_store,
)

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from nimbus_sd._sdata.training_plan import TrainingPlan
    from nimbus_sd.models import LoadedModel

Data = Annotated[
    str, typer.Argument(help="SpatialData zarr store with labels, or training tiles.", metavar="STORE")
]
Out = Annotated[
    Path, typer.Option(help="Folder for the model and its run; an interrupted one goes on there.")
]
Layer = Annotated[str, typer.Option(help="Layer with 1 positive, 0 negative, NaN undefined.")]
LabelledTable = Annotated[
    str | None, typer.Option(help="Table that has the layer; left out, the one that has it.")
]


def train(
    store: Data,
    out: Out,
    config: Annotated[
        str | None, typer.Option(help="small, paper, or a TOML file with keys of TrainConfig.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="small, paper: as --config.", hidden=True)] = None,
    labels_layer: Layer = "silver",
    table: LabelledTable = None,
    model: Annotated[
        str | None, typer.Option(help="Weights to start from, or JSON: a new network's architecture.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="Training tiles to choose the checkpoint by, instead of the store's.")
    ] = None,
    mpp: Mpp = None,
    trainer: Annotated[str, typer.Option(help="plain, lightning.")] = "plain",
    device: Device = "auto",
    precision: Precision = "auto",
    devices: Annotated[str, typer.Option(help="How many devices, for lightning.")] = "1",
    strategy: Annotated[str, typer.Option(help="How they work together, for lightning.")] = "auto",
    n_threads: Threads = 2,
    stop_at: Annotated[int | None, typer.Option(help="Stop after this step; a later call goes on.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, for the card.")] = "",
    dry_run: DryRun = False,
    as_json: AsJson = False,
    progress: Progress = True,
) -> None:
    """Train a network on labelled cells, or go on with a run that was interrupted."""
    from nimbus_sd import tl
    from nimbus_sd._sdata.training import open_path
    from nimbus_sd.engine.training.config import TrainConfig

    if config is not None and preset is not None:
        msg = "--config and --preset: give one of them"
        raise InputError(msg)
    n_devices = device_count(trainer, devices, strategy)
    chosen = configuration(
        "--config" if preset is None else "--preset", config or preset or "small", TrainConfig
    )
    settings: dict[str, Any] = {
        **{"labels_layer": labels_layer, "table": table, "mpp": mpp},
        **{"config": chosen, "model": network("--model", model)},
        **{"validation": None if validation is None else open_path(validation), "stop_at": stop_at},
        **{"trainer": trainer, "device": device, "precision": precision},
    }
    data = _data(store)
    if dry_run:
        _say_plan(data, store, out, settings, as_json=as_json)
        return
    trained = tl.train(
        data,
        out=out,
        **settings,
        devices=n_devices,
        strategy=strategy,
        n_threads=n_threads,
        licence=licence,
        progress=progress,
    )
    _say(trained, out, as_json=as_json)


def finetune(
    store: Data,
    out: Out,
    labels_layer: Layer = "silver",
    table: LabelledTable = None,
    model: Model = "nimbus-sd-s",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 200,
    l2_sp: Annotated[float, typer.Option(help="How strongly the first weights hold.")] = 1e-2,
    learning_rate: Annotated[
        float | None, typer.Option(help="At the start, instead of the configuration's.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name on the card.")] = None,
    config: Annotated[
        str | None, typer.Option(help="TOML file with keys of TrainConfig, for everything else.")
    ] = None,
    mpp: Mpp = None,
    device: Device = "auto",
    precision: Precision = "auto",
    n_threads: Threads = 2,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    progress: Progress = True,
) -> None:
    """Fit a trained network to a few labelled fields."""
    from nimbus_sd import tl
    from nimbus_sd.engine.training.config import TrainConfig
    from nimbus_sd.tl._finetune import settings_for

    given = configuration("--config", config or "finetune", TrainConfig)
    whole = TrainConfig.preset(given) if isinstance(given, str) else given
    near: dict[str, Any] = {"steps": steps, "l2_sp": l2_sp, "learning_rate": learning_rate, "name": name}
    shared: dict[str, Any] = {
        **{"labels_layer": labels_layer, "table": table, "model": model, "mpp": mpp},
        **{"device": device, "precision": precision},
    }
    data = _data(store)
    if dry_run:
        fitted = settings_for(whole, **near)
        _say_plan(data, store, out, {**shared, "config": fitted, "name": name, "near": True}, as_json=as_json)
        return
    tuned = tl.finetune(
        data,
        out=out,
        **shared,
        **near,
        config=whole,
        n_threads=n_threads,
        progress=progress,
    )
    _say(tuned, out, as_json=as_json)


def _data(store: str) -> SpatialData | Path:
    """A SpatialData store opened, training tiles as their path."""
    from nimbus_sd._sdata.training import is_tiles

    path = Path(store)
    return path if is_tiles(path) or not is_store(store) else open_store(store)


def _say_plan(
    data: SpatialData | Path, store: str, out: Path, settings: dict[str, Any], *, as_json: bool
) -> None:
    from nimbus_sd._sdata.training_plan import plan_training

    plan = plan_training(data, out, **settings)
    found = plan.data
    facts = {
        **{"store": store, "out": out, "dry_run": True, "model": plan.name, "parent": plan.parent or None},
        **{"markers": found.markers, "fields": found.fields, "n_tiles": found.n_tiles},
        **{"n_cells": found.n_cells, "step": plan.step, "end": plan.end, "steps": plan.steps},
        **{"batch": plan.batch, "device": plan.device, "precision": plan.precision},
    }
    answer(facts, _plan_lines(plan, out), as_json=as_json)


def _plan_lines(plan: TrainingPlan, out: Path) -> list[str]:
    found, start = plan.data, f" from {plan.parent}" if plan.parent else " from random weights"
    cells = f"{found.n_cells} labelled cells" if found.n_cells is not None else f"{found.n_tiles} tiles"
    fields = ", ".join(f"{n} to {_DOES.get(part, part)}" for part, n in found.fields.items())
    steps = f"{plan.end - plan.step} steps of {plan.batch} tiles"
    if plan.step:
        steps += f" (goes on after step {plan.step})"
    if plan.end < plan.steps:
        steps += f" (of {plan.steps})"
    many = f" and {len(found.markers) - 8} more" if len(found.markers) > 8 else ""
    return [
        f"would train {plan.name}{start}: {steps} on {plan.device}, {plan.precision}",
        f"data: {cells}; fields: {fields}; markers: {', '.join(found.markers[:8])}{many}",
        f"would write the model and its run into {out}",
    ]


_DOES = {"train": "train", "validation": "validate", "test": "leave for a test"}


def _say(model: LoadedModel, out: Path, *, as_json: bool) -> None:
    shown = ", ".join(f"{k.removeprefix('validation_')} {v}" for k, v in model.card.metrics.items())
    facts = {
        **{"out": out, "model": model.name, "weights": model.path, "sha256": model.card.sha256},
        "metrics": model.card.metrics,
    }
    lines = [f"{model.name}: {shown}", f"next: nimbus-sd predict STORE --model {out}"]
    answer(facts, lines, as_json=as_json)
