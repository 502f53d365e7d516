"""Imperfect segmentation: the labels that a model is given, and what is true of them."""

from __future__ import annotations

import numpy as np
from scipy import ndimage, sparse

from nimbus_sd.simulation._types import AnyArray, BoolArray, FloatArray, IntArray
from nimbus_sd.simulation.config import SegmentationConfig
from nimbus_sd.simulation.noise import smooth_noise
from nimbus_sd.simulation.tissue import Tissue, border_distance

_POSITIVE_SHARE = 0.6
_NEGATIVE_SHARE = 0.2
_COVERED = 0.3
_MIN_AREA = 6.0


def dilate_labels(labels: IntArray, reach: float | FloatArray, mpp: float) -> IntArray:
    """Grow labels into the background by `reach` µm, a number or one per pixel."""
    distance, (rows, columns) = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    return np.where(distance * mpp <= reach, labels[rows, columns], 0).astype(np.int32)


def erode_labels(labels: IntArray, depth: float | FloatArray, mpp: float) -> IntArray:
    """Remove the outer `depth` µm of every label."""
    return np.where(border_distance(labels, mpp) > depth, labels, 0).astype(np.int32)


def merge_labels(rng: np.random.Generator, labels: IntArray, share: float) -> IntArray:
    """Fuse a `share` of the labels with a touching neighbour."""
    pairs = np.concatenate(
        [
            np.stack([labels[1:].ravel(), labels[:-1].ravel()], 1),
            np.stack([labels[:, 1:].ravel(), labels[:, :-1].ravel()], 1),
        ]
    )
    pairs = np.unique(pairs[(pairs[:, 0] != pairs[:, 1]) & (pairs > 0).all(1)], axis=0)
    names = np.arange(labels.max() + 1, dtype=np.int32)
    present = np.flatnonzero(np.bincount(labels.ravel()))[1:]
    used: set[int] = set()
    for first, second in rng.permutation(pairs):
        if len(used) >= share * len(present):
            break
        if first not in used and second not in used:
            names[first] = second
            used.update((int(first), int(second)))
    return names[labels]


def split_labels(rng: np.random.Generator, labels: IntArray, tissue: Tissue, share: float) -> IntArray:
    """Cut a `share` of the labels in two through the true cell's centre."""
    top = int(labels.max())
    cut = rng.random(top + 1) < share
    direction = rng.uniform(-np.pi, np.pi, top + 1).astype(np.float32)
    side = np.cos(tissue.angle - direction[labels]) > 0
    return np.where((labels > 0) & cut[labels] & side, labels + top, labels).astype(np.int32)


def shift_labels(rng: np.random.Generator, labels: IntArray, reach: float, mpp: float) -> IntArray:
    """Move the whole label image by up to `reach` µm; what moves in is background."""
    dy, dx = np.rint(rng.uniform(-reach, reach, 2) / mpp).astype(int)
    return ndimage.shift(labels, (dy, dx), order=0, mode="constant", cval=0).astype(np.int32)


def drop_labels(rng: np.random.Generator, labels: IntArray, share: float) -> IntArray:
    """Miss a `share` of the labels."""
    return np.where(rng.random(labels.max() + 1)[labels] < share, 0, labels).astype(np.int32)


def _compact(labels: IntArray, mpp: float) -> IntArray:
    """Renumber 1..m and remove crumbs."""
    area = np.bincount(labels.ravel())
    area[0] = 0
    kept = area * mpp**2 >= _MIN_AREA
    names = np.cumsum(kept, dtype=np.int32) * kept
    return names[labels].astype(np.int32)


