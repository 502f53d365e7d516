"""The review log: one JSON object a line, only ever appended to, on the disk before anyone is told so."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import warnings
from collections.abc import Iterator
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
        The file, made when it is first needed; None keeps events in memory.

    Raises
    ------
    InputError
        If the file can't be opened for writing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.n_broken = 0
        self._read_to = 0
        self._lock = threading.RLock()
        self._alone = False
        self._locked = False
        if path is not None and not os.access(path if path.exists() else path.parent, os.W_OK):
            msg = f"log {path}: can't be written; pass log= with a path that can, or make its folder"
            raise InputError(msg)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other threads and processes from appending, as far as the file system knows locks.

        Raises
        ------
        InputError
            If the file can't be opened for writing.
        """
        with self._lock:
            if self.path is None or self._alone:
                yield
                return
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise _unwritten(self.path, error) from error
            try:
                with contextlib.suppress(OSError):  # some network file systems have no locks
                    fcntl.flock(handle, fcntl.LOCK_EX)
                    self._locked = True
                self._alone = True
                yield
            finally:
                self._alone = self._locked = False
                os.close(handle)

    def append(self, events: list[Event]) -> list[Event]:
        """Write events, and return all that are new to this process, those of others included.

        Raises
        ------
        InputError
            If they can't be written; none of them is in the log then.
        """
        with self.alone():
            if self.path is None:
                return [dict(event) for event in events]
            text = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events).encode()
            try:
                self._write(self.path, text)
            except OSError as error:
                raise _unwritten(self.path, error) from error
            return self._new()

    def _write(self, path: Path, text: bytes) -> None:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                text = b"\n" + text  # a crash left half a line
            try:
                _write_all(handle, text)
                os.fsync(handle)
            except OSError:
                if self._locked:  # else it could be another's line that is cut off
                    with contextlib.suppress(OSError):
                        os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)

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


def _unwritten(path: Path, error: OSError) -> InputError:
    return InputError(
        f"the log {path} can't be written ({error.strerror}), so nothing was changed; make room, or start "
        "the review again with log= elsewhere"
    )


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
