"""The cell-interior mask that the network reads beside the marker."""

from __future__ import annotations

import numpy as np


def interior_mask(labels: np.ndarray) -> np.ndarray:
    """Pixels that belong to a cell and whose four neighbours belong to the same cell.

    Equals ``(labels > 0) & ~skimage.segmentation.find_boundaries(labels,
    connectivity=1, mode="inner")``: the rule of the published tool. Beyond the
    array's edge a pixel is taken to continue.

    Parameters
    ----------
    labels
        ``(y, x)`` integers, 0 = background.

    Returns
    -------
    ``(y, x)`` bool.

    Examples
    --------
    >>> interior_mask(np.array([[1, 1, 1, 2, 2]])).astype(int).tolist()
    [[1, 1, 0, 0, 1]]
    """
    inside = labels > 0
    same_y = labels[1:] == labels[:-1]
    same_x = labels[:, 1:] == labels[:, :-1]
    inside[1:] &= same_y
    inside[:-1] &= same_y
    inside[:, 1:] &= same_x
    inside[:, :-1] &= same_x
    return inside
