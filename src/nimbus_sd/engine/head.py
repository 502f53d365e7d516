"""Apply a cell head to the cells of all samples: context over all of them, then one score per cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from nimbus_sd.arrays.cell_context import (
    CONTEXT_NAMES,
    cell_features,
    fit_context,
    nearest_cells,
    neighbour_mean,
)
from nimbus_sd.arrays.cells import Cells
from nimbus_sd.models.head import CellHead

_ROWS = 1 << 16


def dataset_context(cells: Sequence[Cells], scale: np.ndarray) -> np.ndarray:
    """Context of every marker over the cells of all samples: float32 ``(k, len(CONTEXT_NAMES))``.

    Parameters
    ----------
    cells
        With means ``score`` and ``intensity``, ``(n, k)``; samples without cells count for nothing.
    scale
        ``(k,)`` intensity that maps to 1.
    """
    filled = [c for c in cells if len(c)]
    out = np.zeros((len(scale), len(CONTEXT_NAMES)), np.float32)
    for m in range(len(scale) if filled else 0):
        scores = np.concatenate([c.means["score"][:, m] for c in filled]).astype(np.float64)
        out[m] = fit_context(scores, np.concatenate([_brightness(c, m, scale) for c in filled]))
    return out


def head_scores(head: CellHead, features: np.ndarray) -> np.ndarray:
    """Scores ``(n,)`` float64 of one marker's cells, in blocks of rows."""
    out = np.empty(len(features))
    with torch.inference_mode():
        for start in range(0, len(features), _ROWS):
            rows = slice(start, start + _ROWS)
            out[rows] = torch.sigmoid(head(torch.from_numpy(features[rows])).double()).numpy()
    return out


def apply_head(
    head: CellHead,
    cells: Sequence[Cells],
    *,
    scale: np.ndarray,
    areas: Sequence[np.ndarray],
    context: np.ndarray | None = None,
) -> tuple[list[Cells], np.ndarray]:
    """Replace mean probabilities by the head's scores.

    Parameters
    ----------
    head
        In eval mode, on the CPU.
    cells
        One per sample, with means ``score``, ``intensity``, ``position`` and perhaps ``score_view``.
    scale
        ``(k,)`` intensity that maps to 1.
    areas
        Per sample ``(n,)``, area of the cells in model px.
    context
        Of another run, ``(k, len(CONTEXT_NAMES))``; None computes it from these samples.

    Returns
    -------
    Cells whose ``score`` and ``score_view`` are the head's, and the context.
    """
    if context is None:
        context = dataset_context(cells, scale)
    out = []
    for c, area in zip(cells, areas, strict=True):
        out.append(_refine(head, c, scale, area, context) if len(c) else c)
    return out, context


def _refine(head: CellHead, cells: Cells, scale: np.ndarray, area: np.ndarray, context: np.ndarray) -> Cells:
    near = nearest_cells(cells.means["position"])
    found = {k: np.empty_like(v) for k, v in cells.means.items() if k in ("score", "score_view")}
    for m in range(len(scale)):  # marker by marker: the features of all would be the peak of memory
        intensity = _brightness(cells, m, scale)
        around = neighbour_mean(intensity, near)
        for name, result in found.items():
            given = cells.means[name][:, m].reshape(len(cells), -1)
            for v in range(given.shape[1]):
                features = cell_features(
                    given[:, v].astype(np.float64),
                    intensity,
                    neighbours=around,
                    area=area,
                    context=context[m],
                )
                result.reshape(len(cells), len(scale), -1)[:, m, v] = head_scores(head, features)
    return replace(cells, means={**cells.means, **found})


def _brightness(cells: Cells, marker: int, scale: np.ndarray) -> np.ndarray:
    """Mean intensity of a marker, 1 being its scale: float64 ``(n,)``."""
    return cells.means["intensity"][:, marker].astype(np.float64) / scale[marker]
