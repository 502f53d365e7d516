"""``nimbus-sd integrate``: mean intensities, the baseline that scores are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nimbus_sd._core.channels import NOT_MARKERS
from nimbus_sd.cli._answer import answer
from nimbus_sd.cli._options import (
    AsJson,
    Channels,
    CoordinateSystem,
    DryRun,
    Exclude,
    Image,
    Labels,
    Mpp,
    Overwrite,
    Progress,
    Stores,
    Table,
    Threads,
    channel_choice,
    image_choice,
    open_store,
    split_names,
    split_numbers,
)
from nimbus_sd.cli._tables import check_ending, check_file, write_concatenated, write_csv

if TYPE_CHECKING:
    from spatialdata import SpatialData


def integrate(
    stores: Stores,
    image: Image = None,
    labels: Labels = None,
    channels: Channels = "all",
    statistics: Annotated[
        str, typer.Option(help="Comma-separated mean, sum, min, max; the first becomes X.")
    ] = "mean",
    quantiles: Annotated[
        str | None, typer.Option(help="Comma-separated, in [0, 1], such as 0.5,0.9; exact.")
    ] = None,
    coordinate_system: CoordinateSystem = None,
    mpp: Mpp = None,
    table: Table = "integrated_expression",
    exclude: Exclude = NOT_MARKERS,
    csv: Annotated[Path | None, typer.Option(help="Also write all cells as CSV.")] = None,
    concat: Annotated[
        Path | None, typer.Option(help="Also write one table of all cells, .h5ad or .zarr.")
    ] = None,
    overwrite: Overwrite = False,
    n_threads: Threads = 2,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    progress: Progress = True,
) -> None:
    """Average raw intensities per cell and channel and write a table into each store."""
    check_ending("--concat", concat, ".h5ad", ".zarr")
    for option, path in (("--csv", csv), ("--concat", concat)):
        check_file(option, path, overwrite=overwrite)
    from nimbus_sd import io, pp
    from nimbus_sd._sdata.cohort import as_cohort
    from nimbus_sd.pp._integrated_expression import check_statistics

    shares = split_numbers("--quantiles", quantiles)
    names = check_statistics(split_names(statistics) or [], shares)
    sdatas = [open_store(store) for store in stores]
    elements: dict[str, Any] = {
        **{"image": image_choice(image), "labels": split_names(labels), "channels": channel_choice(channels)},
        **{"coordinate_system": coordinate_system, "mpp": mpp, "exclude": exclude},
    }
    as_cohort(sdatas)  # raises where one comes twice
    n_blocks = sum(_blocks(sdata, table, elements, overwrite=overwrite) for sdata in sdatas)
    facts: dict[str, Any] = {"stores": stores, "table": table, "csv": csv, "concat": concat}
    if dry_run:
        told = f"would read {n_blocks} blocks of pixels and write {table!r} into {', '.join(stores)}"
        answer({**facts, "dry_run": True, "n_blocks": n_blocks}, told, as_json=as_json)
        return
    lines, tables = [], []
    for sdata, store in zip(sdatas, stores, strict=True):
        pp.integrated_expression(
            sdata,
            **elements,
            statistics=names,
            quantiles=shares,
            table=table,
            overwrite=overwrite,
            n_threads=n_threads,
            progress=progress,
        )
        name = io.write_table(sdata, table, overwrite=overwrite)
        found = sdata.tables[table]
        tables.append({"store": store, "table": name, "n_cells": found.n_obs, "channels": found.var_names})
        lines.append(f"{found.n_obs} cells x {found.n_vars} channels -> {store}/tables/{name}")
    lines += _files(sdatas, table, csv, concat)
    answer({**facts, "tables": tables}, lines, as_json=as_json)


def _blocks(sdata: SpatialData, table: str, elements: dict[str, Any], *, overwrite: bool) -> int:
    """How many blocks there are to read; raises if elements don't fit or the table can't be written."""
    from nimbus_sd._sdata.samples import resolve_samples
    from nimbus_sd._sdata.target import check_prediction_target
    from nimbus_sd.engine.expression import n_blocks

    check_prediction_target(sdata, table, None, overwrite=overwrite, write=True)
    found = resolve_samples(sdata, **elements, need_mpp=False)
    return sum(n_blocks(s.sample) for s in found.samples)


def _files(sdatas: Sequence[SpatialData], table: str, csv: Path | None, concat: Path | None) -> list[str]:
    """Write them and say where."""
    objects = sdatas[0] if len(sdatas) == 1 else sdatas
    lines = []
    if csv is not None:
        write_csv(objects, csv, table=table, layer=None)
        lines.append(f"cell table -> {csv}")
    if concat is not None:
        write_concatenated(objects, concat, table=table)
        lines.append(f"table of all cells -> {concat}")
    return lines
