"""The slow, obvious answer: one forward pass over the whole padded image, one loop over the cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, floor

import numpy as np
import torch
from skimage.segmentation import find_boundaries
from torch import nn

Undo = Callable[[np.ndarray], np.ndarray]

# written out with NumPy's own rotations, apart from the package's kernel
_VIEWS: dict[str, tuple[Undo, Undo]] = {
    "identity": (lambda a: a, lambda a: a),
    "flip_y": (np.flipud, np.flipud),
    "flip_x": (np.fliplr, np.fliplr),
    "rot180": (lambda a: np.rot90(a, 2), lambda a: np.rot90(a, 2)),
    "transpose": (np.transpose, np.transpose),
    "rot90": (np.rot90, lambda a: np.rot90(a, -1)),
    "rot270": (lambda a: np.rot90(a, -1), np.rot90),
    "antitranspose": (lambda a: np.rot90(a, 2).T, lambda a: np.rot90(a, 2).T),
}


def whole_image_scores(
    image: np.ndarray,
    labels: np.ndarray,
    net: nn.Module,
    *,
    scale: Sequence[float],
    factor: float = 1.0,
    views: Sequence[str] = ("identity",),
    transform: str = "identity",
    stride: int = 16,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of every label without tiles, streams or sparse sums.

    Parameters
    ----------
    image
        ``(c, y, x)``.
    labels
        ``(y, x)`` integers.
    net
        Gives logits.
    scale
        Intensity that maps to 1, per channel.
    factor
        Full-resolution px per model px.
    views, transform, stride
        As for the model.

    Returns
    -------
    Ids ``(n,)`` ascending and scores float64 ``(n, c, views)``.
    """
    probability = whole_image_probabilities(
        image, labels, net, scale=scale, factor=factor, views=views, transform=transform, stride=stride
    )
    ids = [i for i in np.unique(labels) if i != 0]
    scores = np.array(
        [[[p[labels == i].mean(dtype=np.float64) for p in by_view] for by_view in probability] for i in ids]
    )
    return np.array([int(i) for i in ids]), scores


def whole_image_probabilities(
    image: np.ndarray,
    labels: np.ndarray,
    net: nn.Module,
    *,
    scale: Sequence[float],
    factor: float = 1.0,
    views: Sequence[str] = ("identity",),
    transform: str = "identity",
    stride: int = 16,
) -> np.ndarray:
    """Full-resolution probabilities, float32 ``(c, views, y, x)``, of :func:`whole_image_scores`."""
    small = [_model_side(n, factor, stride) for n in labels.shape]
    mask = _pad((labels > 0) & ~find_boundaries(labels, connectivity=1, mode="inner"), small, factor)
    rows, columns = ([floor(i * factor + 1e-9) for i in range(n)] for n in small)
    mask = np.array([[mask[y, x] for x in columns] for y in rows], dtype=np.float32)
    back_y, back_x = ([floor((j + 0.5) / factor + 1e-9) for j in range(n)] for n in labels.shape)
    out = np.empty((len(image), len(views), *labels.shape), dtype=np.float32)
    for c, plane in enumerate(image):
        marker = np.clip(plane.astype(np.float64) / list(scale)[c], 0, 1)
        marker = _halve(_halve(_pad(marker, small, factor), small[0], factor).T, small[1], factor).T
        marker = np.sqrt(marker) if transform == "sqrt" else marker
        for v, view in enumerate(views):
            there, back = _VIEWS[view]
            batch = np.stack([there(marker), there(mask)])[None].astype(np.float32)
            with torch.no_grad():
                probability = net(torch.from_numpy(batch)).sigmoid().numpy()[0, 0]
            out[c, v] = back(probability)[np.ix_(back_y, back_x)]
    return out


def _model_side(n: int, factor: float, stride: int) -> int:
    return stride * ceil(max(ceil(n / factor - 1e-9), 32) / stride)


def _pad(plane: np.ndarray, small: Sequence[int], factor: float) -> np.ndarray:
    for axis, side in enumerate(small):
        extra = max(ceil(side * factor - 1e-9), plane.shape[axis]) - plane.shape[axis]
        width = [(0, 0), (0, 0)]
        width[axis] = (0, extra)
        plane = np.pad(plane, width, mode="reflect" if extra < plane.shape[axis] else "edge")
    return plane


def _halve(plane: np.ndarray, n: int, factor: float) -> np.ndarray:
    """Bilinear samples of the first axis at ``(i + 0.5) * factor - 0.5``."""
    out = []
    for i in range(n):
        position = min(max((i + 0.5) * factor - 0.5, 0), len(plane) - 1)
        low = floor(position)
        high = min(low + 1, len(plane) - 1)
        out.append(plane[low] * (1 - (position - low)) + plane[high] * (position - low))
    return np.array(out)
