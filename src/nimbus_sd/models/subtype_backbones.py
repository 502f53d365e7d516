"""Feature extractors for H&E patches behind one interface: ConvNeXt, ViT (Phikon), HoVer-Net's encoder.

ConvNeXt and ViT are those of `transformers` (extra ``he``): its models need no torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.lazy import require
from nimbus_sd.models.hovernet import HoVerNetConfig, HoVerNetEncoder

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
POSITIONS = ("interpolate", "resize")

_V1 = {"kind": "convnext", **IMAGENET}
_V2 = {"kind": "convnextv2", **IMAGENET}

#: Name to what builds it; smallest first. See :data:`HUB` for those that are published with weights.
BACKBONES: dict[str, dict[str, Any]] = {
    "convnext-atto": {**_V1, "depths": [2, 2, 6, 2], "hidden_sizes": [40, 80, 160, 320]},
    "convnext-tiny": {**_V1, "depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768]},
    "convnext-small": {**_V1, "depths": [3, 3, 27, 3], "hidden_sizes": [96, 192, 384, 768]},
    "convnext-base": {**_V1, "depths": [3, 3, 27, 3], "hidden_sizes": [128, 256, 512, 1024]},
    "convnextv2-atto": {**_V2, "depths": [2, 2, 6, 2], "hidden_sizes": [40, 80, 160, 320]},
    "convnextv2-femto": {**_V2, "depths": [2, 2, 6, 2], "hidden_sizes": [48, 96, 192, 384]},
    "convnextv2-pico": {**_V2, "depths": [2, 2, 6, 2], "hidden_sizes": [64, 128, 256, 512]},
    "convnextv2-nano": {**_V2, "depths": [2, 2, 8, 2], "hidden_sizes": [80, 160, 320, 640]},
    "convnextv2-tiny": {**_V2, "depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768]},
    "phikon": {"kind": "vit", **IMAGENET, "position": "interpolate"},
    "hovernet": {"kind": "hovernet", "width": 64, "units": [3, 4, 6, 3]},
}


def backbone_config(backbone: str | Mapping[str, Any]) -> dict[str, Any]:
    """What builds a backbone, in JSON's types.

    Parameters
    ----------
    backbone
        A name of :data:`BACKBONES`, or a mapping with ``"kind"`` (``"convnext"``,
        ``"convnextv2"``, ``"vit"``, ``"hovernet"``) and its parameters.

    Raises
    ------
    InputError
        If the name or the kind is unknown.

    Examples
    --------
    >>> backbone_config("hovernet")["kind"]
    'hovernet'
    """
    if isinstance(backbone, str):
        if backbone not in BACKBONES:
            msg = f"backbone={backbone!r} is unknown; valid: {', '.join(BACKBONES)}, or a mapping with 'kind'"
            raise InputError(msg)
        return dict(BACKBONES[backbone])
    if not isinstance(backbone, Mapping) or backbone.get("kind") not in KINDS:
        msg = (
            f"backbone={backbone!r} is neither a name nor a mapping whose 'kind' is one of {', '.join(KINDS)}"
        )
        raise InputError(msg)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in backbone.items()}


class Backbone(nn.Module):
    """Normalises colours and gives a feature vector per patch.

    Parameters
    ----------
    net
        What extracts features.
    n_features
        How many.
    mean, std
        Of red, green, blue, subtracted and divided by.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        n_features: int,
        *,
        mean: tuple[float, ...] = (0, 0, 0),
        std: tuple[float, ...] = (1, 1, 1),
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or not all(s > 0 for s in std):
            msg = f"backbone: mean={mean}, std={std}; three numbers each, std above 0"
            raise InputError(msg)
        self.net, self.n_features = net, n_features
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(
                name, torch.tensor(values, dtype=torch.float32)[:, None, None], persistent=False
            )

    def forward(self, x: Tensor) -> Tensor:
        """RGB in [0, 1], (b, 3, y, x), to features (b, n_features)."""
        return self.features((x - self.mean) / self.std)

    def features(self, x: Tensor) -> Tensor:
        """Features of normalised patches."""
        found: Tensor = self.net(x)
        return found


