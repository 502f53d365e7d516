"""From labelled cells of objects to a trained sub-typing network: cells, patches, model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata.cell_request import CellRequest
from nimbus_sd._sdata.cohort import as_cohort
from nimbus_sd._sdata.embedding_training import RUN, TRAINERS, check_cache
from nimbus_sd._sdata.he import HE_CHANNELS
from nimbus_sd._sdata.patch_run import digest
from nimbus_sd._sdata.subtype_card import card_of, labels_of
from nimbus_sd._sdata.subtype_cells import CellSplit, cells_for
from nimbus_sd._sdata.subtype_patches import PatchPlan, common_size, patches_for
from nimbus_sd._sdata.subtype_settings import check_data, check_network, check_out
from nimbus_sd.engine.device import resolve_device, resolve_precision
from nimbus_sd.engine.embedding.dataset import StreamSettings
from nimbus_sd.engine.embedding.supply import fingerprint
from nimbus_sd.engine.embedding.train_loop import check_stop
from nimbus_sd.engine.subtyping.train_config import SubtypeTrainConfig
from nimbus_sd.engine.subtyping.train_data import SubtypeData
from nimbus_sd.engine.subtyping.train_data import check_classes as data_classes
from nimbus_sd.engine.subtyping.train_loop import fit_subtyper
from nimbus_sd.engine.subtyping.validate import Validation
from nimbus_sd.models.subtyper import SubtypeModel, save_subtyper

FEWEST = 10  # cells of each class to train on


@dataclass(frozen=True)
class Training:
    """How :func:`nimbus_sd.tl.train_subtyper` was asked to train.

    Parameters
    ----------
    given_batch
        Whether the user chose the size of a step, so that it is not shrunk to the cells there are.
    """

    config: SubtypeTrainConfig
    given_batch: bool
    plan: PatchPlan
    out: Path | None
    command: str
    trainer: str
    device: str
    precision: str
    devices: int | str
    strategy: str
    stop_at: int | None


def train_subtyper(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    request: CellRequest,
    training: Training,
) -> SubtypeModel:
    """Choose cells, cut patches, train, save; see :func:`nimbus_sd.tl.train_subtyper`."""
    out, objects = training.out, as_cohort(sdata)
    found, config = choose(objects, request, training)
    data = gather(found, config, training.plan)
    options: dict[str, Any] = {
        "out": None if out is None else out / RUN,
        "device": training.device,
        "precision": training.precision,
        "stop_at": training.stop_at,
        "progress": training.plan.progress,
    }
    if training.trainer == "lightning":
        from nimbus_sd.engine.subtyping.train_lightning import fit_subtyper_lightning

        result = fit_subtyper_lightning(
            data, config, devices=training.devices, strategy=training.strategy, **options
        )
    else:
        result = fit_subtyper(data, config, **options)
    labels = labels_of(objects, request, found)
    model = SubtypeModel(result.net, card_of(result, found, labels=labels, command=training.command))
    return model if out is None or not result.main else save_subtyper(model, out)


def choose(
    objects: Mapping[str, SpatialData], request: CellRequest, training: Training
) -> tuple[CellSplit, SubtypeTrainConfig]:
    """Cells with their places and labels, and the configuration fitted to them; no pixel is read."""
    check_training(training)
    config = training.config
    found = cells_for(objects, request, patch=config.patch, mpp=config.mpp)
    check_classes(found)
    config = fit_batch(config, len(found.train.targets), given=training.given_batch)
    check_data(training.out, told_of(found, config))
    return found, config


def check_training(training: Training) -> None:
    """Raise for what can be told before any cell is chosen: wrong settings, backbone, weights or folder."""
    if training.trainer not in TRAINERS:
        msg = f"trainer={training.trainer!r}; valid: {', '.join(TRAINERS)}"
        raise InputError(msg)
    check_cache(training.plan.cache)
    check_stop(training.stop_at)
    StreamSettings(n_threads=training.plan.n_threads)
    resolve_precision(training.precision, resolve_device(training.device))
    if not check_out(training.out, training.config, given_batch=training.given_batch):
        check_network(training.config)


def check_classes(found: CellSplit) -> None:
    """Refuse markers with too few cells of a class to train on; warn of those that can't be judged.

    Raises
    ------
    InputError
        Naming markers, counts and sections.
    """
    where = f" in sections {', '.join(s.region for s in found.train.samples[:5])}"
    reasons = data_classes(
        found.train.targets, found.validation.targets, found.markers, fewest=FEWEST, where=where
    )
    if reasons:
        warnings.warn(
            "AUROC and balanced accuracy of some markers are not defined in validation, and training stops "
            f"by those of the others. {'; '.join(f'{m}: {why}' for m, why in reasons.items())}",
            NimbusWarning,
            stacklevel=5,
        )


def fit_batch(config: SubtypeTrainConfig, n: int, *, given: bool) -> SubtypeTrainConfig:
    """The configuration with steps that the cells fill; what was asked for is not changed."""
    if given or n >= config.effective_batch:
        return config
    batch = min(config.batch, n)
    accumulation = max(n // batch, 1)
    warnings.warn(
        f"{n} cells to train on are fewer than a step of {config.batch} x {config.accumulation} patches: it "
        f"is {batch} x {accumulation} instead. Train on more sections, or pass batch_size= and accumulation=",
        NimbusWarning,
        stacklevel=5,
    )
    return replace(config, batch=batch, accumulation=accumulation)


def gather(found: CellSplit, config: SubtypeTrainConfig, plan: PatchPlan) -> SubtypeData:
    """Patches and labels."""
    supply, judged = patches_for(found, config, plan)
    told = {"order": supply.order, **told_of(found, config)}
    return SubtypeData(
        supply, found.train.targets, found.markers, Validation(judged, found.validation.targets), told
    )


def told_of(found: CellSplit, config: SubtypeTrainConfig) -> dict[str, str | int]:
    """What identifies the cells, their labels, and what of the images is seen."""
    told: dict[str, str | int] = {"patch": common_size(found, config)}
    parts = {"train": found.train, "validation": found.validation}
    each = [0.0 if s.mpp is None else round(s.mpp, 6) for part in parts.values() for s in part.samples]
    told["mpp"] = digest(np.array(each))
    for name, part in parts.items():
        told[f"{name} cells and images"] = fingerprint(part.samples, HE_CHANNELS, np.ones(len(HE_CHANNELS)))
        told[f"{name} labels"] = digest(part.targets.astype("<f4"))
    return told
