"""``nimbus-sd report``: one HTML page about a store's scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd.cli._answer import answer
from nimbus_sd.cli._options import AsJson, DryRun, Overwrite, Store, check_table, open_store, split_names
from nimbus_sd.cli._tables import check_file

if TYPE_CHECKING:
    from anndata import AnnData

_MAX_GROUPS = 100  # as the page takes them


def report(
    store: Store,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    table: Annotated[str, typer.Option(help="Table with the scores.")] = "nimbus",
    layer: Annotated[
        str | None, typer.Option(help='Its layer with the scores, such as "nimbus" after predict --into.')
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Scores above it are positive; the model's when left out.")
    ] = None,
    groupby: Annotated[
        str | None, typer.Option(help="Comma-separated columns with clusters or phenotypes; the usual ones.")
    ] = None,
    markers: Annotated[str | None, typer.Option(help="Comma-separated markers for maps, at most 8.")] = None,
    max_samples: Annotated[int, typer.Option(help="Samples on maps; numbers are given for all.")] = 12,
    images: Annotated[bool, typer.Option(help="Also draw from the store's images and labels.")] = True,
    title: Annotated[str | None, typer.Option(help="Heading; the store's name when left out.")] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page about the scores of a store."""
    check_file("--out", out, overwrite=overwrite)
    if out.suffix.lower() not in (".html", ".htm"):
        msg = f"--out {out}: a page ends in .html, for instance {out.name}.html"
        raise InputError(msg)
    if max_samples < 1:
        msg = f"--max-samples {max_samples}; at least 1"
        raise InputError(msg)
    from nimbus_sd import app

    sdata = open_store(store)
    check_table(sdata, table, store)
    if dry_run:
        _check(sdata.tables[table], layer, threshold, split_names(groupby), split_names(markers))
        facts = {"store": store, "table": table, "out": out, "dry_run": True}
        answer(facts, f"would write a report of {store}, table {table}, to {out}", as_json=as_json)
        return
    path = app.report(
        sdata,
        out,
        table=table,
        layer=layer,
        threshold=threshold,
        groupby=split_names(groupby),
        markers=split_names(markers),
        max_samples=max_samples,
        images=images,
        title=title,
        overwrite=overwrite,
    )
    size = path.stat().st_size
    facts = {"store": store, "table": table, "out": path, "bytes": size}
    answer(facts, f"report ({size / 1e6:.1f} MB) -> {path}", as_json=as_json)


def _check(
    adata: AnnData,
    layer: str | None,
    threshold: float | None,
    groupby: Sequence[str] | None,
    markers: Sequence[str] | None,
) -> None:
    """Raise for scores, markers and columns that the page can't be about."""
    from nimbus_sd.app._report_facts import collect
    from nimbus_sd.pl._table import groups

    collect(adata, layer=layer, threshold=threshold, markers=markers)
    for column in groupby or ():
        groups(adata, column, limit=_MAX_GROUPS)
