"""Fit the intensity scale of every marker over a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spatialdata import SpatialData

from nimbus_sd._core.channels import NOT_MARKERS
from nimbus_sd._sdata.cohort import as_cohort
from nimbus_sd._sdata.identity import active_client
from nimbus_sd._sdata.samples import fit_over, resolve_samples
from nimbus_sd.engine.normalization import Normalization

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Normalization", "normalization"]


def normalization(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    image: str | Mapping[str, str] | None = None,
    labels: str | Sequence[str] | None = None,
    channels: str | Sequence[str] = "auto",
    quantile: float = 0.9999,
    rule: str = "dataset",
    exclude: str = NOT_MARKERS,
    n_threads: int = 2,
    client: Client | bool | None = None,
    progress: bool = True,
) -> Normalization:
    """Fit one intensity scale per marker, streaming once over the images.

    Parameters
    ----------
    sdata
        Object with images ``(c, y, x)`` and labels ``(y, x)``; read lazily. Several, as a list
        or ``{name: object}``, get one normalisation.
    image, labels
        Element names, as in :func:`nimbus_sd.tl.predict`.
    channels
        ``"auto"`` (without DNA, histone and background channels), ``"all"`` or names.
    quantile
        Intensity quantile that maps to 1.
    rule
        ``"dataset"``: the quantile of all pixels of all images, as the paper says;
        ``"fov_mean"``: the quantile of the pixels > 0 per image, averaged, as the
        published tool does (with ``quantile=0.999``).
    exclude
        Pattern of channel names that ``"auto"`` leaves out.
    n_threads
        Reader threads; on a cluster each thread of a worker reads.
    client
        A ``dask.distributed.Client`` whose workers read the images, which must lie where
        they can read them; what is held in memory is read in this process. None takes the
        active client if there is one, False none. The scales are the same.
    progress
        Show a progress bar.

    Returns
    -------
    :class:`Normalization`: scales in image units, with quality flags. Exact for
    integer images; relative error at most 2**-12 for floats. Save it with
    ``.save(path)``, pass it on as ``nb.tl.predict(..., normalization=...)``.

    Raises
    ------
    InputError
        If elements can't be paired or pixels are negative, NaN or infinite.
    ElementNotFoundError
        If a name does not exist.
    DataError
        If a chunk can't be read; the message names element, channel and rectangle.
    ClusterError
        If the client has no workers, or they die of a part of an image.

    Warns
    -----
    NimbusWarning
        For empty, sparse, saturated and debris-dominated channels.

    References
    ----------
    Rumberger, Greenwald et al. (2025), *Automated classification of cellular expression in
    multiplexed imaging data with Nimbus*, Methods, "Preprocessing".

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))
    >>> nb.pp.normalization(sdata, channels=["CD3"], progress=False).channels
    ('CD3',)
    """
    samples = resolve_samples(
        as_cohort(sdata), image=image, labels=labels, channels=channels, exclude=exclude, need_mpp=False
    )
    return fit_over(
        samples,
        quantile=quantile,
        rule=rule,
        n_threads=n_threads,
        progress=progress,
        client=active_client(client),
    )
