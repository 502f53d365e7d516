"""Ranges against a cell-by-cell oracle; suggested thresholds on populations that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nimbus_sd.arrays.gating import RANGES, gate_ranges, range_labels, suggest

VALUES = st.sampled_from([math.nan, -5.0, 0.0, 1.0, 2.0, 3.0, 4.0, 1e9, math.inf])
LIMITS = st.lists(
    st.sampled_from([-math.inf, 0.0, 1.0, 2.0, 3.0, 4.0, math.inf]), min_size=3, max_size=3
).map(sorted)


def oracle(x, low, high, over):
    """One value; the order of the questions decides ties."""
    if math.isnan(x):
        return -1
    if x >= over:
        return 3
    if x <= low:
        return 0
    return 2 if x >= high else 1


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(0, 12), st.just(2)), elements=VALUES),
    LIMITS,
    LIMITS,
)
def test_ranges_equal_the_oracle(values, one, other):
    found = gate_ranges(values, np.array([one, other]))
    expected = [[oracle(x, *t) for x, t in zip(row, (one, other), strict=True)] for row in values]
    np.testing.assert_array_equal(found, np.array(expected).reshape(values.shape))
    per_cell = np.broadcast_to(np.array([one, other]), (len(values), 2, 3))
    np.testing.assert_array_equal(gate_ranges(values, per_cell), found)
    labels = range_labels(found)
    assert labels.dtype == np.float32
    np.testing.assert_array_equal(labels == 1, found == RANGES.index("positive"))
    np.testing.assert_array_equal(labels == 0, found == RANGES.index("negative"))
    assert np.isnan(labels[(found == 1) | (found == 3) | (found == -1)]).all()


@given(hnp.arrays(np.float64, st.tuples(st.integers(2, 30), st.just(1)), elements=st.floats(-10, 10)), LIMITS)
def test_ranges_rise_with_the_value(values, limits):
    found = gate_ranges(np.sort(values, axis=0), np.array([limits])).ravel()
    assert (np.diff(found) >= 0).all()


def test_a_marker_without_thresholds_has_no_range():
    found = gate_ranges(np.ones((3, 2)), np.array([[np.nan] * 3, [0, 1, 2]]))
    assert found.tolist() == [[-1, 2]] * 3


def stained(share, n=20_000, seed=0, bright=30):
    """Background of gamma noise, `share` of the cells log-normally brighter; truth."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < share
    x = rng.gamma(5, 20, n) + truth * 100 * rng.lognormal(np.log(bright), 0.4, n)
    return x, truth


@pytest.mark.parametrize("share", [0.002, 0.01, 0.05, 0.2, 0.6])
@pytest.mark.parametrize("seed", [0, 1])
def test_suggestions_find_rare_and_common_positives(share, seed):
    x, truth = stained(share, seed=seed)
    found = suggest(x)
    assert found.clear
    assert found.negative <= found.positive <= found.overexposed
    called = (x >= found.positive) & (x < found.overexposed)
    assert truth[called].mean() > (0.98 if share > 0.005 else 0.95)
    assert truth[x <= found.negative].mean() < 0.005
    assert called[truth].mean() > 0.5
    assert (x <= found.negative)[~truth].mean() > 0.8


@pytest.mark.parametrize("seed", range(3))
def test_nobody_is_positive_in_background(seed):
    rng = np.random.default_rng(seed)
    for x in (rng.gamma(5, 20, 5000), rng.normal(300, 40, 5000), rng.lognormal(4, 0.4, 5000)):
        found = suggest(x)
        assert not found.clear
        assert (x < found.positive).all()
        assert np.median(x) < found.negative < found.positive == found.overexposed < np.inf
        assert (x <= found.negative).mean() > 0.9
        assert np.isnan(found.separation)


def test_stray_light_of_neighbours_is_not_positive():
    """A third population, as bright as a tenth of the positive one."""
    rng = np.random.default_rng(3)
    x, truth = stained(0.15, bright=60)
    stray = ~truth & (rng.random(x.size) < 0.15)
    x = x + stray * rng.lognormal(np.log(600), 0.4, x.size)
    found = suggest(x)
    assert truth[(x >= found.positive) & (x < found.overexposed)].mean() > 0.98
    assert truth[x <= found.negative].mean() < 0.005


def test_units_don_t_matter_and_order_doesn_t():
    x, _ = stained(0.1)
    found, scaled = suggest(x), suggest(x[::-1] / 512)
    for name in ("negative", "positive", "overexposed"):
        assert getattr(scaled, name) * 512 == pytest.approx(getattr(found, name), rel=1e-3)
    assert suggest(np.append(x, [np.nan, np.inf])) == found


def test_overexposed_is_the_brightest_of_the_positive_cells():
    x, _ = stained(0.1)
    found = suggest(x, quantile=0.9)
    assert (x[x >= found.positive] >= found.overexposed).mean() == pytest.approx(0.1, abs=0.01)
    sure = suggest(x, confidence=0.9999)
    assert sure.negative <= found.negative
    assert sure.positive >= found.positive


def test_counts_with_many_zeros():
    rng = np.random.default_rng(0)
    truth = rng.random(5000) < 0.1
    x = np.where(truth, rng.gamma(6, 1.5, 5000), rng.poisson(0.3, 5000) / 10)
    found = suggest(x)
    assert truth[(x >= found.positive) & (x < found.overexposed)].mean() > 0.98
    assert found.negative >= 0


def test_too_little_to_guess_from():
    assert suggest(np.arange(5.0)) is None
    assert suggest(np.full(100, 3.0)) is None
    assert suggest(np.full(100, np.nan)) is None
