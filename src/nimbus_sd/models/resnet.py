"""U-Net with a residual bottleneck encoder (ResNet-50, -101, -152), in plain torch.

The libraries that ship such encoders (segmentation-models, timm) need torchvision,
which this package does without; the architecture follows He et al., "Deep residual
learning for image recognition", with the stride in the 3x3 convolution. Weights start
at random: nothing pretrained on photographs is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from nimbus_sd._core.errors import InputError
from nimbus_sd.models.layers import (
    DECODER,
    ConvNorm,
    EncoderUNet,
    Padding,
    check_planes,
    decoder_steps,
)
from nimbus_sd.models.reach import Step, conv, halo

BLOCKS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
EXPANSION = 4


@dataclass(frozen=True)
class ResNetUNetConfig:
    """Shape of a :class:`ResNetUNet`.

    Parameters
    ----------
    in_channels, out_channels
        Input planes (marker, mask, further ones) and logits per pixel.
    layers
        14, 26, 50, 101 or 152.
    width
        Filters of the stem; 64 is usual. The decoder shrinks with it.
    padding
        How convolutions extend the border: ``"reflect"`` or ``"zeros"``.
    """

    in_channels: int = 2
    out_channels: int = 1
    layers: int = 50
    width: int = 64
    padding: Padding = "reflect"

    def __post_init__(self) -> None:
        check_planes(self)
        if self.layers not in BLOCKS:
            valid = ", ".join(map(str, BLOCKS))
            msg = f"ResNetUNetConfig.layers must be one of {valid}, got {self.layers!r}"
            raise InputError(msg)
        if not isinstance(self.width, int) or self.width < 4 or self.width % 4:
            msg = f"ResNetUNetConfig.width must be a positive multiple of 4, got {self.width!r}"
            raise InputError(msg)

    @property
    def stride(self) -> int:
        """Pixels by which tiles must be aligned."""
        return 32

    @property
    def halo(self) -> int:
        """Context in px that a tile aligned to the stride can see, rounded up to the stride."""
        steps: list[Step] = decoder_steps()
        for level, blocks in reversed(list(enumerate(BLOCKS[self.layers]))):
            steps += [conv(3)] * (blocks - 1) + [conv(3, 1 if level == 0 else 2)]
        return halo([*steps, conv(3, 2), conv(7, 2)], self.stride)

    @property
    def exact(self) -> bool:
        """Whether tiles with that halo give the whole image's answer."""
        return True


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up; the input (projected where shapes differ) is added."""

    def __init__(self, n_in: int, width: int, stride: int, padding: Padding) -> None:
        super().__init__()
        n_out = EXPANSION * width
        self.reduce = ConvNorm(n_in, width, 1)
        self.spatial = ConvNorm(width, width, 3, stride=stride, padding=padding)
        self.expand = ConvNorm(width, n_out, 1, act="")
        self.project: nn.Module = nn.Identity()
        if stride > 1 or n_in != n_out:
            self.project = ConvNorm(n_in, n_out, 1, stride=stride, act="")

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_in, y, x) to (b, 4 width, y / stride, x / stride)."""
        return (self.expand(self.spatial(self.reduce(x))) + self.project(x)).relu()


class ResNetEncoder(nn.Module):
    """Feature maps at strides 2, 4, 8, 16, 32."""

    def __init__(self, config: ResNetUNetConfig) -> None:
        super().__init__()
        width, padding = config.width, config.padding
        self.widths = (width, *(EXPANSION * width * 2**i for i in range(4)))
        self.stem = ConvNorm(config.in_channels, width, 7, stride=2, padding=padding)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        levels, n_in = [], width
        for i, blocks in enumerate(BLOCKS[config.layers]):
            level = []
            for k in range(blocks):
                level.append(Bottleneck(n_in, width * 2**i, 2 if i and not k else 1, padding))
                n_in = EXPANSION * width * 2**i
            levels.append(nn.Sequential(*level))
        self.levels = nn.ModuleList(levels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(b, c, y, x) to five maps, (b, widths[i], y / 2^(i + 1), x / 2^(i + 1))."""
        maps = [self.stem(x)]
        x = self.pool(maps[0])
        for level in self.levels:
            x = level(x)
            maps.append(x)
        return maps


class ResNetUNet(EncoderUNet):
    """U-Net with a ResNet encoder; returns logits.

    Parameters
    ----------
    config
        Layers, width, planes and padding.

    Examples
    --------
    >>> import torch
    >>> net = ResNetUNet(ResNetUNetConfig(layers=14, width=4)).eval()
    >>> net(torch.zeros(1, 2, 64, 96)).shape
    torch.Size([1, 1, 64, 96])
    """

    def __init__(self, config: ResNetUNetConfig | None = None) -> None:
        config = config or ResNetUNetConfig()
        decoder = [max(d * config.width // 64, 4) for d in DECODER]
        super().__init__(config, ResNetEncoder(config), decoder)
