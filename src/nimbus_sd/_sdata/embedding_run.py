"""One embedding run from centres to cells, with its journal: what `nb.tl.embed` wraps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from spatialdata import SpatialData

from nimbus_sd._core.errors import ChannelNotFoundError, InputError, NimbusWarning
from nimbus_sd._core.version import __version__
from nimbus_sd._sdata.centers import CenterSet, resolve_centers
from nimbus_sd._sdata.identity import weights_digest
from nimbus_sd._sdata.patch_run import cells_in_order, inputs_of, journalled
from nimbus_sd._sdata.samples import fit_images
from nimbus_sd.arrays.cells import Cells
from nimbus_sd.engine.embedding.job import EmbedJob
from nimbus_sd.engine.embedding.run import EmbedRunner
from nimbus_sd.engine.journal import Journal
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.models.embedding import EmbeddingModel

_MPP_TOLERANCE = 0.1


@dataclass(frozen=True)
class EmbedRequest:
    """What to compute.

    Attributes
    ----------
    centers, runner
        Cells with their images; where their blocks are computed.
    normalization
        Fitted, or None to fit it by the card's quantile.
    quantities
        See :class:`~nimbus_sd.engine.embedding.job.EmbedJob`.
    """

    centers: CenterSet
    runner: EmbedRunner
    normalization: Normalization | None
    quantities: tuple[str, ...]
    progress: bool

    @property
    def model(self) -> EmbeddingModel:
        """What embeds."""
        return self.runner.model


@dataclass(frozen=True)
class Embedded:
    """What came of it.

    Attributes
    ----------
    cells
        One per sample, rows as in the sample; means of the quantities, ``(n, k)``.
    scale
        As used, in the order of the model's markers.
    normalization
        As given or fitted; None where the card's scales were used.
    difference
        Largest difference of embeddings from float32, by their largest value; None in float32.
    """

    cells: list[Cells]
    scale: np.ndarray
    normalization: Normalization | None
    difference: float | None


def centers_for(
    model: EmbeddingModel,
    objects: Mapping[str, SpatialData],
    *,
    image: str | Mapping[str, str] | None,
    centers: str | Sequence[str] | Mapping[str, str] | None,
    coordinate_system: str | None,
    mpp: float | None,
) -> CenterSet:
    """Find the centres and images, which must have all of the model's markers.

    Raises
    ------
    InputError
        Naming the markers that are missing.
    """
    try:
        return resolve_centers(
            objects,
            image=image,
            centers=centers,
            channels=list(model.markers),
            coordinate_system=coordinate_system,
            mpp=mpp,
        )
    except ChannelNotFoundError as error:
        msg = (
            f"model {model.name!r} was trained on {len(model.markers)} markers and needs each of them by its "
            f"name: {error}. Rename the image's channels, or train on those that there are"
        )
        raise InputError(msg) from error


def warn_of_mpp(model: EmbeddingModel, centers: CenterSet) -> None:
    """Warn if an image's pixels are over a tenth larger or smaller than those of the model's training."""
    trained = model.card.mpp
    for sample in centers.samples:
        if trained is None or sample.mpp is None:
            continue
        if abs(sample.mpp / trained - 1) > _MPP_TOLERANCE:
            warnings.warn(
                f"image {sample.image.name!r} has {sample.mpp:g} µm per px and model {model.name!r} was "
                f"trained at {trained:g}: patches of {model.card.crop} px show more or less of a cell than "
                "it knows; resample the image, or train on such images",
                NimbusWarning,
                stacklevel=3,
            )
            return


def known_scale(model: EmbeddingModel, normalization: Normalization | None) -> np.ndarray | None:
    """Scales of the model's markers: those given, else the card's; None where neither has any.

    Raises
    ------
    InputError
        If there is none for one of the markers.
    """
    if normalization is not None:
        if not isinstance(normalization, Normalization):
            msg = (
                f"normalization is a {type(normalization).__name__}; pass what nb.pp.normalization returns, "
                "or None to take the model's scales"
            )
            raise InputError(msg)
        return normalization.scale_of(model.markers)
    if not model.card.scale:
        return None
    missing = [m for m in model.markers if m not in model.card.scale]
    if missing:
        msg = (
            f"the card of model {model.name!r} has no scale for {missing}; pass normalization= "
            "(nb.pp.normalization on these images)"
        )
        raise InputError(msg)
    return np.array([model.card.scale[m] for m in model.markers], np.float64)


@contextmanager
def embedded(request: EmbedRequest, homes: Sequence[Path], *, resume: bool) -> Iterator[Embedded]:
    """Compute, and keep the journal until the caller has stored the result.

    Parameters
    ----------
    request
        What to compute.
    homes
        Folders for unfinished runs, one per store; none for a temporary one.
    resume
        Use what an interrupted run left there.
    """
    model, centers = request.model, request.centers
    about = _about(request, inputs=bool(homes))
    with journalled(about, homes, resume=resume) as (key, journal):
        scale = known_scale(model, request.normalization)
        normalization = request.normalization
        if scale is None:
            normalization = _fitted(request, journal)
            scale = normalization.scale_of(model.markers)
        job = EmbedJob(
            samples=tuple(s.patches for s in centers.samples),
            markers=model.markers,
            scale=scale,
            transform=model.card.transform,
            crop=model.card.crop,
            config=request.runner.config,
            quantities=request.quantities,
            key=key,
        )
        cells = cells_in_order(request.runner, job, journal, centers=centers, progress=request.progress)
        yield Embedded(cells, scale, normalization, journal.difference)


def _fitted(request: EmbedRequest, journal: Journal) -> Normalization:
    """What the interrupted run had fitted, or a new one."""
    noted = journal.noted("normalization")
    if noted is not None:
        return Normalization.from_dict(noted)
    fitted = fit_images(
        [s.image for s in request.centers.samples],
        request.model.markers,
        quantile=request.model.card.quantile,
        rule="dataset",
        n_threads=request.runner.config.n_threads,
        progress=request.progress,
        client=request.runner.client,
    )
    journal.note("normalization", fitted.to_dict())
    return fitted


def _about(request: EmbedRequest, *, inputs: bool) -> dict[str, Any]:
    """Everything that a cell's values depend on; what is read with `inputs` alone."""
    model, given = request.model, request.normalization
    card = asdict(model.card)
    return {
        "task": "embedding",
        "version": __version__,
        "weights": weights_digest(model.net),
        "card": {k: card[k] for k in ("architecture", "scale", "quantile", "transform", "crop")},
        "inputs": inputs_of(request.centers.samples, model.markers) if inputs else [],
        "normalization": None if given is None else given.to_dict(),
        "precision": request.runner.config.precision,
        "quantities": list(request.quantities),
    }
