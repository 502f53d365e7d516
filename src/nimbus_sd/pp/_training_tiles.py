"""Cut labelled images into the tiles that training reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from spatialdata import SpatialData

from nimbus_sd._core.channels import NOT_MARKERS
from nimbus_sd._sdata.tile_reader import TileStore
from nimbus_sd._sdata.tile_store import TileRequest, write_tiles
from nimbus_sd.engine.normalization import Normalization

__all__ = ["TileStore", "training_tiles"]


def training_tiles(
    sdata: SpatialData,
    path: str | Path,
    *,
    labels_layer: str = "silver",
    table: str | None = None,
    image: str | Mapping[str, str] | None = None,
    labels: str | Sequence[str] | None = None,
    channels: str | Sequence[str] = "auto",
    extra: Sequence[str] = (),
    mpp: float | None = None,
    model_mpp: float = 1.0,
    normalization: Normalization | None = None,
    quantile: float = 0.9999,
    rule: str = "dataset",
    tile: int = 512,
    overlap: int = 16,
    split: Mapping[str, str] | Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    dataset: str | None = None,
    dtype: str = "float16",
    coordinate_system: str | None = None,
    exclude: str = NOT_MARKERS,
    overwrite: bool = False,
    n_threads: int = 2,
    progress: bool = True,
) -> TileStore:
    """Write normalised training tiles with masks, labels and targets into one zarr store.

    Tiles are what :func:`nimbus_sd.tl.predict` would feed to a network: the same
    normalisation, resampling and mask. Images are read lazily, tile by tile, and only
    where a labelled cell lies. An interrupted run continues when it is called again
    with the same arguments.

    Parameters
    ----------
    sdata
        Object with images ``(c, y, x)``, labels ``(y, x)`` and an annotating table.
    path
        Of the store. Tiles made with the same settings are kept; others are refused.
    labels_layer
        Layer with 1 positive, 0 negative, NaN undefined; ``"X"`` for the table itself.
    table
        Name of the table; None takes the only one that has this layer.
    image
        As in :func:`nimbus_sd.tl.predict`.
    labels
        Name or names of labels, one field of view each; None takes those that the table annotates.
    channels
        Markers to learn from: ``"auto"``, ``"all"`` or names; those without a labelled
        cell are left out.
    extra
        Channels that become further input planes of every tile, such as a nuclear and
        a membrane stain.
    mpp
        µm per px of the images; None takes it from the object.
    model_mpp
        µm per px of the tiles.
    normalization
        From :func:`nimbus_sd.pp.normalization`; None fits it on these images.
    quantile, rule
        How to fit it.
    tile, overlap
        Side of a tile and what neighbours share, model px, multiples of 16. Where all
        fields are smaller than `tile`, tiles are as large as the largest field.
    split
        Shares of the images for training, validation and test, drawn with `seed`; or
        ``{labels name: "train" | "validation" | "test"}``. One image is never in two splits.
    seed
        Of the draw.
    dataset
        Name of the dataset; None takes the store's name. Losses are compared within a
        dataset and marker.
    dtype
        Of the stored pixels: ``"float16"`` keeps 11 bits, ``"float32"`` all.
    coordinate_system
        As in :func:`nimbus_sd.tl.predict`.
    exclude
        Pattern of channel names that ``"auto"`` leaves out.
    overwrite
        Replace training tiles at `path` (never anything else).
    n_threads
        Reader threads.
    progress
        Show progress bars.

    Returns
    -------
    :class:`TileStore`, the opened store; nothing in `sdata` changes. The zarr (v3) holds
    ``images`` ``(place, marker, y, x)`` in [0, 1], ``masks`` and ``labels``
    ``(place, y, x)`` (0 background, 1 + row of the cell in its field, -1 beyond the image),
    ``extra`` ``(place, plane, y, x)``, ``cells/target`` int8 ``(cell, marker)``: 1, 0 or
    -1 undefined, ``cells/instance_id`` int64, and ``defined`` ``(place, marker)``, the
    number of labelled cells, -1 where a place is not written yet.

    Raises
    ------
    InputError
        If elements can't be paired, the pixel size is unknown, the table is of another
        segmentation, no cell is labelled, splits share an image, or `path` holds
        something else or tiles made with other settings. Nothing is written then.
    ElementNotFoundError
        If an element, channel, table or layer does not exist.

    Warns
    -----
    NimbusWarning
        If some cells have no row in the table, or rows no cell.

    Notes
    -----
    That an existing store is of the same data is told by the fitted scales, and by ids,
    areas and targets of all cells. With `normalization` given, changed pixels go unseen.

    References
    ----------
    Rumberger, Greenwald et al. (2025), *Automated classification of cellular expression in
    multiplexed imaging data with Nimbus*, Methods: tiles of 512 px that overlap by 16 px, at
    half the side of 20x images, split 80/10/10 by field of view.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=3, shape=(128, 128), channels=["CD3", "CD8"])
    >>> tiles = nb.pp.training_tiles(sdata, "tiles.zarr", labels_layer="X", progress=False)
    >>> len(tiles), tiles.tile(0).image.shape, len(tiles.split("validation"))
    (6, (64, 64), 2)
    """
    request = TileRequest(
        labels_layer=labels_layer,
        table=table,
        image=image,
        labels=labels,
        channels=channels,
        extra=tuple(extra) if not isinstance(extra, str) else extra,
        coordinate_system=coordinate_system,
        mpp=mpp,
        model_mpp=model_mpp,
        normalization=normalization,
        quantile=quantile,
        rule=rule,
        tile=tile,
        overlap=overlap,
        dtype=dtype,
        split=split,
        seed=seed,
        dataset=dataset,
        exclude=exclude,
        overwrite=overwrite,
        n_threads=n_threads,
        progress=progress,
    )
    return write_tiles(sdata, path, request)
