"""Calibrators and mixtures against scikit-learn, brute force and planted parameters."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays.calibration import (
    METHODS,
    NO_HIGH,
    NO_LOW,
    Calibrator,
    abstention_limits,
    assign_folds,
    call_cells,
    fit_calibrator,
    logit,
)
from nimbus_sd.arrays.mixture import fit_mixture
from nimbus_sd.arrays.reliability import expected_calibration_error


def sample(n=4000, *, slope=2.0, intercept=-1.0, seed=0):
    """Scores whose true probability is sigmoid(slope logit + intercept)."""
    rng = np.random.default_rng(seed)
    s = expit(rng.normal(0, 1.5, n))
    return (rng.random(n) < expit(slope * logit(s) + intercept)).astype(float), s


def test_platt_and_temperature_equal_unpenalised_logistic_regression():
    y, s = sample()
    z = logit(s)[:, None]
    n = y.sum()
    target = np.where(y == 1, (n + 1) / (n + 2), 1 / (y.size - n + 2))
    # smoothed targets are weighted copies of both classes
    z2, y2, w2 = np.tile(z, (2, 1)), np.repeat([1, 0], y.size), np.append(target, 1 - target)
    for method, intercept in (("platt", True), ("temperature", False)):
        oracle = LogisticRegression(C=1e12, fit_intercept=intercept, tol=1e-10, max_iter=1000)
        oracle.fit(z2, y2, sample_weight=w2)
        found = fit_calibrator(y, s, method=method)
        assert found.slope == pytest.approx(oracle.coef_[0, 0], rel=1e-4)
        assert found.intercept == pytest.approx(oracle.intercept_[0] if intercept else 0, rel=1e-4)
    assert fit_calibrator(y, s, method="platt").slope == pytest.approx(2, abs=0.15)


def test_isotonic_equals_sklearn():
    y, s = sample(500)
    s = np.round(s, 2)
    oracle = IsotonicRegression(out_of_bounds="clip").fit(s, y)
    found = fit_calibrator(y, s, method="isotonic")
    grid = np.linspace(0, 1, 301)
    np.testing.assert_allclose(found.apply(grid), oracle.predict(grid), atol=1e-9)
    assert len(found.x) < 60


@pytest.mark.parametrize("method", METHODS)
def test_calibration_mends_and_keeps_the_order(method):
    y, s = sample(intercept=0 if method == "temperature" else -1)
    y2, s2 = sample(seed=1, intercept=0 if method == "temperature" else -1)
    found = fit_calibrator(y, s, method=method)
    assert expected_calibration_error(y2, s2) > 0.1
    assert expected_calibration_error(y2, found.apply(s2)) < 0.035
    grid = found.apply(np.linspace(0, 1, 200))
    assert (np.diff(grid) >= 0).all()
    assert grid.min() >= 0
    assert grid.max() <= 1
    assert np.isnan(found.apply(np.array([np.nan]))).all()
    again = Calibrator.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_clean_parting_stays_finite_and_a_reversed_marker_is_not_turned(method):
    s = np.append(np.full(50, 0.0), np.full(50, 1.0))
    y = np.repeat([0.0, 1.0], 50)
    found = fit_calibrator(y, s, method=method)
    assert np.isfinite([found.slope, found.intercept]).all()
    assert found.apply(np.array([0.0, 1.0])) == pytest.approx([0.02, 0.98], abs=0.01)
    turned = fit_calibrator(1 - y, s, method=method)
    assert turned.slope == 0
    assert turned.apply(np.array([0.1, 0.9])) == pytest.approx([0.5, 0.5])


def test_what_can_not_be_fitted_is_said():
    with pytest.raises(InputError, match="3 labelled cells, 3 of them positive"):
        fit_calibrator(np.array([1, 1, 1, np.nan]), np.full(4, 0.3))
    with pytest.raises(InputError, match=r"scores lie in \[0.1, 7\]"):
        fit_calibrator(np.array([0, 1]), np.array([0.1, 7]))
    with pytest.raises(InputError, match="valid: temperature, platt, isotonic"):
        fit_calibrator(np.array([0, 1]), np.array([0.1, 0.7]), method="beta")
    with pytest.raises(InputError, match="error_rate=1"):
        abstention_limits(np.array([0, 1]), np.array([0.1, 0.7]), error_rate=1)


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.integers(0, 12)), min_size=1, max_size=40),
    st.sampled_from([0.05, 0.2, 0.4]),
)
def test_limits_call_the_most_cells_that_the_rate_allows(cells, rate):
    y, s = (np.array(v, float) for v in zip(*cells, strict=True))
    s /= 12
    low, high = abstention_limits(y, s, error_rate=rate)
    calls = call_cells(s, low, high)
    for side in (0, 1):
        called = calls == side
        assert (y[called] != side).sum() <= rate * called.sum()
    for t in np.unique(s):
        below, above = s <= t, s >= t
        if t <= 0.5 and t > low:
            assert (y[below] == 1).sum() > rate * below.sum()
        if 0.5 < t < high:
            assert (y[above] == 0).sum() > rate * above.sum()
    assert low <= 0.5 < high


def test_no_cell_may_be_called():
    y = np.array([0.0, 1, 0, 1])
    assert abstention_limits(y, np.array([0.2, 0.2, 0.9, 0.9]), error_rate=0.1) == (NO_LOW, NO_HIGH)
    assert abstention_limits(np.array([np.nan]), np.array([0.2]), error_rate=0.1) == (NO_LOW, NO_HIGH)
    assert np.isnan(call_cells(np.array([0.0, 1.0, np.nan]), NO_LOW, NO_HIGH)).all()


def test_folds_keep_fields_together_or_spread_classes():
    y = (np.arange(100) < 10).astype(float)
    field = np.repeat(np.arange(20), 5)
    fold = assign_folds(y, n_folds=5, groups=field)
    assert all(np.unique(fold[field == f]).size == 1 for f in range(20))
    assert np.bincount(fold[::5]).tolist() == [4] * 5
    fold = assign_folds(y, n_folds=5, groups=np.zeros(100, int))
    assert [int(y[fold == k].sum()) for k in range(5)] == [2] * 5


def test_mixture_equals_sklearn_and_planted_parameters():
    rng = np.random.default_rng(0)
    x = np.append(rng.normal(-3, 0.5, 3000), rng.normal(1, 1.5, 1000))
    found = fit_mixture(x)
    oracle = GaussianMixture(2, tol=1e-8, max_iter=1000, reg_covar=0, random_state=0).fit(x[:, None])
    up = int(np.argmax(oracle.means_))
    assert found.weight == pytest.approx(oracle.weights_[up], abs=0.01)
    assert [found.low, found.high] == pytest.approx(np.sort(oracle.means_.ravel()), abs=0.05)
    assert found.high_sd == pytest.approx(np.sqrt(oracle.covariances_[up, 0, 0]), rel=0.05)
    assert found.gain > 0.3
    grid = np.linspace(-8, 6, 300)
    odds = found.log_odds(grid)
    assert (np.diff(odds) >= 0).all()
    inside = (grid > found.low) & (grid < 5)
    expected = oracle.predict_proba(grid[inside, None])[:, up]
    np.testing.assert_allclose(expit(odds[inside]), expected, atol=0.02)


def test_one_heap_gains_nothing():
    x = np.random.default_rng(1).normal(0, 1, 5000)
    assert fit_mixture(x).gain < 0.01
    assert fit_mixture(np.ones(100)) is None
    assert fit_mixture(np.array([1.0, 2, np.nan])) is None
    spiked = fit_mixture(np.append(np.zeros(500), np.ones(20)), min_sd=0.1)
    assert (spiked.low_sd, spiked.high_sd) == (0.1, 0.1)
    assert spiked.weight == pytest.approx(20 / 520, rel=0.05)
