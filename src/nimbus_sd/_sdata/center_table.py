"""Tables that annotate cell centres: rows from the samples, and the record of where they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata.models import TableModel

from nimbus_sd._core.version import __version__
from nimbus_sd._sdata.centers import CenterSample, CenterSet
from nimbus_sd._sdata.table import INSTANCE, REGION
from nimbus_sd.arrays.cells import Cells


def with_cells(
    centers: CenterSet, cells: Sequence[Cells], which: slice
) -> tuple[list[CenterSample], list[Cells]]:
    """One object's samples that have cells, and these."""
    pairs = zip(centers.samples[which], cells[which], strict=True)
    kept = [(s, c) for s, c in pairs if len(s)]
    return [s for s, _ in kept], [c for _, c in kept]


def center_table(
    samples: Sequence[CenterSample],
    cells: Sequence[Cells],
    *,
    x: np.ndarray,
    var: pd.DataFrame,
    uns: Mapping[str, Any],
    obsm: Mapping[str, np.ndarray] | None = None,
    layers: Mapping[str, np.ndarray] | None = None,
) -> ad.AnnData:
    """Assemble one annotating table.

    Parameters
    ----------
    samples, cells
        In the same order, each with cells; the cells' means have ``border``.
    x, obsm, layers
        Rows of all samples, one after the other.
    var
        Indexed by marker.
    uns
        Key to scalars, strings, arrays and dicts of these.
    """
    regions = [s.region for s in samples]
    obs = pd.concat([_observations(s, c) for s, c in zip(samples, cells, strict=True)])
    obs[REGION] = pd.Categorical(obs[REGION], categories=regions)
    spatial = np.concatenate([s.positions() for s in samples])
    table = ad.AnnData(
        X=x,
        obs=obs,
        var=var,
        obsm={**(obsm or {}), "spatial": spatial},
        layers=dict(layers or {}),
        uns=dict(uns),
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


def stacked(cells: Sequence[Cells], name: str) -> np.ndarray:
    """A quantity of all samples' cells."""
    arrays = [c.means[name] for c in cells]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def record_of(samples: Sequence[CenterSample], *, mpp: float | None) -> dict[str, Any]:
    """What the record of every such run holds: version, date, and where each sample came from.

    Parameters
    ----------
    samples
        With cells.
    mpp
        Of the model; None where unknown.
    """
    return {
        "version": __version__,
        "model_mpp": float("nan") if mpp is None else float(mpp),
        "mpp": {s.region: float("nan") if s.mpp is None else float(s.mpp) for s in samples},
        "images": {s.region: s.image_name for s in samples},
        "centers": {s.region: s.kind for s in samples},
        "coordinate_systems": {s.region: s.system for s in samples},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
