"""Validation: scores of the cells of held-out fields against their labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.training.batch import GroupIndex, collate
from nimbus_sd.engine.training.config import TrainConfig
from nimbus_sd.engine.training.loss import cell_means, cell_sizes
from nimbus_sd.engine.training.sources import TileSource, check_tile
from nimbus_sd.engine.training.step import logits_of

THRESHOLD = 0.5


def spread_indices(n: int, most: int) -> list[int]:
    """At most `most` of n indices, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist()


@dataclass(frozen=True)
class CellScores:
    """Scores of labelled cells.

    Parameters
    ----------
    score, target
        ``(n,)``: mean probability of the cell's pixels in the tile; 1 or 0.
    group
        ``(n,)``: row of the source's groups.
    """

    score: Tensor
    target: Tensor
    group: Tensor


@torch.inference_mode()
def score_cells(
    net: nn.Module, source: TileSource, config: TrainConfig, *, device: torch.device, precision: torch.dtype
) -> CellScores:
    """Score the defined cells of at most ``config.validation_tiles`` tiles, on the CPU in the end."""
    net.eval()
    groups = GroupIndex(source.groups)
    parts = []
    indices = spread_indices(len(source), config.validation_tiles)
    for start in range(0, len(indices), config.batch):
        tiles = [source.tile(i) for i in indices[start : start + config.batch]]
        for tile in tiles:
            check_tile(tile)
        batch = collate(tiles, groups).to(device)
        logits = logits_of(net, batch, transform=config.transform, precision=precision)
        sizes = cell_sizes(batch.labels, len(batch.target))
        scores = cell_means(torch.sigmoid(logits[:, 0].float()), batch.labels, sizes)
        known = ~torch.isnan(batch.target) & (sizes > 0)
        parts.append([x[known].cpu() for x in (scores, batch.target, batch.group)])
    score, target, group = (torch.cat(column) for column in zip(*parts, strict=True))
    return CellScores(score, target, group)


def validate(
    net: nn.Module, source: TileSource, config: TrainConfig, *, device: torch.device, precision: torch.dtype
) -> dict[str, float]:
    """F1, precision, recall and specificity at 0.5; undefined cells are left out.

    Returns
    -------
    ``f1``, ``precision``, ``recall``, ``specificity`` with cells pooled, and
    ``f1_groups``, the mean F1 of the (dataset, marker) groups that have positives.

    Raises
    ------
    InputError
        If the source has no tiles, or no cell of them is defined.
    """
    cells = score_cells(net, source, config, device=device, precision=precision) if len(source) else None
    if cells is None or not len(cells.score):
        msg = "no cell of the validation tiles has a label; choose other fields, or check the labels layer"
        raise InputError(msg)
    # column: 2 * (label positive) + (called positive)
    column = 2 * (cells.target == 1).long() + (cells.score > THRESHOLD).long()
    size = 4 * len(source.groups)
    return _metrics(torch.bincount(4 * cells.group + column, minlength=size).reshape(-1, 4))


def average_precision(cells: CellScores) -> float:
    """Area under precision against recall, cells pooled: what no threshold changes; NaN without positives."""
    order = torch.argsort(cells.score, descending=True, stable=True)
    hit = (cells.target[order] == 1).double()
    score = cells.score[order]
    # cells of one score are called together
    last = torch.cat([score[1:] != score[:-1], torch.ones(1, dtype=torch.bool)])
    hits = torch.cumsum(hit, 0)[last]
    called = torch.arange(1, len(hit) + 1)[last]
    if not len(hits) or float(hits[-1]) == 0:
        return float("nan")
    gained = torch.diff(hits, prepend=torch.zeros(1, dtype=hits.dtype))
    return float((hits / called * gained).sum() / hits[-1])


def _metrics(counts: Tensor) -> dict[str, float]:
    """Metrics of counts ``(g, 4)``: true negatives, false positives, misses, hits."""
    quiet, false, missed, hit = counts.sum(0).tolist()
    each = counts.double()
    has = (each[:, 2] + each[:, 3]) > 0
    f1 = 2 * each[:, 3] / (2 * each[:, 3] + each[:, 1] + each[:, 2]).clamp_min(1)
    return {
        "f1": 2 * hit / max(2 * hit + false + missed, 1),
        "precision": hit / max(hit + false, 1),
        "recall": hit / max(hit + missed, 1),
        "specificity": quiet / max(quiet + false, 1),
        "f1_groups": float(f1[has].mean()) if bool(has.any()) else 0.0,
    }
