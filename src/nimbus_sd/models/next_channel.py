"""NeXt-Channel: every feature belongs to one marker until the last layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from nimbus_sd._core.errors import InputError
from nimbus_sd.models.channelwise import ChannelwiseNet, check_markers, check_numbers


@dataclass(frozen=True)
class NeXtChannelConfig:
    """Architecture of a :class:`NeXtChannel`.

    Parameters
    ----------
    markers
        Names of the input's channels, in their order; as many groups has every convolution.
    size
        Side of the patches in px that the network is meant for.
    width
        Features per marker are ``width * 2 ** (i + 1)`` in stage i.
    embedding
        Length of the embedding.
    expansion
        Factor by which a block widens each marker's features between its two 1 x 1 convolutions.
    depths
        Blocks per stage; each later stage halves the resolution.

    Raises
    ------
    InputError
        If markers are missing or repeated, or a number is out of range.
    """

    markers: tuple[str, ...]
    size: int = 32
    width: int = 2
    embedding: int = 256
    expansion: int = 2
    depths: tuple[int, ...] = (1, 1, 1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "markers", check_markers(self.markers))
        object.__setattr__(self, "depths", tuple(self.depths))
        check_numbers(self, "size", "width", "embedding", "expansion")
        if not self.depths or any(not isinstance(d, int) or d < 1 for d in self.depths):
            msg = f"depths={self.depths}: give each stage at least one block, for instance (1, 1, 1)"
            raise InputError(msg)

    @property
    def features(self) -> int:
        """Features per marker in the interpretability stage."""
        return self.width * 2 ** len(self.depths)

    @property
    def min_size(self) -> int:
        """Smallest side of an input in px."""
        return 2 ** len(self.depths)

    def to_dict(self) -> dict[str, Any]:
        """The parameters, in JSON's types."""
        return {**asdict(self), "markers": list(self.markers), "depths": list(self.depths)}


class NeXtChannelBlock(nn.Module):
    """A ConvNeXt block in which no marker meets another.

    Depthwise 3 x 3, batch norm, 1 x 1 to ``expansion`` times the features, GELU, 1 x 1 back,
    residual; both 1 x 1 convolutions have a group per marker. Batch norm, because it acts on
    each feature by itself and keeps how bright a patch is: layer norm would take the marker's
    intensity away.
    """

    def __init__(self, groups: int, features: int, expansion: int) -> None:
        super().__init__()
        n, wide = groups * features, groups * features * expansion
        self.depthwise = nn.Conv2d(n, n, 3, padding=1, groups=n, bias=False)
        self.norm = nn.BatchNorm2d(n)
        self.expand = nn.Conv2d(n, wide, 1, groups=groups)
        self.act = nn.GELU()
        self.project = nn.Conv2d(wide, n, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, groups * features, y, x)`` to the same shape."""
        y: Tensor = self.project(self.act(self.expand(self.norm(self.depthwise(x)))))
        return x + y


class NeXtChannel(ChannelwiseNet):
    """Embeds cell-centred patches; every feature belongs to one marker until the last layer.

    Stem (grouped 3 x 3, stride 2) and stages of :class:`NeXtChannelBlock`, average pooling over
    the patch: the interpretability stage. One linear layer over all markers' features makes the
    embedding of it.

    Parameters
    ----------
    config
        The architecture.

    References
    ----------
    Gutwein et al. (2024), *Interpretable embeddings for segmentation-free single-cell analysis
    in multiplex imaging*. The paper's figure leaves strides and the norm open; these are ours.

    Examples
    --------
    >>> import torch
    >>> net = NeXtChannel(NeXtChannelConfig(markers=("CD3", "CD8", "CD20"))).eval()
    >>> x = torch.rand(4, 3, 32, 32)
    >>> net(x).shape, net.activations(x).shape
    (torch.Size([4, 256]), torch.Size([4, 3, 16]))
    """

    config: NeXtChannelConfig

    def __init__(self, config: NeXtChannelConfig) -> None:
        super().__init__(config)
        groups = len(config.markers)
        features = [config.width * 2 ** (i + 1) for i in range(len(config.depths))]
        layers: list[nn.Module] = [
            nn.Conv2d(groups, groups * features[0], 3, stride=2, padding=1, groups=groups, bias=False),
            nn.BatchNorm2d(groups * features[0]),
        ]
        for i, depth in enumerate(config.depths):
            if i:
                n, m = groups * features[i - 1], groups * features[i]
                layers += [nn.BatchNorm2d(n), nn.Conv2d(n, m, 2, stride=2, groups=groups)]
            layers += [NeXtChannelBlock(groups, features[i], config.expansion) for _ in range(depth)]
        self.stages = nn.Sequential(*layers)

    def pooled(self, x: Tensor) -> Tensor:
        """``(b, c, y, x)`` to ``(b, c, features)``."""
        y: Tensor = self.stages(x)
        return y.mean(dim=(-2, -1)).unflatten(1, (len(self.config.markers), -1))
