"""``nimbus-sd train-subtyper``: a network that tells lymphocyte sub-types on H&E."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd.cli._answer import answer
from nimbus_sd.cli._complete import one_of
from nimbus_sd.cli._files import configuration, mapping, network
from nimbus_sd.cli._options import (
    AsJson,
    CoordinateSystem,
    Device,
    DryRun,
    Mpp,
    Precision,
    Progress,
    Stores,
    Threads,
    device_count,
    image_choice,
    open_stores,
    split_names,
    split_numbers,
)

if TYPE_CHECKING:
    from nimbus_sd._sdata.subtype_cells import CellSplit

Instead = Annotated[int | None, typer.Option(help="Instead of the configuration's.")]
InsteadFloat = Annotated[float | None, typer.Option(help="Instead of the configuration's.")]


def train_subtyper(
    stores: Stores,
    out: Annotated[Path, typer.Option(help="Folder for the model and its run, which goes on there.")],
    image: Annotated[
        str | None, typer.Option(help="Name of the H&E; the one that overlaps the cells when left out.")
    ] = None,
    table: Annotated[
        str | None, typer.Option(help="Table with the labels; left out, the one that has the layer.")
    ] = None,
    layer: Annotated[str, typer.Option(help="Layer with 1 positive, 0 negative, NaN undefined.")] = "gated",
    config: Annotated[
        str,
        typer.Option(
            help="finetune, paper, small, or a TOML or JSON file with keys of SubtypeTrainConfig.",
            autocompletion=one_of("finetune", "paper", "small"),
        ),
    ] = "finetune",
    backbone: Annotated[
        str | None, typer.Option(help="Such as convnext-tiny, or JSON; instead of the configuration's.")
    ] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option(help="Insist on published weights, or start from random ones.", show_default=False),
    ] = None,
    pretrained_path: Annotated[
        Path | None, typer.Option(help="Read the published weights there instead.")
    ] = None,
    multitask: Annotated[
        bool | None,
        typer.Option(help="One backbone for all markers, or a network for each.", show_default=False),
    ] = None,
    weighted: Annotated[
        bool | None,
        typer.Option(help="Whether rare positive cells weigh more.", show_default=False),
    ] = None,
    markers: Annotated[
        str | None, typer.Option(help="Comma-separated; CD45, CD3e, CD4, CD8a when left out.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Patients to train, validate, test: 25,7,9, or a file of patient and part."),
    ] = None,
    n_cells: Annotated[
        int | None, typer.Option(help="Cells per section; those sampled before, else 20,000.")
    ] = None,
    patient: Annotated[str, typer.Option(help="Column with each cell's patient.")] = "patient",
    section: Annotated[
        str | None, typer.Option(help="Column with each cell's section; section, else the regions.")
    ] = None,
    patch_um: Annotated[
        float | None, typer.Option(help="Side of the patches in µm, instead of 36.4.")
    ] = None,
    epochs: Instead = None,
    batch_size: Instead = None,
    accumulation: Instead = None,
    learning_rate: InsteadFloat = None,
    weight_decay: InsteadFloat = None,
    patience: Instead = None,
    seed: Instead = None,
    mpp: Mpp = None,
    coordinate_system: CoordinateSystem = None,
    cache: Annotated[str, typer.Option(help="Memory that patches may take.")] = "4 GiB",
    store: Annotated[
        Path | None, typer.Option(help="Folder to keep patches in that don't fit into memory.")
    ] = None,
    trainer: Annotated[str, typer.Option(help="plain, lightning.")] = "plain",
    device: Device = "auto",
    precision: Precision = "auto",
    devices: Annotated[str, typer.Option(help="How many devices, for lightning.")] = "1",
    strategy: Annotated[str, typer.Option(help="How they work together, for lightning.")] = "auto",
    n_threads: Threads = 2,
    stop_at: Annotated[int | None, typer.Option(help="Stop after this step; a later call goes on.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    progress: Progress = True,
) -> None:
    """Train a network to tell from H&E which markers a cell has, by labels of the same section."""
    from nimbus_sd import tl
    from nimbus_sd._sdata.sizes import bytes_of
    from nimbus_sd.engine.subtyping.train_config import SubtypeTrainConfig

    if pretrained_path is not None and pretrained is False:
        msg = "--pretrained-path names weights and --no-pretrained wants none; leave one of them out"
        raise InputError(msg)
    settings: dict[str, Any] = {
        **{"backbone": network("--backbone", backbone), "pretrained": pretrained_path or pretrained},
        **{"multitask": multitask, "weighted": weighted, "seed": seed, "epochs": epochs},
        **{"accumulation": accumulation, "learning_rate": learning_rate, "weight_decay": weight_decay},
        **{"patience": patience, "patch_um": patch_um},
    }
    cells: dict[str, Any] = {
        **{"image": image_choice(image), "table": table, "layer": layer, "markers": split_names(markers)},
        **{"split": _split(split), "n_cells": n_cells, "patient": patient, "section": section},
        **{"mpp": mpp, "coordinate_system": coordinate_system},
    }
    how: dict[str, Any] = {
        **{"trainer": trainer, "device": device, "precision": precision, "stop_at": stop_at},
        **{"devices": device_count(trainer, devices, strategy), "strategy": strategy},
    }
    kept: dict[str, Any] = {
        "cache": bytes_of(cache, argument="cache"),
        "store": store,
        "n_threads": n_threads,
    }
    chosen = configuration("--config", config, SubtypeTrainConfig)
    objects = open_stores(stores)
    if dry_run:
        given = {**settings, "batch": batch_size}
        facts, lines = _plan(objects, chosen, out, given=given, cells=cells, how=how, kept=kept)
        answer({"stores": stores, "out": out, "dry_run": True, **facts}, lines, as_json=as_json)
        return
    model = tl.train_subtyper(
        objects,
        out=out,
        config=chosen,
        batch_size=batch_size,
        **settings,
        **cells,
        **how,
        **kept,
        progress=progress,
    )
    card = model.card
    facts = {
        **{"stores": stores, "out": out, "model": model.name, "sha256": card.sha256},
        **{"markers": model.markers, "hierarchy": card.hierarchy, "metrics": card.metrics},
        "cells": card.training["cells"],
    }
    answer(facts, [*_figures(card.metrics, model.markers), _next(out)], as_json=as_json)


def _split(text: str | None) -> list[float] | dict[str, str] | None:
    if text is None:
        return None
    if "=" in text or text.endswith((".csv", ".json", ".toml")):
        return mapping("--split", text)
    return split_numbers("--split", text)


def _figures(metrics: Mapping[str, Any], markers: tuple[str, ...]) -> list[str]:
    """AUROC and balanced accuracy of each marker on the validation's cells."""
    found = metrics.get("validation")
    if found is None:
        return ["no validation yet: the run stopped before the first"]
    lines = []
    for marker in markers:
        figures = found[marker]
        told = ", ".join(f"{k} {figures[k]}" for k in figures if isinstance(figures[k], float))
        lines.append(f"{marker}: {told or figures.get('reason', 'not defined')}")
    return lines


