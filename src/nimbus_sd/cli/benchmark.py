"""``nimbus-sd benchmark``: the paper's tables for any model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd.cli.subtyping import subtyping

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

benchmark = typer.Typer(help="Measure a model on a labelled dataset.", no_args_is_help=True)
benchmark.command("subtyping")(subtyping)
_SHOWN = ("precision", "recall", "specificity", "f1")


@benchmark.callback()
def _group() -> None:
    """Measure a model on a labelled dataset."""


@benchmark.command("pan-multiplex")
def pan_multiplex(
    root: Annotated[Path, typer.Argument(help="Folder of the gold-standard part of Pan-Multiplex.")],
    model: Annotated[str, typer.Option(help="Registered name, folder or file.")] = "nimbus-sd-s",
    out: Annotated[Path | None, typer.Option(help="Also write metrics per sample as CSV.")] = None,
    views: Annotated[int, typer.Option(help="Test-time views: 1 or 8.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16.")] = "auto",
    progress: Annotated[bool, typer.Option(help="Show progress bars.")] = True,
) -> None:
    """Print precision, recall, specificity and F1 per dataset, tissue and marker, and their averages."""
    import pandas as pd

    from nimbus_sd import io, tl

    if out is not None and not out.parent.is_dir():
        msg = f"--out {out}: there is no folder {out.parent}; make it first"
        raise InputError(msg)
    tables = {}
    for name, sdata in io.read_pan_multiplex(root).items():
        typer.echo(f"{name}: {len(sdata.labels)} fields")
        options = {"model": model, "views": views, "device": device, "precision": precision}
        tables[name] = _scored(sdata, options, progress=progress)
    best = _one_threshold(tables)
    limits = {model: 0.5, "integrated, one threshold": best}
    frames = []
    for adata, gold in tables.values():
        frames.append(_measure(adata, gold, {model: "X", "integrated, one threshold": "scaled"}, limits))
        each = {"integrated, per marker": _per_marker(adata, gold)}
        frames.append(_measure(adata, gold, {"integrated, per marker": "scaled"}, each))
    frame = pd.concat(frames, ignore_index=True)
    typer.echo(
        f"\n{model} calls cells above 0.5. Thresholds of integrated expression ({best:.3g} of the scale, or "
        "one per dataset and marker) have the best F1 over all cells, chosen with these labels in hand, "
        "which nobody has in practice."
    )
    for title, by in (("dataset", "dataset"), ("tissue", "tissue"), ("marker", "marker"), ("all", None)):
        averaged = tl.average_evaluation(frame, by=() if by is None else by)
        if by is not None:
            averaged = averaged.sort_values(by, kind="stable")
        columns = [*([] if by is None else [by]), "scores", "n_datasets", "n_samples", *_SHOWN]
        typer.echo(f"\nper {title}\n" if by else "\naverage of the datasets\n")
        typer.echo(averaged.reset_index()[columns].round(3).to_string(index=False))
    if out is not None:
        frame.to_csv(out, index=False)
        typer.echo(f"\nmetrics per sample -> {out}")


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
