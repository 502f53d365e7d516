"""Spill-over kernels against loops over cells."""

from __future__ import annotations

import numpy as np
import pytest

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays.spillover import (
    bright_neighbour,
    exclusive_suspicion,
    log_ratio,
    spill_suspicion,
)


@pytest.mark.parametrize("max_distance", [None, 3.0])
def test_bright_neighbour_equals_looking_at_every_cell(max_distance):
    rng = np.random.default_rng(0)
    points, scores, light = rng.random((60, 2)) * 30, rng.random((60, 3)), rng.random((60, 3)) * 100
    found = bright_neighbour(points, scores, light, n_neighbors=5, max_distance=max_distance)
    distance = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1))
    np.fill_diagonal(distance, np.inf)
    far = 4 * np.median(distance.min(1)) if max_distance is None else max_distance
    for i in range(60):
        near = [j for j in np.argsort(distance[i])[:5] if distance[i, j] <= far]
        for k in range(3):
            best = max(near, key=lambda j: scores[j, k] * light[j, k], default=None)
            expected = (0, 0) if best is None else (light[best, k], scores[best, k])
            assert (found[0][i, k], found[1][i, k]) == expected


def test_a_cell_alone_and_no_cell_have_no_neighbours():
    for n in (0, 1):
        found = bright_neighbour(np.zeros((n, 2)), np.ones((n, 2)), np.ones((n, 2)))
        assert [f.shape for f in found] == [(n, 2)] * 2
        assert not any(f.any() for f in found)
    with pytest.raises(InputError, match="finite"):
        bright_neighbour(np.full((2, 2), np.nan), np.ones((2, 1)), np.ones((2, 1)))


def test_suspicion_equals_counting():
    rng = np.random.default_rng(1)
    ratio, scores, around = rng.normal(size=300).round(1), rng.random(300), rng.random(300)
    found = spill_suspicion(ratio, scores, around)
    beside = [r for r, s, t in zip(ratio, scores, around, strict=True) if s <= 0.5 < t]
    own = ratio[scores > 0.5]
    for i in range(300):
        a = np.mean([r >= ratio[i] for r in beside])
        b = np.mean([r <= ratio[i] for r in own])
        expected = (a + 0.01) / (a + b + 0.02) * around[i] if scores[i] > 0.5 else 0
        assert found[i] == pytest.approx(expected)
    assert found.min() >= 0
    assert found.max() <= 1
    # less light beside the same neighbour is never less suspicious
    order = np.argsort(ratio)
    same = spill_suspicion(ratio, scores, np.where(around > 0.5, 0.8, 0.2))
    kept = order[(scores[order] > 0.5) & (around[order] > 0.5)]
    assert (np.diff(same[kept]) <= 1e-12).all()
    assert not spill_suspicion(ratio[:30], scores[:30], around[:30]).any()  # too few to tell


def test_exclusive_markers_and_ratios():
    ratio = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    scores = np.array([[0.9, 0.6, 0.7], [0.9, 0.6, 0.2], [0.4, 0.6, 0.1]])
    found = exclusive_suspicion(ratio, scores, [(0, 1), (1, 2)])
    assert found.tolist() == [[0, 0.9, 0], [0.6, 0, 0], [0, 0, 0]]
    light = np.array([[0.0, 5.0], [0.0, 15.0]])
    expected = np.log([[1, 5.5 / 10.5], [1, 15.5 / 10.5]])
    np.testing.assert_allclose(log_ratio(light, np.array([[0.0, 10.0]] * 2)), expected)
