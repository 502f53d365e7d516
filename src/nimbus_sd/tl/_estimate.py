"""What a prediction would take, before it is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from spatialdata import SpatialData

from nimbus_sd._core.channels import NOT_MARKERS
from nimbus_sd._sdata.cohort import as_cohort
from nimbus_sd._sdata.samples import resolve_samples
from nimbus_sd._sdata.sizes import bytes_of
from nimbus_sd.engine.device import resolve_devices
from nimbus_sd.engine.estimate import Estimate
from nimbus_sd.engine.estimate import estimate as estimate_run
from nimbus_sd.engine.predict import Predictor
from nimbus_sd.engine.settings import PredictConfig, view_names
from nimbus_sd.models.loading import LoadedModel, load


def estimate(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    *,
    image: str | Mapping[str, str] | None = None,
    labels: str | Sequence[str] | None = None,
    channels: str | Sequence[str] = "auto",
    model: str | Path | LoadedModel = "nimbus-sd-s",
    mpp: float | None = None,
    fit_normalization: bool = True,
    views: int | Sequence[str] = 1,
    coordinate_system: str | None = None,
    exclude: str = NOT_MARKERS,
    tile: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    n_threads: int = 2,
    memory: int | str | None = None,
) -> Estimate:
    """Say what :func:`nimbus_sd.tl.predict` would compute and read, and how long it would take here.

    Counts come from metadata; time from a few seconds of the network and of reading
    chunks on this machine. Tiles without labels, which are skipped, are known only when
    the labels are read: counts are upper bounds.

    Parameters
    ----------
    sdata, image, labels, channels, model, mpp, views, coordinate_system, exclude
        As of :func:`nimbus_sd.tl.predict`.
    fit_normalization
        Whether the normalisation is to be fitted as well, which reads every pixel once more.
    tile, batch_size, device, precision, n_threads, memory
        As of :func:`nimbus_sd.tl.predict`.

    Returns
    -------
    :class:`~nimbus_sd.engine.estimate.Estimate`; nothing is written.

    Raises
    ------
    InputError, ElementNotFoundError, WeightsError, OfflineError
        As of :func:`nimbus_sd.tl.predict`.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))
    >>> nb.tl.estimate(sdata).n_blocks
    1
    """
    samples = resolve_samples(
        as_cohort(sdata),
        image=image,
        labels=labels,
        channels=channels,
        coordinate_system=coordinate_system,
        mpp=mpp,
        exclude=exclude,
    )
    config = PredictConfig(
        views=view_names(views),
        tile=tile,
        batch_size=batch_size,
        n_threads=n_threads,
        device=device,
        precision=precision,
        memory=bytes_of(memory),
    )
    predictor = Predictor(load(model), config)
    plain = [s.sample for s in samples.samples]
    return estimate_run(
        predictor,
        plain,
        samples.channels,
        with_normalization=fit_normalization,
        n_workers=len(resolve_devices(device)),
    )
