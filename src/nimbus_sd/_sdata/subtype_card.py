"""What a trained sub-typing network says of itself: settings, cells, labels, figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from spatialdata import SpatialData

from nimbus_sd._sdata.cell_request import CellRequest
from nimbus_sd._sdata.labelled_sections import DRAWN, SAMPLED, SPLIT
from nimbus_sd._sdata.subtype_cells import DEFAULT_SPLIT, N_CELLS, CellSplit
from nimbus_sd.engine.subtyping.train_data import class_counts
from nimbus_sd.engine.subtyping.train_loop import SubtypeResult
from nimbus_sd.engine.subtyping.validate import KINDS, undefined
from nimbus_sd.engine.training.config_checks import plain
from nimbus_sd.models.subtyper import SubtypeCard, architecture_of


def card_of(
    result: SubtypeResult, found: CellSplit, *, labels: Mapping[str, Any], command: str
) -> SubtypeCard:
    """Build the card.

    Parameters
    ----------
    result
        Of the training.
    found
        Cells that it has seen.
    labels
        From :func:`labels_of`.
    command
        The call.
    """
    config, markers = result.config, found.markers
    regions = [s.region for s in found.train.samples]
    named = ", ".join(regions[:5]) + (", …" if len(regions) > 5 else "")
    n = len(found.train.targets)
    samples = (*found.train.samples, *found.validation.samples)
    return SubtypeCard(
        name=config.name,
        architecture=architecture_of(result.net),
        mpp=config.mpp,
        patch=config.patch,
        thresholds=dict.fromkeys(markers, config.threshold),
        hierarchy=dict(found.hierarchy),
        training={
            **config.to_dict(),
            "pretrained": result.origin,
            "precision": result.precision,
            "step": result.step,
            "finished": result.finished,
            "cells": counts_of(found),
            "labels": dict(labels),
            "mpp_of_images": sorted({round(s.mpp, 6) for s in samples if s.mpp is not None}),
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


def labels_of(objects: Mapping[str, SpatialData], request: CellRequest, found: CellSplit) -> dict[str, Any]:
    """Where labels come from, and how cells were divided and chosen, in JSON's types.

    ``n_cells`` and ``split`` that :func:`nimbus_sd.pp.sample_cells` wrote to the table are told as the
    columns that hold them, with what that recorded.
    """
    before = found.report is None
    record: dict[str, Any] = {
        "table": _table_name(objects, request),
        "layer": request.layer,
        "patient": request.patient,
        "section": request.section,
        "split": plain(request.split or DEFAULT_SPLIT),
        "n_cells": f"obs[{SAMPLED!r}]" if before else request.n_cells or N_CELLS,
    }
    if found.split_before:
        record["split"] = f"obs[{SPLIT!r}]"
    if found.drawn and (before or found.split_before):
        record[DRAWN] = {k: v.tolist() if hasattr(v, "tolist") else v for k, v in found.drawn.items()}
    return record


def _table_name(objects: Mapping[str, SpatialData], request: CellRequest) -> str:
    if isinstance(request.table, str):
        return request.table
    if request.table is not None:
        return "a table given to the call"
    names = [n for sdata in objects.values() for n, t in sdata.tables.items() if request.layer in t.layers]
    return ", ".join(dict.fromkeys(names))


def counts_of(found: CellSplit) -> dict[str, Any]:
    """Cells of each part, and by marker how many are positive and negative."""
    return {
        name: {"cells": len(part.targets), **class_counts(part.targets, found.markers)}
        for name, part in (("train", found.train), ("validation", found.validation))
    }


def metrics_of(result: SubtypeResult, found: CellSplit) -> dict[str, Any]:
    """Figures of the best validation; None with the reason where one is not defined."""

    def rounded(value: float) -> float | None:
        return None if np.isnan(value) else round(float(value), 5)

    if not result.metrics:
        return {}
    reasons = undefined(found.validation.targets, found.markers)
    markers = {
        m: {kind: rounded(result.metrics[f"{kind} {m}"]) for kind in KINDS}
        | ({"reason": reasons[m]} if m in reasons else {})
        for m in found.markers
    }
    means = {kind: rounded(result.metrics[kind]) for kind in ("loss", *KINDS)}
    return {"validation": {**means, "step": int(result.metrics["step"]), **markers}}
