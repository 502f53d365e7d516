"""The command line: parse, call the rooms, report; heavy imports stay inside commands."""

from __future__ import annotations

import logging
import sys

import typer

from nimbus_sd._core.errors import NimbusError
from nimbus_sd.cli.benchmark import benchmark
from nimbus_sd.cli.convert import convert
from nimbus_sd.cli.demo import demo
from nimbus_sd.cli.models import models
from nimbus_sd.cli.predict import predict
from nimbus_sd.cli.train import finetune, train

app = typer.Typer(
    name="nimbus-sd",
    help="Marker positivity for every cell of a SpatialData object, read from the pixels.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (convert, predict, train, finetune, demo, models):
    app.command()(command)
app.add_typer(benchmark, name="benchmark")


def main() -> None:
    """Run the program; expected errors become one message and exit code 1."""
    # warns once per labels element of every SpatialData store, with nothing for the user to do
    logging.getLogger("ome_zarr").setLevel(logging.ERROR)
    try:
        app()
    except NimbusError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except FileNotFoundError as error:
        typer.echo(f"error: no such file or folder: {error.filename or error}", err=True)
        sys.exit(1)
