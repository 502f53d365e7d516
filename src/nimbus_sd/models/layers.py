"""Parts that the encoder networks share: normalised convolutions, the decoder, folding."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from nimbus_sd._core.errors import InputError
from nimbus_sd.models.reach import Step, conv, up

Padding = Literal["reflect", "zeros"]
DECODER = (256, 128, 64, 32, 16)  # as is usual for encoders of five levels
Net = TypeVar("Net", bound=nn.Module)


class ConvNorm(nn.Module):
    """Convolution padded by half its kernel, batch norm, activation.

    Parameters
    ----------
    n_in, n_out
        Planes.
    kernel, stride, groups
        Of the convolution.
    act
        ``"relu"``, ``"silu"`` or ``""`` for none.
    eps
        Of the batch norm.
    padding
        How the border is extended.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        act: str = "relu",
        eps: float = 1e-5,
        padding: Padding = "reflect",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            n_in,
            n_out,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias=False,
            padding_mode=padding,
        )
        self.norm: nn.Module = nn.BatchNorm2d(n_out, eps=eps)
        self.act: nn.Module = {"relu": nn.ReLU, "silu": nn.SiLU, "": nn.Identity}[act]()

    def forward(self, x: Tensor) -> Tensor:
        """(b, n_in, y, x) to (b, n_out, y / stride, x / stride)."""
        return self.act(self.norm(self.conv(x)))

    def fold(self) -> None:
        """Merge the batch norm into the convolution, in place."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()


class DecoderBlock(nn.Module):
    """Upsample by two (nearest), concatenate the skip if there is one, two ConvNorms."""

    def __init__(self, n_in: int, n_skip: int, n_out: int, padding: Padding) -> None:
        super().__init__()
        self.first = ConvNorm(n_in + n_skip, n_out, padding=padding)
        self.second = ConvNorm(n_out, n_out, padding=padding)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """(b, n_in, y, x) and (b, n_skip, 2y, 2x) to (b, n_out, 2y, 2x)."""
        x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.second(self.first(x if skip is None else torch.cat([x, skip], dim=1)))


class EncoderUNet(nn.Module):
    """A U-Net whose way down is an image-classification network; returns logits.

    Parameters
    ----------
    config
        A frozen dataclass with ``out_channels``, ``padding``, ``stride``, ``halo``, ``exact``.
    encoder
        Gives five feature maps, at strides 2, 4, 8, 16 and 32, ``encoder.widths`` planes each.
    decoder
        Planes of the five steps up.
    """

    def __init__(self, config: Any, encoder: nn.Module, decoder: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        widths = [int(w) for w in encoder.widths]  # type: ignore[union-attr]
        n_in = widths[-1]
        blocks = []
        for n_skip, n_out in zip([*widths[-2::-1], 0], decoder, strict=True):
            blocks.append(DecoderBlock(n_in, n_skip, n_out, config.padding))
            n_in = n_out
        self.decoder = nn.ModuleList(blocks)
        self.final_conv = nn.Conv2d(n_in, config.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, y, x) to logits (b, out_channels, y, x); sides in multiples of 32, at least 64."""
        *skips, x = self.encoder(x)
        for block in self.decoder:
            x = block(x, skips.pop() if skips else None)
        return self.final_conv(x)

    def folded(self: Net) -> Net:
        """An inference copy in eval mode whose batch norms are merged into the convolutions."""
        net = copy.deepcopy(self).eval()
        for module in net.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        return net


def decoder_steps() -> list[Step]:
    """Path from the logits back to the encoder's last feature map."""
    return [conv(3), conv(3), up(2)] * len(DECODER)


def check_planes(config: object) -> None:
    """Raise :class:`InputError` unless planes are positive and the padding is known."""
    name = type(config).__name__
    for field in ("in_channels", "out_channels"):
        value = getattr(config, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            msg = f"{name}.{field} must be a positive int, got {value!r}"
            raise InputError(msg)
    padding = getattr(config, "padding", "")
    if padding not in ("reflect", "zeros"):
        msg = f"{name}.padding must be 'reflect' or 'zeros', got {padding!r}"
        raise InputError(msg)
