"""Take spilled signal out of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

import dask.array as da
import numpy as np
import pandas as pd
from spatialdata import SpatialData

from nimbus_sd._core.channels import select_channels
from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.derived import add_image, dask_of, result_names, source_images
from nimbus_sd._sdata.elements import channel_names, get_image
from nimbus_sd._sdata.spillover_matrix import match_channels, matrix_of, renamed
from nimbus_sd.arrays import check_pixels
from nimbus_sd.arrays.compensation import METHODS, compensate_pixels

_SIDE = 1024  # px; all channels of a chunk are held at once


def compensate(
    sdata: SpatialData,
    spillover: pd.DataFrame | str | PathLike[str] | np.ndarray,
    *,
    image: str | Sequence[str] | None = None,
    channels: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    method: str = "nnls",
    name: str = "{image}_compensated",
    overwrite: bool = False,
    write: bool = False,
) -> None:
    """Undo the spill-over between the channels of images, pixel by pixel.

    A pixel is taken as ``true @ spillover``, as CATALYST does, and the non-negative `true` that
    fits it best (least squares) is written. Lazy: chunks are solved when they are read, all
    channels at once. So reading channel after channel solves each chunk as often:
    ``write=True``, or ``sdata.write_element(name)``, does it once for all that follows.

    Parameters
    ----------
    sdata
        Object with images ``(c, y, x)`` of linear intensities (counts): not their logarithm or
        square root. They stay as they are.
    spillover
        Shares of a channel's signal that arrive in the others: rows emit, columns receive, 1
        from each to itself. A table with channel names, the path of a CSV (see
        :func:`nimbus_sd.io.read_spillover`), or a square array with `channels`. Channels that
        it lacks neither emit nor receive.
    image
        Name or names; None takes all images but those that this package made.
    channels
        Names of an array's rows and columns.
    rename
        From names in the matrix (metals, say) to those of the image's channels.
    method
        ``"nnls"``, or ``"linear"``: the plain inverse, which can give negative values, cut off
        at 0.
    name
        Of the new images, where ``"{image}"`` stands for the old one's name.
    overwrite
        Replace images of those names.
    write
        Also compute them and put them into the store that backs the object.

    Returns
    -------
    None; writes one image per image: float32 ``(c, y, x)`` ≥ 0 with the same channels,
    transformations and scales; matrix and method in ``sdata.attrs["nimbus_sd"]["derived"]``.

    Raises
    ------
    InputError
        If the matrix does not fit or is singular, holds values outside [0, 1] or a diagonal
        that is not 1, or a name is taken; when pixels are read, if they are not finite and
        ≥ 0.
    ElementNotFoundError
        If there is no such image.

    Warns
    -----
    NimbusWarning
        Of channels that the matrix lacks, and of names that the image lacks.

    References
    ----------
    Chevrier et al. (2018), *Compensation of signal spillover in suspension and imaging mass
    cytometry*, Cell Systems 6:612.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))
    >>> names = [str(c) for c in sdata["fov0_image"].c.values]
    >>> spillover = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
    >>> spillover.loc["CD3", "CD4"] = 0.03
    >>> nb.pp.compensate(sdata, spillover)
    >>> sdata["fov0_image_compensated"].dtype
    dtype('float32')
    """
    if method not in METHODS:
        msg = f"method={method!r}; valid: {', '.join(map(repr, METHODS))}"
        raise InputError(msg)
    images = source_images(sdata, image)
    names = result_names(sdata, name, images, kind="images", overwrite=overwrite, write=write)
    frame = renamed(matrix_of(spillover, channels), rename)
    matrices = {}
    for each in images:
        available = channel_names(get_image(sdata, each))
        select_channels(available, "all", where=each)  # names must be unique
        matrices[each] = match_channels(frame, available, image=each)
    for each, matrix in matrices.items():
        pixels = _compensated(dask_of(get_image(sdata, each)), matrix, method, each)
        facts = {
            "by": "compensate",
            "image": each,
            "method": method,
            "emitting": list(frame.index),
            "receiving": list(frame.columns),
            "spillover": frame.to_numpy().tolist(),
        }
        add_image(sdata, names[each], pixels, like=each, facts=facts, write=write)


def _compensated(source: da.Array, matrix: np.ndarray, method: str, name: str) -> da.Array:
    """The compensated pixels in the source's chunks; solved in chunks that hold all channels."""
    large = {axis: _SIDE for axis in (1, 2) if max(source.chunks[axis]) > _SIDE}
    pieces = source.rechunk({0: -1, **large})
    solved = da.map_blocks(
        _solve,
        pieces,
        spillover=matrix,
        method=method,
        image=name,
        dtype=np.float32,
        meta=np.empty((0, 0, 0), np.float32),
    )
    return solved.rechunk({0: source.chunks[0]})


def _solve(pixels: np.ndarray, *, spillover: np.ndarray, method: str, image: str) -> np.ndarray:
    try:
        check_pixels(pixels)
    except InputError as error:
        msg = f"image {image!r}: {error}"
        raise InputError(msg) from error
    found = compensate_pixels(pixels, spillover, method=method)
    return np.maximum(found, 0, out=found)
