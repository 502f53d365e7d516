"""Networks for tests: cheap, yet any error of geometry, halo, view or mask changes their answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nimbus_sd._core.hierarchy import MARKERS
from nimbus_sd.models.card import ModelCard
from nimbus_sd.models.embedding import EmbeddingCard, EmbeddingModel, architecture_of, build_embedding
from nimbus_sd.models.loading import LoadedModel
from nimbus_sd.models.subtyper import SubtypeCard, SubtypeModel, build_subtyper
from nimbus_sd.models.subtyper import architecture_of as subtype_architecture_of
from nimbus_sd.models.unet import UNet, UNetConfig

STRIDE, HALO = 16, 16


class DirectionalNet(nn.Module):
    """A fixed asymmetric convolution whose gain depends on the position within a 16 px grid.

    It sees exactly as far as its halo, 16 px, and no view of the square leaves it unchanged, so tiles
    that are misaligned, too narrow, flipped or swapped give other answers. It has
    no weights to learn. Sides must be multiples of 16, as for the published network.

    Examples
    --------
    >>> import torch
    >>> DirectionalNet()(torch.zeros(1, 2, 32, 48)).shape
    torch.Size([1, 1, 32, 48])
    """

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        far = rng.normal(size=(3, 2, 7, 7)) / 3
        near = rng.normal(size=(1, 3, 3, 3))
        gain = rng.uniform(0.5, 1.5, size=(1, 1, STRIDE, STRIDE))
        self.register_buffer("far", torch.from_numpy(far.astype(np.float32)))
        self.register_buffer("near", torch.from_numpy(near.astype(np.float32)))
        self.register_buffer("gain", torch.from_numpy(gain.astype(np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """(b, 2, y, x) to logits (b, 1, y, x)."""
        if x.shape[-2] % STRIDE or x.shape[-1] % STRIDE:
            msg = f"sides {tuple(x.shape[-2:])} must be multiples of {STRIDE}"
            raise ValueError(msg)
        far, near, gain = (self.get_buffer(name) for name in ("far", "near", "gain"))
        x = nn.functional.conv2d(x, far, padding=15, dilation=5).tanh()  # (b, 3, y, x)
        x = nn.functional.conv2d(x, near, padding=1)  # (b, 1, y, x)
        return x * gain.tile(x.shape[-2] // STRIDE, x.shape[-1] // STRIDE)


def directional_model(net: nn.Module | None = None, **card: Any) -> LoadedModel:
    """A :class:`DirectionalNet`, or `net`, with a card; keywords go to the card.

    Examples
    --------
    >>> directional_model(mpp=0.5).card.mpp
    0.5
    """
    values: dict[str, Any] = {"name": "directional", "stride": STRIDE, "halo": HALO} | card
    return LoadedModel(net=(net or DirectionalNet()).eval(), card=ModelCard(**values))


def _randomise(net: nn.Module, seed: int, *, gain: float) -> None:
    """Draw weights and batch-norm statistics anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif value.is_floating_point():
                spread = gain / np.sqrt(max(value[0].numel(), 1)) if value.ndim > 1 else 0.3
                value.normal_(0, float(spread), generator=generator)


def tiny_unet_model(*, width: int = 2, depth: int = 5, seed: int = 0, **card: Any) -> LoadedModel:
    """A small :class:`~nimbus_sd.models.UNet` with random weights and batch-norm statistics.

    Examples
    --------
    >>> tiny_unet_model(depth=3).card.stride
    4
    """
    config = UNetConfig(width=width, depth=depth)
    net = UNet(config)
    _randomise(net, seed, gain=2.0)
    architecture = {"width": width, "depth": depth}
    values: dict[str, Any] = {"name": "tiny", "stride": config.stride, "halo": config.halo} | card
    return LoadedModel(net=net.eval(), card=ModelCard(**{"architecture": architecture} | values))


def tiny_embedding_model(
    markers: Sequence[str], *, kind: str = "next_channel", crop: int = 16, seed: int = 0, **card: Any
) -> EmbeddingModel:
    """A small embedding network with random weights and batch-norm statistics; keywords go to the card.

    Examples
    --------
    >>> tiny_embedding_model(("a", "b"), crop=8).card.crop
    8
    """
    net = build_embedding({"kind": kind, "markers": tuple(markers), "size": 2 * crop, "embedding": 12})
    _randomise(net, seed, gain=1.5)
    values: dict[str, Any] = {"name": "tiny", "size": 2 * crop, "crop": crop} | card
    return EmbeddingModel(net.eval(), EmbeddingCard(architecture=architecture_of(net), **values))


def _settle(net: nn.Module, seed: int) -> None:
    """Take batch-norm statistics from random patches: with others the signal would get lost on its way."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all passes, of which there is one
    x = nn.functional.interpolate(torch.rand(64, 3, 8, 8, generator=generator), size=32, mode="bilinear")
    with torch.no_grad():
        net.train()(x)
    net.eval()


def tiny_subtype_model(
    markers: Sequence[str] = MARKERS,
    *,
    backbone: Mapping[str, Any] = MappingProxyType({"kind": "hovernet", "width": 2, "units": (1, 1, 1, 1)}),
    seed: int = 0,
    **card: Any,
) -> SubtypeModel:
    """A small sub-typing network with random weights; keywords go to the card.

    Examples
    --------
    >>> tiny_subtype_model(patch=32).card.markers
    ('CD45', 'CD3e', 'CD4', 'CD8a')
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        net = build_subtyper({"markers": tuple(markers), "backbone": dict(backbone), "hidden": 8})
        for head in net.heads:
            head.get_parameter("2.weight").mul_(8)  # as they come patches would hardly differ
    _settle(net, seed)
    values: dict[str, Any] = {"name": "tiny"} | card
    return SubtypeModel(net, SubtypeCard(architecture=subtype_architecture_of(net), **values))
