"""Is a TIFF file whole? Told by its size and tags, as a truncated one often reads as something else."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import tifffile

from nimbus_sd._core.errors import InputError


def check_tags(tif: tifffile.TiffFile, path: Path) -> None:
    """Raise if a tag of the first page points beyond the file.

    tifffile drops such tags, and with them the channels' names.
    """
    tiff, handle = tif.tiff, tif.filehandle
    handle.seek(tif.pages.first.offset)
    count = struct.unpack(tiff.tagnoformat, handle.read(tiff.tagnosize))[0]
    raw = handle.read(count * tiff.tagsize)
    for start in range(0, len(raw), tiff.tagsize):
        entry = raw[start : start + tiff.tagsize]
        (dtype,) = struct.unpack_from(tiff.byteorder + "H", entry, 2)
        number, at = struct.unpack_from(tiff.byteorder + ("QQ" if tiff.is_bigtiff else "II"), entry, 4)
        item = struct.calcsize("<" + tifffile.TIFF.DATA_FORMATS.get(dtype, "0s"))
        if number * item > tiff.tagoffsetthreshold:
            check_end(path, at + number * item, handle.size)


def check_chain(tif: tifffile.TiffFile, path: Path) -> None:
    """Raise where a link between pages leads nowhere.

    Pages are a linked list; tifffile stops at a broken link and shows the pages before.
    """
    pages = len(tif.pages)
    at = tif.pages.next_page_offset
    if at is None or not pages:
        return
    tif.filehandle.seek(at)
    raw = tif.filehandle.read(tif.tiff.offsetsize)
    if len(raw) < tif.tiff.offsetsize or any(raw):
        msg = (
            f"{path}: truncated: {pages} pages are found, and a link to one that is not there. Copy it again."
        )
        raise InputError(msg)


def data_end(page: Any) -> int:
    """Return where the last strip or tile of a page ends, in bytes from the file's start."""
    return max(
        (start + size for start, size in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0
    )


def check_end(path: Path, end: int, size: int) -> None:
    """Raise if something should end at byte `end` of a file of `size` bytes, and can't."""
    if end > size:
        msg = (
            f"{path}: truncated: it should have {end} bytes or more, it has {size}. Copy or export it again."
        )
        raise InputError(msg)