class ConvNeXt(Backbone):
    """A Hugging Face ConvNeXt or ConvNeXt V2; features are its normalised means over the last map."""

    def features(self, x: Tensor) -> Tensor:
        """(b, 3, y, x) to (b, n)."""
        found: Tensor = self.net(x).pooler_output
        return found


class ViT(Backbone):
    """A Hugging Face ViT; features are those of its class token.

    Parameters
    ----------
    position
        For patches of another side than its training's: ``"interpolate"`` the position
        embeddings, or ``"resize"`` the patch.
    """

    def __init__(self, net: nn.Module, n_features: int, *, position: str, **colours: Any) -> None:
        super().__init__(net, n_features, **colours)
        if position not in POSITIONS:
            msg = f"ViT: position={position!r}; valid: {', '.join(POSITIONS)}"
            raise InputError(msg)
        self.position = position

    def features(self, x: Tensor) -> Tensor:
        """(b, 3, y, x) to (b, n)."""
        net: Any = self.net
        side = net.config.image_size
        if self.position == "resize" and x.shape[-1] != side:
            x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        found: Tensor = net(x, interpolate_pos_encoding=x.shape[-1] != side).last_hidden_state[:, 0]
        return found


def _convnext(values: dict[str, Any], colours: dict[str, Any], *, version: str) -> Backbone:
    transformers = require("transformers", extra="he")
    stages = len(values.get("depths", range(4)))
    if len(values.get("hidden_sizes", range(4))) != stages:
        given = {k: values.get(k) for k in ("depths", "hidden_sizes")}
        msg = f"backbone: {given}; one of each per stage"
        raise InputError(msg)
    config = getattr(transformers, f"ConvNext{version}Config")(num_stages=stages, **values)
    return ConvNeXt(
        getattr(transformers, f"ConvNext{version}Model")(config), config.hidden_sizes[-1], **colours
    )


def _vit(values: dict[str, Any], colours: dict[str, Any]) -> Backbone:
    transformers = require("transformers", extra="he")
    position = values.pop("position", "interpolate")
    config = transformers.ViTConfig(**values)
    if config.hidden_size % config.num_attention_heads:
        n = config.num_attention_heads
        msg = f"backbone: hidden_size={config.hidden_size} can't be divided by {n} heads"
        raise InputError(msg)
    net = transformers.ViTModel(config, add_pooling_layer=False)
    return ViT(net, config.hidden_size, position=position, **colours)


def _hovernet(values: dict[str, Any], colours: dict[str, Any]) -> Backbone:
    net = HoVerNetEncoder(HoVerNetConfig(**values))
    return Backbone(net, net.config.n_features, **colours)


KINDS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Backbone]] = {
    "convnext": lambda values, colours: _convnext(values, colours, version=""),
    "convnextv2": lambda values, colours: _convnext(values, colours, version="V2"),
    "vit": _vit,
    "hovernet": _hovernet,
}
_COLOURS = ("mean", "std")
# what the configurations of transformers take besides: their classes accept any key in silence
_KEYS = {
    "convnext": ("depths", "hidden_sizes", "patch_size", "drop_path_rate", "layer_scale_init_value"),
    "convnextv2": ("depths", "hidden_sizes", "patch_size", "drop_path_rate"),
    "vit": (
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        *("image_size", "patch_size", "position", "hidden_dropout_prob", "qkv_bias"),
    ),
    "hovernet": ("width", "units"),
}


def build_backbone(config: Mapping[str, Any]) -> Backbone:
    """Build a backbone with fresh weights.

    Parameters
    ----------
    config
        From :func:`backbone_config`.

    Raises
    ------
    InputError
        If a parameter is unknown or its value invalid.
    MissingExtraError
        If it needs transformers, which is not installed.
    """
    values = backbone_config(config)
    kind = values.pop("kind")
    colours = {k: tuple(values.pop(k)) for k in _COLOURS if k in values}
    unknown = sorted(values.keys() - set(_KEYS[kind]))
    if unknown:
        msg = f"backbone {kind!r} has no parameter {unknown}; valid: {', '.join((*_KEYS[kind], *_COLOURS))}"
        raise InputError(msg)
    try:
        return KINDS[kind](values, colours)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        if isinstance(error, InputError):
            raise
        msg = f"backbone {kind!r} can't be built from {values}: {error}"
        raise InputError(msg) from error
