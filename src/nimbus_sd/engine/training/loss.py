"""The loss: cross-entropy per pixel, weights per cell, means per cell."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def pixel_losses(logits: Tensor, labels: Tensor, target: Tensor, *, smoothing: float) -> Tensor:
    """Binary cross-entropy of every pixel with the smoothed label of its cell.

    Background counts as negative; so do undefined cells, whose weight is 0.

    Parameters
    ----------
    logits
        ``(b, 1, y, x)``.
    labels
        ``(b, y, x)`` int64, 0 background.
    target
        ``(n + 1,)``: 1, 0 or NaN.
    smoothing
        Labels become ``t * (1 - smoothing) + smoothing / 2``.

    Returns
    -------
    ``(b, y, x)`` float32.
    """
    soft = torch.nan_to_num(target, nan=0.0) * (1 - smoothing) + smoothing / 2
    return binary_cross_entropy_with_logits(logits[:, 0].float(), soft[labels], reduction="none")


def cell_sizes(labels: Tensor, n: int) -> Tensor:
    """Pixels per label 0..n - 1, float32."""
    return torch.bincount(labels.flatten(), minlength=n).float()


def cell_means(values: Tensor, labels: Tensor, sizes: Tensor) -> Tensor:
    """Mean of `values` ``(b, y, x)`` over each label's pixels; 0 for labels without any."""
    sums = torch.zeros_like(sizes).index_add_(0, labels.flatten(), values.flatten())
    return sums / sizes.clamp_min(1)


def pixel_weights(target: Tensor, sizes: Tensor, *, background: float, balance: float) -> Tensor:
    """Weight of each label's pixels, ``(n + 1,)``.

    Undefined cells weigh 0, background `background`; a cell of area A weighs
    ``(mean area / A) ** balance`` per pixel, so that at 1 all cells weigh the same.
    """
    defined = ~torch.isnan(target) & (sizes > 0)
    defined[0] = False
    mean = sizes[defined].sum() / defined.sum().clamp_min(1)
    weights = torch.where(defined, (mean / sizes.clamp_min(1)) ** balance, 0.0)
    weights[0] = background
    return weights


def weighted_mean(losses: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Mean of pixel losses ``(b, y, x)`` with the weights of their labels; 0 where nothing weighs."""
    each = weights[labels]
    return (losses * each).sum() / each.sum().clamp_min(1e-6)
