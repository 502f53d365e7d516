"""Noise-robust selection: which cells' labels are believed, judged by the losses of their group."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nimbus_sd.engine.training.config import SelectionConfig

Total = Callable[[Tensor], Tensor]
"""Sum over the processes of a run."""


def fresh_quantiles(n_groups: int) -> Tensor:
    """Running quantiles ``(groups, 2)`` of negative and positive cells before anything was seen: NaN."""
    return torch.full((n_groups, 2), torch.nan)


def group_quantiles(losses: Tensor, rows: Tensor, n_rows: int, q: float) -> tuple[Tensor, Tensor]:
    """Quantile of the losses of every group, linearly interpolated, without a loop over groups.

    Parameters
    ----------
    losses, rows
        ``(n,)``: a loss and the row of its group.
    n_rows
        Groups.
    q
        Quantile.

    Returns
    -------
    Quantiles ``(n_rows,)``, 0 where a group is empty; cells per group.
    """
    count = torch.bincount(rows, minlength=n_rows)
    if not len(losses):
        return torch.zeros(n_rows, dtype=losses.dtype, device=losses.device), count
    by_loss = torch.argsort(losses, stable=True)
    ordered = losses[by_loss[torch.argsort(rows[by_loss], stable=True)]]
    start = torch.cumsum(count, 0) - count
    position = q * (count - 1).clamp_min(0)
    low = torch.floor(position).long()
    high = torch.ceil(position).long()
    last = len(losses) - 1
    below, above = (ordered[(start + k).clamp_max(last)] for k in (low, high))
    return torch.where(count > 0, below + (above - below) * (position - low).to(losses.dtype), 0.0), count


@torch.no_grad()
def select(
    quantiles: Tensor,
    losses: Tensor,
    scores: Tensor,
    *,
    target: Tensor,
    group: Tensor,
    present: Tensor,
    config: SelectionConfig,
    step: int,
    total: Total = lambda x: x,
) -> tuple[Tensor, Tensor]:
    """Follow the groups' loss quantiles and choose cells.

    A cell is kept if its mean loss is at most the running quantile of its (dataset,
    marker, class), or if its score agrees with its label with high confidence
    (Rumberger, Greenwald et al., after Wang et al., ProMix). A group's first batch
    sets its running quantile; later ones move it by ``config.ema``. The quantile is
    updated before it is compared with.

    Parameters
    ----------
    quantiles
        ``(groups, 2)``: running quantiles so far.
    losses, scores
        ``(n + 1,)``: mean loss and mean probability of each cell.
    target, group
        ``(n + 1,)``: 1, 0, NaN; row of the group.
    present
        ``(n + 1,)`` bool: the cell has pixels in this batch.
    config, step
        Schedule, and the step within the stage.
    total
        Sums over processes, so that all follow the same quantiles.

    Returns
    -------
    New quantiles; ``(n + 1,)`` bool, which cells to learn from (undefined ones never).
    """
    defined = ~torch.isnan(target) & present & (group >= 0)
    positive = target == 1
    rows = torch.where(defined, 2 * group + positive.long(), 0)
    found, count = group_quantiles(losses[defined], rows[defined], quantiles.numel(), config.quantile(step))
    weight = total(count.to(found.dtype))
    seen = weight > 0
    found = total(found * count) / weight.clamp_min(1)
    old = quantiles.flatten()
    moved = torch.where(torch.isnan(old), found, old + config.ema * (found - old))
    new = torch.where(seen, moved, old)
    small = losses <= new[rows]
    sure = torch.where(positive, scores > config.confidence, scores < 1 - config.confidence)
    return new.reshape(quantiles.shape), defined & (small | sure)
