"""Score maps: full-resolution probabilities written region by region as an image element."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import dask.array as da
import numpy as np
import zarr
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Affine

from nimbus_sd._sdata.elements import ATTRS_KEY, own_attrs
from nimbus_sd._sdata.resolve import ResolvedSample
from nimbus_sd.arrays import Tile


class MapStore:
    """A zarr array on disk that receives the probabilities of one sample, float16.

    It lives in a temporary folder, which goes when the object that reads it does.

    Parameters
    ----------
    sample
        Whose grid the map has.
    channels
        Markers.
    """

    def __init__(self, sample: ResolvedSample, channels: Sequence[str]) -> None:
        self._sample, self._channels = sample, list(channels)
        self._folder = Path(tempfile.mkdtemp(prefix="nimbus-sd-maps-"))
        shape = (len(channels), *sample.sample.labels.shape)
        chunks = (1, *(min(n, 1024) for n in shape[1:]))
        self._array = zarr.create_array(
            self._folder / "maps.zarr", shape=shape, chunks=chunks, dtype="float16"
        )

    def write(self, tile: Tile, markers: Sequence[int], probabilities: np.ndarray) -> None:
        """Write the owned pixels of a tile; pixels of tiles without labels stay 0."""
        y, x = tile.owned
        start = markers[0]
        self._array[start : start + len(markers), y.slice, x.slice] = probabilities.astype(np.float16)

    def element(self) -> object:
        """Return the map as a lazy ``Image2DModel`` element on the sample's grid."""
        lazy = da.from_zarr(self._array)
        matrix = Affine(self._sample.to_world, input_axes=("x", "y"), output_axes=("x", "y"))
        out = Image2DModel.parse(
            lazy,
            dims=("c", "y", "x"),
            c_coords=self._channels,
            transformations={self._sample.pair.system: matrix},
        )
        weakref.finalize(self._array, shutil.rmtree, self._folder, ignore_errors=True)
        return out

    def discard(self) -> None:
        """Remove the files, when the run failed."""
        shutil.rmtree(self._folder, ignore_errors=True)


def map_name(base: str, sample: ResolvedSample, n_samples: int) -> str:
    """Element name: `base`, with the labels' name when there are several samples."""
    return base if n_samples == 1 else f"{base}_{sample.pair.labels}"


def persist_map(sdata: SpatialData, name: str) -> None:
    """Write a map into the object's store; one of that name on disk goes first, as spatialdata asks."""
    if (Path(str(sdata.path)) / "images" / name).exists():
        sdata.delete_element_from_disk(name)
    sdata.write_element(name)


def remember_maps(sdata: SpatialData, names: Sequence[str]) -> None:
    """Note in ``sdata.attrs`` which images are score maps, so that pairing leaves them out."""
    own = own_attrs(sdata)
    own["maps"] = sorted({*own.get("maps", []), *names})
    sdata.attrs[ATTRS_KEY] = own
