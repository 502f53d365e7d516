"""The review log: one JSON object a line, only ever appended to, on the disk before anyone is told so."""

from __future__ import annotations

import json
import os
import threading
import warnings
from pathlib import Path
from typing import Any

from nimbus_sd._core.errors import InputError, NimbusWarning

Event = dict[str, Any]


class ReviewLog:
    """Events in the order in which they were written.

    Several processes may append to one file: what a process knows is what it has read
    from there, its own events included. A line that a crash has cut short is passed over.

    Parameters
    ----------
    path
        The file, made with the first event; None keeps events in memory.

    Raises
    ------
    InputError
        If the file can't be opened for writing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.n_broken = 0
        self._read_to = 0
        self._lock = threading.Lock()
        if path is not None and not os.access(path if path.exists() else path.parent, os.W_OK):
            msg = f"log {path}: can't be written; pass log= with a path that can, or make its folder"
            raise InputError(msg)

    def append(self, events: list[Event]) -> list[Event]:
        """Write events, and return all that are new to this process, those of others included."""
        with self._lock:
            if self.path is None:
                return [dict(event) for event in events]
            text = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events).encode()
            handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(handle).st_size
                if size and os.pread(handle, 1, size - 1) != b"\n":
                    text = b"\n" + text  # a crash left half a line
                _write_all(handle, text)
                os.fsync(handle)
            finally:
                os.close(handle)
            return self._new()

    def new(self) -> list[Event]:
        """Events that were written since the last look."""
        with self._lock:
            return self._new()

    def _new(self) -> list[Event]:
        if self.path is None or not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read_to += len(whole) + len(newline)
        found = [_parsed(line) for line in whole.split(b"\n") if line.strip()]
        broken = sum(event is None for event in found)
        if broken:
            self.n_broken += broken
            warnings.warn(
                f"{self.path}: {broken} lines can't be read (a crash?) and were passed over",
                NimbusWarning,
                stacklevel=3,
            )
        return [event for event in found if event is not None]


def _write_all(handle: int, text: bytes) -> None:
    # one write, so that lines of several processes don't mix; more only if the system took less
    while text:
        text = text[os.write(handle, text) :]


def _parsed(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("kind"), str) else None
