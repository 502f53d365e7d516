"""What a store of training tiles will hold, settled before anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from spatialdata import SpatialData

from nimbus_sd._core.channels import NOT_MARKERS
from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.resolve import ResolvedSample
from nimbus_sd._sdata.samples import SampleSet, fit_over, resolve_samples
from nimbus_sd._sdata.tile_format import TileSettings
from nimbus_sd._sdata.tile_targets import (
    LabelledTable,
    find_table,
    labelled_markers,
    labelled_regions,
    region_targets,
)
from nimbus_sd.arrays import Tile
from nimbus_sd.arrays.rescale import scale_factor
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.engine.training.cut import (
    CellCount,
    count_cells,
    cut_places,
    fit_tile,
)
from nimbus_sd.engine.training.split import check_split, split_fields

DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class TileRequest:
    """What to write; see :func:`nimbus_sd.pp.training_tiles` for the meaning of each."""

    labels_layer: str = "silver"
    table: str | None = None
    image: str | Mapping[str, str] | None = None
    labels: str | Sequence[str] | None = None
    channels: str | Sequence[str] = "auto"
    extra: Sequence[str] = ()
    coordinate_system: str | None = None
    mpp: float | None = None
    model_mpp: float = 1.0
    normalization: Normalization | None = None
    quantile: float = 0.9999
    rule: str = "dataset"
    tile: int = 512
    overlap: int = 16
    dtype: str = "float16"
    split: Mapping[str, str] | Sequence[float] = (0.8, 0.1, 0.1)
    seed: int = 0
    dataset: str | None = None
    exclude: str = NOT_MARKERS
    overwrite: bool = False
    n_threads: int = 2
    progress: bool = True

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            msg = f"dtype={self.dtype!r}; valid: {', '.join(DTYPES)}"
            raise InputError(msg)
        if isinstance(self.extra, str) or len(set(self.extra)) < len(self.extra):
            msg = f"extra={self.extra!r} must be a sequence of channel names, each once, such as ('DAPI',)"
            raise InputError(msg)


@dataclass(frozen=True)
class StorePlan:
    """Everything that is known before the first tile is cut.

    Attributes
    ----------
    samples
        One per field.
    settings
        What decides the store's content.
    cells
        Labels of each field.
    targets
        int8 ``(all cells, markers)``: 1, 0, -1 undefined.
    places
        (number of the field, place) of every tile.
    """

    samples: tuple[ResolvedSample, ...]
    settings: TileSettings
    cells: tuple[CellCount, ...]
    targets: np.ndarray
    places: tuple[tuple[int, Tile], ...]


@dataclass(frozen=True)
class TileSurvey:
    """What elements and table tell, before a pixel is read.

    Attributes
    ----------
    found
        Table and layer of the labels.
    samples
        Fields.
    markers
        Those with labels.
    owners
        Labels element to its image, field by field.
    splits
        Labels element to the name of its split.
    factors
        Image px per model px, by field.
    side
        Of the tiles, model px.
    places
        Of every tile, by field.
    """

    found: LabelledTable
    samples: SampleSet
    markers: list[str]
    owners: Mapping[str, str]
    splits: Mapping[str, str]
    factors: list[float]
    side: int
    places: list[list[Tile]]


def survey_store(sdata: SpatialData, request: TileRequest) -> TileSurvey:
    """Find table, fields and markers, and divide them; pixels are left alone."""
    named = request.labels is not None or isinstance(request.image, Mapping)
    found = find_table(sdata, table=request.table, layer=request.labels_layer, regions=None)
    samples = _samples(sdata, request, request.labels if named else labelled_regions(found, sdata))
    regions = tuple(s.pair.labels for s in samples.samples)
    find_table(sdata, table=found.name, layer=found.layer, regions=regions)
    by_name = not isinstance(request.channels, str) or request.channels not in ("auto", "all")
    markers = labelled_markers(found, samples.channels, named=by_name)
    owners = {s.pair.labels: s.pair.image for s in samples.samples}
    given = request.split
    splits = (
        check_split(given, owners)
        if isinstance(given, Mapping)
        else split_fields(owners, shares=given, seed=request.seed)
    )
    shapes = [s.sample.labels.shape for s in samples.samples]
    factors = [scale_factor(float(s.sample.mpp or np.nan), request.model_mpp) for s in samples.samples]
    side = fit_tile(shapes, factors, request.tile)
    places = [
        cut_places(shape, factor=f, tile=side, overlap=request.overlap)
        for shape, f in zip(shapes, factors, strict=True)
    ]
    return TileSurvey(found, samples, markers, owners, splits, factors, side, places)


def plan_store(sdata: SpatialData, path: Path, request: TileRequest) -> StorePlan:
    survey = survey_store(sdata, request)
    found, samples, markers = survey.found, survey.samples, survey.markers
    regions = tuple(survey.owners)
    cells, targets = _targets(found, samples, markers)
    normalization = _normalization(samples, markers, request)
    scale, extra_scale = (
        tuple(map(float, normalization.scale_of(c))) for c in (markers, list(request.extra))
    )
    digest = hashlib.sha256(targets.tobytes())
    for c in cells:
        digest.update(c.ids.tobytes() + c.count.tobytes())
    settings = TileSettings(
        dataset=request.dataset or path.stem,
        labels_layer=found.layer,
        table=found.name,
        markers=tuple(markers),
        scale=scale,
        extra=tuple(request.extra),
        extra_scale=extra_scale,
        quantile=float(normalization.quantile),
        rule=normalization.rule,
        mpp=float(request.model_mpp),
        tile=survey.side,
        overlap=request.overlap,
        dtype=request.dtype,
        fields=regions,
        images=tuple(survey.owners.values()),
        factors=tuple(map(float, survey.factors)),
        places=tuple(map(len, survey.places)),
        cells=tuple(int(c.ids.size) for c in cells),
        splits=tuple(survey.splits[r] for r in regions),
        targets_sha256=digest.hexdigest(),
    )
    places = tuple((k, place) for k, each in enumerate(survey.places) for place in each)
    return StorePlan(samples.samples, settings, cells, targets, places)


def _samples(sdata: SpatialData, request: TileRequest, labels: str | Sequence[str] | None) -> SampleSet:
    samples = resolve_samples(
        sdata,
        image=request.image,
        labels=labels,
        channels=request.channels,
        coordinate_system=request.coordinate_system,
        mpp=request.mpp,
        exclude=request.exclude,
    )
    for s in samples.samples:
        missing = [c for c in request.extra if c not in s.native_image.channels]
        if missing:
            msg = f"extra= names {missing}, which image {s.native_image.name!r} does not have; " + (
                f"its channels: {', '.join(s.native_image.channels)}"
            )
            raise InputError(msg)
    return samples


def _targets(
    found: LabelledTable, samples: SampleSet, markers: Sequence[str]
) -> tuple[tuple[CellCount, ...], np.ndarray]:
    cells = tuple(count_cells(s.sample.labels) for s in samples.samples)
    targets = [
        region_targets(found, s.pair.labels, c, markers) for s, c in zip(samples.samples, cells, strict=True)
    ]
    every = np.concatenate(targets)
    if not (every >= 0).any():
        regions = [s.pair.labels for s in samples.samples]
        msg = (
            f"layer {found.layer!r} of table {found.name!r}: no cell of {regions} is "
            "labelled 1 or 0; label some, or choose other labels="
        )
        raise InputError(msg)
    return cells, every


def _normalization(samples: SampleSet, markers: Sequence[str], request: TileRequest) -> Normalization:
    wanted = tuple(dict.fromkeys([*markers, *request.extra]))
    if request.normalization is not None:
        request.normalization.scale_of(wanted)
        return request.normalization
    return fit_over(
        SampleSet(samples.samples, wanted),
        quantile=request.quantile,
        rule=request.rule,
        n_threads=request.n_threads,
        progress=request.progress,
    )
