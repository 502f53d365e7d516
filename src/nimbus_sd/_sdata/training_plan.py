"""What a training run would do, told from tables and metadata: nothing is cut, trained or written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.tile_plan import TileRequest, survey_store
from nimbus_sd._sdata.training import (
    RUN,
    TRAINERS,
    open_path,
    read_config,
    split,
    start_from,
    tile_request,
)
from nimbus_sd._sdata.truth import matrix
from nimbus_sd._sdata.writable import check_model_folder
from nimbus_sd.engine.device import resolve_device, resolve_precision
from nimbus_sd.engine.training.config import TrainConfig
from nimbus_sd.engine.training.export import check_card
from nimbus_sd.engine.training.loop import LAST, last_step
from nimbus_sd.engine.training.sources import SplitSource, TileSource
from nimbus_sd.engine.training.state import check_checkpoint, steps_done
from nimbus_sd.models.card import ModelCard

# settled when tiles are there
_FITTED = ("architecture", "crop")


@dataclass(frozen=True)
class TrainingData:
    """What there is to learn from.

    Attributes
    ----------
    markers
        With labels.
    fields
        Number of fields of each split.
    n_tiles
        Tiles of one marker each; of an object the most there can be.
    n_cells
        Cells with a label; None for tiles, which are not opened one by one.
    """

    markers: tuple[str, ...]
    fields: Mapping[str, int]
    n_tiles: int
    n_cells: int | None


@dataclass(frozen=True)
class TrainingPlan:
    """What a run would do.

    Attributes
    ----------
    name
        Of the model.
    parent
        Name of the model that it starts from; empty for none.
    data
        What it learns from.
    step, end, steps
        Steps done before, where this call stops, and of the whole run.
    batch
        Tiles per step.
    device, precision
        Where it would run, and how.
    """

    name: str
    parent: str
    data: TrainingData
    step: int
    end: int
    steps: int
    batch: int
    device: str
    precision: str


def plan_training(
    data: SpatialData | Path,
    out: Path,
    *,
    config: str | Path | TrainConfig,
    model: str | Path | Mapping[str, Any] | None,
    labels_layer: str,
    table: str | None,
    mpp: float | None,
    validation: TileSource | None = None,
    name: str | None = None,
    near: bool = False,
    trainer: str = "plain",
    device: str = "auto",
    precision: str = "auto",
    stop_at: int | None = None,
) -> TrainingPlan:
    """Check what :func:`~nimbus_sd._sdata.training.run_training` would be given, and say what it would do.

    Raises
    ------
    InputError, ElementNotFoundError, WeightsError
        As that would, where it can be told without pixels.
    """
    if trainer not in TRAINERS:
        msg = f"trainer={trainer!r}; valid: {', '.join(TRAINERS)}"
        raise InputError(msg)
    check_model_folder(out)
    where = resolve_device(device)
    settings, start = start_from(read_config(config), model)
    parent = None if start is None else start.card
    if parent is not None and near:
        settings = replace(settings, name=name or f"{parent.name}-finetuned")
    card = parent or ModelCard(name=settings.name)
    if isinstance(data, SpatialData):
        request = tile_request(data, card, labels_layer=labels_layer, table=table, mpp=mpp, all_fields=near)
        found = _of_object(data, request)
    else:
        found = _of_tiles(open_path(data), parent, validation)
    if out.exists() and not out.is_dir():
        msg = f"out={str(out)!r} is a file; give a folder"
        raise InputError(msg)
    last, known = out / RUN / LAST, settings.to_dict()
    if last.exists():
        check_checkpoint(last, config={k: v for k, v in known.items() if k not in _FITTED})
    return TrainingPlan(
        name=settings.name,
        parent="" if parent is None else parent.name,
        data=found,
        step=steps_done(last),
        end=last_step(settings, stop_at),
        steps=settings.total_steps,
        batch=settings.batch,
        device=str(where),
        precision=resolve_precision(precision, where),
    )


def _of_object(sdata: SpatialData, request: TileRequest) -> TrainingData:
    survey = survey_store(sdata, request)
    table, (region_key, _) = survey.found.table, survey.found.keys
    rows = table.obs[region_key].astype(str).isin(survey.owners).to_numpy()
    columns = table.var_names.get_indexer(survey.markers)
    labelled = ~np.isnan(matrix(table, survey.found.layer)[np.ix_(rows, columns)]).all(axis=1)
    if not labelled.any():
        msg = (
            f"layer {survey.found.layer!r} of table {survey.found.name!r}: no cell of {list(survey.owners)} "
            "is labelled 1 or 0; label some"
        )
        raise InputError(msg)
    return TrainingData(
        tuple(survey.markers),
        dict(Counter(survey.splits.values())),
        sum(map(len, survey.places)) * len(survey.markers),
        int(labelled.sum()),
    )


def _of_tiles(source: TileSource, parent: ModelCard | None, validation: TileSource | None) -> TrainingData:
    train, _ = split(source, validation)
    if parent is not None and (differ := check_card(parent, train.preprocessing)):
        msg = f"the tiles don't fit model {parent.name!r} ({'; '.join(differ)}); make them with its settings"
        raise InputError(msg)
    divided = source.splits if isinstance(source, SplitSource) else {}
    fields = dict(Counter(divided.values())) or {"train": len(source.fields)}
    if validation is not None:
        fields["validation"] = len(validation.fields)
    return TrainingData(tuple(dict.fromkeys(m for _, m in source.groups)), fields, len(train), None)
