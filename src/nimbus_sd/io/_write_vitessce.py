"""Write the configuration with which Vitessce shows a field in the browser."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import reduce
from operator import or_
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from nimbus_sd._core.channels import select_channels
from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._core.files import whole_file
from nimbus_sd._core.lazy import require
from nimbus_sd._sdata import elements as el
from nimbus_sd._sdata.resolve import Pair, resolve_pairs
from nimbus_sd._sdata.table import existing_table

_SCHEMA = "1.0.17"
_COLOURS = ([255, 0, 255], [0, 220, 0], [45, 138, 255], [255, 211, 0], [0, 229, 229], [255, 255, 255])
_MAX_GROUPS = 50
_CELLS = {"obsType": "cell", "featureType": "marker", "featureValueType": "score"}


def write_vitessce(
    sdata: SpatialData,
    path: str | PathLike[str],
    *,
    labels: str | None = None,
    image: str | None = None,
    table: str = "nimbus",
    channels: str | Sequence[str] | None = None,
    groupby: str | Sequence[str] | None = None,
    url: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a Vitessce configuration that shows an image, cells coloured by score, and cell sets.

    Vitessce reads the store itself, through `url`; no pixel is copied. The file is opened with
    ``VitessceConfig.from_dict(json.loads(path.read_text())).widget()``, or pasted into the
    editor of a Vitessce page, while something serves the store and allows other origins (CORS).

    Parameters
    ----------
    sdata
        Object in a store on a local disk, whose table is there as well (``predict(write=True)``,
        or :func:`nimbus_sd.io.write_table`).
    path
        ``.json`` file to write.
    labels
        Field to show; can be left out where there is one.
    image
        Its image; None takes the one that overlaps the labels.
    table
        Table with scores in ``X``.
    channels
        At most 6 channels of the image to draw; the first also colours the cells. None takes the
        table's first three.
    groupby
        Columns of the table's ``obs`` to offer as cell sets, of text or categories, at most 50 different
        ones; None takes the categorical ones of at most 50 categories that the store has, without the
        region.
    url
        Address under which the store is served; None takes ``http://localhost:8000/<store's name>``.
    overwrite
        Replace a file that exists.

    Returns
    -------
    The path written. A UMAP (``obsm["X_umap"]``) in the store gets a view of its own.

    Raises
    ------
    MissingExtraError
        If vitessce is not installed.
    ElementNotFoundError
        If an element, table, channel or column does not exist.
    InputError
        If the object or table is in no local store, the file exists, the table annotates other
        labels, there are several fields and none is chosen, there are too many channels, or a column
        of `groupby` holds numbers or too many different values.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import nimbus_sd as nb
    >>> folder = Path(tempfile.mkdtemp())
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(96, 96), channels=["CD3", "CD20"])
    >>> sdata.write(folder / "tissue.zarr")
    >>> file = nb.io.write_vitessce(sdata, folder / "tissue.json", table="truth")
    >>> file.name
    'tissue.json'
    """
    target, store = _target(path, overwrite=overwrite), _store(sdata)
    pair = _pair(sdata, image, labels)
    adata = existing_table(sdata, table, [pair.labels])
    for part in (f"images/{pair.image}", f"labels/{pair.labels}", f"tables/{table}"):
        if not (store / part).is_dir():
            msg = f"{part} is not in {store}; sdata.write_element or nb.io.write_table puts it there"
            raise InputError(msg)
    drawn = _channels(sdata, pair, adata, channels)
    sets = _sets(adata, store / "tables" / table, groupby)
    where = (url or f"http://localhost:8000/{store.name}").rstrip("/")
    umap = (store / "tables" / table / "obsm" / "X_umap").is_dir()
    config = _config(pair, adata, table=table, url=where, drawn=drawn, sets=sets, umap=umap)
    with whole_file(target) as partial:
        partial.write_text(json.dumps(config, indent=1), encoding="utf-8")
    return target


def _target(path: str | PathLike[str], *, overwrite: bool) -> Path:
    target = Path(path)
    if target.suffix.lower() != ".json":
        msg = f"{target}: unknown suffix {target.suffix!r}; valid: '.json'"
        raise InputError(msg)
    if target.exists() and not overwrite:
        msg = f"{target} exists. Give overwrite=True to replace it, or another path."
        raise InputError(msg)
    if not target.parent.is_dir():
        msg = f"{target.parent} is not a folder. Make it first, or give another path."
        raise InputError(msg)
    return target


def _store(sdata: SpatialData) -> Path:
    store = None if sdata.path is None else Path(sdata.path)
    if store is None or not store.is_dir():
        msg = "the object lies in no store on a local disk for Vitessce to read; sdata.write(...) first"
        raise InputError(msg)
    return store


def _pair(sdata: SpatialData, image: str | None, labels: str | None) -> Pair:
    if image is None and labels is None and len(sdata.labels) > 1:
        known = ", ".join(map(repr, sdata.labels))
        msg = f"several fields; choose one with labels=. Valid: {known}"
        raise InputError(msg)
    return resolve_pairs(sdata, image=image, labels=labels)[0]


