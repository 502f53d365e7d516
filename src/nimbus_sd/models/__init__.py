"""Networks, weight cards, the registry, and safe loading."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimbus_sd._core.lazy import lazy_exports

if TYPE_CHECKING:
    from nimbus_sd.models.card import ModelCard
    from nimbus_sd.models.loading import LoadedModel, load
    from nimbus_sd.models.registry import list
    from nimbus_sd.models.unet import UNet, UNetConfig

__all__ = ["LoadedModel", "ModelCard", "UNet", "UNetConfig", "list", "load"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "LoadedModel": "loading",
        "ModelCard": "card",
        "UNet": "unet",
        "UNetConfig": "unet",
        "list": "registry",
        "load": "loading",
    },
)
