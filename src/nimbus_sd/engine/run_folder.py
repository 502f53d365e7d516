"""Where an unfinished run keeps its journal: beside the store, locked, named by what it computes."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nimbus_sd._core.errors import InputError

log = logging.getLogger("nimbus_sd")


def key_of(about: Mapping[str, Any]) -> str:
    """Hexadecimal hash of what decides a result (JSON's types)."""
    text = json.dumps(about, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=8).hexdigest()


@contextmanager
def run_folder(homes: Sequence[Path], key: str, *, resume: bool) -> Iterator[Path]:
    """Yield the folder of the run `key`; it goes when the block ends without an error.

    Parameters
    ----------
    homes
        Per store that the run works on, the folder for its unfinished runs. All are locked
        meanwhile; the run's own folder is made in the first. None at all takes a temporary
        folder that goes in any case.
    key
        From :func:`key_of`.
    resume
        Keep what an interrupted run of that key left there.

    Raises
    ------
    InputError
        If another run holds a lock; the message names it.
    """
    if not homes:
        with tempfile.TemporaryDirectory(prefix="nimbus-sd-run-") as temporary:
            yield Path(temporary)
        return
    with ExitStack() as locks:
        for home in homes:
            locks.enter_context(_locked(home))
        _name_others(homes, key)
        folder = homes[0] / key
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    home.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(home / "lock"), home / "owner.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        msg = (
            f"{home}: another run works on this store: {_who(owner)}. Wait for it, or stop it; both at once "
            "would write the same table"
        )
        raise InputError(msg) from None
    try:
        me = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        owner.write_text(json.dumps(me), encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        if not any(p.is_dir() for p in home.iterdir()):
            (home / "lock").unlink(missing_ok=True)
        lock.release()
        # filelock makes the file anew when it finds it gone, so an empty folder may go
        try:
            home.rmdir()
        except OSError:
            log.debug("%s is kept: it holds unfinished runs", home)


def _who(owner: Path) -> str:
    try:
        known = json.loads(owner.read_text(encoding="utf-8"))
        return f"process {known['pid']} on {known['host']}, since {known['since']}"
    except (OSError, ValueError, KeyError):
        return "a process that has just started"


def _name_others(homes: Sequence[Path], key: str) -> None:
    for home in homes:
        others = sorted(p.name for p in home.iterdir() if p.is_dir() and p.name != key)
        if others:
            log.warning(
                "%s holds unfinished runs of other inputs, weights or settings; they are left alone: %s "
                "(delete them if they are not wanted any more)",
                home,
                ", ".join(others),
            )
