"""How the channels of an image are split: what is read and scored at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from nimbus_sd.arrays import TilePlan
from nimbus_sd.engine.source import ImageSource

_GROUP_BYTES = 256 << 20


def chunk_groups(image: ImageSource, channels: Sequence[str]) -> list[tuple[int, ...]]:
    """Positions of `channels` in their order; neighbours that lie in one chunk together."""
    position = {c: i for i, c in enumerate(image.channels)}
    chunk_of = np.repeat(np.arange(len(image.chunks[0])), image.chunks[0])
    wanted = [position[c] for c in channels]
    return [tuple(together) for _, together in groupby(wanted, key=lambda i: chunk_of[i])]


def channel_groups(image: ImageSource, plan: TilePlan, channels: Sequence[str]) -> list[tuple[int, ...]]:
    """Merge the groups of single chunks while their pixels stay small: no chunk is read twice.

    Parameters
    ----------
    image, plan
        Whose first tile tells how large the pixels of a channel are.
    channels
        Names, in the order of the result.
    """
    pixels = math.prod(plan[0].outer_shape) * max(plan.y.factor, 1) ** 2
    fits = max(int(_GROUP_BYTES // (pixels * (image.dtype.itemsize + 8))), 1)
    groups: list[tuple[int, ...]] = []
    for together in chunk_groups(image, channels):
        if groups and len(groups[-1]) + len(together) <= fits:
            groups[-1] += together
        else:
            groups.append(together)
    return groups
