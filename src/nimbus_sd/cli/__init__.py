"""The command line: parse, call the rooms, report; heavy imports stay inside commands."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from nimbus_sd._core.errors import NimbusError
from nimbus_sd.cli._warnings import one_line_each
from nimbus_sd.cli.benchmark import benchmark
from nimbus_sd.cli.convert import convert
from nimbus_sd.cli.demo import demo
from nimbus_sd.cli.models import models
from nimbus_sd.cli.predict import predict
from nimbus_sd.cli.report import report
from nimbus_sd.cli.review import review
from nimbus_sd.cli.train import finetune, train

app = typer.Typer(
    name="nimbus-sd",
    pretty_exceptions_enable=False,
)
for command in (convert, predict, review, report, train, finetune, demo, models):
    app.command()(command)
app.add_typer(benchmark, name="benchmark")


def _say_version(asked: bool) -> None:
    if asked:
        from nimbus_sd._core.version import __version__

        typer.echo(f"nimbus-sd {__version__}")
        raise typer.Exit


_Version = Annotated[
    bool,
    typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and stop."),
]


@app.callback(no_args_is_help=True)
def _program(version: _Version = False) -> None:
    """Marker positivity for every cell of a SpatialData object, read from the pixels."""


def main() -> None:
    """Run the program; expected errors become one message and exit code 1."""
    # warns once per labels element of every SpatialData store, with nothing for the user to do
    logging.getLogger("ome_zarr").setLevel(logging.ERROR)
    try:
        with one_line_each():
            app()
    except NimbusError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except FileNotFoundError as error:
        typer.echo(f"error: no such file or folder: {error.filename or error}", err=True)
        sys.exit(1)
