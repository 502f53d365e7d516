"""U-Net with an EfficientNetV2-S, -M or -L encoder, in plain torch.

The architecture follows Tan and Le, "EfficientNetV2: smaller models and faster
training". Two things differ from it: squeeze-and-excitation, which averages over the
whole input and so makes the answer depend on the tile, is left out unless it is asked
for (a network with it says ``exact = False``); and there is no stochastic depth.
Weights start at random. NASNet, the third family that the paper compared, is left
out: its searched cells bring separable convolutions of up to 7x7 at every scale, and
the paper found the plain residual U-Net more accurate than all three.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
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

Stage = tuple[bool, int, int, int, int]
# (fused, expansion, stride, planes, blocks)
SIZES: dict[str, tuple[int, tuple[Stage, ...]]] = {
    "s": (
        24,
        (
            (True, 1, 1, 24, 2),
            (True, 4, 2, 48, 4),
            (True, 4, 2, 64, 4),
            (False, 4, 2, 128, 6),
            (False, 6, 1, 160, 9),
            (False, 6, 2, 256, 15),
        ),
    ),
    "m": (
        24,
        (
            (True, 1, 1, 24, 3),
            (True, 4, 2, 48, 5),
            (True, 4, 2, 80, 5),
            (False, 4, 2, 160, 7),
            (False, 6, 1, 176, 14),
            (False, 6, 2, 304, 18),
            (False, 6, 1, 512, 5),
        ),
    ),
    "l": (
        32,
        (
            (True, 1, 1, 32, 4),
            (True, 4, 2, 64, 7),
            (True, 4, 2, 96, 7),
            (False, 4, 2, 192, 10),
            (False, 6, 1, 224, 19),
            (False, 6, 2, 384, 25),
            (False, 6, 1, 640, 7),
        ),
    ),
}
_EPS = 1e-3


@dataclass(frozen=True)
class EfficientNetUNetConfig:
    """Shape of an :class:`EfficientNetUNet`.

    Parameters
    ----------
    in_channels, out_channels
        Input planes (marker, mask, further ones) and logits per pixel.
    size
        ``"s"``, ``"m"`` or ``"l"``.
    width, depth
        Factors on all planes (rounded to multiples of 8) and on the blocks of every
        stage (rounded up); 1 is the published network.
    squeeze_excite
        Scale planes by global context, as published; the answer then depends on the tile.
    padding
        How convolutions extend the border: ``"reflect"`` or ``"zeros"``.
    """

    in_channels: int = 2
    out_channels: int = 1
    size: str = "s"
    width: float = 1.0
    depth: float = 1.0
    squeeze_excite: bool = False
    padding: Padding = "reflect"

    def __post_init__(self) -> None:
        check_planes(self)
        if self.size not in SIZES:
            msg = f"EfficientNetUNetConfig.size must be one of {', '.join(SIZES)}, got {self.size!r}"
            raise InputError(msg)
        for name in ("width", "depth"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 4:
                msg = f"EfficientNetUNetConfig.{name} must be a number above 0 and up to 4, got {value!r}"
                raise InputError(msg)

    @property
    def stem(self) -> int:
        """Planes of the stem."""
        return self._planes(SIZES[self.size][0])

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages with both factors applied."""
        return tuple(
            (fused, expansion, stride, self._planes(planes), ceil(blocks * self.depth))
            for fused, expansion, stride, planes, blocks in SIZES[self.size][1]
        )

    def _planes(self, n: int) -> int:
        return n if self.width == 1 else max(round(n * self.width / 8) * 8, 8)

    @property
    def stride(self) -> int:
        """Pixels by which tiles must be aligned."""
        return 32

    @property
    def halo(self) -> int:
        """Context in px that convolutions see beyond an aligned tile, rounded up to the stride."""
        steps: list[Step] = decoder_steps()
        for _, _, stride, _, blocks in reversed(self.stages):
            steps += [conv(3)] * (blocks - 1) + [conv(3, stride)]
        return halo([*steps, conv(3, 2)], self.stride)

    @property
    def exact(self) -> bool:
        """Whether tiles with that halo give the whole image's answer."""
        return not self.squeeze_excite


class SqueezeExcite(nn.Module):
    """Scale every plane by a function of all planes' means over the input."""

    def __init__(self, n: int, n_squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(n, n_squeezed, 1)
        self.expand = nn.Conv2d(n_squeezed, n, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, y, x) to the same."""
        mean = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(nn.functional.silu(self.reduce(mean))))


class MBConv(nn.Module):
    """Inverted residual: expand, (depthwise) 3x3, project; fused blocks expand with the 3x3."""

    def __init__(self, n_in: int, stage: Stage, *, first: bool, squeeze: bool, padding: Padding) -> None:
        super().__init__()
        fused, expansion, stride, n_out, _ = stage
        stride = stride if first else 1
        inner = n_in * expansion
        layers: list[nn.Module] = []
        if fused:
            wide = n_out if expansion == 1 else inner
            layers.append(ConvNorm(n_in, wide, 3, stride=stride, act="silu", eps=_EPS, padding=padding))
        else:
            layers.append(ConvNorm(n_in, inner, 1, act="silu", eps=_EPS))
            depthwise = ConvNorm(
                inner, inner, 3, stride=stride, groups=inner, act="silu", eps=_EPS, padding=padding
            )
            layers.append(depthwise)
            if squeeze:
                layers.append(SqueezeExcite(inner, max(n_in // 4, 1)))
        if not (fused and expansion == 1):
            layers.append(ConvNorm(inner, n_out, 1, act="", eps=_EPS))
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_in, y, x) to (b, n_out, y / stride, x / stride)."""
        return x + self.layers(x) if self.adds else self.layers(x)


class EfficientNetEncoder(nn.Module):
    """Feature maps at strides 2, 4, 8, 16, 32: the last ones of each scale."""

    def __init__(self, config: EfficientNetUNetConfig) -> None:
        super().__init__()
        padding = config.padding
        self.stem = ConvNorm(
            config.in_channels, config.stem, 3, stride=2, act="silu", eps=_EPS, padding=padding
        )
        stages, widths, n_in = [], [], config.stem
        for stage in config.stages:
            if stage[2] == 2:
                widths.append(n_in)
            blocks = []
            for k in range(stage[4]):
                block = MBConv(n_in, stage, first=not k, squeeze=config.squeeze_excite, padding=padding)
                blocks.append(block)
                n_in = stage[3]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.shrinks = tuple(stage[2] == 2 for stage in config.stages)
        self.widths = (*widths, n_in)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(b, c, y, x) to five maps, (b, widths[i], y / 2^(i + 1), x / 2^(i + 1))."""
        maps, x = [], self.stem(x)
        for stage, shrinks in zip(self.stages, self.shrinks, strict=True):
            if shrinks:
                maps.append(x)
            x = stage(x)
        return [*maps, x]


class EfficientNetUNet(EncoderUNet):
    """U-Net with an EfficientNetV2-like encoder; returns logits.

    Parameters
    ----------
    config
        Size, factors, planes and padding.

    Examples
    --------
    >>> import torch
    >>> net = EfficientNetUNet(EfficientNetUNetConfig(width=0.25, depth=0.1)).eval()
    >>> net(torch.zeros(1, 2, 64, 96)).shape
    torch.Size([1, 1, 64, 96])
    """

    def __init__(self, config: EfficientNetUNetConfig | None = None) -> None:
        config = config or EfficientNetUNetConfig()
        decoder = [max(round(d * min(config.width, 1.0)), 4) for d in DECODER]
        super().__init__(config, EfficientNetEncoder(config), decoder)
