"""Warnings as a user of the command line needs them: ours as one line each, the libraries' not at all."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import typer

from nimbus_sd._core.errors import NimbusWarning


@contextmanager
def one_line_each() -> Iterator[None]:
    """Print every :class:`NimbusWarning` once, as ``warning: …`` on stderr, and no other warning.

    Who asks Python for warnings (``-W``, ``PYTHONWARNINGS``) gets those of the libraries too.
    """
    with warnings.catch_warnings():
        usual = warnings.showwarning
        said: set[str] = set()

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            text = " ".join(str(message).split())
            if not issubclass(category, NimbusWarning):
                if sys.warnoptions:
                    usual(message, category, filename, lineno, file, line)
            elif text not in said:
                said.add(text)
                typer.echo(f"warning: {text}", err=True)

        # not by a filter: libraries add their own in front when they are imported
        warnings.showwarning = show
        warnings.simplefilter("always", NimbusWarning)
        yield
