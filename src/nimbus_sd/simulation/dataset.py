"""Whole simulated datasets: several fields that share markers, instruments and so one scale per marker."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd.simulation._types import AnyArray, FloatArray
from nimbus_sd.simulation.panel import random_marker
from nimbus_sd.simulation.sample import (
    Samples,
    random_platform,
    random_segmentation,
    random_tissue,
    sample_field,
)
from nimbus_sd.simulation.silver import integrated_expression, silver_labels

_QUANTILE = 0.9999


@dataclass(frozen=True)
class Dataset:
    """Fields of one simulated study.

    Parameters
    ----------
    fields
        Images ``(c, y, x)`` divided by one scale per marker, labels, masks, truth.
    silver
        Per field ``(n, c)`` float32: labels as clustering would give them, some 10 % wrong.
    """

    fields: tuple[Samples, ...]
    silver: tuple[FloatArray, ...]


def _scale(pixels: AnyArray) -> float:
    """Quantile of all pixels; the brightest where that is 0; 1 for an empty channel."""
    return float(np.quantile(pixels, _QUANTILE)) or float(pixels.max()) or 1.0


def simulate_dataset(
    seed: int, *, n_fields: int = 4, shape: tuple[int, int] = (384, 384), n_channels: int = 6
) -> Dataset:
    """Simulate a study: random markers on random platforms over several fields at 1 µm per px.

    The scale of a marker is the 99.99th percentile over all pixels of all fields, as
    :func:`nimbus_sd.pp.normalization` has it.

    Parameters
    ----------
    seed
        The same seed gives the same arrays.
    n_fields, shape, n_channels
        Fields, their ``(y, x)`` in px, markers.
    """
    if min(n_fields, n_channels) < 1:
        msg = f"simulate_dataset needs at least one field and one channel, got {n_fields} and {n_channels}"
        raise InputError(msg)
    rng, silver_rng, *streams = np.random.default_rng(seed).spawn(2 + n_fields)
    channels = [(random_marker(rng), random_platform(rng)) for _ in range(n_channels)]
    tissue, segmentation, alike = random_tissue(rng), random_segmentation(rng), rng.random() < 0.3
    fields = [
        sample_field(
            stream,
            shape,
            tissue=tissue if alike else random_tissue(stream),
            segmentation=segmentation,
            channels=channels,
        )
        for stream in streams
    ]
    pixels = np.stack([f.images for f in fields])
    scale = np.array([_scale(pixels[:, c]) for c in range(n_channels)], np.float32)
    fields = [replace(f, images=f.images / scale[:, None, None]) for f in fields]
    expression = np.concatenate([integrated_expression(f.images, f.labels) for f in fields])
    silver = silver_labels(silver_rng, expression, np.concatenate([f.positive for f in fields]))
    ends = np.cumsum([len(f.positive) for f in fields])[:-1]
    return Dataset(tuple(fields), tuple(np.split(silver, ends)))
