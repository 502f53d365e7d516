"""The table contract: build the annotating table, or join scores onto one that exists."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata import SpatialData
from spatialdata.models import TableModel

from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd._sdata.resolve import ResolvedSample
from nimbus_sd.arrays.cells import Cells

REGION, INSTANCE = "region", "instance_id"


def world_positions(cells: Cells, sample: ResolvedSample) -> np.ndarray:
    """Centroids (x, y) in the sample's coordinate system, float64 ``(n, 2)``."""
    y, x = (cells.means["position"] + 0.5).T
    return (sample.to_world @ np.stack([x, y, np.ones_like(x)]))[:2].T


def observations(cells: Cells, sample: ResolvedSample) -> pd.DataFrame:
    """``obs`` of one sample: region, instance id, area, number of tiles."""
    region = sample.pair.labels
    obs = pd.DataFrame(
        {
            REGION: region,
            INSTANCE: cells.ids.astype(np.int64),
            "area_px": cells.count.astype(np.int64),
        },
        index=[f"{region}_{i}" for i in cells.ids],
    )
    if sample.sample.mpp is not None:
        obs["area_um2"] = cells.count * sample.sample.mpp**2
    if "n_tiles" in cells.means:
        obs["n_tiles"] = cells.means["n_tiles"][:, 0].astype(np.int64)
    return obs


def empty_labels(regions: Sequence[str], cells: Sequence[Cells]) -> list[str]:
    """Names of the labels without a labelled pixel.

    Raises
    ------
    InputError
        If that is all of them.
    """
    empty = [name for name, p in zip(regions, cells, strict=True) if not len(p)]
    if len(empty) == len(cells):
        msg = f"labels {', '.join(map(repr, empty))}: no labelled pixel; check the segmentation"
        raise InputError(msg)
    return empty


def build_table(
    samples: Sequence[ResolvedSample],
    cells: Sequence[Cells],
    *,
    x: Sequence[np.ndarray],
    layers: Mapping[str, Sequence[np.ndarray]],
    var: pd.DataFrame,
    uns: Mapping[str, Any],
) -> ad.AnnData:
    """Assemble one annotating table from the cells of every sample.

    Parameters
    ----------
    samples, cells
        In the same order.
    x
        Per sample, ``(n, k)``.
    layers
        Name to one ``(n, k)`` array per sample.
    var
        Indexed by marker.
    uns
        Key to scalars, strings, arrays and dicts of these.

    Raises
    ------
    InputError
        If no sample has a labelled pixel.
    """
    empty = empty_labels([s.pair.labels for s in samples], cells)
    if empty:
        warnings.warn(
            f"no labelled pixel in {', '.join(empty)}: no rows for them", NimbusWarning, stacklevel=3
        )
    kept = [i for i, c in enumerate(cells) if len(c)]
    regions = [samples[i].pair.labels for i in kept]
    obs = pd.concat([observations(cells[i], samples[i]) for i in kept])
    obs[REGION] = pd.Categorical(obs[REGION], categories=regions)
    table = ad.AnnData(
        X=_stack([x[i] for i in kept]),
        obs=obs,
        var=var,
        layers={name: _stack([each[i] for i in kept]) for name, each in layers.items()},
        obsm={"spatial": np.concatenate([world_positions(cells[i], samples[i]) for i in kept])},
        uns=dict(uns),
    )
    return TableModel.parse(table, region=regions, region_key=REGION, instance_key=INSTANCE)


def _stack(arrays: list[np.ndarray]) -> np.ndarray:
    """One float32 array of the samples' rows; not copied where there is one sample."""
    whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return whole.astype(np.float32, copy=False)


def link_keys(table: ad.AnnData, *, where: str = "the table") -> tuple[str, str]:
    """Columns of ``obs`` with the region and the instance id of each row.

    Raises
    ------
    InputError
        If the table annotates nothing.
    """
    attrs = table.uns.get(TableModel.ATTRS_KEY)
    if attrs is None:
        msg = f"{where} annotates nothing; nb.tl.predict and TableModel.parse make tables that do"
        raise InputError(msg)
    return attrs[TableModel.REGION_KEY_KEY], attrs[TableModel.INSTANCE_KEY]


def named_table(sdata: SpatialData, name: str) -> ad.AnnData:
    """Return the table `name`.

    Raises
    ------
    ElementNotFoundError
        Listing what there is.
    """
    if name not in sdata.tables:
        known = ", ".join(map(repr, sdata.tables)) or "none"
        msg = f"no table {name!r} in the object; tables: {known}"
        raise ElementNotFoundError(msg)
    return sdata.tables[name]


def existing_table(sdata: SpatialData, name: str, regions: Sequence[str]) -> ad.AnnData:
    """Return the table `name`, checked to annotate every labels element of `regions`.

    Raises
    ------
    ElementNotFoundError
        If there is no such table.
    InputError
        If it annotates nothing, or other labels.
    """
    table = named_table(sdata, name)
    linked = TableModel.ATTRS_KEY in table.uns
    annotated = list(pd.unique(table.obs[link_keys(table)[0]].astype(str))) if linked else []
    missing = [r for r in regions if r not in annotated]
    if missing:
        msg = (
            f"table {name!r} annotates {annotated or 'nothing'}, not {missing}; choose the labels it "
            "annotates with labels=, or another table with into="
        )
        raise InputError(msg)
    return table


def join_layer(
    table: ad.AnnData,
    layer: str,
    regions: Sequence[str],
    cells: Sequence[Cells],
    values: Sequence[np.ndarray],
    channels: Sequence[str],
) -> np.ndarray:
    """Values for a layer of an existing table, joined on region and instance id.

    Rows whose label has no pixel, rows of other regions and markers that were not
    scored get NaN; a label that no row annotates is left out. Both are counted in
    a warning.

    Returns
    -------
    float32 ``(table.n_obs, table.n_vars)``.
    """
    region_key, instance_key = link_keys(table)
    region = table.obs[region_key].astype(str).to_numpy()
    instance = table.obs[instance_key].to_numpy()
    if instance.dtype.kind not in "ui":
        msg = (
            f"the table's instance ids (obs[{instance_key!r}]) have dtype {instance.dtype}; cast them to "
            "int64 first"
        )
        raise InputError(msg)
    if not table.var_names.is_unique:
        msg = "the table's var_names are not unique; call table.var_names_make_unique() or rename them first"
        raise InputError(msg)
    empty_labels(regions, cells)
    out = np.full(table.shape, np.nan, dtype=np.float32)
    columns = table.var_names.get_indexer(list(channels))
    known = columns >= 0
    without_pixels = without_row = 0
    for name, part, scores in zip(regions, cells, values, strict=True):
        if not len(part):
            without_pixels += int((region == name).sum())
            continue
        rows = np.flatnonzero(region == name)
        position = pd.Index(part.ids).get_indexer(instance[rows].astype(np.int64))
        found = position >= 0
        out[np.ix_(rows[found], columns[known])] = scores[position[found]][:, known]
        without_pixels += int((~found).sum())
        without_row += part.ids.size - int(np.unique(position[found]).size)
    if without_pixels or without_row:
        warnings.warn(
            f"layer {layer!r}: {without_pixels} rows have no labelled pixel and got NaN; {without_row} "
            "labels have no row in the table and were left out",
            NimbusWarning,
            stacklevel=3,
        )
    return out
