"""Encoder of HoVer-Net: a pre-activation ResNet-50 that keeps full resolution in its first stage.

Graham et al., "HoVer-Net: simultaneous segmentation and classification of nuclei in
multi-tissue histology images", Medical Image Analysis 58 (2019). Its decoders draw nuclei
and are not needed here; the encoder's public weights are found by their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from nimbus_sd._core.errors import InputError, WeightsError

_UNITS = (3, 4, 6, 3)
_FULL_WIDTH = 64


@dataclass(frozen=True)
class HoVerNetConfig:
    """Shape of a :class:`HoVerNetEncoder`.

    Parameters
    ----------
    width
        Filters of the first convolution; 64 is the published network.
    units
        Bottlenecks per stage.
    """

    width: int = _FULL_WIDTH
    units: tuple[int, ...] = _UNITS

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", tuple(self.units))
        good = len(self.units) == len(_UNITS) and all(type(n) is int and n >= 1 for n in self.units)
        if not good or type(self.width) is not int or self.width < 1:
            msg = f"HoVer-Net of width={self.width!r}, units={self.units!r}: valid are 64 and (3, 4, 6, 3)"
            raise InputError(msg)

    @property
    def n_features(self) -> int:
        """Features of the last layer: 1,024 for the published network."""
        return 16 * self.width


class SameConv(nn.Conv2d):
    """Convolution without bias that pads as TensorFlow's "same" does: what is odd goes right and below."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1) -> None:
        # torch 2.13 writes beyond its memory in the backward pass of a strided 1 x 1 convolution
        # of few channels that are stored last: px are left out before it instead
        super().__init__(n_in, n_out, kernel, stride=stride if kernel > 1 else 1, bias=False)
        self.every = stride if kernel == 1 else 1

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_in, y, x) to (b, n_out, ceil(y / stride), ceil(x / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if kernel == 1:
            return super().forward(x[..., :: self.every, :: self.every])
        (top, bottom), (left, right) = (_same(n, kernel, stride) for n in x.shape[-2:])
        return super().forward(F.pad(x, (left, right, top, bottom)))


def _same(n: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after an axis of n px."""
    total = max(kernel - (n % stride or stride), 0)
    return total // 2, total - total // 2


class Unit(nn.Module):
    """Bottleneck: normalisation before each convolution but the first of a stage, which finds it done."""

    def __init__(self, n_in: int, width: int, *, stride: int, first: bool) -> None:
        super().__init__()
        self.preact_bn = nn.Identity() if first else nn.BatchNorm2d(n_in)
        self.conv1 = SameConv(n_in, width, 1)
        self.conv1_bn = nn.BatchNorm2d(width)
        self.conv2 = SameConv(width, width, 3, stride)
        self.conv2_bn = nn.BatchNorm2d(width)
        self.conv3 = SameConv(width, 4 * width, 1)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_in, y, x) to (b, 4 width, y / stride, x / stride), the shortcut not yet added."""
        x = x if self.first else self.preact_bn(x).relu()
        x = self.conv1_bn(self.conv1(x)).relu()
        return self.conv3(self.conv2_bn(self.conv2(x)).relu())


class Stage(nn.Module):
    """Bottlenecks with shortcuts, then a normalisation."""

    def __init__(self, n_in: int, width: int, *, units: int, stride: int) -> None:
        super().__init__()
        sides = [n_in] + [4 * width] * units
        self.units = nn.ModuleList(
            Unit(a, width, stride=stride if i == 0 else 1, first=i == 0)
            for i, (a, _) in enumerate(pairwise(sides))
        )
        self.shortcut = SameConv(n_in, 4 * width, 1, stride)
        self.blk_bna = nn.ModuleDict({"bn": nn.BatchNorm2d(4 * width)})

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_in, y, x) to (b, 4 width, y / stride, x / stride)."""
        shortcut = self.shortcut(x)
        for unit in self.units:
            x = shortcut = unit(x) + shortcut
        return self.blk_bna["bn"](x).relu()


class HoVerNetEncoder(nn.Module):
    """Features of a patch, averaged over its pixels.

    Parameters
    ----------
    config
        Width and depth.

    Examples
    --------
    >>> import torch
    >>> HoVerNetEncoder(HoVerNetConfig(width=4))(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 64])
    """

    def __init__(self, config: HoVerNetConfig | None = None) -> None:
        super().__init__()
        self.config = config or HoVerNetConfig()
        w = self.config.width
        self.conv0 = nn.ModuleDict({"conv": SameConv(3, w, 7), "bn": nn.BatchNorm2d(w)})
        widths = [w, 4 * w, 8 * w, 16 * w]
        for i, (n_in, units) in enumerate(zip(widths, self.config.units, strict=True)):
            stage = Stage(n_in, w * 2**i, units=units, stride=1 if i == 0 else 2)
            self.add_module(f"d{i}", stage)
        self.conv_bot = SameConv(32 * w, self.config.n_features, 1)

    def forward(self, x: Tensor) -> Tensor:
        """RGB in [0, 1], (b, 3, y, x), to features (b, 16 width)."""
        x = self.conv0["bn"](self.conv0["conv"](x)).relu()
        for i in range(len(self.config.units)):
            x = self.get_submodule(f"d{i}")(x)
        return self.conv_bot(x).mean((-2, -1))


def encoder_weights(state: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
    """The encoder's part of a public HoVer-Net state dict, by the names used here.

    Parameters
    ----------
    state
        Of the whole network; names with ``/`` (converted from TensorFlow) or ``_``, with or
        without ``module.`` in front.
    where
        For messages.

    Raises
    ------
    WeightsError
        If it is no HoVer-Net.
    """
    found = {}
    for key, value in state.items():
        name = key.removeprefix("module.").replace("conv0./.", "conv0.conv.").replace("/", "_")
        if name.split(".")[0] in ("conv0", "d0", "d1", "d2", "d3", "conv_bot"):
            found[name] = value
    if not found:
        msg = (
            f"{where} holds no HoVer-Net encoder (names conv0…, d0… d3…, conv_bot…); its first names: "
            f"{sorted(state)[:3]}"
        )
        raise WeightsError(msg)
    return found
