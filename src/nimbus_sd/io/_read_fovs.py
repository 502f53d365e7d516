"""Read folders of images and label images as one lazy SpatialData object."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import Identity, Scale

from nimbus_sd._core.errors import InputError
from nimbus_sd.io._discover import find_fields
from nimbus_sd.io._fields import FieldImage, check_arguments, field_mpp, load_field, same_channels
from nimbus_sd.io._labels import find_labels_folder, load_labels, match_labels
from nimbus_sd.io._names import element_names, listing
from nimbus_sd.io._pixels import ImageStack, LabelImage, as_dask


def read_fovs(
    path: str | PathLike[str],
    *,
    labels: str | PathLike[str] | None = None,
    mpp: float | None = None,
    channels: Sequence[str] | None = None,
    fovs: Sequence[str] | None = None,
    labels_pattern: str | None = None,
    chunks: int = 1024,
) -> SpatialData:
    """Read fields of view and their label images, lazily, as one SpatialData object.

    Only metadata is read; pixels are read when they are computed, each channel alone,
    and files are held open no longer than that.

    Parameters
    ----------
    path
        Folder with one folder per field that holds a single-channel TIFF per channel
        (named by the file), or one multi-channel TIFF per field (channels named by
        OME-XML or ImageJ's slice labels, else ``channel_0``, ``channel_1``, …). Several
        OME-TIFFs that refer to each other by UUID, with or without a
        ``.companion.ome`` file, are one field.
    labels
        Folder of label images, one integer TIFF per field, 0 for background (or
        24-bit RGB as QuPath writes it: R·65536 + G·256 + B). Looked for as given, then
        beside `path`; its ``deepcell_output`` if it has no TIFFs itself. None reads
        images only.
    mpp
        µm per px. None takes it from the OME metadata of every field.
    channels
        Channels to read, in this order. None takes all; every field must then have the same.
    fovs
        Fields to read, in this order. None takes all, in alphabetic order.
    labels_pattern
        Name of a field's label image without suffix, such as ``"{fov}_whole_cell"``
        (a ``/`` leads into folders). None tries ``{fov}_whole_cell``, then ``{fov}``,
        then the only file whose name holds the field's.
    chunks
        Side of the dask chunks in px, about: they follow the strips or tiles of compressed files.

    Returns
    -------
    Per field an image ``<fov>_image``, ``(c, y, x)``, and labels ``<fov>_labels``,
    ``(y, x)``, both in the file's data type and in two coordinate systems: ``<fov>``
    (px) and ``microns`` (µm; every field has its origin at 0 there).
    ``attrs["nimbus_sd"]["mpp"]`` holds `mpp` if it is the same for all fields.

    Raises
    ------
    InputError
        If a folder or file is missing, truncated or no TIFF; if channels, shapes or
        labels don't fit each other; if a label image is missing or ambiguous; if an
        image is RGB or a stack; if `mpp` is neither given nor known.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np, tifffile
    >>> import nimbus_sd as nb
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "image_data" / "fov1").mkdir(parents=True)
    >>> (root / "segmentation").mkdir()
    >>> tifffile.imwrite(root / "image_data" / "fov1" / "CD3.tiff", np.zeros((64, 48), "uint8"))
    >>> tifffile.imwrite(root / "image_data" / "fov1" / "CD8.tiff", np.ones((64, 48), "uint8"))
    >>> tifffile.imwrite(root / "segmentation" / "fov1_whole_cell.tiff", np.ones((64, 48), "uint32"))
    >>> sdata = nb.io.read_fovs(root / "image_data", labels="segmentation", mpp=0.5)
    >>> sdata["fov1_image"].shape, sdata["fov1_image"].c.values.tolist(), sdata["fov1_labels"].shape
    ((2, 64, 48), ['CD3', 'CD8'], (64, 48))
    """
    folder = Path(path)
    check_arguments(mpp=mpp, chunks=chunks, channels=channels, fovs=fovs)
    # If both folders are missing, the images' one is the first to complain about.
    labels_folder = (
        find_labels_folder(Path(labels), folder) if labels is not None and folder.is_dir() else None
    )
    found = find_fields(folder, skip=labels_folder)
    chosen = list(found) if fovs is None else list(fovs)
    unknown = [fov for fov in chosen if fov not in found]
    if unknown:
        msg = f"{folder}: no fields {listing(unknown)}; it has: {listing(found, limit=80)}."
        raise InputError(msg)
    names = element_names(chosen, what=str(folder))
    label_files = (
        match_labels(labels_folder, chosen, among=list(found), pattern=labels_pattern)
        if labels_folder
        else {}
    )
    fields = same_channels([load_field(found[fov], channels) for fov in chosen])
    sizes = {field.name: field_mpp(field, mpp) for field in fields}

    images: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    for field in fields:
        name = names[field.name]
        size = sizes[field.name]
        transformations = {name: Identity(), "microns": Scale([size, size], axes=("x", "y"))}
        images[f"{name}_image"] = Image2DModel.parse(
            as_dask(ImageStack(field.planes), chunks),
            dims=("c", "y", "x"),
            c_coords=list(field.channels),
            transformations=transformations,
        )
        if field.name in label_files:
            mask = _load_labels(label_files[field.name], field)
            masks[f"{name}_labels"] = Labels2DModel.parse(
                as_dask(mask, chunks), dims=("y", "x"), transformations=transformations
            )
    shared = set(sizes.values())
    attrs = {"nimbus_sd": {"mpp": shared.pop()} if len(shared) == 1 else {}}
    return SpatialData(images=images, labels=masks, attrs=attrs)


def _load_labels(file: Path, field: FieldImage) -> LabelImage:
    mask = load_labels(file)
    if mask.shape != field.planes[0].shape:
        msg = (
            f"{file}: labels of shape (y, x) {mask.shape}, but the image of field {field.name!r} "
            f"({field.source}) has {field.planes[0].shape}. "
            "Give the labels that were made from this image, at its resolution."
        )
        raise InputError(msg)
    return mask
