"""What several commands share: options with one wording each, splitting lists, opening stores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nimbus_sd._core.errors import InputError
from nimbus_sd.cli._complete import model_names, one_of
from nimbus_sd.io._open_store import is_store, open_store

if TYPE_CHECKING:
    from spatialdata import SpatialData

__all__ = [
    "AsJson",
    "Channels",
    "CoordinateSystem",
    "Device",
    "DryRun",
    "Exclude",
    "Image",
    "Labels",
    "Model",
    "Mpp",
    "OutDir",
    "Overwrite",
    "Precision",
    "Progress",
    "Resume",
    "Scheduler",
    "Store",
    "Stores",
    "Table",
    "Threads",
    "channel_choice",
    "check_table",
    "device_count",
    "image_choice",
    "is_store",
    "open_store",
    "open_stores",
    "split_names",
    "split_numbers",
]

Store = Annotated[str, typer.Argument(help="SpatialData zarr store, folder or URL.", metavar="STORE")]
Stores = Annotated[
    list[str],
    typer.Argument(help="SpatialData zarr stores, folders or URLs; several are one cohort.", metavar="STORE"),
]
Image = Annotated[
    str | None, typer.Option(help="Image element, if several fit; LABELS=IMAGE,... for several samples.")
]
Labels = Annotated[str | None, typer.Option(help="Comma-separated labels elements; all when left out.")]
Channels = Annotated[str, typer.Option(help="auto, all, or comma-separated names.")]
Table = Annotated[str, typer.Option(help="Table in the store.")]
Exclude = Annotated[
    str, typer.Option(help="Pattern of channels that --channels auto leaves out.", show_default=False)
]
Mpp = Annotated[float | None, typer.Option(help="µm per px; what the store says when left out.")]
CoordinateSystem = Annotated[
    str | None, typer.Option(help="Where elements are compared and positions given.")
]
Model = Annotated[
    str, typer.Option(help="Registered name, folder or file of weights.", autocompletion=model_names)
]
Device = Annotated[
    str,
    typer.Option(
        help="auto (GPUs where there are any), cpu, cuda:0, mps.",
        autocompletion=one_of("auto", "cpu", "cuda", "cuda:0", "mps"),
    ),
]
Precision = Annotated[
    str,
    typer.Option(help="auto, float32, bfloat16.", autocompletion=one_of("auto", "float32", "bfloat16")),
]
Threads = Annotated[int, typer.Option(help="Reader threads.")]
Scheduler = Annotated[
    str | None, typer.Option(help="Address of a dask scheduler whose workers do the computing.")
]
OutDir = Annotated[
    Path | None,
    typer.Option(help="Leave the stores as they are: one store per input, with the results, goes here."),
]
Resume = Annotated[bool, typer.Option(help="Go on where an interrupted run with the same settings stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists under the names to write.")]
Progress = Annotated[bool, typer.Option(help="Show progress bars, on stderr.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check, say what would be done, write nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")]


def open_stores(stores: Sequence[str | Path]) -> SpatialData | list[SpatialData]:
    """One object for one store, a list (a cohort) for several."""
    opened = [open_store(store) for store in stores]
    return opened[0] if len(opened) == 1 else opened


def check_table(sdata: SpatialData, table: str, store: object) -> None:
    """Raise unless the object has such a table; the message names the store and its tables."""
    if table not in sdata.tables:
        known = ", ".join(map(repr, sdata.tables)) or "none"
        msg = f"{store} has no table {table!r}; its tables: {known} (--table)"
        raise InputError(msg)


def device_count(trainer: str, devices: str, strategy: str) -> int | str:
    """How many devices train; the trainer ``"lightning"`` alone can use several.

    Raises
    ------
    InputError
        If it is no number, or another trainer is to use several.
    """
    if devices != "auto" and not (devices.isdigit() and int(devices) > 0):
        msg = f"--devices {devices!r} must be a number from 1, or auto"
        raise InputError(msg)
    if trainer != "lightning" and (devices not in ("1", "auto") or strategy != "auto"):
        given = f"--devices {devices}" if strategy == "auto" else f"--strategy {strategy}"
        msg = f"{given} is for --trainer lightning; add that, or leave it out"
        raise InputError(msg)
    return devices if devices == "auto" else int(devices)


def split_names(text: str | None) -> list[str] | None:
    """Split ``"a,b"`` into its names; None stays None."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def split_numbers(option: str, text: str | None) -> list[float]:
    """Split ``"0.5,0.9"`` into its numbers; None has none.

    Raises
    ------
    InputError
        If a part is no number.
    """
    try:
        return [float(part) for part in split_names(text) or ()]
    except ValueError:
        msg = f"{option} {text!r} must be comma-separated numbers, for instance 0.5,0.9"
        raise InputError(msg) from None


def image_choice(text: str | None) -> str | dict[str, str] | None:
    """A name, or of ``"labels=image,..."`` the image of each labels element.

    Raises
    ------
    InputError
        If some parts have a labels element and others don't.
    """
    if text is None or "=" not in text:
        return text
    pairs = [part.partition("=") for part in split_names(text) or ()]
    if not all(labels and image for labels, _, image in pairs):
        msg = f"--image {text!r}: give one image, or LABELS=IMAGE for every labels element"
        raise InputError(msg)
    return {labels.strip(): image.strip() for labels, _, image in pairs}


def channel_choice(text: str) -> str | list[str]:
    """``auto``, ``all`` or a list of names."""
    if text in ("auto", "all"):
        return text
    names = split_names(text)
    if not names:
        msg = f"--channels {text!r} names no channel; valid: auto, all, or comma-separated names"
        raise InputError(msg)
    return names
