"""Grow nuclear masks into cells."""

from __future__ import annotations

import dask.array as da
import numpy as np
from skimage.segmentation import expand_labels as expand
from spatialdata import SpatialData
from spatialdata.models import Labels2DModel
from spatialdata.transformations import get_transformation

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.elements import get_labels, mpp_of
from nimbus_sd._sdata.plausible_mpp import PIXEL_SIZES
from nimbus_sd._sdata.target import check_new_name


def expand_labels(
    sdata: SpatialData,
    labels: str,
    *,
    distance: float,
    key_added: str | None = None,
    mpp: float | None = None,
    overwrite: bool = False,
) -> None:
    """Expand every label by up to `distance` µm without overlap, for masks that hold only nuclei.

    Lazy: blocks are expanded when they are read, with a margin that makes the
    result independent of the chunks.

    Parameters
    ----------
    sdata
        The object.
    labels
        Name of labels ``(y, x)``, integer ids.
    distance
        µm, Euclidean.
    key_added
        Name of the new labels element, ``f"{labels}_expanded"`` by default.
    mpp
        µm per px; None looks for it in the object.
    overwrite
        Replace an element of that name.

    Returns
    -------
    None; writes ``sdata[key_added]``: labels ``(y, x)`` of the same dtype and
    transformations, ids unchanged.

    Raises
    ------
    InputError
        If the distance is not positive, the pixel size is unknown, or the name is taken.
    ElementNotFoundError
        If there are no such labels.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))
    >>> nb.pp.expand_labels(sdata, "fov0_labels", distance=2.0)
    >>> sdata["fov0_labels_expanded"].dtype == sdata["fov0_labels"].dtype
    True
    """
    if not distance > 0:
        msg = f"distance={distance!r} must be a positive number of µm, for instance 2.0"
        raise InputError(msg)
    array = get_labels(sdata, labels)
    says = f"labels {labels!r}" if mpp is None else ""
    mpp = mpp_of(sdata, "labels", labels) if mpp is None else mpp
    if mpp is None:
        msg = f"labels {labels!r}: the pixel size is unknown; pass mpp= (µm per px)"
        raise InputError(msg)
    if not mpp > 0:
        msg = f"mpp={mpp!r} must be a positive number of µm per px, for instance 0.5"
        raise InputError(msg)
    PIXEL_SIZES.check(mpp, says)
    name = key_added or f"{labels}_expanded"
    check_new_name(sdata, name, kind="labels", argument="key_added", overwrite=overwrite)
    reach = distance / mpp
    source = array.data if isinstance(array.data, da.Array) else da.from_array(np.asarray(array.data))
    # a pixel's nearest label lies within reach; beyond that nothing can change it
    depth = tuple(min(int(np.ceil(reach)) + 1, n) for n in source.shape)
    if max(depth) > min(min(c) for c in source.chunks):
        source = source.rechunk(tuple(max(max(c), d) for c, d in zip(source.chunks, depth, strict=True)))
    grown = da.map_overlap(expand, source, depth=depth, boundary=0, dtype=source.dtype, distance=reach)
    transformations = get_transformation(sdata.labels[labels], get_all=True)
    if name in sdata:
        del sdata[name]
    sdata[name] = Labels2DModel.parse(grown, dims=("y", "x"), transformations=transformations)
