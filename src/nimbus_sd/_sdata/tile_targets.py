"""The labels of training cells: a table's layer, joined on region and instance id."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata import SpatialData
from spatialdata.models import TableModel

from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd._sdata.table import existing_table, link_keys
from nimbus_sd._sdata.truth import matrix
from nimbus_sd.engine.training.cut import CellCount

log = logging.getLogger("nimbus_sd")

_SAME_CELLS = 0.5  # with fewer cells in common, labels and table are two segmentations


@dataclass(frozen=True)
class LabelledTable:
    """A table and the layer to learn from.

    Attributes
    ----------
    table
        Annotates every region.
    layer
        1 positive, 0 negative, NaN undefined.
    name
        Of the table.
    """

    table: ad.AnnData
    layer: str
    name: str

    @property
    def keys(self) -> tuple[str, str]:
        """Columns of region and instance id."""
        return link_keys(self.table)


def find_table(
    sdata: SpatialData, *, table: str | None, layer: str, regions: Sequence[str] | None
) -> LabelledTable:
    """Choose the table to learn from.

    Parameters
    ----------
    sdata
        The object.
    table
        Its name; None takes the only one that has the layer.
    layer
        Name of the layer, or ``"X"``.
    regions
        Labels elements that it must annotate; None leaves that open.

    Raises
    ------
    ElementNotFoundError
        If the table or layer does not exist.
    InputError
        If several tables could be meant, or it annotates other labels.
    """
    if table is None:
        found = [n for n, t in sdata.tables.items() if layer in t.layers or layer == "X"]
        if not found:
            known = {n: list(t.layers) for n, t in sdata.tables.items()}
            msg = (
                f"no table has a layer {layer!r} (tables and their layers: {known or 'none'}); make one with "
                "nb.pp.silver_labels, or name another with labels_layer="
            )
            raise ElementNotFoundError(msg)
        if len(found) > 1:
            msg = f"several tables have {layer!r}: {', '.join(map(repr, found))}; pass table="
            raise InputError(msg)
        table = found[0]
    chosen = existing_table(sdata, table, list(regions or []))
    if layer != "X" and layer not in chosen.layers:
        layers = ", ".join(map(repr, ["X", *chosen.layers]))
        msg = f"table {table!r} has no layer {layer!r}; valid: {layers}"
        raise ElementNotFoundError(msg)
    if TableModel.ATTRS_KEY not in chosen.uns:
        msg = f"table {table!r} annotates nothing; link it with TableModel.parse(..., region=, region_key=)"
        raise InputError(msg)
    return LabelledTable(chosen, layer, table)


def labelled_regions(found: LabelledTable, sdata: SpatialData) -> list[str]:
    """Labels elements of the object that the table annotates."""
    annotated = pd.unique(found.table.obs[found.keys[0]].astype(str))
    return [name for name in sdata.labels if name in set(annotated)]


def labelled_markers(found: LabelledTable, channels: Sequence[str], *, named: bool) -> list[str]:
    """Markers of the image with at least one defined cell.

    Parameters
    ----------
    found
        Table and layer.
    channels
        Of the images.
    named
        Whether the user named them: then each must be in the table.

    Raises
    ------
    ElementNotFoundError
        If a named channel is not in the table.
    InputError
        If none is labelled.
    """
    names = [str(v) for v in found.table.var_names]
    if len(set(names)) < len(names):
        msg = f"table {found.name!r}: var_names are not unique; call var_names_make_unique() first"
        raise InputError(msg)
    missing = [c for c in channels if c not in names]
    if missing and named:
        msg = f"table {found.name!r} has no marker {missing}; its markers: {', '.join(names)}"
        raise ElementNotFoundError(msg)
    common = [c for c in channels if c in names]
    values = matrix(found.table, found.layer)
    odd = ~(np.isnan(values) | (values == 0) | (values == 1))
    if odd.any():
        column = int(np.flatnonzero(odd.any(axis=0))[0])
        msg = (
            f"layer {found.layer!r} of table {found.name!r} holds "
            f"{np.unique(values[odd])[:3].tolist()} for {names[column]!r}; valid: 1 positive, 0 negative, "
            "NaN undefined"
        )
        raise InputError(msg)
    labelled = [c for c in common if not np.isnan(values[:, names.index(c)]).all()]
    if not labelled:
        msg = (
            f"layer {found.layer!r} of table {found.name!r} labels none of the images' channels "
            f"{list(channels)[:8]} (table: {names[:8]}); label some cells, or rename the markers"
        )
        raise InputError(msg)
    skipped = [c for c in channels if c not in labelled]
    if skipped:
        log.warning("channels without labelled cells left out: %s", ", ".join(skipped))
    return labelled


def region_targets(found: LabelledTable, region: str, cells: CellCount, markers: Sequence[str]) -> np.ndarray:
    """Targets of one sample's cells.

    Parameters
    ----------
    found
        Table and layer.
    region
        Name of the labels.
    cells
        What the labels hold.
    markers
        Columns.

    Returns
    -------
    int8 ``(len(cells.ids), len(markers))``: 1, 0, or -1 where undefined or without a row.

    Raises
    ------
    InputError
        If the instance ids or areas show that the table is of another segmentation.
    """
    region_key, instance_key = found.keys
    rows = np.flatnonzero(found.table.obs[region_key].astype(str).to_numpy() == region)
    instance = found.table.obs[instance_key].to_numpy()[rows]
    where = f"table {found.name!r}, labels {region!r}"
    if instance.dtype.kind not in "ui":
        msg = f"{where}: instance ids (obs[{instance_key!r}]) are {instance.dtype}; cast them to int64 first"
        raise InputError(msg)
    instance = instance.astype(np.int64)
    if len(np.unique(instance)) < len(instance):
        msg = f"{where}: instance ids repeat; keep one row per cell"
        raise InputError(msg)
    position = pd.Index(cells.ids).get_indexer(instance)
    _check_same_cells(found, rows, position, cells, where)
    out = np.full((cells.ids.size, len(markers)), -1, np.int8)
    columns = found.table.var_names.get_indexer(list(markers))
    values = matrix(found.table, found.layer)[np.ix_(rows, columns)]
    present = position >= 0
    out[position[present]] = np.where(np.isnan(values), -1, values)[present].astype(np.int8)
    return out


def _check_same_cells(
    found: LabelledTable, rows: np.ndarray, position: np.ndarray, cells: CellCount, where: str
) -> None:
    """Raise if labels and table are two segmentations; warn if some cells are in one of them only."""
    n_common = int((position >= 0).sum())
    if n_common < _SAME_CELLS * max(len(rows), cells.ids.size):
        msg = (
            f"{where}: {n_common} of the table's {len(rows)} and of the image's {cells.ids.size} cells have "
            "the same id: they are of another segmentation. Pass the table made from these labels"
        )
        raise InputError(msg)
    if "area_px" in found.table.obs:
        area = found.table.obs["area_px"].to_numpy(np.float64)[rows]
        seen = position >= 0
        differ = float((area[seen] != cells.count[position[seen]]).mean())
        if differ > _SAME_CELLS:
            msg = (
                f"{where}: {differ:.0%} of the cells with equal ids differ in area_px: they are of another "
                "segmentation. Pass the table made from these labels"
            )
            raise InputError(msg)
    if n_common < max(len(rows), cells.ids.size):
        warnings.warn(
            f"{where}: {len(rows) - n_common} rows have no labelled pixel and {cells.ids.size - n_common} "
            "cells have no row; both are left undefined",
            NimbusWarning,
            stacklevel=5,
        )
