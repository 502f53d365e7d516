"""Binary cross entropy per marker over the labels that are defined, and how much positives weigh."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def positive_weights(targets: np.ndarray, *, weighted: bool) -> np.ndarray:
    """Weight of each marker's positive cells: its ratio of negative to positive ones, or 1.

    Parameters
    ----------
    targets
        ``(n, m)`` of the training cells: 1, 0, NaN. Every marker has both.
    weighted
        Whether to weigh at all.

    Returns
    -------
    float32 ``(m,)``.

    Examples
    --------
    >>> targets = np.array([[1, 0], [0, 0], [0, 1], [0, np.nan]])
    >>> positive_weights(targets, weighted=True).tolist()
    [3.0, 2.0]
    """
    if not weighted:
        return np.ones(targets.shape[1], np.float32)
    return ((targets == 0).sum(axis=0) / (targets == 1).sum(axis=0)).astype(np.float32)


def defined_counts(targets: Tensor) -> Tensor:
    """Cells of ``(b, m)`` with a label, for each marker: float32 ``(m,)``."""
    return (~torch.isnan(targets)).sum(dim=0).float()


def masked_bce(logits: Tensor, targets: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """Mean over markers of each one's mean over its labelled cells.

    Of a batch that goes through the network in pieces, the losses of the pieces add up to that of
    the whole if `counts` are those of the whole.

    Parameters
    ----------
    logits
        ``(b, m)``.
    targets
        ``(b, m)``: 1, 0, NaN.
    weights
        ``(m,)`` of positive cells.
    counts
        ``(m,)`` labelled cells to divide by; a marker with none adds nothing.
    """
    known = ~torch.isnan(targets)
    each = F.binary_cross_entropy_with_logits(
        logits.float(), torch.where(known, targets, 0), pos_weight=weights, reduction="none"
    )
    summed = torch.where(known, each, 0).sum(dim=0)
    return (summed / counts.clamp(min=1)).mean()
