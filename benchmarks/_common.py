"""What the benchmarks share: stores on disk beside everything of :mod:`_plain`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import spatialdata as sd
import zarr
from spatialdata.models import Image2DModel, Labels2DModel

from _plain import machine, random_unet, seconds, side_by_side, simulated_marker, square_cells, table
from nimbus_sd.engine.normalization import Normalization

__all__ = [
    "machine",
    "normalization",
    "random_unet",
    "seconds",
    "side_by_side",
    "simulated_marker",
    "square_cells",
    "store_arrays",
    "store_spatialdata",
    "table",
]

# third-party chatter would tear the tables apart
warnings.filterwarnings("ignore")
logging.getLogger("ome_zarr").setLevel(logging.ERROR)


def normalization(channels: Sequence[str], scale: float) -> Normalization:
    """The same scale for every channel, so that a run does not fit one first."""
    return Normalization(tuple(channels), (scale,) * len(channels), 0.9999, "dataset", ("image",))


def store_spatialdata(
    path: Path, image: np.ndarray | da.Array, labels: np.ndarray | da.Array, *, chunk: int
) -> sd.SpatialData:
    """Write image ``(c, y, x)`` and labels ``(y, x)`` with spatialdata's defaults and open the store."""
    channels = [f"marker{i}" for i in range(len(image))]
    written = sd.SpatialData(
        images={
            "image": Image2DModel.parse(
                da.asarray(image).rechunk((1, chunk, chunk)), dims=("c", "y", "x"), c_coords=channels
            )
        },
        labels={"labels": Labels2DModel.parse(da.asarray(labels).rechunk(chunk), dims=("y", "x"))},
    )
    written.write(path, overwrite=True)
    return sd.read_zarr(path)


def store_arrays(
    folder: Path, image: np.ndarray, labels: np.ndarray, *, chunk: int, compressors: Any
) -> tuple[sd.SpatialData, list[zarr.Array]]:
    """Write plain zarr arrays with given compressors; return an object that reads them lazily, and them."""
    channels = [f"marker{i}" for i in range(len(image))]
    arrays = []
    for name, values in (("image", image), ("labels", labels)):
        chunks = (*(1,) * (values.ndim - 2), chunk, chunk)
        array = zarr.create_array(
            folder / f"{name}.zarr",
            shape=values.shape,
            chunks=chunks,
            dtype=values.dtype,
            compressors=compressors,
        )
        array[:] = values
        arrays.append(array)
    lazy_image, lazy_labels = (da.from_zarr(a) for a in arrays)
    sdata = sd.SpatialData(
        images={"image": Image2DModel.parse(lazy_image, dims=("c", "y", "x"), c_coords=channels)},
        labels={"labels": Labels2DModel.parse(lazy_labels, dims=("y", "x"))},
    )
    return sdata, arrays
