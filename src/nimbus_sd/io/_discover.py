"""Which files on disk make up which field: folders of channels, stacks, joint OME-TIFFs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nimbus_sd._core.errors import InputError
from nimbus_sd.io._names import duplicates, is_tiff, listing, tiff_stem
from nimbus_sd.io._ome import OmeImage, parse_ome
from nimbus_sd.io._scan import peek_ome

_COMPANION = ".companion.ome"
_SEPARATED = re.compile(r"[\W_]+(?:c|ch|channel)?$", re.IGNORECASE)


@dataclass(frozen=True)
class FieldFiles:
    """One field of view on disk.

    Attributes
    ----------
    name
        The field's name.
    files
        One file per channel, or the one file (the first of several that belong together) that leads to all.
    per_channel
        Whether each file is one channel, named by its file.
    omexml
        XML from a companion file, if there is one.
    """

    name: str
    files: tuple[Path, ...]
    per_channel: bool
    omexml: str | None = None


def find_fields(folder: Path, *, skip: Path | None) -> dict[str, FieldFiles]:
    """List the fields in a folder, by name, in alphabetic order.

    Parameters
    ----------
    folder
        Holds one folder per field, or one (multi-channel) TIFF per field.
    skip
        A folder in it that is not a field (its labels).

    Raises
    ------
    InputError
        If there is no such folder, nothing in it, or one name twice.
    """
    if not folder.is_dir():
        beside = sorted(entry.name for entry in folder.parent.iterdir()) if folder.parent.is_dir() else []
        msg = f"{folder} is not a folder. Give the folder of the images; beside it: {listing(beside)}."
        raise InputError(msg)
    entries = sorted(folder.iterdir())
    fields: list[FieldFiles] = []
    for entry in entries:
        if (
            entry.is_dir()
            and not entry.name.startswith(".")
            and not (skip and skip.exists() and entry.samefile(skip))
        ):
            fields += _folder_field(entry)
    fields += _stacks(entries)
    if not fields:
        msg = (
            f"{folder} holds no TIFF images; valid: one folder per field with a TIFF per channel, or one "
            f"multi-channel TIFF per field (.tif, .tiff, .ome.tif, .ome.tiff). It holds: "
            f"{listing(entry.name for entry in entries)}."
        )
        raise InputError(msg)
    twice = duplicates(field.name for field in fields)
    if twice:
        msg = f"{folder}: more than one image for the fields {listing(twice)}. Rename or remove the others."
        raise InputError(msg)
    return {field.name: field for field in sorted(fields, key=lambda field: field.name)}


def _folder_field(folder: Path) -> list[FieldFiles]:
    entries = sorted(folder.iterdir())
    files = [entry for entry in entries if is_tiff(entry)]
    if not files:
        return []
    if len(files) > 1 and not any(_is_companion(entry) for entry in entries):
        # Opening every file twice costs; only OME-TIFFs can refer to each other.
        peeked = {files[0], *(file for file in files if ".ome." in file.name.lower())}
        if not any(
            len(ome.files) > 1 for ome in (peek_ome(file) for file in sorted(peeked)) if ome is not None
        ):
            return [FieldFiles(folder.name, tuple(files), per_channel=True)]
    stacks = _stacks(entries)
    if len(stacks) > 1:
        msg = (
            f"{folder}: OME-TIFFs of {len(stacks)} images ({listing(stack.name for stack in stacks)}) in one "
            "field's folder; valid: one image per folder. Move the others out."
        )
        raise InputError(msg)
    return [FieldFiles(folder.name, stack.files, per_channel=False, omexml=stack.omexml) for stack in stacks]


def _stacks(entries: Sequence[Path]) -> list[FieldFiles]:
    """Give each file a field of its own, but for files that another one's XML lists."""
    files = [entry for entry in entries if is_tiff(entry)]
    fields: list[FieldFiles] = []
    used: set[str] = set()
    for entry in entries:
        if _is_companion(entry):
            xml = entry.read_text(encoding="utf-8")
            listed = parse_ome(xml, source=entry).files
            lead = next((entry.parent / name for name in listed if (entry.parent / name).is_file()), None)
            if lead is None:
                msg = (
                    f"{entry}: none of the files it refers to is beside it: {listing(listed)}. "
                    "Copy them there."
                )
                raise InputError(msg)
            fields.append(FieldFiles(entry.name[: -len(_COMPANION)], (lead,), per_channel=False, omexml=xml))
            used.update(listed)
    xmls = {file: ome for file in files if (ome := peek_ome(file)) is not None and len(ome.files) > 1}
    claims = {name: [file for file, ome in xmls.items() if name in ome.files] for name in _all_files(xmls)}
    for file, ome in xmls.items():
        if file.name in used:
            continue
        fields.append(FieldFiles(_joint_name(file, ome, claims), (file,), per_channel=False))
        used.update(ome.files)
        used.add(file.name)
    fields += [
        FieldFiles(tiff_stem(file.name), (file,), per_channel=False)
        for file in files
        if file.name not in used
    ]
    return fields


def _all_files(xmls: dict[Path, OmeImage]) -> dict[str, None]:
    return {name: None for ome in xmls.values() for name in ome.files}


def _joint_name(file: Path, ome: OmeImage, claims: dict[str, list[Path]]) -> str:
    """Name an image that several files share.

    The file that alone lists the others names it; where all list each other, the
    start of their names that ends at a separator, or the image's title.
    """
    if all(claims[name] == [file] for name in ome.files):
        return tiff_stem(file.name)
    stems = [tiff_stem(name) for name in ome.files]
    same = [len(set(letters)) == 1 for letters in zip(*stems, strict=False)]
    common = stems[0][: [*same, False].index(False)]
    if _SEPARATED.search(common):
        return _SEPARATED.sub("", common) or tiff_stem(file.name)
    return ome.title or tiff_stem(file.name)


def _is_companion(path: Path) -> bool:
    return path.name.lower().endswith(_COMPANION) and not path.name.startswith(".") and path.is_file()
