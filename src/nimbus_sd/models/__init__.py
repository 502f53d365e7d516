"""Networks, weight cards, the registry, and safe loading."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimbus_sd._core.lazy import lazy_exports

if TYPE_CHECKING:
    from nimbus_sd.models import cim, next_channel
    from nimbus_sd.models.architectures import build
    from nimbus_sd.models.card import ModelCard
    from nimbus_sd.models.efficientnet import EfficientNetUNet, EfficientNetUNetConfig
    from nimbus_sd.models.embedding import EmbeddingCard, EmbeddingModel, load_embedding, save_embedding
    from nimbus_sd.models.loading import LoadedModel, load
    from nimbus_sd.models.onnx import export_onnx
    from nimbus_sd.models.registry import list
    from nimbus_sd.models.resnet import ResNetUNet, ResNetUNetConfig
    from nimbus_sd.models.subtyper import SubtypeCard, SubtypeModel, load_subtyper, save_subtyper
    from nimbus_sd.models.unet import UNet, UNetConfig

__all__ = [
    "EfficientNetUNet",
    "EfficientNetUNetConfig",
    "EmbeddingCard",
    "EmbeddingModel",
    "LoadedModel",
    "ModelCard",
    "ResNetUNet",
    "ResNetUNetConfig",
    "SubtypeCard",
    "SubtypeModel",
    "UNet",
    "UNetConfig",
    "build",
    "cim",
    "export_onnx",
    "list",
    "load",
    "load_embedding",
    "load_subtyper",
    "next_channel",
    "save_embedding",
    "save_subtyper",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "EfficientNetUNet": "efficientnet",
        "EfficientNetUNetConfig": "efficientnet",
        "EmbeddingCard": "embedding",
        "EmbeddingModel": "embedding",
        "LoadedModel": "loading",
        "ModelCard": "card",
        "ResNetUNet": "resnet",
        "ResNetUNetConfig": "resnet",
        "SubtypeCard": "subtyper",
        "SubtypeModel": "subtyper",
        "UNet": "unet",
        "UNetConfig": "unet",
        "build": "architectures",
        "cim": "cim",
        "export_onnx": "onnx",
        "list": "registry",
        "load": "loading",
        "load_embedding": "embedding",
        "load_subtyper": "subtyper",
        "next_channel": "next_channel",
        "save_embedding": "embedding",
        "save_subtyper": "subtyper",
    },
)
