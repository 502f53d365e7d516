"""Warnings and notes on stderr: ours, one line and once each; the libraries' warnings not at all."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import typer

from nimbus_sd._core.errors import NimbusWarning
from nimbus_sd.cli._guard import as_options


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
                typer.echo(f"warning: {as_options(text)}", err=True)

        # not by a filter: libraries add their own in front when they are imported
        warnings.showwarning = show
        warnings.simplefilter("always", NimbusWarning)
        yield


class _Once(logging.Handler):
    """Says every message once: a check before the work and the work itself log the same."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self._said:
            self._said.add(text)
            typer.echo(text, err=True)


@contextmanager
def notes_once() -> Iterator[None]:
    """Print what the package logs on stderr, every message once."""
    logger, handler = logging.getLogger("nimbus_sd"), _Once()
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
