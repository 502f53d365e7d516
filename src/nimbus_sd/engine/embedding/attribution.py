"""What each marker adds to a patch's embedding, asked of the network from outside."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nimbus_sd.models.channelwise import ChannelwiseNet

METHODS = ("occlusion", "gradient_x_input")


def occlusion(net: nn.Module, x: Tensor) -> Tensor:
    """Distance that the embedding moves when a marker's channel is set to 0.

    For a :class:`~nimbus_sd.models.channelwise.ChannelwiseNet` no pass is repeated: a channel
    without signal has activation 0 and the last layer is linear, so the embedding moves by that
    layer's image of the marker's activations.

    Parameters
    ----------
    net
        ``(b, c, y, x)`` to ``(b, n)``, in eval mode.
    x
        Normalised patches ``(b, c, y, x)``.

    Returns
    -------
    ``(b, c)`` Euclidean distances, ≥ 0.

    References
    ----------
    Zeiler and Fergus (2014), *Visualizing and understanding convolutional networks*.
    """
    if not isinstance(net, ChannelwiseNet):
        return occlusion_by_passes(net, x)
    found = net.activations(x).float()
    weight = net.last.weight.float().unflatten(1, found.shape[1:])  # (n, c, features)
    return torch.einsum("bcf,ncf->bcn", found, weight).norm(dim=-1)


def occlusion_by_passes(net: nn.Module, x: Tensor) -> Tensor:
    """As :func:`occlusion`, with one more pass for each channel: for any network."""
    whole = net(x)
    moved = []
    for c in range(x.shape[1]):
        without = x.clone()
        without[:, c] = 0
        moved.append((net(without) - whole).norm(dim=-1))
    return torch.stack(moved, dim=1).float()


def gradient_x_input(net: nn.Module, x: Tensor) -> Tensor:
    r"""Gradient times input, summed over the pixels of each channel.

    With :math:`s(x) = \lVert z(x) - z(0) \rVert`, how far a patch's embedding lies from that of an
    empty patch, channel c gets

    .. math:: \sum_{p} \left| x_{cp} \, \frac{\partial s}{\partial x_{cp}} \right|

    over its pixels p. In a network that is linear in its input, with no two pixels of opposite
    effect, the channels add up to s; in general they don't, and nothing here claims it.

    Parameters
    ----------
    net
        ``(b, c, y, x)`` to ``(b, n)``, in eval mode, so that no patch depends on another.
    x
        Normalised patches ``(b, c, y, x)``.

    Returns
    -------
    ``(b, c)``, ≥ 0; 0 for empty patches.

    References
    ----------
    Shrikumar et al. (2016), *Not just a black box: learning important features through
    propagating activation differences*.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        z = net(x) - net(torch.zeros_like(x[:1]))
        (gradient,) = torch.autograd.grad(z.square().sum(), x)
    distance = z.detach().float().norm(dim=-1, keepdim=True)
    twice = (x.detach() * gradient).float().abs().sum(dim=(-2, -1))
    return twice / (2 * distance).clamp_min(torch.finfo(torch.float32).tiny)
