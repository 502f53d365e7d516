"""From the cells of objects to a trained embedding: centres, scales, patches, held-out cells, model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata.centers import CenterSet, resolve_centers
from nimbus_sd._sdata.cohort import as_cohort
from nimbus_sd._sdata.probe_labels import FEWEST, classes_of, with_class
from nimbus_sd._sdata.progress import progress_bar
from nimbus_sd._sdata.samples import fit_images
from nimbus_sd._sdata.writable import check_model_folder
from nimbus_sd.engine.embedding import supply
from nimbus_sd.engine.embedding.patches import PatchSample, check_size
from nimbus_sd.engine.embedding.probe import Probe
from nimbus_sd.engine.embedding.stream import StreamSupply
from nimbus_sd.engine.embedding.train_config import EmbeddingTrainConfig
from nimbus_sd.engine.embedding.train_loop import (
    LAST,
    EmbeddingData,
    EmbeddingResult,
    check_crops,
    check_stop,
    fit_embedding,
)
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.models.embedding import (
    CARD_FILE,
    EmbeddingCard,
    EmbeddingModel,
    architecture_of,
    build_embedding,
    save_embedding,
)

TRAINERS = ("plain", "lightning")
QUANTILE = 0.9999
RUN = "run"
_HELD_OUT = 0.1  # share of the cells that judge
_SEED = 13


@dataclass(frozen=True)
class EmbeddingRequest:
    """What :func:`nimbus_sd.tl.train_embedding` was asked for."""

    image: str | Mapping[str, str] | None
    centers: str | Sequence[str] | Mapping[str, str] | None
    channels: str | Sequence[str]
    coordinate_system: str | None
    mpp: float | None
    probe: str | None
    table: str | None
    normalization: Normalization | None
    cache: int
    n_threads: int
    progress: bool


def train_embedding(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    request: EmbeddingRequest,
    config: EmbeddingTrainConfig,
    *,
    given_batch: bool,
    out: Path | None,
    command: str,
    trainer: str,
    device: str,
    devices: int | str,
    strategy: str,
    stop_at: int | None,
) -> EmbeddingModel:
    """Resolve, read, train, save; see :func:`nimbus_sd.tl.train_embedding`.

    Parameters
    ----------
    given_batch
        Whether the user chose the batch size, so that it is not shrunk to the cells there are.
    """
    prepared = prepare(
        sdata, request, config, given_batch=given_batch, out=out, trainer=trainer, stop_at=stop_at
    )
    found, config, classes = prepared.found, prepared.config, prepared.classes
    scales = find_scales(found, request)
    data = gather(
        [s.patches for s in found.samples],
        found.channels,
        scales,
        config,
        rows=(prepared.trained, prepared.judged),
        classes=classes,
        request=request,
    )
    options: dict[str, Any] = {
        "out": None if out is None else out / RUN,
        "device": device,
        "stop_at": stop_at,
        "progress": request.progress,
    }
    if trainer == "lightning":
        from nimbus_sd.engine.embedding.train_lightning import fit_embedding_lightning

        result = fit_embedding_lightning(data, config, devices=devices, strategy=strategy, **options)
    else:
        result = fit_embedding(data, config, **options)
    card = card_of(result, found, scales, data, command=command)
    model = EmbeddingModel(result.net, card)
    return model if out is None or not result.main else save_embedding(model, out)


@dataclass(frozen=True)
class Prepared:
    """What is known before a pixel is read.

    Attributes
    ----------
    found
        Cells with their images.
    config
        With a batch that the cells fill.
    trained, judged
        Rows of the cells that are trained on, and of those held out to judge.
    classes
        Of all cells, to judge by; None where none are named.
    """

    found: CenterSet
    config: EmbeddingTrainConfig
    trained: np.ndarray
    judged: np.ndarray
    classes: np.ndarray | None


def prepare(
    sdata: SpatialData | Sequence[SpatialData] | Mapping[str, SpatialData],
    request: EmbeddingRequest,
    config: EmbeddingTrainConfig,
    *,
    given_batch: bool,
    out: Path | None,
    trainer: str,
    stop_at: int | None,
) -> Prepared:
    """Find cells and images, and check everything that can be checked without their pixels."""
    check_request(request, trainer, out)
    check_stop(stop_at)
    objects = as_cohort(sdata)
    found = resolve_centers(
        objects,
        image=request.image,
        centers=request.centers,
        channels=request.channels,
        coordinate_system=request.coordinate_system,
        mpp=request.mpp,
    )
    check_network(config, found.channels)
    for sample in found.samples:
        check_size(sample.patches, config.size)
    classes = None if request.probe is None else classes_of(objects, found, request.probe, request.table)
    trained, held = divide(len(found), config)
    judged = held if classes is None else with_class(held, classes, request.probe)
    config = fit_batch(config, len(trained), given=given_batch)
    return Prepared(found, config, trained, judged, classes)


def check_request(request: EmbeddingRequest, trainer: str, out: Path | None) -> None:
    """Raise :class:`InputError` for what can be told before anything is read."""
    if trainer not in TRAINERS:
        msg = f"trainer={trainer!r}; valid: {', '.join(TRAINERS)}"
        raise InputError(msg)
    if request.table is not None and request.probe is None:
        msg = f"table={request.table!r} is where probe= looks; name the column of its obs with probe="
        raise InputError(msg)
    check_cache(request.cache)
    check_model_folder(out)
    if out is not None and (out / CARD_FILE).exists() and not (out / RUN / LAST).exists():
        msg = f"{out} holds a model of another run; give another out folder, or delete this one"
        raise InputError(msg)


def check_cache(cache: int) -> None:
    """Raise :class:`InputError` unless it is a number of bytes."""
    if isinstance(cache, bool) or not isinstance(cache, int) or cache < 0:
        msg = f"cache={cache!r} must be a number of bytes ≥ 0, for instance 2 << 30"
        raise InputError(msg)


def check_network(config: EmbeddingTrainConfig, markers: Sequence[str]) -> None:
    """Raise :class:`InputError` unless the architecture can be built for these markers and crops."""
    given = config.architecture.get("markers")
    if given is not None and tuple(given) != tuple(markers):
        msg = (
            f"architecture: markers={list(given)}, but training would use {list(markers)}; leave them "
            "out, or choose them with channels="
        )
        raise InputError(msg)
    with torch.random.fork_rng(devices=[]):
        net = build_embedding({**config.architecture, "markers": tuple(markers), "size": config.size})
    check_crops(net, config)


def divide(n: int, config: EmbeddingTrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, ascending; of few cells none is held out."""
    order = np.random.default_rng((config.seed, _SEED)).permutation(n)
    n_held = min(config.probe_cells, int(n * _HELD_OUT))
    n_held = n_held if n_held >= FEWEST else 0
    return np.sort(order[n_held:]), np.sort(order[:n_held])


