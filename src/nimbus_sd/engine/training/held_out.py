"""Accuracy on simulated studies whose parameters are shifted from those trained on, against the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nimbus_sd.arrays.metrics import best_threshold
from nimbus_sd.arrays.reliability import expected_calibration_error
from nimbus_sd.engine.head import head_scores
from nimbus_sd.engine.training.cell_head import HeadTraining, MarkerCells, marker_cells
from nimbus_sd.engine.training.studies import StudyConfig, StudySource
from nimbus_sd.models.head import CellHead

_FEW = 10


def f1(truth: NDArray[Any], called: NDArray[Any]) -> float:
    """F1 of calls; 0 without a hit."""
    return float(2 * (truth & called).sum() / max(truth.sum() + called.sum(), 1))


def summarise(markers: list[tuple[MarkerCells, NDArray[Any]]]) -> dict[str, float]:
    """Metrics of scored markers.

    Parameters
    ----------
    markers
        Per marker of a study: its cells, and their scores.

    Returns
    -------
    Means over the markers with at least ten positive and ten negative cells: ``f1`` at 0.5,
    ``f1_integrated`` at the best threshold per marker and study; ``specificity_empty`` over
    the markers without positives; ``ece``, cells pooled.
    """
    found, rival, empty = [], [], []
    all_truth, all_scores = [], []
    for cells, score in markers:
        known = ~np.isnan(cells.target)
        truth, s = cells.target[known] == 1, score[known]
        all_truth.append(truth)
        all_scores.append(s)
        if truth.sum() >= _FEW and (~truth).sum() >= _FEW:
            found.append(f1(truth, s > 0.5))
            rival.append(best_threshold(truth, cells.intensity[known])[1])
        elif not truth.any() and len(truth):
            empty.append(float((s <= 0.5).mean()))
    return {
        "f1": float(np.mean(found)) if found else float("nan"),
        "f1_integrated": float(np.mean(rival)) if rival else float("nan"),
        "specificity_empty": float(np.mean(empty)) if empty else float("nan"),
        "ece": expected_calibration_error(np.concatenate(all_truth), np.concatenate(all_scores)),
        "markers": float(len(found)),
    }


def held_out_metrics(
    net: nn.Module,
    head: CellHead | None,
    first: int,
    *,
    n_datasets: int = 24,
    n_fields: int = 2,
    side: int = 512,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Simulate studies that differ in size, number of fields and gain from those trained on, and score them.

    Parameters
    ----------
    net, head
        In eval mode; without a head the mean probability is the score.
    first, n_datasets
        Seeds of the studies.
    n_fields, side
        Of each study.
    device
        Of the network.
    """
    source = StudySource(StudyConfig(first, n_datasets, n_fields=n_fields, side=side, labels="truth"))
    scored = []
    for cells in marker_cells(net, source, HeadTraining(gain_low=0.35, gain_high=1.8), device=device):
        score = cells.score if head is None else head_scores(head, cells.features())
        scored.append((cells, score))
    # what can't be measured has no place on a card: JSON knows no NaN
    return {k: round(v, 4) for k, v in summarise(scored).items() if np.isfinite(v)}
