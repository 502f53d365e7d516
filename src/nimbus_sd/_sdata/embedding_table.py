"""The table of embeddings: activation per marker, the embedding beside it, and where both came from."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata.models import TableModel

from nimbus_sd._core.version import __version__
from nimbus_sd._sdata.centers import CenterSample, CenterSet
from nimbus_sd._sdata.embedding_run import Embedded
from nimbus_sd._sdata.identity import weights_digest
from nimbus_sd._sdata.table import INSTANCE, REGION
from nimbus_sd.arrays.cells import Cells
from nimbus_sd.engine.embedding.run import EmbedRunner

UNS = "nimbus_embedding"


def embedding_table(
    centers: CenterSet, which: slice, outcome: Embedded, runner: EmbedRunner, *, key: str
) -> ad.AnnData:
    """Build the annotating table of one object's samples.

    Parameters
    ----------
    centers
        Of the run.
    which
        The object's samples; at least one has cells.
    outcome
        Of the run.
    runner
        For the record.
    key
        Of ``obsm`` for the embedding.
    """
    pairs = zip(centers.samples[which], outcome.cells[which], strict=True)
    kept = [(s, c) for s, c in pairs if len(s)]
    samples, cells = [s for s, _ in kept], [c for _, c in kept]
    regions = [s.region for s in samples]
    obs = pd.concat([_observations(s, c) for s, c in kept])
    obs[REGION] = pd.Categorical(obs[REGION], categories=regions)
    card = runner.model.card
    table = ad.AnnData(
        X=_stacked(cells, "activation"),
        obs=obs,
        var=pd.DataFrame({"scale": outcome.scale}, index=list(card.markers)),
        obsm={
            key: _stacked(cells, "embedding"),
            "spatial": np.concatenate([s.positions() for s in samples]),
        },
        uns={UNS: _provenance(samples, outcome, runner, key)},
    )
    return TableModel.parse(table, region=regions, region_key=REGION, instance_key=INSTANCE)


def _observations(sample: CenterSample, cells: Cells) -> pd.DataFrame:
    obs = pd.DataFrame(
        {
            REGION: sample.region,
            INSTANCE: sample.ids.astype(np.int64),
            "border": cells.means["border"][:, 0] > 0,
        },
        index=[f"{sample.region}_{i}" for i in sample.ids],
    )
    if sample.count is not None:
        obs["area_px"] = sample.count.astype(np.int64)
    return obs


def _stacked(cells: list[Cells], name: str) -> np.ndarray:
    arrays = [c.means[name] for c in cells]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _provenance(
    samples: list[CenterSample], outcome: Embedded, runner: EmbedRunner, key: str
) -> dict[str, Any]:
    """Everything needed to repeat the run."""
    card = runner.model.card
    fitted = outcome.normalization
    measured = {} if outcome.difference is None else {"precision_difference": outcome.difference}
    return measured | {
        "version": __version__,
        "model": card.name,
        "architecture": json.dumps(dict(card.architecture)),
        "weights": weights_digest(runner.model.net),
        "weights_sha256": card.sha256,
        "licence": card.licence,
        "model_mpp": float("nan") if card.mpp is None else float(card.mpp),
        "mpp": {s.region: float("nan") if s.mpp is None else float(s.mpp) for s in samples},
        "images": {s.region: s.image_name for s in samples},
        "centers": {s.region: s.kind for s in samples},
        "coordinate_systems": {s.region: s.system for s in samples},
        "markers": np.array(card.markers),
        "scale": outcome.scale,
        "transform": card.transform,
        "crop": card.crop,
        "key_added": key,
        "precision": runner.config.precision,
        "device": ", ".join(runner.devices),
        "normalization": "" if fitted is None else json.dumps(fitted.to_dict()),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
