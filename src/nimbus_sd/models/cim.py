"""CIM: the shallow sibling of NeXt-Channel, one block and no stages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from nimbus_sd.models.channelwise import ChannelwiseNet, check_markers, check_numbers


@dataclass(frozen=True)
class CIMConfig:
    """Architecture of a :class:`CIM`.

    Parameters
    ----------
    markers
        Names of the input's channels, in their order; as many groups has every convolution.
    size
        Side of the patches in px that the network is meant for.
    width
        Features per marker.
    embedding
        Length of the embedding.

    Raises
    ------
    InputError
        If markers are missing or repeated, or a number is out of range.
    """

    markers: tuple[str, ...]
    size: int = 32
    width: int = 4
    embedding: int = 256

    def __post_init__(self) -> None:
        object.__setattr__(self, "markers", check_markers(self.markers))
        check_numbers(self, "size", "width", "embedding")

    @property
    def features(self) -> int:
        """Features per marker in the interpretability stage."""
        return self.width

    @property
    def min_size(self) -> int:
        """Smallest side of an input in px."""
        return 3

    def to_dict(self) -> dict[str, Any]:
        """The parameters, in JSON's types."""
        return {**asdict(self), "markers": list(self.markers)}


class MarkerSqueezeExcite(nn.Module):
    """Weigh the features of each marker by what the marker's own features say over the whole patch."""

    def __init__(self, groups: int, features: int) -> None:
        super().__init__()
        n = groups * features
        self.squeeze = nn.Conv2d(n, n, 1, groups=groups)
        self.excite = nn.Conv2d(n, n, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, groups * features, y, x)`` to the same shape."""
        weights = self.excite(self.squeeze(x.mean(dim=(-2, -1), keepdim=True)).relu()).sigmoid()
        return x * weights


class CIM(ChannelwiseNet):
    """Embeds cell-centred patches with one block: enough, as the authors found later.

    Grouped 3 x 3 stem; depthwise 3 x 3, batch norm, ReLU, squeeze-and-excite within each marker,
    grouped 1 x 1, residual; average pooling: the interpretability stage, with the interface of
    :class:`~nimbus_sd.models.next_channel.NeXtChannel`.

    Parameters
    ----------
    config
        The architecture.

    References
    ----------
    Gutwein et al. (2025), *Preserving marker specificity with lightweight channel-independent
    representation learning*: CIM-S.

    Examples
    --------
    >>> import torch
    >>> net = CIM(CIMConfig(markers=("CD3", "CD8", "CD20"))).eval()
    >>> net.activations(torch.rand(4, 3, 24, 24)).shape
    torch.Size([4, 3, 4])
    """

    config: CIMConfig

    def __init__(self, config: CIMConfig) -> None:
        super().__init__(config)
        groups, n = len(config.markers), len(config.markers) * config.width
        self.stem = nn.Conv2d(groups, n, 3, padding=1, groups=groups)
        self.block = nn.Sequential(
            nn.Conv2d(n, n, 3, padding=1, groups=n, bias=False),
            nn.BatchNorm2d(n),
            nn.ReLU(),
            MarkerSqueezeExcite(groups, config.width),
            nn.Conv2d(n, n, 1, groups=groups),
        )

    def pooled(self, x: Tensor) -> Tensor:
        """``(b, c, y, x)`` to ``(b, c, features)``."""
        y = self.stem(x)
        y = y + self.block(y)
        return y.mean(dim=(-2, -1)).unflatten(1, (len(self.config.markers), -1))
