"""The table of embeddings: activation per marker, the embedding beside it, and where both came from."""

from __future__ import annotations

import json
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._sdata.center_table import center_table, record_of, stacked, with_cells
from nimbus_sd._sdata.centers import CenterSample, CenterSet
from nimbus_sd._sdata.embedding_run import Embedded
from nimbus_sd._sdata.identity import weights_digest
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
    samples, cells = with_cells(centers, outcome.cells, which)
    return center_table(
        samples,
        cells,
        x=stacked(cells, "activation"),
        var=pd.DataFrame({"scale": outcome.scale}, index=list(runner.model.markers)),
        obsm={key: stacked(cells, "embedding")},
        uns={UNS: _provenance(samples, outcome, runner, key)},
    )


def _provenance(
    samples: list[CenterSample], outcome: Embedded, runner: EmbedRunner, key: str
) -> dict[str, Any]:
    """Everything needed to repeat the run."""
    card = runner.model.card
    fitted = outcome.normalization
    measured = {} if outcome.difference is None else {"precision_difference": outcome.difference}
    return (
        record_of(samples, mpp=card.mpp)
        | measured
        | {
            "model": card.name,
            "architecture": json.dumps(dict(card.architecture)),
            "weights": weights_digest(runner.model.net),
            "weights_sha256": card.sha256,
            "licence": card.licence,
            "markers": np.array(card.markers),
            "scale": outcome.scale,
            "transform": card.transform,
            "crop": card.crop,
            "key_added": key,
            "precision": runner.config.precision,
            "device": ", ".join(runner.devices),
            "normalization": "" if fitted is None else json.dumps(fitted.to_dict()),
        }
    )
