"""Label images: where their folder is, which one belongs to which field, and what they may hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.io._names import is_tiff, listing, tiff_stem
from nimbus_sd.io._pixels import LabelImage
from nimbus_sd.io._scan import scan

_RULES = ("{fov}_whole_cell", "{fov}")


def find_labels_folder(labels: str | Path, images: Path) -> Path:
    """Find the labels' folder: as given, else beside the images' folder, else its ``deepcell_output``.

    Raises
    ------
    InputError
        If none of these is a folder.
    """
    places = list(dict.fromkeys([Path(labels), images.parent / labels]))
    for place in places:
        if place.is_dir():
            inner = place / "deepcell_output"
            return inner if inner.is_dir() and not any(is_tiff(entry) for entry in place.iterdir()) else place
    tried = listing(place.absolute() for place in places)
    msg = (
        f"labels={str(labels)!r} is not a folder; tried {tried}. Give the folder that holds the label images."
    )
    raise InputError(msg)


def match_labels(
    folder: Path, fovs: Sequence[str], *, among: Sequence[str], pattern: str | None
) -> dict[str, Path]:
    """Find each field's label image.

    Parameters
    ----------
    folder
        The labels' folder.
    fovs
        The fields to find labels for.
    among
        All fields that the images' folder holds: ``fov1`` is not looked for in
        ``fov1_b`` if that is a field too.
    pattern
        Name without suffix, holding ``{fov}``; None tries ``{fov}_whole_cell``,
        then ``{fov}``, then any name that holds the field's name.

    Raises
    ------
    InputError
        If a field has no label image, or more than one, or two fields share one.
    """
    if pattern is not None and "{fov}" not in pattern:
        msg = f"labels_pattern={pattern!r} has no '{{fov}}' in it. Give, for example, '{{fov}}_whole_cell'."
        raise InputError(msg)
    nested = pattern is not None and "/" in pattern
    files = sorted(file for file in (folder.rglob("*") if nested else folder.iterdir()) if is_tiff(file))
    stems: dict[str, list[Path]] = {}
    for file in files:
        stems.setdefault(tiff_stem(file.relative_to(folder).as_posix()), []).append(file)
    chosen: dict[str, Path] = {}
    problems: list[str] = []
    for fov in fovs:
        found = _candidates(fov, stems, among=among, pattern=pattern)
        if len(found) == 1:
            chosen[fov] = found[0]
        else:
            problems.append(
                f"{fov}: {'ambiguous: ' + listing(file.name for file in found) if found else 'none'}"
            )
    if problems:
        rule = (
            repr(pattern)
            if pattern is not None
            else "'{fov}_whole_cell', '{fov}' or a name that holds the field's"
        )
        msg = (
            f"{folder}: no one label image for {len(problems)} of {len(fovs)} fields ({listing(problems)}); "
            f"looked for {rule}. The folder holds: {listing(file.name for file in files)}. Give the rule as "
            "labels_pattern='…{fov}…', or the fields to read as fovs=[…]."
        )
        raise InputError(msg)
    owners: dict[Path, str] = {}
    for fov, file in chosen.items():
        if file in owners:
            msg = (
                f"{file}: would be the labels of two fields, {owners[file]!r} and {fov!r}. "
                "Rename it or give labels_pattern=."
            )
            raise InputError(msg)
        owners[file] = fov
    return chosen


def load_labels(file: Path) -> LabelImage:
    """Open a label image lazily.

    Raises
    ------
    InputError
        If it isn't one 2-D image of integers (or 24-bit RGB).
    """
    found = scan(file)
    if len(found.planes) != 1:
        msg = f"{file}: {len(found.planes)} pages or channels; valid: one 2-D label image per field."
        raise InputError(msg)
    plane = found.planes[0]
    dtype = np.dtype(plane.stored)
    if found.rgb and dtype != np.uint8:
        msg = (
            f"{file}: an RGB image of {dtype.name}; labels in RGB are 24-bit (uint8). Export integer labels."
        )
        raise InputError(msg)
    if dtype.kind not in "iu":
        msg = (
            f"{file}: labels are {dtype.name}; valid: an integer type, 0 for background. "
            "Save them as integers, for example tifffile.imwrite(path, labels.astype('uint32'))."
        )
        raise InputError(msg)
    return LabelImage(plane, rgb=found.rgb)


def _candidates(
    fov: str, stems: dict[str, list[Path]], *, among: Sequence[str], pattern: str | None
) -> list[Path]:
    if pattern is not None:
        return stems.get(tiff_stem(pattern.replace("{fov}", fov)), [])
    for rule in _RULES:
        if found := stems.get(rule.replace("{fov}", fov)):
            return found
    others = [_within(other) for other in among if other != fov and fov in other]
    rule_of_fov = _within(fov)
    return [
        file
        for stem, found in stems.items()
        if rule_of_fov.search(stem) and not any(other.search(stem) for other in others)
        for file in found
    ]


def _within(fov: str) -> re.Pattern[str]:
    """Match the field's name inside another, but not ``fov1`` in ``fov10``."""
    before = r"(?<!\d)" if fov[:1].isdigit() else ""
    after = r"(?!\d)" if fov[-1:].isdigit() else ""
    return re.compile(before + re.escape(fov) + after)
