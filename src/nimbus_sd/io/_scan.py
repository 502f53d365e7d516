"""What a TIFF file holds, from its tags alone: planes, channel names, pixel size, and whether it is whole."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from nimbus_sd._core.errors import InputError
from nimbus_sd.io._names import duplicates, listing
from nimbus_sd.io._ome import OmeImage, parse_ome
from nimbus_sd.io._whole import check_chain, check_end, check_tags, data_end

_CHANNEL_AXES = frozenset("CQIS")
_RGB = frozenset({tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR})


@dataclass(frozen=True)
class Plane:
    """Where one ``(y, x)`` plane lies; enough to read it from any process.

    Attributes
    ----------
    path, page
        File, and place of the page in it.
    sample
        Which of the page's samples; None if it has one. A slice for RGB.
    planar
        Whether samples come before y and x (else after them).
    offset
        Where the raw pixels start, if they are stored in one piece and uncompressed.
    stored
        Data type in the file, byte order included.
    shape
        ``(y, x)`` in px.
    native
        ``(y, x)`` of a strip or tile: what is decoded at once.
    stamp
        Modification time (ns) and size (bytes) when scanned: a rewritten file is another array to dask.
    level
        0 for the page itself, 1, 2, … for the coarser ones that it holds.
    """

    path: str
    page: int
    sample: int | None
    planar: bool
    offset: int | None
    stored: str
    shape: tuple[int, int]
    native: tuple[int, int]
    stamp: tuple[int, int]
    level: int = 0


@dataclass(frozen=True)
class Scan:
    """One image: its planes in channel order, their names, ``(y, x)`` µm if known, and if it is RGB.

    Where they were asked for, the planes of coarser resolutions follow, the finest first.
    """

    path: Path
    planes: tuple[Plane, ...]
    names: tuple[str, ...]
    pixel_size: tuple[float, float] | None
    rgb: bool
    coarser: tuple[tuple[Plane, ...], ...] = ()


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    # tifffile's own error is a ValueError in newer versions only
    except (OSError, ValueError, LookupError, RuntimeError, struct.error, tifffile.TiffFileError) as error:
        msg = f"{path}: can't be read as TIFF, or is truncated ({error}). Copy or export the file again."
        raise InputError(msg) from error


@contextmanager
def opened(path: Path | str, **options: Any) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF file; anything wrong with it becomes an InputError that names it."""
    with naming(path), tifffile.TiffFile(path, **options) as tif:
        yield tif


def peek_ome(path: Path) -> OmeImage | None:
    """Read a file's OME-XML without looking at its pages; None if it has none."""
    with opened(path) as tif:
        xml = tif.ome_metadata
        return parse_ome(xml, source=path) if xml else None


def scan(path: Path, *, omexml: str | None = None, pyramid: bool = False) -> Scan:
    """Read a file's tags.

    Parameters
    ----------
    path
        The file; of several OME-TIFFs that hold one image, any whose XML lists the others.
    omexml
        XML from a companion file, if the TIFF has none of its own.
    pyramid
        Look for coarser resolutions, too.

    Raises
    ------
    InputError
        If the file is no TIFF, truncated, refers to files that are not there, or
        holds something else than the channels of one 2-D image.
    """
    with opened(path, **({"omexml": omexml, "is_shaped": False} if omexml else {})) as tif:
        ome = parse_ome(tif.ome_metadata, source=path) if tif.ome_metadata else None
        check_tags(tif, path)
        check_chain(tif, path)
        if ome is not None:
            missing = [name for name in ome.files if not (path.parent / name).is_file() and name != path.name]
            if missing and len(ome.files) > 1:
                msg = (
                    f"{path}: its OME-XML refers to files that are not beside it: {listing(missing)}. "
                    "Copy them there."
                )
                raise InputError(msg)
        found = _series(tif, path)
        blocks = [_planes(series, path) for series in found]
        planes = tuple(plane for block, _ in blocks for plane in block)
        names = _channel_names(tif, ome, len(planes))
        levels = found[0].levels[1:] if pyramid and len(found) == 1 else []
        return Scan(
            path=path,
            planes=planes,
            names=names,
            pixel_size=ome.pixel_size if ome else None,
            rgb=any(rgb for _, rgb in blocks),
            coarser=tuple(tuple(_planes(level, path)[0]) for level in levels),
        )


