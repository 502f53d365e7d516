"""Hypothesis strategies for images, labels and tile layouts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nimbus_sd.testing.fields import random_image, random_labels

#: Ids that break casts, bincounts and float32: borders of int types, huge, far apart.
AWKWARD_IDS = (1, 2, 255, 256, 65_535, 65_536, 2**24 + 1, 2**31 - 1, 2**31, 4_000_000_000, 2**32 - 1)


def shapes(low: int = 1, high: int = 100) -> st.SearchStrategy[tuple[int, int]]:
    """(y, x) px, odd and tiny sides included."""
    return st.tuples(st.integers(low, high), st.integers(low, high))


def small_labels(max_side: int = 8, max_id: int = 3) -> st.SearchStrategy[np.ndarray]:
    """Any labels ``(y, x)`` of a few px, so that failures shrink to something readable."""
    return hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=max_side), elements=st.integers(0, max_id)
    )


@st.composite
def labels(draw: Any, shape: tuple[int, int] | None = None, dtype: str = "uint32") -> np.ndarray:
    """Cells of many sizes, with awkward ids that fit `dtype`."""
    shape = shape or draw(shapes())
    fitting = [i for i in AWKWARD_IDS if i <= np.iinfo(dtype).max]
    ids = draw(st.lists(st.sampled_from(fitting), min_size=1, max_size=6, unique=True))
    return random_labels(
        shape, n=draw(st.integers(1, 25)), seed=draw(st.integers(0, 999)), ids=ids, dtype=dtype
    )


@st.composite
def images(draw: Any, shape: tuple[int, int, int], dtype: str = "uint16") -> np.ndarray:
    """Images ``(c, y, x)`` ≥ 0, of which some have an empty channel."""
    image = random_image(shape, seed=draw(st.integers(0, 999)), dtype=dtype, maximum=200.0)
    if draw(st.booleans()):
        image[draw(st.integers(0, shape[0] - 1))] = 0
    return image


@st.composite
def chunks(draw: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Any chunk sizes of an array of `shape`."""
    out = []
    for n in shape:
        cuts = draw(st.sets(st.integers(1, max(n - 1, 1)), max_size=3)) if n > 1 else set()
        edges = [0, *sorted(cuts), n]
        out.append(tuple(b - a for a, b in pairwise(edges)))
    return tuple(out)
