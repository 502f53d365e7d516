"""From an architecture, as cards and configurations hold it, to a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.training.config import TrainConfig
from nimbus_sd.engine.training.sources import TileSource
from nimbus_sd.models.architectures import config_of, is_exact


def tiling(architecture: Mapping[str, Any]) -> tuple[int, int, bool]:
    """Stride and halo in px, and whether tiled equals whole-image prediction."""
    config = config_of(architecture)
    return config.stride, config.halo, is_exact(config)


def fit_architecture(config: TrainConfig, source: TileSource) -> TrainConfig:
    """Give the network as many input planes as the tiles have.

    Raises
    ------
    InputError
        If the architecture says another number, or the tiles don't fit its stride.
    """
    tile = source.tile(0)
    n = 2 + (0 if tile.extra is None else len(tile.extra))
    given = config.architecture.get("in_channels", n)
    if given != n:
        msg = (
            f"architecture: in_channels={given}, but the tiles give {n} planes (marker, mask"
            f"{', extra planes' if n > 2 else ''}); leave in_channels out, or change the tiles' extra planes"
        )
        raise InputError(msg)
    config = replace(config, architecture={**config.architecture, "in_channels": n})
    stride = tiling(config.architecture)[0]
    for what, shape in (("crop", (config.crop or stride,) * 2), ("tiles", tile.image.shape)):
        if any(side % stride for side in shape):
            msg = (
                f"{what} of {shape[0]} x {shape[1]} px don't fit the network: sides must be multiples "
                f"of {stride}"
            )
            raise InputError(msg)
    return config