def _channels(
    sdata: SpatialData, pair: Pair, adata: AnnData, channels: str | Sequence[str] | None
) -> dict[str, int]:
    """Channels to draw, with their places in the image."""
    there = list(el.channel_names(el.get_image(sdata, pair.image)))
    if channels is None:
        wanted = [name for name in adata.var_names if name in there][:3] or there[:3]
    else:
        wanted = [channels] if isinstance(channels, str) else list(channels)
    names, _ = select_channels(there, wanted, where=pair.image)
    if not 0 < len(names) <= len(_COLOURS):
        msg = f"{len(names)} channels; Vitessce draws 1 to {len(_COLOURS)} at a time"
        raise InputError(msg)
    return {name: there.index(name) for name in names}


def _sets(adata: AnnData, stored: Path, groupby: str | Sequence[str] | None) -> list[str]:
    """Columns of obs that are offered as cell sets."""
    if groupby is None:
        region = adata.uns["spatialdata_attrs"]["region_key"]
        few = [c for c in adata.obs if isinstance(adata.obs[c].dtype, pd.CategoricalDtype) and c != region]
        few = [c for c in few if len(adata.obs[c].cat.categories) <= _MAX_GROUPS]
        return [c for c in few if (stored / "obs" / c).is_dir()]
    names = [groupby] if isinstance(groupby, str) else list(groupby)
    for name in dict.fromkeys(names):
        if name not in adata.obs:
            known = ", ".join(map(repr, adata.obs.columns))
            msg = f"no column {name!r} in the table; columns: {known}"
            raise ElementNotFoundError(msg)
        _check_groups(adata.obs[name])
        if not (stored / "obs" / name).is_dir():
            msg = (
                f"column {name!r} is not in {stored}; nb.io.write_table(sdata, {stored.name!r}) puts it there"
            )
            raise InputError(msg)
    return names


def _check_groups(column: pd.Series) -> None:
    """Raise unless its values can be sets of cells."""
    n = column.nunique()
    if pd.api.types.is_numeric_dtype(column.dtype):
        msg = f"column {column.name!r} is of type {column.dtype}; cell sets are columns of text or categories"
        raise InputError(msg)
    if n > _MAX_GROUPS:
        msg = f"column {column.name!r} has {n} different values; at most {_MAX_GROUPS} can be cell sets"
        raise InputError(msg)


def _config(
    pair: Pair, adata: AnnData, *, table: str, url: str, drawn: dict[str, int], sets: list[str], umap: bool
) -> dict[str, Any]:
    """The configuration in JSON's types."""
    vitessce = require("vitessce", extra="vitessce")
    vc = vitessce.VitessceConfig(schema_version=_SCHEMA, name=f"{pair.labels}, {table}")
    dataset = vc.add_dataset(name=pair.labels)
    dataset.add_object(
        vitessce.SpatialDataWrapper(
            sdata_url=url,
            image_path=f"images/{pair.image}",
            labels_path=f"labels/{pair.labels}",
            table_path=f"tables/{table}",
            obs_feature_matrix_path=f"tables/{table}/X",
            obs_set_paths=[f"tables/{table}/obs/{name}" for name in sets] or None,
            obs_set_names=sets or None,
            region=pair.labels,
            coordinate_system=pair.system,
            coordination_values={**_CELLS, "fileUid": pair.labels},
        )
    )
    if umap:
        dataset.add_object(
            vitessce.AnnDataWrapper(
                adata_url=f"{url}/tables/{table}",
                obs_embedding_paths=["obsm/X_umap"],
                obs_embedding_names=["UMAP"],
                coordination_values=_CELLS,
            )
        )
    kinds = ["featureList", *(["obsSets"] if sets else []), *(["scatterplot"] if umap else [])]
    spatial, layers = (vc.add_view(kind, dataset=dataset) for kind in ("spatialBeta", "layerControllerBeta"))
    lists = [vc.add_view(k, dataset=dataset, mapping="UMAP" if k == "scatterplot" else None) for k in kinds]
    shown = next(iter([name for name in drawn if name in adata.var_names] or adata.var_names[:1]))
    scopes = _colouring(vc, shown)
    for view in (spatial, layers, *lists):
        view.use_coordination(*scopes.values())
    _link_layers(vitessce, vc, [spatial, layers], pair, drawn, scopes)
    vc.layout(spatial | (layers / reduce(or_, lists)))
    config: dict[str, Any] = vc.to_dict()
    return config


def _colouring(vc: Any, marker: str) -> dict[str, Any]:
    """What all views share: cells, coloured by the score of one marker to begin with."""
    values = {**_CELLS, "featureSelection": [marker], "obsColorEncoding": "geneSelection"}
    scopes = dict(zip(values, vc.add_coordination(*values), strict=True))
    for name, scope in scopes.items():
        scope.set_value(values[name])
    return scopes


def _link_layers(
    vitessce: Any, vc: Any, views: list[Any], pair: Pair, drawn: dict[str, int], scopes: dict[str, Any]
) -> None:
    """One image layer with the channels, one layer of cells coloured as the other views colour them."""
    level = vitessce.CoordinationLevel
    channels = [
        {"spatialTargetC": place, "spatialChannelColor": _COLOURS[i], "spatialChannelVisible": True}
        for i, place in enumerate(drawn.values())
    ]
    image = {"photometricInterpretation": "BlackIsZero", "imageChannel": level(channels)}
    cells = scopes | {"spatialChannelOpacity": 0.6}
    labels = {"fileUid": pair.labels, "segmentationChannel": level([cells])}
    layers = {"imageLayer": level([image]), "segmentationLayer": level([labels])}
    vc.link_views_by_dict(views, layers, meta=True)
