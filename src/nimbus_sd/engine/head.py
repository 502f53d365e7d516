"""Apply a cell head to merged partials: context over all cells of all samples, then one score per cell."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from nimbus_sd.arrays import Partials
from nimbus_sd.arrays.cell_context import CONTEXT_NAMES, cell_features, fit_context, neighbour_mean
from nimbus_sd.models.head import CellHead

_ROWS = 1 << 16


def dataset_context(scores: Sequence[np.ndarray], intensities: Sequence[np.ndarray]) -> np.ndarray:
    """Context of every marker over the cells of all samples: float32 ``(k, len(CONTEXT_NAMES))``.

    Parameters
    ----------
    scores, intensities
        Per sample ``(n, k)``: mean probability; mean intensity, 1 being the scale.
    """
    n_markers = scores[0].shape[1] if scores else 0
    out = np.zeros((n_markers, len(CONTEXT_NAMES)), np.float32)
    for m in range(n_markers):
        out[m] = fit_context(
            np.concatenate([s[:, m] for s in scores]), np.concatenate([i[:, m] for i in intensities])
        )
    return out


def head_scores(head: CellHead, features: np.ndarray) -> np.ndarray:
    """Scores ``(n,)`` float64 of one marker's cells, in blocks of rows."""
    out = np.empty(len(features))
    with torch.inference_mode():
        for start in range(0, len(features), _ROWS):
            rows = slice(start, start + _ROWS)
            out[rows] = torch.sigmoid(head(torch.from_numpy(features[rows])).double()).numpy()
    return out


def _scores(
    head: CellHead,
    probability: np.ndarray,
    *,
    intensity: np.ndarray,
    around: np.ndarray,
    area: np.ndarray,
    context: np.ndarray,
) -> np.ndarray:
    """Scores of one sample's cells: ``(n, k)``."""
    columns = [
        head_scores(head, cell_features(p, i, neighbours=a, area=area, context=c))
        for p, i, a, c in zip(probability.T, intensity.T, around.T, context, strict=True)
    ]
    return np.stack(columns, axis=1)


def apply_head(
    head: CellHead,
    partials: Sequence[Partials],
    *,
    scale: np.ndarray,
    areas: Sequence[np.ndarray],
    context: np.ndarray | None = None,
) -> tuple[list[Partials], np.ndarray]:
    """Replace mean probabilities by the head's scores.

    Parameters
    ----------
    head
        In eval mode, on the CPU.
    partials
        One per sample, with sums ``score``, ``intensity``, ``position`` and perhaps ``score_view``.
    scale
        ``(k,)`` intensity that maps to 1.
    areas
        Per sample ``(n,)``, area of the cells in model px.
    context
        Of another run, ``(k, len(CONTEXT_NAMES))``; None computes it from these samples.

    Returns
    -------
    Partials whose ``score`` and ``score_view`` sums are the head's scores times the cell's
    pixels, and the context.
    """
    filled = [p for p in partials if p.ids.size]
    means = {id(p): p.sums["score"] / p.count[:, None] for p in filled}
    bright = {id(p): p.sums["intensity"] / p.count[:, None] / scale for p in filled}
    if context is None:
        context = dataset_context([means[id(p)] for p in filled], [bright[id(p)] for p in filled])
    out = []
    for p, area in zip(partials, areas, strict=True):
        if not p.ids.size:
            out.append(p)
            continue
        intensity = bright[id(p)]
        around = neighbour_mean(intensity, p.sums["position"] / p.count[:, None])

        scores = partial(_scores, head, intensity=intensity, around=around, area=area, context=context)
        sums = {**p.sums, "score": scores(means[id(p)]) * p.count[:, None]}
        if "score_view" in p.sums:
            views = p.sums["score_view"] / p.count[:, None, None]
            by_view = [scores(views[..., v]) for v in range(views.shape[-1])]
            sums["score_view"] = np.stack(by_view, axis=-1) * p.count[:, None, None]
        out.append(Partials(p.ids, p.count, sums))
    return out, context
