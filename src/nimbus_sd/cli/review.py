"""``nimbus-sd review``: serve the review page of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nimbus_sd.cli._options import open_store


def review(
    store: Annotated[Path, typer.Argument(help="SpatialData zarr store with a table of scores.")],
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
    table: Annotated[str, typer.Option(help="Table to review.")] = "nimbus",
    key: Annotated[
        str | None, typer.Option(help="Column with the clusters; metacluster, leiden, ... when left out.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Layer with the scores; X when left out.")] = None,
    image: Annotated[str | None, typer.Option(help="Image element, if several fit.")] = None,
    threshold: Annotated[float, typer.Option(help="Scores above are positive.")] = 0.5,
    log: Annotated[Path | None, typer.Option(help="Log of answers; beside the store when left out.")] = None,
    reviewer: Annotated[str | None, typer.Option(help="Your name.")] = None,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page.")] = True,
) -> None:
    """Review clusters and cells in the browser; Ctrl-C ends it."""
    from nimbus_sd import app

    server = app.review(
        open_store(store),
        table=table,
        key=key,
        layer=layer,
        image=image,
        threshold=threshold,
        log=log,
        reviewer=reviewer,
        port=port,
        open_browser=open_browser,
    )
    try:
        typer.echo(f"review page of {store}, table {table}\n{server.url}\nCtrl-C ends it")
        server.wait()
    except KeyboardInterrupt:  # between the two
        server.stop()
    left = server.session.n_unsaved
    if left:
        typer.echo(
            f"\n{left} changes are in {server.session.log.path} and not yet in the table; the next review "
            "takes them up, and its Save button writes them"
        )
