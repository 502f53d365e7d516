"""``nimbus-sd report``: one HTML page about a store's scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd.cli._options import open_store, split_names
from nimbus_sd.cli._tables import check_file


def report(
    store: Annotated[str, typer.Argument(help="SpatialData zarr store, folder or URL.")],
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
    overwrite: Annotated[bool, typer.Option(help="Replace a file that exists.")] = False,
) -> None:
    """Write one self-contained HTML page about the scores of a store."""
    check_file("--out", out, overwrite=overwrite)
    if out.suffix.lower() not in (".html", ".htm"):
        msg = f"--out {out}: a page ends in .html, for instance {out.name}.html"
        raise InputError(msg)
    from nimbus_sd import app

    path = app.report(
        open_store(store),
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
    typer.echo(f"report ({path.stat().st_size / 1e6:.1f} MB) -> {path}")
