"""``nimbus-sd evaluate``: scores against labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.files import whole_file
from nimbus_sd.cli._answer import answer
from nimbus_sd.cli._options import AsJson, DryRun, Overwrite, Stores, Table, split_names
from nimbus_sd.cli._tables import check_ending, check_file
from nimbus_sd.cli._truth import TRUTH, find_truth, joined, open_tables

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = ("n", "n_positive", "precision", "recall", "specificity", "balanced_accuracy", "f1", "auroc", "ece")
_SHORT = {"balanced_accuracy": "bal_acc", "specificity": "spec", "n_positive": "positive"}


def evaluate(
    stores: Stores,
    truth: Annotated[str, typer.Option(help=TRUTH)],
    table: Table = "nimbus",
    scores: Annotated[str, typer.Option(help="X, or comma-separated layers to compare.")] = "X",
    truth_layer: Annotated[str | None, typer.Option(help="Layer of a truth that is a table; its X.")] = None,
    by: Annotated[
        str, typer.Option(help='Comma-separated: marker, columns of obs; "" pools everything.')
    ] = "marker",
    threshold: Annotated[
        list[str] | None,
        typer.Option(help="Scores above are positive: a number, or SCORES=NUMBER; may be repeated."),
    ] = None,
    markers: Annotated[
        str | None,
        typer.Option(help="Comma-separated; all that both have, and labels of others are an error."),
    ] = None,
    n_bootstrap: Annotated[int, typer.Option(help="Resamples for the limits; 0 gives none.")] = 200,
    resample: Annotated[
        str | None, typer.Option(help="Column of obs whose groups are drawn as wholes, such as region.")
    ] = None,
    level: Annotated[float, typer.Option(help="Share of the resamples between the limits.")] = 0.95,
    n_bins: Annotated[int, typer.Option(help="Bins of the calibration error.")] = 15,
    seed: Annotated[int, typer.Option(help="Decides the resamples.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write everything, with limits, as CSV.")] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Measure scores against labels: precision, recall, F1, AUROC and more, per marker."""
    check_ending("--out", out, ".csv")
    check_file("--out", out, overwrite=overwrite)
    limits = _thresholds(threshold)
    columns = split_names(by) or []
    from nimbus_sd import tl

    sdatas = open_tables(stores, table)
    adata, labels = joined(sdatas, table), find_truth(sdatas, table, truth)
    options: dict[str, Any] = {
        **{"truth_layer": truth_layer, "by": columns, "threshold": limits, "markers": split_names(markers)},
        **{"level": level, "n_bins": n_bins, "seed": seed},
    }
    # one pass without resamples is quick, and finds whatever is wrong
    frame = tl.evaluate(
        adata,
        labels,
        split_names(scores),
        n_bootstrap=min(n_bootstrap, 0) if dry_run else n_bootstrap,
        resample=resample,
        **options,
    )
    facts: dict[str, Any] = {"table": table, "stores": stores, "truth": truth, "n_cells": adata.n_obs}
    if dry_run:
        n = int(frame["n"].sum())
        facts |= {"dry_run": True, "n_rows": len(frame), "n_labelled": n, "out": out}
        answer(facts, f"would measure {n} labelled values in {len(frame)} rows", as_json=as_json)
        return
    lines = [_shown(frame, columns, one_score=frame["scores"].nunique() == 1)]
    if out is not None:
        with whole_file(out) as partial:
            frame.to_csv(partial, index=False)
        lines.append(f"\nwith limits -> {out}")
    answer({**facts, "out": out, "rows": frame}, lines, as_json=as_json)


def _shown(frame: pd.DataFrame, by: Sequence[str], *, one_score: bool) -> str:
    """Rows for people, and why some are not defined."""
    columns = [*by, *([] if one_score else ["scores"]), *_SHOWN]
    text = frame[columns].rename(columns=_SHORT).round(3).to_string(index=False, na_rep="-")
    reasons = frame[frame["reason"] != ""].groupby("reason", sort=False)
    for reason, rows in reasons:
        named = [" ".join(map(str, r)) for r in rows[list(by)].itertuples(index=False)] if by else []
        who = f"{', '.join(dict.fromkeys(named))}: " if named else ""
        text += f"\n- {who}{reason}"
    return text


def _thresholds(given: Sequence[str] | None) -> float | Mapping[str, float] | None:
    if not given:
        return None
    parts = [text.rpartition("=") for text in given]
    try:
        named = {name: float(value) for name, _, value in parts}
    except ValueError:
        msg = f"--threshold {' '.join(given)}: a number such as 0.5, or one per score such as X=0.5"
        raise InputError(msg) from None
    if "" not in named:
        return named
    if len(parts) > 1:
        msg = "--threshold: give one number for all, or SCORES=NUMBER for each"
        raise InputError(msg)
    return named[""]