def fit_batch(config: EmbeddingTrainConfig, n: int, *, given: bool) -> EmbeddingTrainConfig:
    """The configuration with a batch that the cells fill; a batch that was asked for is not changed."""
    if n < 2:
        msg = f"{n} cell to train on: a contrastive loss needs at least 2, and makes sense from hundreds"
        raise InputError(msg)
    if given or n >= config.batch:
        return config
    warnings.warn(
        f"{n} cells to train on are fewer than a batch of {config.batch}: the batch is {n} cells. So few "
        "can't show what tells cells apart; train on more images",
        NimbusWarning,
        stacklevel=5,
    )
    return replace(config, batch=n)


def find_scales(found: CenterSet, request: EmbeddingRequest) -> Normalization:
    """The given scales, checked to know every marker, or those fitted on these images."""
    if request.normalization is not None:
        request.normalization.scale_of(found.channels)
        return request.normalization
    return fit_images(
        [s.image for s in found.samples],
        found.channels,
        quantile=QUANTILE,
        rule="dataset",
        n_threads=request.n_threads,
        progress=request.progress,
    )


def gather(
    samples: Sequence[PatchSample],
    markers: tuple[str, ...],
    scales: Normalization,
    config: EmbeddingTrainConfig,
    *,
    rows: tuple[np.ndarray, np.ndarray],
    classes: np.ndarray | None,
    request: EmbeddingRequest,
) -> EmbeddingData:
    """Patches for training, in memory if they fit there, and for the probe."""
    scale = scales.scale_of(markers)
    trained, held = (supply.subset(samples, r) for r in rows)
    probe = None
    if len(rows[1]):
        patches = supply.load_patches(held, markers, config.reach, n_threads=request.n_threads)
        probe = Probe(patches, None if classes is None else classes[rows[1]])
    needed = supply.nbytes(trained, len(markers), config.reach)
    source: supply.PatchSupply
    if needed <= request.cache:
        total = sum(map(len, trained))
        with progress_bar(total, description="patches", unit="cell", show=request.progress) as advance:
            patches = supply.load_patches(
                trained, markers, config.reach, n_threads=request.n_threads, on_progress=advance
            )
        source = supply.MemorySupply(patches, config.batch, config.seed)
    else:
        source = StreamSupply(
            trained,
            markers,
            config.reach,
            batch=config.batch,
            seed=config.seed,
            nbytes=request.cache,
            n_threads=request.n_threads,
        )
    told = {"fingerprint": supply.fingerprint(trained, markers, scale), "order": source.order}
    return EmbeddingData(source, markers, scale, probe, told)


def card_of(
    result: EmbeddingResult, found: CenterSet, scales: Normalization, data: EmbeddingData, *, command: str
) -> EmbeddingCard:
    """What the model says of itself."""
    config = result.config
    markers = found.channels
    metrics: dict[str, Any] = {k: round(float(v), 5) for k, v in result.metrics.items()}
    if data.probe is not None:
        metrics |= {"probe_is": data.probe.kind, "probe_cells": len(data.probe.patches)}
    regions = [s.region for s in found.samples]
    named = ", ".join(regions[:5]) + (", …" if len(regions) > 5 else "")
    return EmbeddingCard(
        name=config.name,
        architecture=architecture_of(result.net),
        scale=dict(zip(markers, scales.scale_of(markers).tolist(), strict=True)),
        quantile=scales.quantile,
        transform=config.transform,
        size=config.size,
        crop=config.embedded_crop,
        mpp=common_mpp([s.mpp for s in found.samples]),
        training={**config.to_dict(), "step": result.step, "finished": result.finished},
        metrics=metrics,
        training_data=(
            f"{len(data.supply)} cells of {len(regions)} elements ({named}), {len(markers)} markers, "
            "without labels."
        ),
        command=command,
        limits=(
            "Knows the tissue, the stains and the instrument of its training data. Embeddings of different "
            "trainings can't be compared with each other."
        ),
    )


def common_mpp(each: Sequence[float | None]) -> float | None:
    """The pixel size of all images, their median where they differ little; None where it is not known."""
    known = [m for m in each if m is not None]
    if not known:
        return None
    if max(known) > 1.1 * min(known):
        warnings.warn(
            f"images of {min(known):.3g} to {max(known):.3g} µm per px are trained on together: cells differ "
            "in size; resample them to one pixel size, or train one model for each",
            NimbusWarning,
            stacklevel=5,
        )
    return float(np.median(known))
