"""Floating-point operations of a network, counted without computing them."""

from __future__ import annotations

import copy
from itertools import chain
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_flop: WeakKeyDictionary[nn.Module, dict[tuple[int, int], int]] = WeakKeyDictionary()


def forward_flop(net: nn.Module, height: int, width: int) -> int:
    """FLOP of one forward pass over ``(1, 2, height, width)``: nothing is computed or allocated.

    Counts convolutions and matrix products, a multiply-add as two.

    Examples
    --------
    >>> from nimbus_sd.models import UNet, UNetConfig
    >>> f"{forward_flop(UNet(UNetConfig()).eval(), 1024, 1024):.2e}"
    '1.55e+12'
    """
    known = _flop.setdefault(net, {})
    if (height, width) not in known:
        hollow, dtype = _hollow(net)
        x = torch.empty((1, 2, height, width), dtype=dtype, device="meta")
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            hollow(x)
        known[height, width] = counter.get_total_flops()
    return known[height, width]


def _hollow(net: nn.Module) -> tuple[nn.Module, torch.dtype]:
    """A copy whose weights have shapes and no values, and their dtype."""
    memo: dict[int, torch.Tensor] = {}
    dtype = torch.float32
    for tensor in chain(net.buffers(), net.parameters()):
        empty = torch.empty_like(tensor, device="meta")
        dtype = tensor.dtype if tensor.is_floating_point() else dtype
        memo[id(tensor)] = (
            nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
        )
    return copy.deepcopy(net, memo), dtype
