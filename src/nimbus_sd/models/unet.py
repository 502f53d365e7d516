"""The residual U-Net that reads one normalised channel and the cell mask.

Architecture and parameter names follow the network published with Rumberger,
Greenwald et al., "Automated classification of cellular expression in multiplexed
imaging data with Nimbus", so that its checkpoint loads strictly.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nimbus_sd._core.errors import InputError


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a :class:`UNet`.

    Parameters
    ----------
    in_channels, out_channels
        Input planes (normalised marker, interior mask) and logits per pixel.
    depth
        Resolution levels, the bottleneck included; inputs must be multiples of
        ``2 ** (depth - 1)``.
    width
        Filters of the first level; each level down has twice as many.
    padding
        How 3x3 convolutions extend the border: ``"reflect"`` or ``"zeros"``.
    """

    in_channels: int = 2
    out_channels: int = 1
    depth: int = 5
    width: int = 64
    padding: Literal["reflect", "zeros"] = "reflect"

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "depth", "width"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                msg = f"UNetConfig.{name} must be a positive int, got {getattr(self, name)!r}"
                raise InputError(msg)
        if self.padding not in ("reflect", "zeros"):
            msg = f"UNetConfig.padding must be 'reflect' or 'zeros', got {self.padding!r}"
            raise InputError(msg)

    @property
    def stride(self) -> int:
        """Pixels by which tiles must be aligned for tiled and whole-image results to agree."""
        return int(2 ** (self.depth - 1))

    @property
    def halo(self) -> int:
        """Context in px that a tile aligned to the stride can see beyond its edge, rounded up to the stride.

        The interval of each output pixel is followed up and down the longest path:
        every block widens it by two on each side, upsampling halves its ends,
        pooling doubles them.
        """
        reach = 0
        for pixel in range(self.stride):
            low = high = pixel
            for _ in range(self.depth - 1):
                low, high = (low - 2) // 2, (high + 2) // 2
            low, high = low - 2, high + 2
            for _ in range(self.depth - 1):
                low, high = 2 * low - 2, 2 * high + 1 + 2
            reach = max(reach, -low, high - (self.stride - 1))
        return -(-reach // self.stride) * self.stride


class Block(nn.Module):
    """1x1 convolution (the skip), two padded 3x3 conv-norm-ReLU, sum."""

    def __init__(self, n_in: int, n_out: int, padding: Literal["reflect", "zeros"]) -> None:
        super().__init__()
        self.conv2d_0 = nn.Conv2d(n_in, n_out, 1)
        self.conv2d_1 = nn.Conv2d(n_out, n_out, 3, padding=1, padding_mode=padding)
        self.bn_1: nn.Module = nn.BatchNorm2d(n_out)
        self.conv2d_2 = nn.Conv2d(n_out, n_out, 3, padding=1, padding_mode=padding)
        self.bn_2: nn.Module = nn.BatchNorm2d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_in, y, x) to (b, n_out, y, x)."""
        skip = self.conv2d_0(x)
        x = self.bn_1(self.conv2d_1(skip)).relu_()
        x = self.bn_2(self.conv2d_2(x)).relu_()
        # the ReLU's output is needed for its gradient
        return x + skip if torch.is_grad_enabled() else x.add_(skip)

    def fold(self) -> None:
        """Merge both batch norms into their convolutions, in place."""
        for conv, norm in (("conv2d_1", "bn_1"), ("conv2d_2", "bn_2")):
            bn = getattr(self, norm)
            if isinstance(bn, nn.BatchNorm2d):
                setattr(self, conv, fuse_conv_bn_eval(getattr(self, conv), bn))
                setattr(self, norm, nn.Identity())


class Up(nn.Module):
    """2x2 transposed convolution with stride 2, then ReLU."""

    def __init__(self, n_in: int) -> None:
        super().__init__()
        self.upconv = nn.ConvTranspose2d(n_in, n_in // 2, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_in, y, x) to (b, n_in / 2, 2y, 2x)."""
        return self.upconv(x).relu_()


class Join(nn.Module):
    """Concatenate the skip from the way down with the upsampled features."""

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        """(b, c, y, x) twice to (b, 2c, y, x)."""
        return torch.cat([skip, x], dim=1)


class UNet(nn.Module):
    """Residual U-Net; returns logits, one per pixel.

    Parameters
    ----------
    config
        Depth, width and padding; the default is the published network
        (35.6 M parameters).

    Examples
    --------
    >>> import torch
    >>> from nimbus_sd.models import UNet, UNetConfig
    >>> net = UNet(UNetConfig(width=4)).eval()
    >>> net(torch.zeros(1, 2, 32, 48)).shape
    torch.Size([1, 1, 32, 48])
    """

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or UNetConfig()
        widths = [config.width * 2**i for i in range(config.depth)]
        down: list[nn.Module] = []
        n_in = config.in_channels
        for n_out in widths[:-1]:
            down += [Block(n_in, n_out, config.padding), nn.MaxPool2d(2)]
            n_in = n_out
        up: list[nn.Module] = []
        for n_out in reversed(widths[:-1]):
            up += [Up(2 * n_out), Join(), Block(2 * n_out, n_out, config.padding)]
        self.contracting_layers = nn.ModuleList(down)
        self.bottle_neck = Block(n_in, widths[-1], config.padding)
        self.expanding_layers = nn.ModuleList(up)
        self.final_conv = nn.Conv2d(widths[0], config.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, y, x) to logits (b, out_channels, y, x); sides in multiples of the stride."""
        skips: list[Tensor] = []
        for layer in self.contracting_layers:
            if isinstance(layer, Block):
                x = layer(x)
                skips.append(x)
            else:
                x = layer(x)
        x = self.bottle_neck(x)
        for layer in self.expanding_layers:
            x = layer(skips.pop(), x) if isinstance(layer, Join) else layer(x)
        return self.final_conv(x)

    def folded(self) -> UNet:
        """An inference copy in eval mode whose batch norms are merged into the convolutions."""
        net = copy.deepcopy(self).eval()
        for module in net.modules():
            if isinstance(module, Block):
                module.fold()
        return net
