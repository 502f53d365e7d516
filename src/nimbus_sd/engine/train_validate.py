"""Validation on held-out simulated tissue: cell scores against known truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nimbus_sd.engine.train_batch import BatchConfig, degrade, intensity_plane
from nimbus_sd.models.unet import UNet
from nimbus_sd.simulation import simulate_samples

FIRST_SEED = 1_000_000_000
"""Seeds from here on are never used for training."""


@dataclass(frozen=True)
class HeldOut:
    """One tissue to validate on.

    Parameters
    ----------
    inputs
        ``(c, 2, y, x)`` float32.
    labels
        ``(y, x)`` int32.
    positive
        ``(n, c)`` float32: 1, 0 or NaN.
    """

    inputs: Tensor
    labels: NDArray[Any]
    positive: NDArray[Any]


def held_out(n_tissues: int, *, side: int, batch: BatchConfig) -> list[HeldOut]:
    """Simulate validation tissues, degraded as in training."""
    tissues = []
    for i in range(n_tissues):
        samples = simulate_samples(FIRST_SEED + i, shape=(side, side))
        rng = np.random.default_rng(FIRST_SEED + i)
        planes = [intensity_plane(degrade(rng, image, batch)) for image in samples.images]
        mask = samples.interior.astype(np.float32)
        inputs = torch.from_numpy(np.stack([np.stack([plane, mask]) for plane in planes]))
        tissues.append(HeldOut(inputs, samples.labels, samples.positive))
    return tissues


def cell_scores(probability: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Mean over all pixels of each label 1..n: ``(c, y, x)`` to ``(n, c)``."""
    n = int(labels.max()) + 1
    area = np.maximum(np.bincount(labels.ravel(), minlength=n), 1)
    sums = [np.bincount(labels.ravel(), weights=p.ravel(), minlength=n) for p in probability]
    return (np.stack(sums, 1) / area[:, None])[1:]


def validate(
    net: UNet, tissues: list[HeldOut], *, device: torch.device, precision: torch.dtype
) -> dict[str, float]:
    """F1, precision and recall at 0.5, cells pooled over tissues and markers.

    Returns
    -------
    ``f1``, ``precision``, ``recall``.
    """
    net.eval()
    hits = positives = called = 0
    with torch.inference_mode(), torch.autocast(device.type, precision, enabled=precision != torch.float32):
        for tissue in tissues:
            inputs = tissue.inputs.to(device, memory_format=torch.channels_last)
            probability = torch.sigmoid(net(inputs).float())[:, 0].cpu().numpy()
            calls = cell_scores(probability, tissue.labels) > 0.5
            defined = ~np.isnan(tissue.positive)
            truth = (tissue.positive == 1) & defined
            hits += int((calls & truth).sum())
            positives += int(truth.sum())
            called += int((calls & defined).sum())
    return {
        "f1": 2 * hits / max(positives + called, 1),
        "precision": hits / max(called, 1),
        "recall": hits / max(positives, 1),
    }
