"""From the architecture on a card to a network: which kinds there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Protocol

from torch import nn

from nimbus_sd._core.errors import InputError
from nimbus_sd.models.efficientnet import EfficientNetUNet, EfficientNetUNetConfig
from nimbus_sd.models.resnet import ResNetUNet, ResNetUNetConfig
from nimbus_sd.models.unet import UNet, UNetConfig


class NetConfig(Protocol):
    """What every network's configuration tells about tiles."""

    @property
    def stride(self) -> int:
        """Pixels by which tiles must be aligned."""
        ...

    @property
    def halo(self) -> int:
        """Context in px that a tile needs."""
        ...


KINDS: dict[str, tuple[type, Callable[[Any], nn.Module]]] = {
    "unet": (UNetConfig, UNet),
    "resnet": (ResNetUNetConfig, ResNetUNet),
    "efficientnet": (EfficientNetUNetConfig, EfficientNetUNet),
}


def config_of(architecture: Mapping[str, Any]) -> NetConfig:
    """Return the configuration object of an architecture.

    Parameters
    ----------
    architecture
        ``"kind"`` (``"unet"`` where it is left out) and that kind's parameters.

    Raises
    ------
    InputError
        If the kind or a parameter is unknown, or a value invalid.
    """
    values = dict(architecture)
    kind = values.pop("kind", "unet")
    if kind not in KINDS:
        msg = f"architecture kind {kind!r} is unknown; valid: {', '.join(KINDS)}"
        raise InputError(msg)
    made = KINDS[kind][0]
    try:
        config: NetConfig = made(**values)
    except (TypeError, InputError) as error:
        valid = ", ".join(f.name for f in fields(made))
        msg = f"architecture {dict(architecture)}: {error}; valid keys: {valid} (kind {kind!r})"
        raise InputError(msg) from error
    return config


def is_exact(config: NetConfig) -> bool:
    """Whether tiles with the configuration's halo give the whole image's answer."""
    return bool(getattr(config, "exact", True))


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """Build a network with fresh weights.

    Parameters
    ----------
    architecture
        ``"kind"`` and that kind's parameters:

        - ``"unet"`` (default): the residual U-Net, :class:`~nimbus_sd.models.UNetConfig`;
        - ``"resnet"``: U-Net with a ResNet encoder, ``layers`` 14, 26, 50, 101 or 152,
          ``width`` (64);
        - ``"efficientnet"``: U-Net with an EfficientNetV2 encoder, ``size`` ``"s"``,
          ``"m"`` or ``"l"``, factors ``width`` and ``depth``, ``squeeze_excite`` (off:
          with it the answer depends on the tile).

        All take ``in_channels`` (2: marker and mask; more for nuclei or membrane
        planes), ``out_channels`` and ``padding``. Encoders start from random weights.

    Returns
    -------
    Network from ``(b, in_channels, y, x)`` to logits ``(b, out_channels, y, x)``, with
    ``net.config.stride`` and ``net.config.halo`` in px and ``net.folded()``.

    Raises
    ------
    InputError
        If the kind or a parameter is unknown, or a value invalid.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> net = nb.models.build({"kind": "resnet", "layers": 14, "width": 8, "in_channels": 3})
    >>> net.config.stride, net.config.halo
    (32, 128)
    """
    config = config_of(architecture)
    return KINDS[architecture.get("kind", "unet")][1](config)
