"""``nimbus-sd benchmark subtyping``: the H&E paper's table and patch-size study on any data."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.files import whole_file
from nimbus_sd.cli._answer import answer, say
from nimbus_sd.cli._options import AsJson, Device, DryRun, Progress

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from nimbus_sd.cli._subtyping_study import Row

_BACKBONES = ["convnext-base", "hovernet", "phikon"]
_SIDES = [32, 64, 96, 112, 128]
STUDIES = ("models", "patches", "both")


def subtyping(
    stores: Annotated[
        list[Path] | None, typer.Argument(help="SpatialData stores with H&E and a table of cells.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the networks and of results; goes on there.")] = Path(
        "subtyping"
    ),
    simulated: Annotated[int, typer.Option(help="Simulate so many patients instead of stores.")] = 0,
    side: Annotated[int, typer.Option(help="Side in px of a simulated section.")] = 1024,
    study: Annotated[str, typer.Option(help="models, patches, both.")] = "models",
    backbone: Annotated[
        list[str] | None,
        typer.Option(help=f"Name, or JSON; may be repeated. Default: {', '.join(_BACKBONES)}."),
    ] = None,
    patch: Annotated[
        list[int] | None, typer.Option(help="Sides of the patch study in px; may be repeated.")
    ] = None,
    patch_marker: Annotated[str, typer.Option(help="Marker of the patch study.")] = "CD45",
    config: Annotated[str, typer.Option(help="finetune, paper, small.")] = "paper",
    thresholds: Annotated[
        Path | None, typer.Option(help="CSV of gates; without it the layer must be there, or is suggested.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Name of the H&E.")] = None,
    table: Annotated[str, typer.Option(help="Table of the cells.")] = "table",
    layer: Annotated[str, typer.Option(help="Layer with 1, 0, NaN.")] = "gated",
    split: Annotated[str, typer.Option(help="Patients to train, validate, test.")] = "25,7,9",
    n_cells: Annotated[int, typer.Option(help="Cells per section.")] = 20_000,
    patch_um: Annotated[float | None, typer.Option(help="Side of the models' patches in µm.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Instead of the configuration's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Instead of the configuration's.")] = None,
    pretrained: Annotated[
        bool | None, typer.Option(help="Insist on published weights, or start from random ones.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides split, draw and weights.")] = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: AsJson = False,
    progress: Progress = True,
) -> None:
    """Train backbones, a network per marker or for all, weighted or not; print AUROC and balanced accuracy.

    Networks are judged on the sampled cells of test patients as they come. With --study patches one
    network per patch side is trained for one marker.
    """
    from nimbus_sd._sdata.gates import read_thresholds
    from nimbus_sd.cli._subtyping_study import Study, model_rows, patch_rows, summary
    from nimbus_sd.engine.subtyping.train_config import SubtypeTrainConfig

    if bool(stores) == bool(simulated):
        msg = "give stores, or --simulated PATIENTS, and not both"
        raise InputError(msg)
    if study not in STUDIES:
        msg = f"--study {study!r}; valid: {', '.join(STUDIES)}"
        raise InputError(msg)
    mpp = SubtypeTrainConfig.preset(config).mpp
    parts = _numbers(split)
    gates = None if thresholds is None else read_thresholds(thresholds)
    common: dict[str, Any] = {
        **{"config": config, "epochs": epochs, "batch_size": batch_size, "seed": seed},
        **{"pretrained": pretrained, "patch_um": patch_um},
    }
    names = backbone or _BACKBONES
    studies = {
        "models": (model_rows(names), ["backbone", "weighted", "multitask"]),
        "patches": (
            patch_rows(names[0], patch or _SIDES, mpp=mpp, marker=patch_marker),
            ["backbone", "patch", "patch_um"],
        ),
    }
    studies = {k: v for k, v in studies.items() if study in (k, "both")}
    every = [row for rows, _ in studies.values() for row in rows]
    _check_rows(every, common, out)
    facts: dict[str, Any] = {"stores": stores, "simulated": simulated, "out": out, "dry_run": dry_run}
    if dry_run and simulated:  # without tissue there is no more to check
        answer(*_plan(every, facts, out), as_json=as_json)
        return
    objects = _objects(stores or [], simulated, side, seed)
    _label(objects, table, layer, gates)
    facts["parts"] = _sample(objects, table, layer, parts, n_cells, seed)
    runs = Study(objects, table, layer, image, out, common, device, progress)
    runs.check(every)
    if dry_run:
        answer(*_plan(every, facts, out), as_json=as_json)
        return
    for part, counts in facts["parts"].items():
        say(f"{part}: {_counted(counts)}", as_json=as_json)
    lines = []
    for name, (rows, columns) in studies.items():
        frames = []
        for row, frame, there in runs.run(rows):
            frames.append(frame)
            say(
                f"{row.name}: {'done before' if there else 'done'} ({len(frames)} of {len(rows)})",
                as_json=as_json,
            )
        facts[name] = shown = summary(frames, columns)
        with whole_file(out / f"{name}.csv") as partial:
            shown.to_csv(partial, index=False)
        lines.append(f"\n{name}, cells of test patients\n\n{shown.round(3).to_string(index=False)}")
        lines.append(f"\n{out / name}.csv; with intervals, by network: {out}/*/test.csv")
    answer(facts, lines, as_json=as_json)


def _plan(rows: Sequence[Row], facts: Mapping[str, Any], out: Path) -> tuple[dict[str, Any], list[str]]:
    """Which networks would be trained, and on what."""
    from nimbus_sd.cli._subtyping_study import RESULT

    done = {row.name: (out / row.name / RESULT).is_file() for row in rows}
    waiting = sum(not there for there in done.values())
    lines = [f"would train {waiting} networks of {len(done)} and write into {out}"]
    lines += [f"  {name}{' (done before)' if there else ''}" for name, there in done.items()]
    lines += [f"{part}: {_counted(counts)}" for part, counts in facts.get("parts", {}).items()]
    return {**facts, "networks": done}, lines


def _counted(counts: Mapping[str, int]) -> str:
    n = counts["n_sections"]
    return f"{n} section{'' if n == 1 else 's'}, {counts['n_cells']} cells"


def _check_rows(rows: Sequence[Row], common: Mapping[str, Any], out: Path) -> None:
    """Raise before there is any data: for networks that can't be built, or a folder of other runs."""
    from nimbus_sd._sdata.subtype_settings import check_network, check_out, configured
    from nimbus_sd.cli._subtyping_study import RESULT

    seen: list[Any] = []
    for row in rows:
        options = {k: v for k, v in {**common, **row.options}.items() if k != "markers"}
        given = options.pop("batch_size", None)
        settings = configured(batch=given, **options)
        if (out / row.name / RESULT).is_file():  # finished
            continue
        if check_out(out / row.name, settings, given_batch=given is not None):
            continue
        if (start := (settings.backbone, settings.pretrained)) not in seen:
            check_network(settings)
            seen.append(start)


