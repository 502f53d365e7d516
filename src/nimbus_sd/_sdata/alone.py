"""One element as a store of its own, in a folder: the form in which it is checked before it goes anywhere."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import dask
import zarr
from spatialdata import SpatialData
from zarr.abc.store import Store

from nimbus_sd._sdata.shallow import shallow_with

_WRITERS = 2  # threads; each holds a few chunks


def write_alone(element: Any, kind: str, name: str, folder: Path, *, like: Path | Store) -> Path:
    """Write an element with spatialdata's own writer, and return the folder of its zarr group.

    Parameters
    ----------
    element
        An image or a table.
    kind
        ``"images"`` or ``"tables"``.
    name
        Its name.
    folder
        No zarr group, so that what is written there never gets into consolidated metadata.
    like
        The store that it is for; it gets the zarr format of that.
    """
    alone_in = folder / "store.zarr"
    options: dict[str, Any] = {"consolidate_metadata": False}
    if zarr.open_group(like, mode="r", use_consolidated=False).metadata.zarr_format == 2:
        from spatialdata._io.format import SpatialDataContainerFormatV01

        options["sdata_formats"] = SpatialDataContainerFormatV01()
    # here and not on a cluster: pixels may lie where its workers can't see them
    with warnings.catch_warnings(), dask.config.set(scheduler="threads", num_workers=_WRITERS):
        # This store holds no labels, so spatialdata says that the annotated ones are missing.
        warnings.filterwarnings("ignore", message=".*annotat.*", category=UserWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        if kind == "tables":
            element = _with_missing_text(element)
        SpatialData(**{kind: {name: element}}).write(alone_in, **options)
    return alone_in / kind / name


def _with_missing_text(table: ad.AnnData) -> ad.AnnData:
    """Make text columns with missing values categorical, without copying arrays.

    anndata's ``write_zarr`` does so too; spatialdata's writer stores the word "None".
    """
    frames = {"obs": table.obs.copy(), "var": table.var.copy()}
    changed = False
    for frame in frames.values():
        for key in frame:
            if frame[key].dtype == object and frame[key].isna().any():
                frame[key] = frame[key].astype("category")
                changed = True
    return shallow_with(table, **frames) if changed else table