def segment(rng: np.random.Generator, tissue: Tissue, config: SegmentationConfig) -> IntArray:
    """Segment tissue with errors.

    Parameters
    ----------
    rng
        Source of randomness.
    tissue
        The true cells.
    config
        Which errors, how large.

    Returns
    -------
    ``(y, x)`` int32 labels 1..m, 0 = background.
    """
    mpp = tissue.mpp
    labels = np.where(tissue.nuclei, tissue.cells, 0).astype(np.int32) if config.nuclei else tissue.cells
    uneven: FloatArray | float = 0.0
    if config.wobble:
        uneven = config.wobble * smooth_noise(rng, labels.shape, 2.5 / mpp)
    if config.erode or config.wobble:
        # half a px more, so that an uneven outline wobbles about the border and not only beyond it
        inset = 0.5 * mpp if config.wobble else 0.0
        labels = erode_labels(labels, config.erode - np.minimum(uneven, 0) + inset, mpp)
    if config.dilate or config.wobble:
        labels = dilate_labels(labels, config.dilate + np.maximum(uneven, 0), mpp)
    if config.split:
        labels = split_labels(rng, labels, tissue, config.split)
    if config.merged:
        labels = merge_labels(rng, labels, config.merged)
    if config.missed:
        labels = drop_labels(rng, labels, config.missed)
    if config.shift:
        labels = shift_labels(rng, labels, config.shift, mpp)
    return _compact(labels, mpp)


def overlap(labels: IntArray, cells: IntArray) -> sparse.csr_array:
    """Share of each label's area taken by each true cell: sparse (m + 1, n + 1), column 0 = outside cells."""
    m, n = int(labels.max()) + 1, int(cells.max()) + 1
    pixels = labels > 0
    ones = np.ones(int(pixels.sum()), np.float32)
    counts = sparse.coo_array((ones, (labels[pixels], cells[pixels])), shape=(m, n)).tocsr()
    area = np.maximum(np.bincount(labels.ravel(), minlength=m), 1)
    return sparse.csr_array(sparse.diags_array(1 / area) @ counts)


def carry_over(shares: sparse.csr_array, truth: FloatArray) -> FloatArray:
    """Turn positivity of true cells into positivity of labels.

    Parameters
    ----------
    shares
        From :func:`overlap`.
    truth
        ``(n + 1, c)`` float32: 1, 0 or NaN; row 0 is ignored.

    Returns
    -------
    ``(m, c)`` float32 for labels 1..m: 1 where at least 60 % of the part that
    lies in cells is positive, 0 where at most 20 % is not negative, else NaN
    (also where less than 30 % of the label lies in cells).
    """
    inner = shares[1:, 1:]
    covered = np.asarray(inner.sum(1))[:, None]
    positive = inner @ np.nan_to_num(truth[1:], nan=0.0)
    unknown = inner @ np.isnan(truth[1:]).astype(np.float32)
    result = np.full(positive.shape, np.nan, np.float32)
    result[positive >= _POSITIVE_SHARE * covered] = 1
    result[positive + unknown <= _NEGATIVE_SHARE * covered] = 0
    return np.where(covered >= _COVERED, result, np.nan).astype(np.float32)


def halved_interior(rng: np.random.Generator, labels: AnyArray) -> BoolArray:
    """Interior mask as it looks when taken at twice the resolution and then halved.

    Of two different pixels side by side, only one keeps its place inside
    after halving: the one whose half-size neighbour went to the other label.
    Which one is drawn from a field with a correlation length of a few px.
    """
    inside = labels > 0
    keep = inside.copy()
    for axis in (0, 1):
        differs = np.diff(labels, axis=axis) != 0
        size = (differs.shape[0], differs.shape[1])
        first = differs & (smooth_noise(rng, size, 1.5) > 0)
        second = differs & ~first
        if axis == 0:
            keep[:-1] &= ~first
            keep[1:] &= ~second
        else:
            keep[:, :-1] &= ~first
            keep[:, 1:] &= ~second
    return keep


def interior(labels: AnyArray) -> BoolArray:
    """Label > 0 minus inner boundaries (4-connectivity): ``(y, x)`` bool."""
    keep = labels > 0
    for axis in (0, 1):
        differs = np.diff(labels, axis=axis) != 0
        if axis == 0:
            keep[:-1] &= ~differs
            keep[1:] &= ~differs
        else:
            keep[:, :-1] &= ~differs
            keep[:, 1:] &= ~differs
    return keep