def _objects(stores: list[Path], simulated: int, side: int, seed: int) -> dict[str, SpatialData]:
    if simulated:
        from nimbus_sd import datasets

        return {"simulated": datasets.simulated_sections(n_patients=simulated, shape=(side, side), seed=seed)}
    from nimbus_sd.cli._options import open_store

    return {path.name.removesuffix(".zarr"): open_store(path) for path in stores}


def _label(objects: dict[str, SpatialData], table: str, layer: str, thresholds: pd.DataFrame | None) -> None:
    """Gate and curate by a CSV, or by suggested thresholds where there are no labels."""
    from nimbus_sd import pp

    for name, sdata in objects.items():
        if table not in sdata.tables:
            msg = f"{name} has no table {table!r}; its tables: {', '.join(sdata.tables) or 'none'} (--table)"
            raise InputError(msg)
        adata = sdata[table]
        if thresholds is None and layer in adata.layers:
            continue
        if thresholds is None:
            typer.echo(f"{name}: no layer {layer!r}, thresholds are suggested, not a pathologist's", err=True)
        pp.gate(adata, pp.suggest_thresholds(adata) if thresholds is None else thresholds, key_added=layer)
        pp.curate_hierarchy(adata, layer=layer)


def _sample(
    objects: dict[str, SpatialData],
    table: str,
    layer: str,
    split: list[float],
    n_cells: int,
    seed: int,
) -> dict[str, dict[str, int]]:
    """Draw patients and cells; sections and cells of each part."""
    from nimbus_sd import pp

    tables = {name: sdata[table] for name, sdata in objects.items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = pp.sample_cells(tables, layer=layer, split=split, n_cells=n_cells, seed=seed)
    counts = report.groupby("split", observed=True)[["n_sampled"]].agg(["size", "sum"])
    for each in caught:
        typer.echo(f"note: {each.message}", err=True)
    if "test" not in counts.index or not counts.loc["test"].iloc[-1]:
        msg = f"no cell is left for a test (--split {','.join(f'{v:g}' for v in split)}); give it patients"
        raise InputError(msg)
    return {str(part): {"n_sections": int(n), "n_cells": int(k)} for part, (n, k) in counts.iterrows()}


def _numbers(split: str) -> list[float]:
    from nimbus_sd.engine.subtyping.sampling import split_patients

    try:
        parts = [float(v) for v in split.split(",")]
    except ValueError:
        msg = f"--split {split!r}: three numbers, for instance 25,7,9"
        raise InputError(msg) from None
    split_patients([], parts)  # checks them
    return parts
