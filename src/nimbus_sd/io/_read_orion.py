"""Read ORION sections: immunofluorescence and the H&E of the same section, registered to each other."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from spatialdata import SpatialData
from spatialdata.models import PointsModel
from spatialdata.transformations import Identity, Scale

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata.levels import element_of_levels
from nimbus_sd.io._fields import FieldImage, check_arguments, check_kind, field_mpp
from nimbus_sd.io._labels import load_labels
from nimbus_sd.io._names import duplicates, element_names, listing
from nimbus_sd.io._orion_cells import OrionCells, cell_table, choose_patients, read_cells
from nimbus_sd.io._orion_files import OrionFiles, find_sections
from nimbus_sd.io._pixels import ImageStack, LabelImage, RgbStack, as_dask
from nimbus_sd.io._scan import scan

_PIECES = {"he": "H&E", "image": "immunofluorescence", "labels": "label image", "cells": "table of cells"}


def read_orion(
    folder: str | PathLike[str],
    *,
    sections: Sequence[str] | None = None,
    mpp: float | None = 0.325,
    channels: Sequence[str] | None = None,
    patients: Mapping[str, str] | str | PathLike[str] | None = None,
    labels: str = "cellRingMask",
    chunks: int = 1024,
) -> SpatialData:
    """Read ORION sections, lazily: immunofluorescence and H&E of the same tissue, labels, cells.

    Only metadata and the tables of cells are read; pixels are read when they are computed.
    Pyramids become multiscale images.

    Parameters
    ----------
    folder
        Of one section, or of several folders of sections. A section has
        ``registration/*.ome.tiff`` (immunofluorescence),
        ``registration/*-registered.ome.tif`` (8-bit RGB, the H&E brought onto the same
        grid), ``segmentation/**/cellRingMask.tif`` and ``quantification/*.csv`` (``CellID``,
        ``X_centroid``, ``Y_centroid``, a column per marker). Pieces that are missing are left
        out, with a warning that counts them.
    sections
        Folders to read, in this order; None takes all.
    mpp
        µm per px. None takes it from the OME metadata of the immunofluorescence.
    channels
        Names of the immunofluorescence's channels, in order. None takes those of the OME
        metadata, else the markers of the CSV where these are as many.
    patients
        Section to patient, or a CSV with the columns ``section, patient``; None takes each
        section for a patient of its own.
    labels
        Name of the label image without its suffix.
    chunks
        Side of the dask chunks in px, about: they follow the files' strips or tiles.

    Returns
    -------
    Per section ``<section>_he`` uint8 ``(3, y, x)``, channels r, g, b; ``<section>_if``
    ``(c, y, x)``; ``<section>_labels`` ``(y, x)``; each in its file's data type and in two
    coordinate systems: ``<section>`` (px) and ``microns`` (µm; every section has its origin
    at 0 there). A table ``"table"`` of the cells of all sections: ``X`` and
    ``layers["integrated_expression"]`` float32, mean intensity by marker; ``obs`` with
    ``region``, ``instance_id`` (CellID), ``section``, ``patient`` and the CSV's other columns,
    those of the same names as ``region_csv`` and so on, with a warning;
    ``obsm["spatial"]`` (x, y) px. It annotates the labels; where a section has none, points
    ``<section>_cells`` at the cells' centroids. ``attrs["nimbus_sd"]["mpp"]`` holds the pixel
    size if it is the same for all.

    Raises
    ------
    InputError
        If a folder or file is missing, damaged or there twice; the H&E is not RGB of 8 bit;
        the pieces of a section differ in size; names are missing; or `mpp` is not known.

    References
    ----------
    Lin et al. (2023), *High-plex immunofluorescence imaging and traditional histology of the
    same tissue section for discovering image-based biomarkers*, Nature Cancer 4:1036.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np, tifffile
    >>> import nimbus_sd as nb
    >>> root = Path(tempfile.mkdtemp()) / "CRC01"
    >>> for part in ("registration", "segmentation", "quantification"):
    ...     (root / part).mkdir(parents=True)
    >>> names = {"axes": "CYX", "Channel": {"Name": ["Hoechst", "CD45"]}}
    >>> tifffile.imwrite(root / "registration/if.ome.tiff", np.zeros((2, 64, 48), "uint16"), metadata=names)
    >>> he = np.full((64, 48, 3), 230, "uint8")
    >>> tifffile.imwrite(root / "registration/he-registered.ome.tif", he, photometric="rgb")
    >>> tifffile.imwrite(root / "segmentation/cellRingMask.tif", np.ones((64, 48), "uint32"))
    >>> lines = ["CellID,Hoechst,CD45,X_centroid,Y_centroid,Area", "1,900,50,23.5,31.5,3072"]
    >>> _ = (root / "quantification/cells.csv").write_text(chr(10).join(lines))
    >>> sdata = nb.io.read_orion(root)
    >>> sdata["CRC01_he"].shape, sdata["CRC01_if"].c.values.tolist(), sdata["table"].X.tolist()
    ((3, 64, 48), ['Hoechst', 'CD45'], [[900.0, 50.0]])
    """
    root = Path(folder)
    check_arguments(mpp=mpp, chunks=chunks, channels=channels, sections=sections)
    found = find_sections(root, sections, labels=labels)
    names = element_names([files.name for files in found], what=str(root))
    owners = choose_patients(patients, [files.name for files in found])
    _warn_of_missing(root, found)

    elements: dict[str, Any] = {}
    cells: dict[str, OrionCells] = {}
    regions, panels, sizes = {}, {}, set()
    for files in found:
        name = names[files.name]
        table = read_cells(files.cells, labels=labels) if files.cells else None
        pieces = _load(files, channels, table)
        size = field_mpp(pieces.field, mpp)
        sizes.add(size)
        to = {name: Identity(), "microns": Scale([size, size], axes=("x", "y"))}
        elements |= _rasters(name, pieces, to, chunks)
        if table is not None:
            _check_inside(table, pieces.field.planes[0].shape)
            regions[name] = f"{name}_labels" if files.labels else f"{name}_cells"
            if not files.labels:
                elements[regions[name]] = _points(table, to)
            cells[name], panels[name] = table, pieces.field.channels
    if cells:
        whose = {names[section]: patient for section, patient in owners.items()}
        elements["table"] = cell_table(cells, regions=regions, channels=panels, patients=whose)
    attrs = {"nimbus_sd": {"mpp": sizes.pop()} if len(sizes) == 1 else {}}
    return SpatialData.init_from_elements(elements, attrs=attrs)


@dataclass(frozen=True)
class _Pieces:
    """A section's rasters, and what is known of the image that sets the grid: the H&E if it is alone.

    Images are lists of their resolutions, the full one first; empty if there is none.
    """

    field: FieldImage
    he: list[RgbStack] | list[ImageStack]
    image: list[ImageStack]
    labels: LabelImage | None


def _load(files: OrionFiles, channels: Sequence[str] | None, table: OrionCells | None) -> _Pieces:
    """Read the tags of a section's files, and check that they fit each other."""
    field, image = (None, []) if files.image is None else _load_image(files, channels, table)
    he_field, he = (None, []) if files.he is None else _load_he(files)
    labels = load_labels(files.labels) if files.labels else None
    known = cast("FieldImage", field or he_field)  # a section has one of the two
    shape = known.planes[0].shape
    for path, other in ((files.he, he[0] if he else None), (files.labels, labels)):
        if other is not None and other.shape[-2:] != shape:
            msg = (
                f"{path}: {other.shape[-2:]} px (y, x), but {known.source} has {shape}. The pieces of a "
                "section lie on one grid; give the registered ones, at full resolution."
            )
            raise InputError(msg)
    return _Pieces(known, he, image, labels)


def _load_image(
    files: OrionFiles, channels: Sequence[str] | None, table: OrionCells | None
) -> tuple[FieldImage, list[ImageStack]]:
    path = Path(str(files.image))
    found = scan(path, pyramid=True)
    check_kind(found)
    names, n = list(found.names), len(found.planes)
    unnamed = names == [f"channel_{i}" for i in range(n)]
    if channels is not None:
        names = [str(c) for c in channels]
        if len(names) != n:
            msg = f"{path}: {n} channels, but channels= names {len(names)}: {listing(names, limit=80)}."
            raise InputError(msg)
    elif unnamed and table is not None and len(table.intensity) == n:
        names = list(table.intensity)
    elif unnamed:
        there = f"; {table.source} names {len(table.intensity)} markers" if table else ""
        warnings.warn(
            f"{path}: its {n} channels have no names{there}. They are called channel_0, …; give channels=[…]",
            NimbusWarning,
            stacklevel=4,
        )
    if duplicates(names):
        msg = f"{path}: more than one channel named {listing(duplicates(names))}; pass channels=[…]."
        raise InputError(msg)
    field = FieldImage(files.name, path, tuple(names), found.planes, found.pixel_size)
    return field, [ImageStack(planes) for planes in (found.planes, *found.coarser)]


def _load_he(files: OrionFiles) -> tuple[FieldImage, list[RgbStack] | list[ImageStack]]:
    path = Path(str(files.he))
    found = scan(path, pyramid=True)
    n = 3 if found.rgb else len(found.planes)
    types = {np.dtype(plane.stored).name for plane in found.planes}
    if n != 3 or types != {"uint8"}:
        msg = (
            f"{path}: {n} channels of {listing(sorted(types))}; an H&E has 3 (red, green, blue) of uint8. "
            "Export it as 8-bit RGB."
        )
        raise InputError(msg)
    field = FieldImage(files.name, path, ("r", "g", "b"), found.planes, found.pixel_size)
    levels = (found.planes, *found.coarser)
    return field, [RgbStack(p[0]) for p in levels] if found.rgb else [ImageStack(p) for p in levels]


def _rasters(name: str, pieces: _Pieces, to: Mapping[str, Any], chunks: int) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, levels, channels in (
        (f"{name}_he", pieces.he, ("r", "g", "b")),
        (f"{name}_if", pieces.image, pieces.field.channels),
    ):
        if levels:
            arrays = [as_dask(level, chunks) for level in levels]
            out[key] = element_of_levels(arrays, channels=channels, transformations=to)
    if pieces.labels is not None:
        out[f"{name}_labels"] = element_of_levels([as_dask(pieces.labels, chunks)], transformations=to)
    return out


def _points(cells: OrionCells, to: Mapping[str, Any]) -> Any:
    frame = pd.DataFrame(cells.xy, columns=["x", "y"], index=cells.ids).sort_index()
    return PointsModel.parse(frame, coordinates={"x": "x", "y": "y"}, transformations=dict(to))


def _check_inside(cells: OrionCells, shape: tuple[int, int]) -> None:
    outside = ((cells.xy < 0) | (cells.xy > np.array(shape[::-1]))).any(axis=1)
    if outside.any():
        msg = (
            f"{cells.source}: {int(outside.sum())} of {len(cells.ids)} cells lie outside the image of "
            f"{shape[1]} x {shape[0]} px (x, y). Centroids are counted in px of the full resolution."
        )
        raise InputError(msg)


def _warn_of_missing(root: Path, found: Sequence[OrionFiles]) -> None:
    lost = {}
    for piece, what in _PIECES.items():
        without = [files.name for files in found if getattr(files, piece) is None]
        if without:
            lost[what] = without
    if lost:
        told = "; ".join(f"no {what} in {len(n)} ({listing(n)})" for what, n in lost.items())
        warnings.warn(f"{root}: of {len(found)} sections, {told}; left out", NimbusWarning, stacklevel=3)
