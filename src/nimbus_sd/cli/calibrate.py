"""``nimbus-sd calibrate``: scores that are probabilities, fitted on labels or taken from another fit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.files import whole_file
from nimbus_sd.cli._answer import answer, plain
from nimbus_sd.cli._complete import one_of
from nimbus_sd.cli._options import AsJson, DryRun, Overwrite, Store, Table, split_names
from nimbus_sd.cli._places import check_key
from nimbus_sd.cli._tables import check_ending, check_file, read_table
from nimbus_sd.cli._truth import TRUTH, find_truth, open_tables

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_METHODS = ("temperature", "platt", "isotonic")


def calibrate(
    store: Store,
    truth: Annotated[str | None, typer.Option(help=TRUTH)] = None,
    fitted: Annotated[
        str | None,
        typer.Option(help="Instead of --truth: a file of --save, or a calibrated table, to apply here."),
    ] = None,
    table: Table = "nimbus",
    layer: Annotated[str | None, typer.Option(help="Layer with the scores; X when left out.")] = None,
    markers: Annotated[
        str | None, typer.Option(help="Comma-separated, whose labels to fit on; all that both have.")
    ] = None,
    method: Annotated[
        str, typer.Option(help=", ".join(_METHODS) + ".", autocompletion=one_of(*_METHODS))
    ] = "temperature",
    by: Annotated[str, typer.Option(help="marker, or a column of obs such as platform.")] = "marker",
    error_rate: Annotated[
        float | None, typer.Option(help="Call cells uncertain so that fewer than this are wrong.")
    ] = None,
    min_cells: Annotated[int, typer.Option(help="Labelled cells that a fit of its own needs.")] = 100,
    field_key: Annotated[str, typer.Option(help="Column whose groups cross-fitting keeps whole.")] = "region",
    n_folds: Annotated[int, typer.Option(help="Folds of the cross-fitting.")] = 5,
    n_bins: Annotated[int, typer.Option(help="Bins of the calibration error.")] = 15,
    key_added: Annotated[str, typer.Option(help="Layer for the calibrated scores.")] = "calibrated",
    key_call: Annotated[str, typer.Option(help="Layer for the calls, with --error-rate.")] = "call",
    seed: Annotated[int, typer.Option(help="Decides the folds.")] = 0,
    save: Annotated[Path | None, typer.Option(help="Also write the fit as JSON, for --fitted.")] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Turn scores into probabilities by labelled cells, or by what was fitted on others."""
    if (truth is None) == (fitted is None):
        msg = "give --truth to fit, or --fitted to apply a fit, and not both"
        raise InputError(msg)
    if markers is not None and fitted is not None:
        msg = "--markers chooses labels of --truth, and --fitted has none; leave it out"
        raise InputError(msg)
    check_ending("--save", save, ".json")
    check_file("--save", save, overwrite=overwrite)
    from nimbus_sd import io, tl

    (sdata,) = open_tables([store], table, write=True)
    adata = sdata.tables[table]
    may_call = error_rate is not None or fitted is not None
    check_key("--key-added", key_added, adata.layers)
    if may_call:
        check_key("--key-call", key_call, adata.layers)
    _make_room(adata, key_added, *([key_call] if may_call else []), overwrite=overwrite)
    report, before = None, set(adata.layers)
    if truth is not None:
        report = tl.calibrate(
            adata,
            find_truth([sdata], table, truth),
            layer=layer,
            markers=split_names(markers),
            method=method,
            by=by,
            error_rate=error_rate,
            min_cells=min_cells,
            field_key=field_key,
            n_folds=n_folds,
            n_bins=n_bins,
            key_added=key_added,
            key_call=key_call,
            seed=seed,
        )
    elif fitted is not None:
        tl.apply_calibration(adata, _fit(fitted), layer=layer, key_added=key_added, key_call=key_call)
    record = adata.uns["calibration"]
    layers = [key_added, *([key_call] if record["error_rate"] == record["error_rate"] else [])]  # not NaN
    facts: dict[str, Any] = {"store": store, "table": table, "layers": layers, "n_cells": adata.n_obs}
    facts |= {"save": save, "groups": report}
    lines = [] if report is None else _shown(report)
    dropped = sorted(before - set(adata.layers))
    facts["dropped"] = dropped
    lines += [f"layer {name} of the earlier fit is dropped" for name in dropped]
    if dry_run:
        lines.append(f"would write the layers {', '.join(layers)} to {store}/tables/{table}")
        answer({**facts, "dry_run": True}, lines, as_json=as_json)
        return
    facts["table"] = io.write_table(sdata, table)
    lines.append(f"layers {', '.join(layers)} -> {store}/tables/{facts['table']}")
    if save is not None:
        with whole_file(save) as partial:
            partial.write_text(json.dumps(plain(record), indent=2) + "\n", encoding="utf-8")
        lines.append(f"the fit -> {save}")
    answer(facts, lines, as_json=as_json)


def _make_room(adata: AnnData, *layers: str, overwrite: bool) -> None:
    there = [name for name in layers if name in adata.layers]
    if there and not overwrite:
        msg = (
            f"the table has layers {', '.join(there)}; pass --overwrite to replace them, or other names "
            "(--key-added, --key-call)"
        )
        raise InputError(msg)


def _fit(fitted: str) -> AnnData | Mapping[str, Any]:
    """A calibrated table, or the fit in a file of ``--save``."""
    path = Path(fitted)
    if path.suffix.lower() != ".json":
        return read_table("--fitted", fitted)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"--fitted {fitted} is not JSON ({error}); nimbus-sd calibrate --save writes one"
        raise InputError(msg) from error
    if not isinstance(values, dict):
        msg = f"--fitted {fitted} holds no fit; nimbus-sd calibrate --save writes one"
        raise InputError(msg)
    # JSON has no not-a-number
    return {k: math.nan if v is None else v for k, v in values.items()}


def _shown(report: pd.DataFrame) -> list[str]:
    """The report, where limits that nothing passes are words, and what that means."""
    from nimbus_sd.arrays.calibration import NO_HIGH, NO_LOW

    rows, lines = report.round(3).astype(object), []
    for column, nothing, sign in (("low", NO_LOW, "negative"), ("high", NO_HIGH, "positive")):
        if column not in report:
            continue
        never = report[column] == nothing
        rows[column] = report[column].map("{:.3f}".format).where(report[column].notna(), "-")
        rows.loc[never, column] = "never"
        names = report.loc[never].iloc[:, 0].astype(str)
        if len(names):
            lines.append(
                f"no cell is called {sign} by the fit of: {', '.join(names)} (too many would be wrong)"
            )
    return [rows.to_string(index=False, na_rep="-"), *lines]