def _next(out: Path) -> str:
    return f"next: nimbus-sd subtype STORE --model {out}"


def _plan(
    objects: Any,
    config: Any,
    out: Path,
    *,
    given: dict[str, Any],
    cells: dict[str, Any],
    how: dict[str, Any],
    kept: dict[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """Check everything, and say which cells would be learnt from."""
    from nimbus_sd._sdata.cell_request import CellRequest
    from nimbus_sd._sdata.cohort import as_cohort
    from nimbus_sd._sdata.subtype_patches import PatchPlan
    from nimbus_sd._sdata.subtype_settings import configured
    from nimbus_sd._sdata.subtype_training import RUN, Training, choose
    from nimbus_sd.engine.embedding.train_loop import LAST
    from nimbus_sd.engine.training.state import steps_done

    settings = configured(config, **given)
    plan = PatchPlan(kept["cache"], kept["store"], kept["n_threads"], progress=False)
    asked = given["batch"] is not None or given["accumulation"] is not None
    training = Training(config=settings, given_batch=asked, plan=plan, out=out, command="", **how)
    found, settings = choose(as_cohort(objects), CellRequest(**cells, seed=settings.seed), training)
    n, done = len(found.train.targets), steps_done(out / RUN / LAST)
    steps = settings.total_steps(n)
    end = min(how["stop_at"] or steps, steps)
    parts = _parts(found)
    facts = {
        **{"model": settings.name, "backbone": settings.backbone, "markers": found.markers},
        **{"hierarchy": found.hierarchy, "cells": parts, "patients": found.patients},
        **{"step": done, "end": end, "steps": steps, "batch": settings.effective_batch},
    }
    goes_on = f" (goes on after step {done})" if done else ""
    people = ", ".join(f"{len(names)} to {_DOES[part]}" for part, names in found.patients.items())
    length = f"at most {end - done} steps of {settings.effective_batch} cells{goes_on}"
    lines = [
        f"would train {settings.name}: {length}",
        f"patients: {people}" + ("; another place of the same sections validates" if found.by_place else ""),
    ]
    for part, counts in parts.items():
        each = ", ".join(f"{m} {c['positive']}+ {c['negative']}-" for m, c in counts["markers"].items())
        lines.append(
            f"cells to {_DOES[part]}: {counts['n_cells']} in {counts['n_sections']} sections; {each}"
        )
    return facts, [*lines, f"would write the model and its run into {out}"]


_DOES = {"train": "train", "validation": "validate", "test": "leave for a test"}


def _parts(found: CellSplit) -> dict[str, Any]:
    from nimbus_sd.engine.subtyping.train_data import class_counts

    return {
        name: {
            **{"n_cells": len(part.targets), "n_sections": len(part.samples)},
            "markers": class_counts(part.targets, found.markers),
        }
        for name, part in (("train", found.train), ("validation", found.validation))
    }
