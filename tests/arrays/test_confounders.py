"""Neighbour counts and the coefficient of variation against loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import confounders
from nimbus_sd.arrays.confounders import coefficient_of_variation, neighbour_counts


# integer points: distances of exactly the radius, and cells on top of one another
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=40), st.integers(1, 6))
def test_neighbours_equal_the_double_loop(points, radius):
    points = np.array(points, float).reshape(-1, 2)
    positive = np.random.default_rng(radius).random((len(points), 3)) < 0.4
    cells, positives = neighbour_counts(points, radius, positive=positive)
    for i, p in enumerate(points):
        near = [j for j, q in enumerate(points) if j != i and ((p - q) ** 2).sum() <= radius**2]
        assert cells[i] == len(near)
        assert positives[i].tolist() == [sum(positive[j, k] for j in near) for k in range(3)]


def test_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    points, positive = rng.random((400, 2)) * 50, rng.random((400, 2)) < 0.3
    whole = neighbour_counts(points, 10, positive=positive)
    monkeypatch.setattr(confounders, "_PAIRS", 500)
    assert len(confounders._chunks(whole[0] + 1)) > 20
    for a, b in zip(whole, neighbour_counts(points, 10, positive=positive), strict=True):
        np.testing.assert_array_equal(a, b)


def test_bad_points_are_refused():
    with pytest.raises(InputError, match="finite"):
        neighbour_counts(np.array([[np.nan, 0]]), 3)
    with pytest.raises(InputError, match="radius=0"):
        neighbour_counts(np.zeros((2, 2)), 0)


def test_variation_equals_numpy_and_is_undefined_without_signal():
    values = np.random.default_rng(0).random((50, 4)) * [1, 10, 0, 5]
    values[:5, 0] = np.nan
    values[:, 3] = np.nan
    found = coefficient_of_variation(values)
    assert found[0] == pytest.approx(np.nanstd(values[:, 0]) / np.nanmean(values[:, 0]))
    assert found[1] == pytest.approx(values[:, 1].std() / values[:, 1].mean())
    assert np.isnan(found[2:]).all()
