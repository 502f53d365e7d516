"""Finished blocks on disk: append-only, every record with its checksum, so that a run can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import Partials
from nimbus_sd.engine.job import Block, Scored

_MAGIC = b"nimbus-sd journal 1\n"
_RECORD = struct.Struct("<Q16s")  # bytes of the payload, its BLAKE2b-128
_HEADER = struct.Struct("<I")
_SYNC_SECONDS = 5.0


class Journal:
    """Finished blocks of one run, in one file.

    A record is written whole or not at all: what follows the last record whose checksum
    is right (the end of an interrupted write) is cut off when the file is opened again.

    Parameters
    ----------
    path
        Made if missing, its folder too.
    about
        What decides the result, for the first record. A file that says otherwise is refused.

    Raises
    ------
    InputError
        If the file is no journal, or another run's.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._where: dict[Block, int] = {}
        self._notes: dict[str, Any] = {}
        self.difference: float | None = None
        self._file: BinaryIO = self.path.open("r+b" if self.path.exists() else "w+b")
        try:
            self._open(json.loads(json.dumps(dict(about))))
        except BaseException:
            self._file.close()
            raise
        self._synced = time.monotonic()

    def _open(self, about: dict[str, Any]) -> None:
        if self._file.read(len(_MAGIC)) != _MAGIC:
            if self.path.stat().st_size > len(_MAGIC):
                msg = f"{self.path} is no journal of this version; move it away, or pass resume=False"
                raise InputError(msg)
            self._file.seek(0)
            self._file.truncate()
            self._file.write(_MAGIC)
        end = self._scan()
        self._file.seek(end)
        self._file.truncate()
        found = self._notes.get("about")
        if found is None:
            self.note("about", about)
        elif found != about:
            differ = sorted(k for k in {*found, *about} if found.get(k) != about.get(k))
            msg = (
                f"{self.path} belongs to another run (different: {', '.join(differ)}); move it away, or pass "
                "resume=False"
            )
            raise InputError(msg)

    def _scan(self) -> int:
        """Index the records; return where the last good one ends."""
        end = self._file.tell()
        while (read := self._record(end)) is not None:
            header, _, following = read
            if header["kind"] == "block":
                self._where[Block(*header["block"])] = end
                self._see(header["difference"])
            else:
                self._notes[header["kind"]] = header["value"]
            end = following
        return end

    def _see(self, difference: float | None) -> None:
        if difference is not None:
            self.difference = max(self.difference or 0.0, difference)

    def _record(self, offset: int) -> tuple[dict[str, Any], memoryview, int] | None:
        """Header, body and end of the record at `offset`; None if it is not whole."""
        self._file.seek(offset)
        head = self._file.read(_RECORD.size)
        if len(head) < _RECORD.size:
            return None
        size, digest = _RECORD.unpack(head)
        if size > os.fstat(self._file.fileno()).st_size - offset - _RECORD.size:
            return None
        payload = self._file.read(size)
        if len(payload) < size or _digest(payload) != digest:
            return None
        (n,) = _HEADER.unpack_from(payload)
        start = _HEADER.size + n
        return json.loads(payload[_HEADER.size : start]), memoryview(payload)[start:], self._file.tell()

    def _append(self, header: dict[str, Any], arrays: list[np.ndarray]) -> int:
        text = json.dumps(header).encode()
        payload = b"".join([_HEADER.pack(len(text)), text, *(a.tobytes() for a in arrays)])
        start = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(_RECORD.pack(len(payload), _digest(payload)) + payload)
            self._file.flush()
        except OSError as error:
            msg = (
                f"{self.path}: can't record finished blocks ({error}); those recorded so far are kept. Free "
                "some space and run again, which goes on from there"
            )
            raise OSError(error.errno, msg) from error
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()
        return start

    def note(self, kind: str, value: Any) -> None:
        """Record something of JSON's types; the last of a kind counts."""
        self._synced = 0.0
        self._append({"kind": kind, "value": value}, [])
        self._notes[kind] = value

    def noted(self, kind: str) -> Any:
        """What was noted under `kind`; None if nothing was."""
        return self._notes.get(kind)

    def add(self, scored: Scored) -> None:
        """Record a finished block."""
        arrays: dict[str, np.ndarray] = {}
        if scored.partials is not None:
            p = scored.partials
            arrays = {"ids": p.ids, "count": p.count, **p.sums}
        shapes = {name: [a.dtype.str, list(a.shape)] for name, a in arrays.items()}
        header = {
            "kind": "block",
            "block": list(scored.block),
            "difference": scored.difference,
            "arrays": shapes,
        }
        self._where[scored.block] = self._append(header, [np.ascontiguousarray(a) for a in arrays.values()])
        self._see(scored.difference)

    def __contains__(self, block: object) -> bool:
        return block in self._where

    def __len__(self) -> int:
        """Blocks recorded."""
        return len(self._where)

    def partials(self, sample: int) -> Iterator[Partials]:
        """Partials of a sample's blocks, in the order of the tiles."""
        for block in sorted(b for b in self._where if b.sample == sample):
            read = self._record(self._where[block])
            if read is None:
                msg = f"{self.path}: the record of tile {block.tile} of sample {sample} has changed on disk"
                raise OSError(msg)
            header, body, _ = read
            if header["arrays"]:
                arrays = dict(_arrays(header["arrays"], body))
                yield Partials(arrays.pop("ids"), arrays.pop("count"), arrays)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _digest(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=16).digest()


def _arrays(shapes: dict[str, Any], body: memoryview) -> Iterator[tuple[str, np.ndarray]]:
    at = 0
    for name, (dtype, shape) in shapes.items():
        array = np.frombuffer(body, dtype, count=int(np.prod(shape)), offset=at).reshape(shape)
        at += array.nbytes
        yield name, array
