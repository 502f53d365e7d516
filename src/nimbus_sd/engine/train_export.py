"""Export of trained weights: the card that travels with them says how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nimbus_sd.models.card import ModelCard
from nimbus_sd.models.loading import save
from nimbus_sd.models.unet import UNet

TRAINING_DATA = (
    "Images simulated by nimbus_sd.simulation (tissue, segmentation errors, markers and platforms with known "
    "truth); no measured image was used for training."
)
LIMITS = (
    "Trained on simulated tissue only. Look at stains whose background is as bright as the cells, and at "
    "markers that hardly any cell of the data set is positive for, before trusting their scores."
)


def export(
    folder: str | Path, net: UNet, *, name: str, command: str, metrics: Mapping[str, Any]
) -> ModelCard:
    """Write half-precision ``weights.safetensors`` and ``card.json``.

    Parameters
    ----------
    folder
        Destination; made if missing.
    net
        Network to export.
    name, command, metrics
        For the card.

    Returns
    -------
    The card that was written, hash included.
    """
    config = net.config
    card = ModelCard(
        name=name,
        architecture={
            "in_channels": config.in_channels,
            "out_channels": config.out_channels,
            "depth": config.depth,
            "width": config.width,
            "padding": config.padding,
        },
        mpp=1.0,
        transform="sqrt",
        stride=config.stride,
        halo=config.halo,
        licence="BSD-3-Clause",
        training_data=TRAINING_DATA,
        command=command,
        metrics=dict(metrics),
        limits=LIMITS,
    )
    card = save(net, folder, card, half=True)
    # safetensors writes files that only their owner can read; weights go into packages
    (Path(folder) / card.weights_file).chmod(0o644)
    return card
