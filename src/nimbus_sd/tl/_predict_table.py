"""What prediction leaves behind: the table, where it came from, and how both get into the object."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.version import __version__
from nimbus_sd._sdata.destination import Destination
from nimbus_sd._sdata.maps import remember_map
from nimbus_sd._sdata.persist import persist_map, persist_table
from nimbus_sd._sdata.run import Outcome
from nimbus_sd._sdata.samples import SampleSet
from nimbus_sd._sdata.shallow import shallow_with
from nimbus_sd._sdata.table import build_table
from nimbus_sd.arrays.cell_context import CONTEXT_NAMES
from nimbus_sd.arrays.cells import Cells
from nimbus_sd.engine.head import apply_head
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.engine.run import Runner
from nimbus_sd.engine.settings import PredictConfig
from nimbus_sd.models.loading import LoadedModel


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
    model: LoadedModel,
    samples: SampleSet,
    cells: list[Cells],
    normalization: Normalization,
    context: np.ndarray | None,
) -> tuple[list[Cells], np.ndarray | None]:
    """Let the model's cell head, if it has one, make scores of mean probabilities."""
    if model.head is None:
        return cells, None
    areas = [
        c.count * (float(s.sample.mpp or np.nan) / model.card.mpp) ** 2
        for c, s in zip(cells, samples.samples, strict=True)
    ]
    scale = normalization.scale_of(samples.channels)
    return apply_head(model.head, cells, scale=scale, areas=areas, context=context)


def table_of_scores(
    samples: SampleSet,
    cells: list[Cells],
    scores: list[np.ndarray],
    normalization: Normalization,
    provenance: dict[str, Any],
    config: PredictConfig,
    *,
    intensity: bool,
) -> Any:
    """Build the annotating table."""
    layers: dict[str, list[np.ndarray]] = {}
    empty = np.empty((0, 0))
    if intensity:
        layers["integrated_expression"] = [c.means.get("intensity", empty) for c in cells]
    if config.per_view:
        layers["score_std"] = [c.means["score_view"].std(axis=-1) if len(c) else empty for c in cells]
    channels = samples.channels
    var = pd.DataFrame(
        {
            "scale": normalization.scale_of(channels),
            "n_saturated": np.array(normalization.column("n_saturated", channels), dtype=np.int64),
            "qc": normalization.column("flags", channels),
        },
        index=list(channels),
    )
    return build_table(samples.samples, cells, x=scores, layers=layers, var=var, uns={"nimbus": provenance})


def provenance_of(
    runner: Runner, samples: SampleSet, outcome: Outcome, context: np.ndarray | None
) -> dict[str, Any]:
    """Everything needed to repeat the run."""
    card = runner.model.card
    measured = {} if outcome.difference is None else {"precision_difference": outcome.difference}
    seen = {} if context is None else {"context": context, "context_markers": np.array(samples.channels)}
    return (
        seen
        | measured
        | {
            "version": __version__,
            "model": card.name,
            "weights_sha256": card.sha256,
            "licence": card.licence,
            "model_mpp": card.mpp,
            "mpp": {s.pair.labels: float(s.sample.mpp or np.nan) for s in samples.samples},
            "images": {s.pair.labels: s.pair.image for s in samples.samples},
            "coordinate_systems": {s.pair.labels: s.pair.system for s in samples.samples},
            "threshold": card.threshold,
            "views": np.array(runner.config.views),
            "precision": runner.precision,
            "device": ", ".join(runner.devices),
            "normalization": json.dumps(outcome.normalization.to_dict()),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )


def commit(
    sdata: SpatialData,
    table: str,
    into: str | None,
    result: Any,
    provenance: dict[str, Any],
    maps: dict[str, Any],
    *,
    write: bool,
) -> None:
    """Put results into the object, and persist them if asked to: the maps one by one, then the table.

    With `write` each goes to the store before it gets into the object. On an error both are
    as they were before, save for maps that had got into the store already: these are whole,
    and in the object too.
    """
    for name, element in maps.items():
        kept = persist_map(sdata, name, element) if write else element
        _replace(sdata, name, kept)
        remember_map(sdata, name)
    if into is None:
        if write:
            persist_table(sdata, table, overwrite=True, table=result)
        _replace(sdata, table, result)
        return
    old = sdata.tables[into]
    if write:
        changed = {"layers": {**old.layers, "nimbus": result}, "uns": {**old.uns, "nimbus": provenance}}
        persist_table(sdata, into, overwrite=True, table=shallow_with(old, **changed))
    old.layers["nimbus"] = result
    old.uns["nimbus"] = provenance


def keep(
    target: Destination,
    table: str,
    into: str | None,
    result: Any,
    provenance: dict[str, Any],
    maps: Mapping[str, Any],
) -> None:
    """Put results into an object, and into the store they are for, see :func:`commit`."""
    kept = dict(maps)
    if target.place is not None:
        there = target.opened()
        with warnings.catch_warnings():
            # what the table annotates is in the other store
            warnings.filterwarnings("ignore", message=".*annotat", category=UserWarning)
            commit(there, table, None, result, provenance, kept, write=True)
        kept = {name: there.images[name] for name in kept}
    commit(target.sdata, table, into, result, provenance, kept, write=target.own)


def _replace(sdata: SpatialData, name: str, element: Any) -> None:
    if name in sdata:
        del sdata[name]
    sdata[name] = element
