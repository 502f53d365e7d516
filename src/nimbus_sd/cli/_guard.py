"""How a command ends that can't go on: interrupted, or by an error that was to be expected."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from nimbus_sd._core.errors import NimbusError

INTERRUPTED = 130
# what these have finished is kept beside the store, or in the folder that is trained into
_GO_ON = frozenset(
    {"predict", "embed", "subtype", "train", "finetune", "train_embedding", "train_subtyper", "subtyping"}
)
_BARE = re.compile(
    r"(?<![\w.`'\"-])([a-z][a-z_]*)="
    r"(?:(True|False|'[^']*'|\"[^\"]*\"|\[[^\]]*\]|-?\d+(?:\.\d+)?(?![\w.]*\w)|<\w+>)|(?=[\s,;:)]|\.?$|\.\s))"
)
# what a command calls otherwise, or has no option for
_CALLED = {"write": "out-dir", "key": "key-added", "node_key": "key-node"}


def interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """The command, which ends with one line and code 130 when it is interrupted (Ctrl-C)."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            again = "the same command again goes on from there"
            start = "the same command again starts anew"
            typer.echo(f"\ninterrupted; {again if command.__name__ in _GO_ON else start}", err=True)
            sys.stderr.flush()
            raise typer.Exit(INTERRUPTED) from None

    return run


@contextmanager
def one_message() -> Iterator[None]:
    """Print an expected error as one message on stderr and end with code 1."""
    try:
        yield
    except NimbusError as error:
        _fail(as_options(str(error)))
    except FileNotFoundError as error:
        _fail(f"no such file or folder: {error.filename or error}")
    except BrokenPipeError:  # who read the output, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # no permission, no space, a network that is gone
        if error.strerror is None:
            raise
        _fail(f"{error.strerror}: {error.filename}" if error.filename else error.strerror)


def _fail(message: str) -> None:
    typer.echo(f"error: {message}", err=True)
    sys.exit(1)


def as_options(message: str) -> str:
    """Arguments of Python functions in a message as options of this program.

    Examples
    --------
    >>> as_options("table 'a' exists; pass overwrite=True to replace it, or another table=")
    "table 'a' exists; pass --overwrite to replace it, or another --table"
    >>> as_options("n_bootstrap=-3; choose with markers=['CD3', 'CD8'] or channels='all'")
    '--n-bootstrap -3; choose with --markers CD3,CD8 or --channels all'
    """
    known = _option_names()

    def said(match: re.Match[str]) -> str:
        name, value = match.groups()
        option = _CALLED.get(name, name.replace("_", "-"))
        if option not in known:
            return match[0]
        if name == "write" and value in ("True", "False"):
            return "no --out-dir"
        if value == "False":
            return f"--no-{option}" if f"no-{option}" in known else f"no --{option}"
        return f"--{option}" if value in (None, "True") else f"--{option} {_word(value)}"

    return _BARE.sub(said, message)


def _word(value: str) -> str:
    """A value of Python as one writes it in a shell."""
    if value == "[...]":
        return "NAME,..."
    if value.startswith("["):
        return ",".join(part.strip().strip("'\"") for part in value[1:-1].split(","))
    return value if " " in value else value.strip("'\"")


def _option_names() -> set[str]:
    """Options of all commands, without their dashes."""
    from nimbus_sd.cli import app

    found: set[str] = set()
    waiting: list[Any] = [typer.main.get_command(app)]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        for param in command.params:
            found |= {
                o.removeprefix("--") for o in (*param.opts, *param.secondary_opts) if o.startswith("--")
            }
    return found
