"""Two places of one section share no px."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nimbus_sd.arrays.patches import corners
from nimbus_sd.engine.subtyping.apart import split_by_place


@given(st.integers(0, 300), st.integers(1, 40), st.integers(0, 50))
def test_no_patch_of_one_place_overlaps_one_of_the_other(n, size, seed):
    rng = np.random.default_rng(seed)
    centers = rng.random((n, 2)) * (80, 120)
    labels = (rng.random((n, 2)) < 0.3).astype(np.float32)
    train, judged = split_by_place(centers, labels, size=size)
    assert not set(train) & set(judged)
    a, b = corners(centers[train], size), corners(centers[judged], size)
    apart = np.abs(a[:, None] - b[None]).max(axis=2) >= size
    assert apart.all()
    if n >= 20:
        assert 0.15 * n <= len(judged) <= 0.35 * n + 5


def test_the_strip_with_both_classes_is_taken():
    rng = np.random.default_rng(0)
    centers = rng.random((1000, 2)) * (400, 400)
    labels = (centers[:, :1] > 300).astype(np.float32)  # positive cells lie below
    _, judged = split_by_place(centers, labels, size=16)
    share = labels[judged].mean() / labels.mean()
    assert 0.7 < share < 1.4
