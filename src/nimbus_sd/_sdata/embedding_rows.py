"""From a table of embeddings back to the centres, images and scales that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import TableModel

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata.centers import CenterSample, CenterSet
from nimbus_sd._sdata.embedding_run import centers_for
from nimbus_sd._sdata.embedding_table import UNS
from nimbus_sd._sdata.identity import weights_digest
from nimbus_sd._sdata.table import link_keys
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.models.embedding import EmbeddingModel


@dataclass(frozen=True)
class EmbeddingRows:
    """The cells of a table of embeddings.

    Attributes
    ----------
    table
        As it is in the object.
    centers
        One sample per region, with the table's cells only.
    where, at
        Per sample, rows of the table and where in the sample these cells are, int64 ``(n,)``.
    columns
        Where in the model's markers the table's variables are.
    normalization
        The scales that were used.
    """

    table: AnnData
    centers: CenterSet
    where: tuple[np.ndarray, ...]
    at: tuple[np.ndarray, ...]
    columns: np.ndarray
    normalization: Normalization


def read_rows(sdata: SpatialData, name: str, model: EmbeddingModel) -> EmbeddingRows:
    """Find everything that a table of embeddings was made from.

    Raises
    ------
    ElementNotFoundError
        If the table, or an element that it was made from, is not there.
    InputError
        If it is no table of embeddings, another model made it, or cells are gone.
    """
    if name not in sdata.tables:
        msg = f"no table {name!r} in the object; tables: {', '.join(map(repr, sdata.tables)) or 'none'}"
        raise ElementNotFoundError(msg)
    table = sdata.tables[name]
    record = table.uns.get(UNS)
    if not isinstance(record, Mapping) or TableModel.ATTRS_KEY not in table.uns:
        msg = f"table {name!r} was not written by nb.tl.embed (no uns[{UNS!r}]); run that first"
        raise InputError(msg)
    _check_model(name, record, model)
    columns = pd.Index(model.markers).get_indexer(table.var_names)
    if (columns < 0).any():
        unknown = list(table.var_names[columns < 0])
        msg = f"table {name!r}: {unknown} are no markers of model {model.name!r}; leave them out of the table"
        raise InputError(msg)
    region_key, instance_key = link_keys(table)
    region = table.obs[region_key].astype(str).to_numpy()
    instance = table.obs[instance_key].to_numpy(np.int64)
    found = _centers(sdata, record, list(pd.unique(region)), model)
    samples, where, at = [], [], []
    for sample in found.samples:
        rows = np.flatnonzero(region == sample.region)
        part, position = _only(sample, instance[rows], name)
        samples.append(part)
        where.append(rows)
        at.append(position)
    scale = tuple(float(s) for s in record["scale"])
    normalization = Normalization(model.markers, scale, model.card.quantile, "dataset", ())
    centers = CenterSet(tuple(samples), found.channels)
    return EmbeddingRows(table, centers, tuple(where), tuple(at), columns, normalization)


def _check_model(name: str, record: Mapping[str, Any], model: EmbeddingModel) -> None:
    card = model.card
    same = (
        record["weights"] == weights_digest(model.net)
        and list(record["markers"]) == list(card.markers)
        and (record["transform"], int(record["crop"])) == (card.transform, card.crop)
    )
    if not same:
        msg = (
            f"table {name!r} was made by model {record['model']!r}, with other weights or settings than "
            f"{model.name!r}; pass the model that made it, or run nb.tl.embed(..., overwrite=True) with this"
        )
        raise InputError(msg)


def _centers(
    sdata: SpatialData, record: Mapping[str, Any], regions: list[str], model: EmbeddingModel
) -> CenterSet:
    unknown = [r for r in regions if r not in record["images"]]
    if unknown:
        msg = f"the table has rows of regions {unknown}, which nb.tl.embed did not write; leave them out"
        raise InputError(msg)
    used = {str(record["coordinate_systems"][r]) for r in regions}
    return centers_for(
        model,
        {"": sdata},
        image={r: str(record["images"][r]) for r in regions},
        centers=None,
        coordinate_system=used.pop() if len(used) == 1 else None,
        mpp=None,
    )


def _only(sample: CenterSample, instance: np.ndarray, name: str) -> tuple[CenterSample, np.ndarray]:
    """The sample with these cells only, and where each of `instance` is in it."""
    position = pd.Index(sample.ids).get_indexer(instance)
    if (position < 0).any():
        gone = instance[position < 0]
        msg = (
            f"table {name!r}: {len(gone)} of {len(instance)} cells of region {sample.region!r} are not in "
            f"that element any more (the first: {gone[0]}); run nb.tl.embed(..., overwrite=True) again"
        )
        raise InputError(msg)
    kept = np.unique(position)
    part = replace(
        sample,
        ids=sample.ids[kept],
        centers=sample.centers[kept],
        count=None if sample.count is None else sample.count[kept],
    )
    return part, np.searchsorted(kept, position)
