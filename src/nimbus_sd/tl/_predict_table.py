"""What prediction leaves behind: the table, where it came from, and how both get into the object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.version import __version__
from nimbus_sd._sdata.maps import MapStore, persist_map, remember_maps
from nimbus_sd._sdata.persist import persist_table
from nimbus_sd._sdata.samples import SampleSet
from nimbus_sd._sdata.table import build_table
from nimbus_sd.arrays import Partials
from nimbus_sd.arrays.cell_context import CONTEXT_NAMES
from nimbus_sd.engine.head import apply_head
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.engine.predict import PredictConfig, Predictor


def read_context(table: AnnData, channels: Sequence[str]) -> np.ndarray:
    """Context of `channels` from a table that prediction wrote: float32 ``(k, len(CONTEXT_NAMES))``.

    Raises
    ------
    InputError
        If the table has none, or none for a channel.
    """
    record = table.uns.get("nimbus", {})
    if "context" not in record:
        msg = "context=: this table holds no context (uns['nimbus']['context']); pass one that predict wrote"
        raise InputError(msg)
    values, names = np.asarray(record["context"], np.float32), list(record["context_markers"])
    missing = [c for c in channels if c not in names]
    if missing or values.shape[1] != len(CONTEXT_NAMES):
        what = f"no context for {missing}" if missing else f"{values.shape[1]} values per marker"
        msg = f"context=: {what}; there is one of {len(CONTEXT_NAMES)} values for {', '.join(names)}"
        raise InputError(msg)
    return values[[names.index(c) for c in channels]]


def refine(
    predictor: Predictor,
    samples: SampleSet,
    partials: list[Partials],
    normalization: Normalization,
    context: np.ndarray | None,
) -> tuple[list[Partials], np.ndarray | None]:
    """Let the model's cell head, if it has one, make scores of mean probabilities."""
    if predictor.head is None:
        return partials, None
    areas = [
        p.count * (float(s.sample.mpp or np.nan) / predictor.card.mpp) ** 2
        for p, s in zip(partials, samples.samples, strict=True)
    ]
    return apply_head(
        predictor.head,
        partials,
        scale=normalization.scale_of(samples.channels),
        areas=areas,
        context=context,
    )


def table_of_scores(
    samples: SampleSet,
    partials: list[Partials],
    scores: list[np.ndarray],
    normalization: Normalization,
    provenance: dict[str, Any],
    config: PredictConfig,
    *,
    intensity: bool,
) -> Any:
    """Build the annotating table."""
    layers: dict[str, list[np.ndarray]] = {}
    filled = [p if p.ids.size else None for p in partials]
    if intensity:
        layers["integrated_expression"] = [
            p.sums["intensity"] / p.count[:, None] if p else np.empty(0) for p in filled
        ]
    if config.per_view:
        layers["score_std"] = [
            (p.sums["score_view"] / p.count[:, None, None]).std(axis=-1) if p else np.empty(0) for p in filled
        ]
    channels = samples.channels
    var = pd.DataFrame(
        {
            "scale": normalization.scale_of(channels),
            "n_saturated": np.array(normalization.column("n_saturated", channels), dtype=np.int64),
            "qc": normalization.column("flags", channels),
        },
        index=list(channels),
    )
    return build_table(
        samples.samples, partials, x=scores, layers=layers, var=var, uns={"nimbus": provenance}
    )


def provenance_of(
    predictor: Predictor, samples: SampleSet, normalization: Normalization, context: np.ndarray | None
) -> dict[str, Any]:
    """Everything needed to repeat the run."""
    card = predictor.card
    seen = {} if context is None else {"context": context, "context_markers": np.array(samples.channels)}
    return seen | {
        "version": __version__,
        "model": card.name,
        "weights_sha256": card.sha256,
        "licence": card.licence,
        "model_mpp": card.mpp,
        "mpp": {s.pair.labels: float(s.sample.mpp or np.nan) for s in samples.samples},
        "images": {s.pair.labels: s.pair.image for s in samples.samples},
        "coordinate_systems": {s.pair.labels: s.pair.system for s in samples.samples},
        "threshold": card.threshold,
        "views": np.array(predictor.config.views),
        "precision": predictor.precision,
        "device": str(predictor.device),
        "normalization": json.dumps(normalization.to_dict()),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit(
    sdata: SpatialData,
    table: str,
    into: str | None,
    result: Any,
    provenance: dict[str, Any],
    stores: dict[str, MapStore],
    *,
    write: bool,
) -> None:
    """Put results into the object, and persist them if asked to."""
    for name, store in stores.items():
        if name in sdata:
            del sdata[name]
        sdata[name] = store.element()
    if stores:
        remember_maps(sdata, list(stores))
    if into is None:
        if table in sdata.tables:
            del sdata[table]
        sdata[table] = result
    else:
        sdata[into].layers["nimbus"] = result
        sdata[into].uns["nimbus"] = provenance
    if write:
        for name in stores:
            persist_map(sdata, name)
        if stores:
            sdata.write_attrs()
        persist_table(sdata, into or table, overwrite=True)
