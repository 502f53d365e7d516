"""From labelled cells of objects to a trained sub-typing network: cells, patches, model."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._core.hierarchy import HIERARCHY, contracted
from nimbus_sd._sdata.cell_request import CellRequest
from nimbus_sd._sdata.cohort import as_cohort
from nimbus_sd._sdata.embedding_training import RUN, TRAINERS, check_cache
from nimbus_sd._sdata.he import HE_CHANNELS
from nimbus_sd._sdata.subtype_cells import CellSplit, cells_for
from nimbus_sd._sdata.subtype_patches import PatchPlan, patches_for
from nimbus_sd._sdata.subtype_settings import check_data, check_network, check_out
from nimbus_sd.engine.embedding.supply import fingerprint
from nimbus_sd.engine.embedding.train_loop import check_stop
from nimbus_sd.engine.subtyping.train_config import SubtypeTrainConfig
from nimbus_sd.engine.subtyping.train_data import SubtypeData
from nimbus_sd.engine.subtyping.train_loop import SubtypeResult, fit_subtyper
from nimbus_sd.engine.subtyping.validate import KINDS, Validation
from nimbus_sd.models.subtyper import SubtypeCard, SubtypeModel, architecture_of, save_subtyper

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
    check_training(training)
    config, out = training.config, training.out
    found = cells_for(as_cohort(sdata), request, patch=config.patch, mpp=config.mpp)
    check_classes(found)
    config = fit_batch(config, len(found.train.targets), given=training.given_batch)
    check_data(out, told_of(found))
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
    model = SubtypeModel(result.net, card_of(result, found, command=training.command))
    return model if out is None or not result.main else save_subtyper(model, out)


def check_training(training: Training) -> None:
    """Raise for what can be told before any cell is chosen: wrong settings, backbone, weights or folder."""
    if training.trainer not in TRAINERS:
        msg = f"trainer={training.trainer!r}; valid: {', '.join(TRAINERS)}"
        raise InputError(msg)
    check_cache(training.plan.cache)
    check_stop(training.stop_at)
    if not check_out(training.out, training.config, given_batch=training.given_batch):
        check_network(training.config)


def check_classes(found: CellSplit) -> None:
    """Refuse markers with too few cells of a class to train on; warn of those that can't be judged.

    Raises
    ------
    InputError
        Naming markers, counts and sections.
    """
    sections = ", ".join(s.region for s in found.train.samples[:5])
    few = []
    for marker, column in zip(found.markers, found.train.targets.T, strict=True):
        counts = {"positive": int((column == 1).sum()), "negative": int((column == 0).sum())}
        if min(counts.values()) < FEWEST:
            few.append(f"{marker} ({', '.join(f'{v} {k}' for k, v in counts.items())})")
    if few:
        msg = (
            f"too few cells to train on for {', '.join(few)} in sections {sections}; at least {FEWEST} of "
            "each class are needed. Check their gates, add sections, or leave these markers out with markers="
        )
        raise InputError(msg)
    reasons = Validation(np.empty(0), found.validation.targets).reasons(found.markers)  # type: ignore[arg-type]
    told = "; ".join(f"{m}: {why}" for m, why in reasons.items())
    if len(reasons) == len(found.markers):
        msg = f"no marker can be validated ({told}), so training would not know when to stop; see split="
        raise InputError(msg)
    if reasons:
        warnings.warn(
            "AUROC and balanced accuracy of some markers are not defined in validation, and training stops "
            f"by those of the others. {told}",
            NimbusWarning,
            stacklevel=4,
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
        stacklevel=4,
    )
    return replace(config, batch=batch, accumulation=accumulation)


def gather(found: CellSplit, config: SubtypeTrainConfig, plan: PatchPlan) -> SubtypeData:
    """Patches and labels."""
    supply, judged = patches_for(found, config, plan)
    told = {"order": supply.order, **told_of(found)}
    return SubtypeData(
        supply, found.train.targets, found.markers, Validation(judged, found.validation.targets), told
    )


def told_of(found: CellSplit) -> dict[str, str | int]:
    """What identifies the cells and their labels."""
    told: dict[str, str | int] = {}
    for name, part in (("train", found.train), ("validation", found.validation)):
        told[name] = fingerprint(part.samples, HE_CHANNELS, np.ones(len(HE_CHANNELS)))
        told[f"{name} labels"] = _digest(part.targets)
    return told


def _digest(targets: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(targets, "<f4").tobytes()).hexdigest()[:16]


def card_of(result: SubtypeResult, found: CellSplit, *, command: str) -> SubtypeCard:
    """What the model says of itself."""
    config, markers = result.config, found.markers
    regions = [s.region for s in found.train.samples]
    named = ", ".join(regions[:5]) + (", …" if len(regions) > 5 else "")
    n = len(found.train.targets)
    return SubtypeCard(
        name=config.name,
        architecture=architecture_of(result.net),
        mpp=config.mpp,
        patch=config.patch,
        thresholds=dict.fromkeys(markers, config.threshold),
        hierarchy=contracted(HIERARCHY, markers),
        training={
            **config.to_dict(),
            "pretrained": result.origin,
            "precision": result.precision,
            "step": result.step,
            "finished": result.finished,
            "cells": counts_of(found),
            "patients": {k: list(v) for k, v in found.patients.items()},
            "validation": "another place of the same patient" if found.by_place else "other patients",
        },
        metrics=metrics_of(result, found),
        training_data=f"{n} cells of {len(regions)} sections ({named}), labels from immunofluorescence.",
        command=command,
        limits=(
            "Knows the tissue, the stains and the scanner of its training data; cells that gates left "
            "undefined were not learnt. For research."
        ),
    )


def counts_of(found: CellSplit) -> dict[str, Any]:
    """Cells of each part, and by marker how many are positive and negative."""
    out: dict[str, Any] = {}
    for name, part in (("train", found.train), ("validation", found.validation)):
        each = {
            m: {"positive": int((c == 1).sum()), "negative": int((c == 0).sum())}
            for m, c in zip(found.markers, part.targets.T, strict=True)
        }
        out[name] = {"cells": len(part.targets), **each}
    return out


def metrics_of(result: SubtypeResult, found: CellSplit) -> dict[str, Any]:
    """Figures of the best validation; None with the reason where one is not defined."""

    def plain(value: float) -> float | None:
        return None if np.isnan(value) else round(float(value), 5)

    if not result.metrics:
        return {}
    reasons = Validation(np.empty(0), found.validation.targets).reasons(found.markers)  # type: ignore[arg-type]
    markers = {
        m: {kind: plain(result.metrics[f"{kind} {m}"]) for kind in KINDS}
        | ({"reason": reasons[m]} if m in reasons else {})
        for m in found.markers
    }
    means = {kind: plain(result.metrics[kind]) for kind in ("loss", *KINDS)}
    return {"validation": {**means, "step": int(result.metrics["step"]), **markers}}
