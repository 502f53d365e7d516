"""Images and labels from the arrays of their resolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import set_transformation
from spatialdata.transformations._utils import compute_coordinates
from xarray import DataArray, Dataset, DataTree


def element_of_levels(
    levels: Sequence[da.Array],
    *,
    channels: Sequence[str] | None = None,
    transformations: Mapping[str, Any],
) -> Any:
    """An image, or labels, lazily; of several levels a multiscale one.

    Parameters
    ----------
    levels
        ``(c, y, x)`` or ``(y, x)``, full resolution first.
    channels
        Names of an image's channels; None numbers them.
    transformations
        Of the full resolution, by coordinate system.
    """
    if levels[0].ndim == 2:
        dims: tuple[str, ...] = ("y", "x")
        names = None
    else:
        dims = ("c", "y", "x")
        names = list(range(levels[0].shape[0]) if channels is None else channels)
    if len(levels) > 1:
        coords = {} if names is None else {"c": names}
        tree = DataTree.from_dict(
            {
                f"scale{i}": Dataset({"image": DataArray(level, name="image", dims=dims, coords=coords)})
                for i, level in enumerate(levels)
            }
        )
        set_transformation(tree, dict(transformations), set_all=True)
        return compute_coordinates(tree)
    if names is None:
        return Labels2DModel.parse(levels[0], dims=dims, transformations=dict(transformations))
    return Image2DModel.parse(levels[0], dims=dims, c_coords=names, transformations=dict(transformations))
