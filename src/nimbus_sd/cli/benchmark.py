"""``nimbus-sd benchmark``: the paper's tables for any model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.files import whole_file
from nimbus_sd.cli._answer import answer, say
from nimbus_sd.cli._guard import interruptible
from nimbus_sd.cli._options import AsJson, Device, DryRun, Model, Precision, Progress
from nimbus_sd.cli._tables import check_file
from nimbus_sd.cli.subtyping import subtyping

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

benchmark = typer.Typer(help="Measure a model on a labelled dataset.", no_args_is_help=True)
benchmark.command("subtyping")(interruptible(subtyping))
_SHOWN = ("precision", "recall", "specificity", "f1")


@benchmark.callback()
def _group() -> None:
    """Measure a model on a labelled dataset."""


@benchmark.command("pan-multiplex")
@interruptible
def pan_multiplex(
    root: Annotated[Path, typer.Argument(help="Folder of the gold-standard part of Pan-Multiplex.")],
    model: Model = "nimbus-sd-s",
    out: Annotated[Path | None, typer.Option(help="Also write metrics per sample as CSV.")] = None,
    views: Annotated[int, typer.Option(help="Test-time views: 1 or 8.")] = 1,
    device: Device = "auto",
    precision: Precision = "auto",
    dry_run: DryRun = False,
    as_json: AsJson = False,
    progress: Progress = True,
) -> None:
    """Print precision, recall, specificity and F1 per dataset, tissue and marker, and their averages."""
    from nimbus_sd import io

    check_file("--out", out, overwrite=True)
    options = {"model": model, "views": views, "device": device, "precision": precision}
    facts: dict[str, Any] = {"root": root, "model": model, "views": views, "out": out, "dry_run": dry_run}
    sdatas = io.read_pan_multiplex(root)
    if dry_run:
        told, lines = _plan(sdatas, options)
        answer({**facts, "datasets": told}, lines, as_json=as_json)
        return
    tables = {}
    for name, sdata in sdatas.items():
        say(f"{name}: {len(sdata.labels)} fields", as_json=as_json)
        tables[name] = _scored(sdata, options, progress=progress)
    best, frame = _all_measured(tables, model)
    lines = [
        f"\n{model} calls cells above 0.5. Thresholds of integrated expression ({best:.3g} of the scale, or "
        "one per dataset and marker) have the best F1 over all cells, chosen with these labels in hand, "
        "which nobody has in practice."
    ]
    averages = {}
    for title in ("dataset", "tissue", "marker", "all"):
        averages[title] = _average(frame, None if title == "all" else title)
        lines.append("\naverage of the datasets\n" if title == "all" else f"\nper {title}\n")
        lines.append(averages[title].round(3).to_string(index=False))
    if out is not None:
        with whole_file(out) as partial:
            frame.to_csv(partial, index=False)
        lines.append(f"\nmetrics per sample -> {out}")
    answer({**facts, "threshold_integrated": best, "averages": averages}, lines, as_json=as_json)


def _plan(
    sdatas: Mapping[str, SpatialData], options: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Load the model, and say what would be scored."""
    from nimbus_sd import tl

    told = []
    for name, sdata in sdatas.items():
        gold = sdata["gold"]
        labels = [str(r) for r in gold.obs["region"].cat.categories]
        found = tl.estimate(sdata, labels=labels, channels=list(gold.var_names), **options)
        counts = {"n_fields": len(labels), "n_markers": gold.n_vars, "n_cells": gold.n_obs}
        told.append({"dataset": name, **counts, "estimate": found.to_dict()})
    lines = [
        f"would score {each['n_cells']} labelled cells of {each['dataset']}: {each['n_fields']} fields, "
        f"{each['n_markers']} markers"
        for each in told
    ]
    return told, lines


def _all_measured(tables: dict[str, tuple[AnnData, AnnData]], model: str) -> tuple[float, pd.DataFrame]:
    """The one threshold for integrated expression, and every figure per sample."""
    import pandas as pd

    best = _one_threshold(tables)
    limits = {model: 0.5, "integrated, one threshold": best}
    frames = []
    for adata, gold in tables.values():
        frames.append(_measure(adata, gold, {model: "X", "integrated, one threshold": "scaled"}, limits))
        each = {"integrated, per marker": _per_marker(adata, gold)}
        frames.append(_measure(adata, gold, {"integrated, per marker": "scaled"}, each))
    return best, pd.concat(frames, ignore_index=True)


def _average(frame: pd.DataFrame, by: str | None) -> pd.DataFrame:
    """Averages over samples, then datasets."""
    from nimbus_sd import tl

    averaged = tl.average_evaluation(frame, by=() if by is None else by)
    if by is not None:
        averaged = averaged.sort_values(by, kind="stable")
    columns = [*([] if by is None else [by]), "scores", "n_datasets", "n_samples", *_SHOWN]
    return averaged.reset_index()[columns]


def _scored(sdata: SpatialData, options: dict[str, object], *, progress: bool) -> tuple[AnnData, AnnData]:
    """Scores of the labelled cells and channels, with what the gold table says of the cells."""
    from nimbus_sd import tl

    gold = sdata["gold"]
    labels = [str(r) for r in gold.obs["region"].cat.categories]
    tl.predict(sdata, labels=labels, channels=list(gold.var_names), progress=progress, **options)  # type: ignore[arg-type]
    adata = sdata["nimbus"]
    lost = [n for n in gold.obs_names if n not in adata.obs_names]
    if lost:
        typer.echo(f"left out: {len(lost)} gold cells that the masks lack, such as {lost[0]}", err=True)
        gold = gold[gold.obs_names.isin(adata.obs_names)].copy()
    if gold.n_obs == 0:
        msg = "no gold cell is in the masks; are they of another segmentation?"
        raise InputError(msg)
    adata = adata[gold.obs_names].copy()
    for column in ("dataset", "platform", "tissue", "fov"):
        adata.obs[column] = gold.obs[column]
    adata.layers["scaled"] = adata.layers["integrated_expression"] / adata.var["scale"].to_numpy()
    return adata, gold


def _measure(
    adata: AnnData, gold: AnnData, scores: dict[str, str], threshold: Mapping[str, object]
) -> pd.DataFrame:
    from nimbus_sd import tl

    by = ("dataset", "tissue", "marker", "fov")
    return tl.evaluate(adata, gold, scores, by=by, threshold=threshold, n_bootstrap=0)  # type: ignore[arg-type]


def _one_threshold(tables: dict[str, tuple[AnnData, AnnData]]) -> float:
    """The threshold on integrated expression, in units of the scale, with the best F1 over everything."""
    import numpy as np

    from nimbus_sd.arrays.metrics import best_threshold

    truth = [gold.layers["gold"].ravel() for _, gold in tables.values()]
    values = [adata[:, gold.var_names].layers["scaled"].ravel() for adata, gold in tables.values()]
    found = best_threshold(np.concatenate(truth), np.concatenate(values))[0]
    return float(found) if np.isfinite(found) else 0.5


def _per_marker(adata: AnnData, gold: AnnData) -> dict[str, float]:
    """The best threshold of each marker of a dataset; 0.5 where there are no positive cells."""
    import numpy as np

    from nimbus_sd.arrays.metrics import best_threshold

    values = adata[:, gold.var_names].layers["scaled"]
    found = [best_threshold(y, x)[0] for y, x in zip(gold.layers["gold"].T, values.T, strict=True)]
    return {m: float(t) if np.isfinite(t) else 0.5 for m, t in zip(gold.var_names, found, strict=True)}
