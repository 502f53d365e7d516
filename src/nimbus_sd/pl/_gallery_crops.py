"""Read the crops of :func:`nimbus_sd.pl.cell_gallery`, and no pixel besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np
from spatialdata import SpatialData

from nimbus_sd._core.channels import select_channels
from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.centers import resolve_centers
from nimbus_sd._sdata.resolve import resolve_pairs, resolve_sample
from nimbus_sd.arrays import Interval
from nimbus_sd.engine.source import ImageSource, LabelSource
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
        ``(side, side)`` ids; None of cells that are points or shapes.
    cell
        Id of the cell in the middle.
    mpp
        µm per px; None where unknown.
    lost
        Whether the cell is not where the table says.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    cell: int
    mpp: float | None
    lost: bool


def crop_side(adata: ad.AnnData, size: int | None) -> int:
    """Return px a side: `size`, else about three times the median cell's diameter.

    A table of embeddings without areas gives twice what the network sees.

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
    record = adata.uns.get("nimbus_embedding", {})
    if "area_px" not in adata.obs and "crop" in record:
        return int(np.clip(2 * int(record["crop"]), *_SIDES))
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
    samples = {name: _sample(sdata, name, image, _Record.of(adata, name)) for name in names}
    crops = [
        _read(samples[region[row]], np.asarray(adata.obsm["spatial"][row][:2]), int(ids[row]), wanted, side)
        for row, wanted in zip(rows, channels, strict=True)
    ]
    lost = [str(adata.obs_names[r]) for r, c in zip(rows, crops, strict=True) if c.lost]
    if len(lost) > len(crops) / 2:
        msg = (
            f"{len(lost)} of {len(crops)} cells, {lost[0]!r} for one, are not where obsm['spatial'] says; "
            f"it must hold (x, y) in the coordinate system {samples[names[0]].system!r}"
        )
        raise InputError(msg)
    return crops


@dataclass(frozen=True)
class _Place:
    """What the cells of one region are cut from; without labels where they are points or shapes."""

    image: ImageSource
    image_name: str
    channels: Sequence[str]
    labels: LabelSource | None
    to_world: np.ndarray
    system: str
    mpp: float | None


@dataclass(frozen=True)
class _Record:
    """What a table says that a region was computed with; None where it says nothing."""

    image: str | None
    system: str | None

    @classmethod
    def of(cls, adata: ad.AnnData, region: str) -> _Record:
        embedding, scores = (adata.uns.get(key, {}) for key in ("nimbus_embedding", "nimbus"))
        # an embedding's table was made with its positions; scores may have joined any table
        systems = embedding.get("coordinate_systems") or scores.get("coordinate_systems") or {}
        return cls(embedding.get("images", {}).get(region), systems.get(region))


def _sample(
    sdata: SpatialData, name: str, image: str | Mapping[str, str] | None, recorded: _Record
) -> _Place:
    chosen = image.get(name) if isinstance(image, Mapping) else image
    if chosen is None and recorded.image in sdata.images:
        chosen = recorded.image
    if name in sdata.labels or not (name in sdata.points or name in sdata.shapes):
        pairs = resolve_pairs(sdata, labels=name, image=chosen, coordinate_system=recorded.system)
        found = resolve_sample(sdata, pairs[0])
        return _Place(
            found.sample.image, found.pair.image, found.native_image.channels, found.sample.labels,
            found.to_world, found.pair.system, found.sample.mpp,
        )  # fmt: skip
    center = resolve_centers(
        sdata, centers=name, image=chosen, channels="all", coordinate_system=recorded.system
    ).samples[0]
    return _Place(
        center.image, center.image_name, center.image.channels, None, center.to_world, center.system,
        center.mpp,
    )  # fmt: skip


def _read(place: _Place, position: np.ndarray, cell: int, wanted: Sequence[str], side: int) -> Crop:
    names, _ = select_channels(place.channels, list(wanted), where=place.image_name)
    channels = [place.channels.index(c) for c in names]
    x, y = (np.linalg.inv(place.to_world) @ [*position, 1.0])[:2]
    height, width = place.image.shape
    # NaN or far-off positions give an empty crop, which is counted as a lost cell
    rows, top = _span(y, side, height)
    columns, left = _span(x, side, width)
    pixels = np.zeros((len(channels), side, side), np.float32)
    labels = np.zeros((side, side), np.int64)
    if rows.size > 0 and columns.size > 0:
        inner = slice(top, top + rows.size), slice(left, left + columns.size)
        pixels[(slice(None), *inner)] = place.image.read(channels, rows, columns)
        if place.labels is not None:
            labels[inner] = place.labels.read(rows, columns)
    if place.labels is None:
        return Crop(pixels, None, cell, place.mpp, not (0 <= y < height and 0 <= x < width))
    return Crop(pixels, labels, cell, place.mpp, not (labels == cell).any())


def _span(middle: float, side: int, length: int) -> tuple[Interval, int]:
    """The part of the crop around `middle` that lies within the image, and where in the crop it starts."""
    if not np.isfinite(middle) or abs(middle) > 2**40:
        return Interval(0, 0), 0
    start = int(np.floor(middle - side / 2 + 0.5))
    first, last = min(max(start, 0), length), min(max(start + side, 0), length)
    return Interval(first, last), first - start
