"""Export of trained weights: safetensors, and the card that says how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nimbus_sd.engine.training.loop import TrainResult
from nimbus_sd.engine.training.network import tiling
from nimbus_sd.engine.training.sources import Preprocessing, TileSource
from nimbus_sd.models.card import ModelCard
from nimbus_sd.models.head import CellHead
from nimbus_sd.models.loading import LoadedModel, save

LIMITS = (
    "Knows the tissues, stains and instruments of its training data; check its scores against labelled cells "
    "before trusting them elsewhere. Not for H&E or transcripts."
)


def describe_data(source: TileSource) -> str:
    """One sentence about what was trained on."""
    datasets = sorted({d for d, _ in source.groups})
    markers = sorted({m for _, m in source.groups})
    named = ", ".join(datasets[:5]) + (", …" if len(datasets) > 5 else "")
    return (
        f"{len(source)} tiles of {len(source.fields)} fields and {len(markers)} markers "
        f"({', '.join(markers[:20])}{', …' if len(markers) > 20 else ''}) of {named}."
    )


def export(
    result: TrainResult,
    folder: str | Path,
    *,
    preprocessing: Preprocessing,
    training_data: str,
    command: str = "",
    parent: ModelCard | None = None,
    head: CellHead | None = None,
    licence: str = "",
    half: bool = False,
) -> LoadedModel:
    """Write ``weights.safetensors`` and ``card.json``.

    Parameters
    ----------
    result
        The kept network.
    folder
        Destination; made if missing.
    preprocessing
        How the tiles were made: prediction must do the same.
    training_data, command, licence
        For the card.
    parent
        Card of the weights that training started from; its name and hash go on the new card.
    head
        Cell head to go on with the network; None leaves scores to be mean probabilities.
    half
        Store float16, half the size; else float32, exactly what was trained.

    Returns
    -------
    The model as :func:`nimbus_sd.models.load` would give it. Of several processes only the
    main one writes.
    """
    folder = Path(folder)
    metrics: dict[str, Any] = {
        f"validation_{k}" if k != "step" else k: round(float(v), 4) if k != "step" else int(v)
        for k, v in result.metrics.items()
    }
    if parent is not None:
        metrics |= {"parent": parent.name, "parent_sha256": parent.sha256}
        training_data = (
            f"Fine-tuned from {parent.name} (sha256 {parent.sha256}) on: {training_data} "
            f"The parent's data: {parent.training_data}"
        )
    config = result.config
    stride, halo, exact = tiling(config.architecture)
    base = parent if parent is not None else ModelCard(name=config.name)
    card = replace(
        base,
        name=config.name,
        architecture=dict(config.architecture),
        mpp=preprocessing.mpp,
        quantile=preprocessing.quantile,
        rule=preprocessing.rule,
        transform=config.transform,
        score_rule="mean_probability",
        head={},
        stride=stride,
        halo=halo,
        exact=exact,
        weights_file="weights.safetensors",
        weights_url="",
        sha256="",
        licence=licence or (parent.licence if parent is not None else ""),
        training_data=training_data,
        command=command,
        commit="",
        metrics=metrics,
        limits=LIMITS if parent is None else f"{LIMITS} Of the parent: {parent.limits}",
    )
    if not result.main:
        return LoadedModel(net=result.net.eval(), card=card, head=head)
    card = save(result.net, folder, card, half=half, head=head)
    path = folder / card.weights_file
    # safetensors writes files that only their owner can read
    path.chmod(0o644)
    return LoadedModel(net=result.net.eval(), card=card, path=path, head=head)


def check_card(card: Mapping[str, Any] | ModelCard, preprocessing: Preprocessing) -> list[str]:
    """What of the tiles differs from what a model was trained with; empty if nothing does."""
    values = card if isinstance(card, Mapping) else vars(card)
    names = ("mpp", "quantile", "rule")
    return [
        f"{n}: tiles {getattr(preprocessing, n)!r}, model {values[n]!r}"
        for n in names
        if values[n] != getattr(preprocessing, n)
    ]
