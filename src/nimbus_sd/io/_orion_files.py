"""Which files of an ORION folder are what: sections, and the four pieces of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nimbus_sd._core.errors import InputError
from nimbus_sd.io._names import is_tiff, listing, tiff_stem

_PARTS = ("registration", "segmentation", "quantification")
_REGISTERED = re.compile(r"registered$", re.IGNORECASE)


@dataclass(frozen=True)
class OrionFiles:
    """One section on disk; None for a piece that is not there.

    Attributes
    ----------
    name, folder
        The section's.
    he, image, labels, cells
        H&E, immunofluorescence, label image, table of cells.
    """

    name: str
    folder: Path
    he: Path | None
    image: Path | None
    labels: Path | None
    cells: Path | None


def find_sections(folder: Path, sections: Sequence[str] | None, *, labels: str) -> list[OrionFiles]:
    """Find sections: the folder itself, or folders in it.

    Parameters
    ----------
    folder
        Holds ``registration``, ``segmentation``, ``quantification``, or folders that do.
    sections
        Names of the folders to take, in this order; None takes all, in alphabetic order.
    labels
        Name of the label image without its suffix.

    Raises
    ------
    InputError
        If there is no section, or not one that was asked for; or if a piece is there twice.
    """
    if not folder.is_dir():
        msg = f"{folder} is not a folder; give the folder of a section, or the one that holds the sections'."
        raise InputError(msg)
    inside = [entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_dir()]
    found = {folder.resolve().name: folder} if _is_section(folder) else {}
    found = found or {entry.name: entry for entry in sorted(inside) if _is_section(entry)}
    if not found:
        held = listing(sorted(entry.name for entry in folder.iterdir()))
        msg = (
            f"{folder}: no section of ORION data; valid: a folder with {', '.join(_PARTS)} in it, or a "
            f"folder of such folders. It holds: {held}."
        )
        raise InputError(msg)
    chosen = list(found) if sections is None else list(sections)
    unknown = [name for name in chosen if name not in found]
    if unknown:
        msg = f"{folder}: no sections {listing(unknown)}; it has: {listing(found, limit=80)}."
        raise InputError(msg)
    return [_files(name, found[name], labels) for name in chosen]


def _is_section(folder: Path) -> bool:
    return any((folder / part).is_dir() for part in _PARTS)


def _files(name: str, folder: Path, labels: str) -> OrionFiles:
    images = [file for file in _within(folder / "registration") if is_tiff(file)]
    he = [file for file in images if _REGISTERED.search(tiff_stem(file.name))]
    masks = [
        file
        for file in _within(folder / "segmentation", deep=True)
        if is_tiff(file) and tiff_stem(file.name) == labels
    ]
    tables = [
        file
        for file in _within(folder / "quantification", deep=True)
        if file.suffix.lower() == ".csv" and not file.name.startswith(".")
    ]
    tables = [file for file in tables if file.stem.endswith(labels)] or tables
    found = OrionFiles(
        name=name,
        folder=folder,
        he=_one(he, "H&E images (names that end with 'registered')", folder),
        image=_one([file for file in images if file not in he], "immunofluorescence images", folder),
        labels=_one(masks, f"label images {labels!r}", folder),
        cells=_one(tables, "tables of cells", folder),
    )
    if found.he is None and found.image is None:
        msg = (
            f"{folder}: no image; wanted registration/*.ome.tiff (immunofluorescence) and "
            "registration/*-registered.ome.tif (H&E)."
        )
        raise InputError(msg)
    return found


def _within(folder: Path, *, deep: bool = False) -> list[Path]:
    entries: Iterable[Path] = (folder.rglob("*") if deep else folder.iterdir()) if folder.is_dir() else ()
    return sorted(entries)


def _one(files: list[Path], what: str, folder: Path) -> Path | None:
    if len(files) > 1:
        names = listing(file.relative_to(folder) for file in files)
        msg = f"{folder}: {len(files)} {what}: {names}; valid: one per section. Move the others elsewhere."
        raise InputError(msg)
    return files[0] if files else None