def _series(tif: tifffile.TiffFile, path: Path) -> list[tifffile.TiffPageSeries]:
    found = list(tif.series)
    if not found:
        msg = f"{path}: holds no image. Export it again."
        raise InputError(msg)
    if len(found) == 1:
        return found
    kinds = {(series.shape, series.dtype) for series in found}
    if tif.is_ome or any(len(series.shape) != 2 for series in found) or len(kinds) > 1:
        shapes = listing(f"{series.shape} {series.dtype}" for series in found)
        msg = (
            f"{path}: holds {len(found)} images ({shapes}); valid: the channels of one field, all of one "
            "shape and type. Export one file per field."
        )
        raise InputError(msg)
    return found  # one page was written after the other: each is a channel


def _planes(series: tifffile.TiffPageSeries, path: Path) -> tuple[list[Plane], bool]:
    first = series.keyframe
    axes, shape = series.axes, series.shape
    sizes = {axis: size for axis, size in zip(axes, shape, strict=True) if axis not in "YX"}
    if "Y" not in axes or "X" not in axes or axes.index("X") != axes.index("Y") + 1:
        msg = f"{path}: axes {axes} of shape {shape}; valid: channel, y, x. Export one 2-D image per channel."
        raise InputError(msg)
    stack = {axis: size for axis, size in sizes.items() if axis not in _CHANNEL_AXES}
    if stack:
        msg = (
            f"{path}: a stack, axes {axes} of shape {shape}; only 2-D images are read. "
            "Take one plane or a projection (in ImageJ: channels, not slices or frames) and export again."
        )
        raise InputError(msg)
    planar = axes[-1] != "S"
    samples = sizes.get("S", 1)
    rgb = samples in {3, 4} and first.photometric in _RGB
    if samples > 1 and not rgb and not planar:
        msg = (
            f"{path}: {samples} interleaved samples per pixel; valid: one page per channel. Export OME-TIFF."
        )
        raise InputError(msg)
    y, x = shape[axes.index("Y")], shape[axes.index("X")]
    stored = np.dtype(series.dtype).newbyteorder(series.parent.byteorder if series.parent else "=")
    n_bytes = y * x * stored.itemsize
    count = math.prod(sizes.values())
    planes = []
    for index in range(1 if rgb else count):
        page_number, sample = divmod(index, samples)
        page = first if series.dataoffset is not None else series.pages[page_number]
        if page is None:
            msg = f"{path}: the page of channel {index} is missing. Export the image again."
            raise InputError(msg)
        start = (
            _raw_start(page)
            if series.dataoffset is None
            else series.dataoffset + page_number * samples * n_bytes
        )
        if start is not None and not rgb:
            start += sample * n_bytes
        file = Path(page.parent.filehandle.path)
        stat = file.stat()
        end = start + n_bytes * (samples if rgb else 1) if start is not None else data_end(page)
        check_end(file, end, stat.st_size)
        native = first.chunks[-2:] if planar else first.chunks[:2]
        planes.append(
            Plane(
                path=str(file),
                page=page.treeindex[0],
                sample=sample if samples > 1 and not rgb else None,
                planar=planar,
                offset=None if rgb else start,
                stored=stored.str,
                shape=(y, x),
                native=(native[0], native[1]),
                stamp=(stat.st_mtime_ns, stat.st_size),
                level=page.treeindex[1] if len(page.treeindex) > 1 else 0,
            )
        )
    return planes, rgb


def _raw_start(page: Any) -> int | None:
    offsets, sizes = page.dataoffsets, page.databytecounts
    if not offsets or not page.keyframe.is_memmappable:
        return None
    joined = all(
        at + size == following for at, size, following in zip(offsets, sizes, offsets[1:], strict=False)
    )
    return offsets[0] if joined else None


def _channel_names(tif: tifffile.TiffFile, ome: OmeImage | None, count: int) -> tuple[str, ...]:
    names: list[str | None] = [None] * count
    if ome is not None and len(ome.names) == count:
        names = list(ome.names)
    elif tif.is_imagej and tif.imagej_metadata:
        labels = tif.imagej_metadata.get("Labels", [])
        if len(labels) == count and not duplicates(labels):
            names = list(labels)
    return tuple(name or f"channel_{index}" for index, name in enumerate(names))
