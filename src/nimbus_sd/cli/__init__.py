"""The command line: parse, call the rooms, report; heavy imports stay inside commands."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated

import typer

from nimbus_sd.cli._guard import interruptible, one_message
from nimbus_sd.cli._warnings import notes_once, one_line_each
from nimbus_sd.cli.benchmark import benchmark
from nimbus_sd.cli.calibrate import calibrate
from nimbus_sd.cli.cluster import cluster
from nimbus_sd.cli.convert import convert
from nimbus_sd.cli.demo import demo
from nimbus_sd.cli.doctor import doctor
from nimbus_sd.cli.embed import embed
from nimbus_sd.cli.evaluate import evaluate
from nimbus_sd.cli.gate import gate
from nimbus_sd.cli.integrate import integrate
from nimbus_sd.cli.models import models
from nimbus_sd.cli.predict import predict
from nimbus_sd.cli.report import report
from nimbus_sd.cli.review import review
from nimbus_sd.cli.subtype import subtype
from nimbus_sd.cli.train import finetune, train
from nimbus_sd.cli.train_embedding import train_embedding
from nimbus_sd.cli.train_subtyper import train_subtyper

app = typer.Typer(
    name="nimbus-sd",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Score cells": (convert, predict, integrate, report),
    "Find cell types": (cluster, review),
    "Measure": (evaluate, calibrate),
    "Train": (train, finetune),
    "Embed cells without segmentation": (train_embedding, embed),
    "Sub-types on H&E": (gate, train_subtyper, subtype),
    "This program": (models, demo, doctor),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(interruptible(_command))
app.add_typer(benchmark, name="benchmark", rich_help_panel="Measure")


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
    with one_message(), one_line_each(), notes_once():
        app()
