"""``nimbus-sd review``: serve the review page of a store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nimbus_sd.cli._options import Image, Store, image_choice, open_store

if TYPE_CHECKING:
    from nimbus_sd.app._session import Session


def review(
    store: Store,
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
    table: Annotated[str, typer.Option(help="Table to review.")] = "nimbus",
    key: Annotated[
        str | None, typer.Option(help="Column with the clusters; metacluster, leiden, ... when left out.")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="Layer with the scores; X when left out.")] = None,
    image: Image = None,
    threshold: Annotated[float, typer.Option(help="Scores above are positive.")] = 0.5,
    log: Annotated[
        Path | None, typer.Option(help="Log of answers; beside the store, or in the cache for a URL.")
    ] = None,
    reviewer: Annotated[str | None, typer.Option(help="Your name.")] = None,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page.")] = True,
) -> None:
    """Review clusters and cells in the browser; Ctrl-C ends it."""
    from nimbus_sd import app
    from nimbus_sd.app._browser import open_page

    server = app.review(
        open_store(store),
        table=table,
        key=key,
        layer=layer,
        image=image_choice(image),
        threshold=threshold,
        log=log,
        reviewer=reviewer,
        port=port,
    )
    try:
        typer.echo(f"review page of {store}, table {table}\n{server.url}\nCtrl-C ends it")
        sys.stdout.flush()  # whoever reads this from a pipe waits for the address
        if open_browser and not open_page(server.url):
            typer.echo("there is no browser with a window here: open the address in yours")
        server.wait()
    except KeyboardInterrupt:  # between the two
        server.stop()
    _say_what_is_left(server.session)


def _say_what_is_left(session: Session) -> None:
    if session.saved_as is not None:
        typer.echo(f"\nSave wrote the table {session.saved_as!r} into {session.location}")
    left = session.n_unsaved
    if left and session.log.path is None:
        typer.echo(f"\n{left} changes were in memory only and are lost; pass --log to keep them")
    elif left:
        typer.echo(
            f"\n{left} changes are in {session.log.path} and not yet in the table; the next review "
            "takes them up, and its Save button writes them"
        )
