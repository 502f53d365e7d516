"""Random images and segmentations for tests; for something that looks like tissue see the simulation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def random_labels(
    shape: tuple[int, int],
    *,
    n: int = 12,
    seed: int = 0,
    ids: Sequence[int] | None = None,
    dtype: str = "uint32",
) -> np.ndarray:
    """Touching cells of many sizes, single pixels among them, some of them on the image's border.

    Parameters
    ----------
    shape
        (y, x) px.
    n
        Cells to draw; later ones may cover earlier ones.
    seed
        Of the generator.
    ids
        Ids to use in turn, 1, 2, ... by default.
    dtype
        Of the labels.

    Examples
    --------
    >>> random_labels((32, 32), n=3, ids=[7, 4_000_000_000, 9]).max()
    np.uint32(4000000000)
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype)
    ids = range(1, n + 1) if ids is None else ids
    y, x = np.ogrid[: shape[0], : shape[1]]
    for i in range(n):
        centre = rng.uniform(0, shape)
        radius = rng.choice([0.6, 2, 4, 7, 12]) * rng.uniform(0.7, 1.3, size=2)
        inside = ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 <= 1
        labels[inside] = ids[i % len(ids)]
    if not labels.any():
        labels[-1, -1] = ids[0]
    return labels


def random_image(
    shape: tuple[int, int, int], *, seed: int = 0, dtype: str = "uint16", maximum: float = 1000.0
) -> np.ndarray:
    """Smooth blobs with pixel noise, a different one per channel, ``(c, y, x)``, ≥ 0.

    Examples
    --------
    >>> random_image((2, 8, 8)).dtype
    dtype('uint16')
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[1], : shape[2]] / 11.0
    phase = rng.uniform(0, 6, size=(4, shape[0], 1, 1))
    smooth = np.sin(y + phase[0] + x * phase[1] / 3) * np.cos(x * phase[2] / 2 + phase[3]) + 1
    image = smooth * rng.gamma(2.0, 0.25, size=shape)
    image *= maximum / image.max()
    return image.astype(dtype)
