"""Cells marked by an answer each: thick, thin and broken outlines, and fills where they are too small."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.ndimage import binary_dilation

from nimbus_sd.arrays import interior_mask

_SMALL_CELL = 8.0  # px of the figure below which cells are filled, as outlines would be all there is
_LARGE_CELL = 24.0  # px of the figure from which outlines grow with the cells, twice at most
# negative, positive, undefined: without colour they are told apart by this
_WIDTHS = (1.3, 2.6, 1.6)  # of the outlines, px of the figure
_OPACITY = (190, 255, 130)  # of the fills
_HALO = (255, 255, 255, 235)
_DASHES = 7


@dataclass(frozen=True)
class Outlines:
    """Where the outlines of cells run; made once, coloured for each marker.

    Attributes
    ----------
    row
        Which cell a px belongs to, ``(y, x)``, -1 for background and other cells.
    depth
        How many px from the border of its cell, from 1, ``(y, x)``; 0 outside, and beyond the
        thickest outline the same as there.
    broken
        Where an outline with gaps is drawn, ``(y, x)`` bool.
    halo
        Background around cells, ``(y, x)`` bool; gaps are light as well where there is any.
    widths
        Of outlines of negative, positive and undefined cells, px; zeros where cells are filled
        instead.
    """

    row: np.ndarray
    depth: np.ndarray
    broken: np.ndarray
    halo: np.ndarray
    widths: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, ids: np.ndarray, *, unit: float, halo: bool) -> Outlines:
        """Find them.

        Parameters
        ----------
        labels
            ``(y, x)``, 0 = background.
        ids
            Of the cells to draw, ``(n,)``.
        unit
            How many px of `labels` a px of the figure is wide.
        halo
            Light around the cells, for coloured ground.
        """
        present, place = np.unique(labels, return_inverse=True)
        known = pd.Index(ids).get_indexer(present.astype(np.int64))
        known[present == 0] = -1
        row = known[place.reshape(labels.shape)]
        drawn = row >= 0
        across = np.sqrt(drawn.sum() / max((known >= 0).sum(), 1) * 4 / np.pi) / unit
        if across < _SMALL_CELL:
            nothing = np.zeros(labels.shape, bool)
            return cls(row, drawn.astype(np.int64), nothing, nothing, np.zeros(3, np.int64))
        thick = unit * float(np.clip(across / _LARGE_CELL, 1, 2))
        widths = np.maximum(np.rint(np.array(_WIDTHS) * thick), 1).astype(np.int64)
        around = np.zeros(labels.shape, bool)
        if halo:
            around = binary_dilation(drawn, iterations=max(round(unit), 1)) & (labels == 0)
        return cls(row, _depth(labels, int(widths.max())), _broken(row, len(ids)), around, widths)

    def paint(self, codes: np.ndarray, colours: np.ndarray, fill: float) -> np.ndarray:
        """Mark each cell.

        Parameters
        ----------
        codes
            0 negative, 1 positive, 2 undefined, ``(n,)``.
        colours
            ``(n, 4)`` uint8.
        fill
            How strongly cells are filled within outlines, 0 to 1.

        Returns
        -------
        ``(y, x, 4)`` uint8.
        """
        drawn = self.row >= 0
        out = np.zeros((*self.row.shape, 4), np.uint8)
        if not len(codes):
            return out
        out[drawn] = colours[self.row[drawn]]
        code = np.where(drawn, codes[self.row], 0)
        if not self.widths.any():
            out[..., 3] = np.where(drawn, np.array(_OPACITY, np.uint8)[code], 0)
            return out
        line = drawn & (self.depth <= self.widths[code])
        gap = line & (code == 2) & ~self.broken
        out[..., 3] = np.where(line & ~gap, out[..., 3], (out[..., 3] * fill).astype(np.uint8))
        out[self.halo | (gap if self.halo.any() else False)] = _HALO
        return out


def _depth(labels: np.ndarray, most: int) -> np.ndarray:
    found = (labels > 0).astype(np.int64)
    remaining = labels
    for _ in range(most):
        remaining = np.where(interior_mask(remaining), remaining, 0)
        found += remaining > 0
    return found


def _broken(row: np.ndarray, n: int) -> np.ndarray:
    """Dashes around the middle of each cell; one of them at the top."""
    y, x = np.nonzero(row >= 0)
    cell = row[y, x]
    count = np.maximum(np.bincount(cell, minlength=n), 1)
    middle = [np.bincount(cell, weights=v, minlength=n) / count for v in (y, x)]
    angle = np.arctan2(x - middle[1][cell], middle[0][cell] - y)
    out = np.zeros(row.shape, bool)
    out[y, x] = np.cos(_DASHES * angle) > -0.1
    return out
