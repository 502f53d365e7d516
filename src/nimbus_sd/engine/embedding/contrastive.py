"""NT-Xent for several views per patch, over one process or all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from nimbus_sd._core.errors import InputError

Gather = Callable[[Tensor], tuple[Tensor, int]]
"""Rows of all processes, and where this one's begin among them."""


def alone(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of a single process."""
    return rows, 0


def nt_xent(views: Tensor, *, temperature: float, gather: Gather = alone) -> Tensor:
    """Normalised temperature-scaled cross entropy between the views of each patch.

    For views i and j of one patch the loss is
    -log(exp(s_ij / t) / (exp(s_ij / t) + Σ_k exp(s_ik / t))), s the cosine and k the views of all
    other patches: each pair of views is a pair of SimCLR, the patch's further views are
    neither sought nor shunned in it. The mean is taken over all ordered pairs (i, j). Two
    views per patch give SimCLR's loss.

    Parameters
    ----------
    views
        ``(b, v, d)``: v ≥ 2 views of b patches, of any length.
    temperature
        t > 0.
    gather
        Rows of all processes, see :func:`gather_all`; each process then returns the mean over
        its own pairs, and their mean is the loss of the whole batch.

    Returns
    -------
    Scalar, at least float32.

    Raises
    ------
    InputError
        If there is a single view, or a single patch over all processes.

    References
    ----------
    Chen et al. (2020), *A simple framework for contrastive learning of visual representations*.
    """
    b, v = views.shape[:2]
    if not views.is_floating_point() or views.itemsize < 4:
        views = views.float()
    unit = F.normalize(views, dim=-1)
    rows = unit.flatten(0, 1)
    columns, first = gather(rows)
    if v < 2 or len(columns) <= v:
        msg = f"{len(columns) // max(v, 1)} patches in {v} views; the loss needs at least 2 of each"
        raise InputError(msg)
    similar = rows @ columns.T / temperature
    at = torch.arange(b * v, device=rows.device)
    mine = first + (at // v * v)[:, None] + at[:v]
    strangers = similar.scatter(1, mine, -math.inf).logsumexp(dim=1)
    pairs = similar.gather(1, mine).unflatten(0, (b, v))
    losses = torch.logaddexp(pairs, strangers.unflatten(0, (b, v))[..., None]) - pairs
    others = ~torch.eye(v, dtype=torch.bool, device=rows.device)
    return losses[:, others].mean()


class _GatherRows(torch.autograd.Function):
    """All processes' rows; the gradient of a row is summed over the processes that used it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.n = len(rows)
        found = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(found, rows.contiguous())
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        summed = grads[0].contiguous().clone()
        dist.all_reduce(summed)
        first = dist.get_rank() * ctx.n
        return summed[first : first + ctx.n]


def gather_all(rows: Tensor) -> tuple[Tensor, int]:
    """Rows of every process of the running group (as many in each), and where this one's begin."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return alone(rows)
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered, dist.get_rank() * len(rows)
