"""Read the crops of :func:`nimbus_sd.pl.cell_gallery`, and no pixel besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np
from spatialdata import SpatialData

from nimbus_sd._core.channels import select_channels
from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.resolve import ResolvedSample, resolve_pairs, resolve_sample
from nimbus_sd.arrays import Interval
from nimbus_sd.pl._cells import region_and_ids

_SIDES = (16, 256)
_MARGIN = 2.8  # sides of a crop, in diameters of the median cell


@dataclass(frozen=True)
class Crop:
    """A square around one cell.

    Attributes
    ----------
    pixels
        ``(c, side, side)`` raw intensity, 0 beyond the image.
    labels
        ``(side, side)`` ids.
    cell
        Id of the cell in the middle.
    mpp
        µm per px; None where unknown.
    """

    pixels: np.ndarray
    labels: np.ndarray
    cell: int
    mpp: float | None


def crop_side(adata: ad.AnnData, size: int | None) -> int:
    """Return px a side: `size`, else about three times the median cell's diameter.

    Raises
    ------
    InputError
        If it is out of range.
    """
    if size is not None:
        if not 8 <= size <= 1024:
            msg = f"size={size} px; valid: 8 to 1024"
            raise InputError(msg)
        return int(size)
    area = float(np.median(adata.obs["area_px"])) if "area_px" in adata.obs else 200.0
    return int(np.clip(np.ceil(_MARGIN * np.sqrt(area * 4 / np.pi)), *_SIDES)) // 2 * 2


def read_crops(
    sdata: SpatialData,
    adata: ad.AnnData,
    rows: np.ndarray,
    channels: Sequence[Sequence[str]],
    *,
    side: int,
    image: str | Mapping[str, str] | None,
) -> list[Crop]:
    """The crop of every row of the table, with the channels asked for it.

    Raises
    ------
    InputError
        If the table has no coordinates, or cells don't lie where it says.
    """
    if "spatial" not in adata.obsm:
        msg = "the table has no obsm['spatial'], which says where the cells are; nb.tl.predict writes it"
        raise InputError(msg)
    region, ids = region_and_ids(adata, where="the table")
    names = list(dict.fromkeys(region[rows]))
    samples = {name: _sample(sdata, name, image) for name in names}
    crops = [
        _read(samples[region[row]], np.asarray(adata.obsm["spatial"][row][:2]), int(ids[row]), wanted, side)
        for row, wanted in zip(rows, channels, strict=True)
    ]
    lost = [
        str(adata.obs_names[r]) for r, c in zip(rows, crops, strict=True) if not (c.labels == c.cell).any()
    ]
    if len(lost) > len(crops) / 2:
        msg = (
            f"{len(lost)} of {len(crops)} cells, {lost[0]!r} for one, are not where obsm['spatial'] says; "
            f"it must hold (x, y) in the coordinate system {samples[names[0]].pair.system!r}"
        )
        raise InputError(msg)
    return crops


def _sample(sdata: SpatialData, name: str, image: str | Mapping[str, str] | None) -> ResolvedSample:
    chosen = image.get(name) if isinstance(image, Mapping) else image
    return resolve_sample(sdata, resolve_pairs(sdata, labels=name, image=chosen)[0])


def _read(sample: ResolvedSample, position: np.ndarray, cell: int, wanted: Sequence[str], side: int) -> Crop:
    names, _ = select_channels(sample.native_image.channels, list(wanted), where=sample.pair.image)
    channels = [sample.native_image.channels.index(c) for c in names]
    x, y = (np.linalg.inv(sample.to_world) @ [*position, 1.0])[:2]
    height, width = sample.sample.labels.shape
    # NaN or far-off positions give an empty crop, which is counted as a lost cell
    rows, top = _span(y, side, height)
    columns, left = _span(x, side, width)
    pixels = np.zeros((len(channels), side, side), np.float32)
    labels = np.zeros((side, side), np.int64)
    if rows.size > 0 and columns.size > 0:
        inner = slice(top, top + rows.size), slice(left, left + columns.size)
        pixels[(slice(None), *inner)] = sample.sample.image.read(channels, rows, columns)
        labels[inner] = sample.sample.labels.read(rows, columns)
    return Crop(pixels, labels, cell, sample.sample.mpp)


def _span(middle: float, side: int, length: int) -> tuple[Interval, int]:
    """The part of the crop around `middle` that lies within the image, and where in the crop it starts."""
    if not np.isfinite(middle) or abs(middle) > 2**40:
        return Interval(0, 0), 0
    start = int(np.floor(middle - side / 2 + 0.5))
    first, last = min(max(start, 0), length), min(max(start + side, 0), length)
    return Interval(first, last), first - start
