"""Cell-centred patches of the images of SpatialData objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from spatialdata import SpatialData

from nimbus_sd._core.channels import NOT_MARKERS
from nimbus_sd._sdata.cell_patches import CellPatches, cell_patches_of
from nimbus_sd._sdata.centers import resolve_centers
from nimbus_sd._sdata.cohort import as_cohort
from nimbus_sd.engine.embedding.dataset import StreamSettings
from nimbus_sd.engine.normalization import Normalization

__all__ = ["CellPatches", "cell_patches"]


def cell_patches(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    size: int = 32,
    image: str | Mapping[str, str] | None = None,
    centers: str | Sequence[str] | Mapping[str, str] | None = None,
    channels: str | Sequence[str] = "auto",
    coordinate_system: str | None = None,
    mpp: float | None = None,
    normalization: Normalization | None = None,
    quantile: float = 0.9999,
    transform: str = "sqrt",
    raw: bool = False,
    batch_size: int = 256,
    shuffle: bool = True,
    buffer: int = 4096,
    seed: int = 0,
    cache: str | Path | None = None,
    exclude: str = NOT_MARKERS,
    n_threads: int = 2,
    progress: bool = True,
) -> CellPatches:
    """Square patches around the cells' centres, as a lazy torch dataset.

    Images are read block by block along their chunks; patches are shuffled through a bounded
    buffer. No slide is ever held in memory. Without `shuffle` each chunk is decoded once per
    pass. With it some are decoded again, as blocks come before the neighbours that their patches
    reach into: 1.3 to 1.6 times on average for chunks of 512 to 2,048 px on a large slide. Longer
    chunks are read in parts and decoded for each of them, so smaller ones serve better.
    The px in which a centre lies is at ``size // 2`` of its patch. What reaches beyond the
    image is reflected, and the cell flagged ``border``.

    Parameters
    ----------
    sdata
        Object with images ``(c, y, x)``; several, as a list or ``{name: object}``, become one dataset.
    size
        Side of the patches in px of the image.
    image
        Name of the image, or ``{element of the centres: image}``; None pairs each element with
        the one image that overlaps it in a shared coordinate system.
    centers
        Labels (their centroids), points, or shapes (their centroids), by name, or ``{element:
        image}``. None takes the labels if there are any, else the points, else the shapes.
        Ids of points and shapes are their index, which must be whole numbers.
    channels
        ``"auto"`` (without DNA, histone and background channels, as in
        :func:`nimbus_sd.tl.predict`), ``"all"`` or names, in the order that is wanted. Name a
        nuclear channel too where its morphology should count.
    coordinate_system
        Where centres and images are compared; None takes one that both have.
    mpp
        µm per px of the images, kept for the record; None takes it from the object.
    normalization
        From :func:`nimbus_sd.pp.normalization`; None reads the images once now and fits it.
    quantile
        Intensity quantile of all pixels that maps to 1, for fitting.
    transform
        After ``clip(x / scale, 0, 1)``: ``"sqrt"`` or ``"identity"``.
    raw
        Give pixels as they are, in the image's dtype.
    batch_size
        Patches per batch of ``.batches()``.
    shuffle
        Random order; else that of the image's blocks.
    buffer
        Patches among which the next are drawn, all of them in memory in the image's dtype
        (34 markers of uint16, 32 px: 70 kB each).
    seed
        Decides the order; ``.set_epoch(e)`` gives another one for each pass.
    cache
        Path of a zarr store of the raw patches. Where there is none it is written now, whole or
        not at all; later calls with the same cells, channels and pixels read it, others are refused.
        Images must lie on disk.
    exclude
        Pattern of channel names that ``"auto"`` leaves out.
    n_threads
        Reader threads; workers of a ``DataLoader`` have as many each.
    progress
        Show progress bars.

    Returns
    -------
    :class:`CellPatches`, an ``IterableDataset``: each item has ``patch`` float32
    ``(c, size, size)`` in [0, 1] (raw: the image's dtype), ``region``, ``instance_id`` and
    ``border``. It has ``len``, ``.shape``, ``.markers``, ``.centers`` (a frame of all cells) and
    ``.batches(n)``, faster than single items; workers of
    ``DataLoader(patches.batches(256), batch_size=None, num_workers=2)`` divide the blocks among
    themselves.
    Every cell comes once per pass. Nothing in `sdata` changes.

    Raises
    ------
    InputError
        If it is not clear which centres or image are meant, an image is too small for the patches,
        centres lie outside it, ids are not unique whole numbers, or the cache is of other data.
        While iterating: if pixels are negative, NaN or infinite.
    ElementNotFoundError
        If an element or channel does not exist.

    References
    ----------
    Gutwein et al. (2024), *Interpretable embeddings for segmentation-free single-cell analysis
    in multiplex imaging*: patches of 32 px.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128), channels=["CD3", "CD8"])
    >>> patches = nb.pp.cell_patches(sdata, size=16, progress=False)
    >>> batch = next(iter(patches.batches(8)))
    >>> patches.markers, batch["patch"].shape, batch["instance_id"].shape
    (('CD3', 'CD8'), torch.Size([8, 2, 16, 16]), torch.Size([8]))
    """
    settings = StreamSettings(
        size=size,
        batch_size=batch_size,
        shuffle=shuffle,
        buffer=buffer,
        seed=seed,
        n_threads=n_threads,
        transform=transform,
    )
    found = resolve_centers(
        as_cohort(sdata),
        image=image,
        centers=centers,
        channels=channels,
        coordinate_system=coordinate_system,
        mpp=mpp,
        exclude=exclude,
    )
    return cell_patches_of(
        found,
        settings=settings,
        normalization=normalization,
        quantile=quantile,
        raw=raw,
        cache=cache,
        progress=progress,
    )
