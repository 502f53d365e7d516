"""Metrics against scikit-learn and against counting by hand."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays.evaluation import bootstrap, evaluate_scores, resample_weights
from nimbus_sd.arrays.metrics import (
    METRICS,
    Ranked,
    auroc,
    average_precision,
    best_threshold,
    confusion,
    rates,
)
from nimbus_sd.arrays.reliability import expected_calibration_error, reliability_bins

NAN = float("nan")
# few distinct values, so that ties are the rule
CELLS = st.lists(st.tuples(st.sampled_from([0.0, 1.0, NAN]), st.integers(0, 8)), min_size=1, max_size=60)


def split(cells):
    truth, scores = (np.array(v, dtype=float) for v in zip(*cells, strict=True))
    return truth, scores / 8


@given(CELLS)
def test_every_metric_equals_sklearn(cells):
    truth, scores = split(cells)
    found, reason = evaluate_scores(truth, scores, threshold=0.5)
    y, s = truth[~np.isnan(truth)], scores[~np.isnan(truth)]
    calls = s > 0.5
    expected = dict.fromkeys(METRICS, NAN)
    if (y == 1).any():
        expected["recall"] = oracle.recall_score(y, calls)
        expected["f1"] = oracle.f1_score(y, calls)
        if calls.any():
            expected["precision"] = oracle.precision_score(y, calls)
    if (y == 0).any():
        expected["specificity"] = oracle.recall_score(1 - y, ~calls)
    if np.unique(y).size == 2:
        expected["balanced_accuracy"] = oracle.balanced_accuracy_score(y, calls)
        expected["auroc"] = oracle.roc_auc_score(y, s)
        expected["average_precision"] = oracle.average_precision_score(y, s)
    if y.size:
        expected["ece"] = slow_ece(y, s, 15)
    assert found == pytest.approx(expected, nan_ok=True, abs=1e-12)
    undefined = [name for name in METRICS if np.isnan(found[name])]
    assert bool(reason) == bool(undefined)
    if y.size:
        assert set(METRICS) & set(re.findall(r"\w+", reason)) == set(undefined)


def slow_ece(y, s, n_bins):
    total = 0.0
    for b in range(n_bins):
        inside = [i for i in range(y.size) if b / n_bins < s[i] <= (b + 1) / n_bins or (b == 0 and s[i] == 0)]
        if inside:
            total += len(inside) / y.size * abs(np.mean(y[inside]) - np.mean(s[inside]))
    return total


@given(CELLS)
def test_weights_are_repeated_cells(cells):
    truth, scores = split(cells)
    ranked = Ranked.of(truth, scores)
    weights = np.random.default_rng(len(cells)).integers(0, 4, (3, truth.size))
    found = ranked.metrics(weights[:, ranked.order].astype(float), threshold=0.4, n_bins=5)
    for r, w in enumerate(weights):
        again = Ranked.of(np.repeat(truth, w), np.repeat(scores, w)).metrics(None, threshold=0.4, n_bins=5)
        for name in METRICS:
            np.testing.assert_allclose(found[name][r], again[name][0], atol=1e-12, err_msg=name)


@given(CELLS)
def test_best_threshold_beats_every_other(cells):
    truth, scores = split(cells)
    threshold, best = best_threshold(truth, scores)
    if not (truth == 1).any():
        assert np.isnan(threshold)
        assert np.isnan(best)
        return
    assert float(rates(confusion(truth, scores > threshold))["f1"]) == pytest.approx(best)
    for t in np.linspace(-0.1, 1.1, 40):
        assert float(rates(confusion(truth, scores > t))["f1"]) <= best + 1e-12


def test_undefined_is_nan_with_a_reason_and_never_zero():
    for truth, undefined, word in [
        ([0, 0], set(METRICS) - {"specificity", "ece"}, "no positive cells"),
        ([1, 1], {"specificity", "balanced_accuracy", "auroc", "average_precision"}, "no negative cells"),
        ([NAN, NAN], set(METRICS), "no cell with both"),
    ]:
        found, reason = evaluate_scores(np.array(truth, float), np.array([0.2, 0.9]))
        assert {k for k, v in found.items() if np.isnan(v)} == undefined
        assert word in reason
    found, reason = evaluate_scores(np.array([0, 1]), np.array([0.1, 0.2]))
    assert np.isnan(found["precision"])
    assert found["f1"] == 0
    assert "no cell is called positive: precision" in reason
    found, reason = evaluate_scores(np.array([0, 1]), np.array([10.0, 20.0]), threshold=15)
    assert found["f1"] == 1
    assert np.isnan(found["ece"])
    assert "outside [0, 1]" in reason
    assert evaluate_scores(np.empty(0), np.empty(0))[1] == "no cell with both a truth and a score"
    assert auroc(np.array([1, NAN]), np.array([0.5, 0.1])) != 0
    assert np.isnan(average_precision(np.empty(0), np.empty(0)))


def test_counts_along_an_axis():
    truth = np.array([[1, 0], [1, np.nan], [0, 1]])
    counts = confusion(truth, np.array([[1, 1], [0, 1], [0, 1]], bool), axis=0)
    assert [c.tolist() for c in (counts.tp, counts.fp, counts.tn, counts.fn)] == [
        [1, 1],
        [0, 1],
        [1, 0],
        [1, 0],
    ]
    assert rates(counts)["specificity"].tolist() == [1, 0]


def test_bad_truth_is_named():
    with pytest.raises(InputError, match=r"truth holds \[2.0\]; valid"):
        auroc(np.array([2, 1]), np.array([0.1, 0.2]))
    with pytest.raises(InputError, match="one marker at a time"):
        evaluate_scores(np.ones((2, 2)), np.ones((2, 2)))


def test_bootstrap_limits_equal_drawing_cells_again():
    rng = np.random.default_rng(1)
    y = (rng.random(120) < 0.3).astype(float)
    s = np.round(np.clip(y * 0.4 + rng.random(120) * 0.6, 0, 1), 2)
    field = rng.integers(0, 6, 120) * 10
    for groups in (None, field):
        found = bootstrap(y, s, n_resamples=60, groups=groups, seed=3)
        code = None if groups is None else np.unique(groups, return_inverse=True)[1]
        values = {name: [] for name in METRICS}
        for w in np.concatenate(list(resample_weights(120, 60, groups=code, seed=3))).astype(int):
            again, _ = evaluate_scores(np.repeat(y, w), np.repeat(s, w))
            for name in METRICS:
                values[name].append(again[name])
        for name in METRICS:
            np.testing.assert_allclose(found[name], np.nanquantile(values[name], [0.025, 0.975]), atol=1e-6)


def test_groups_make_wider_limits_where_fields_differ():
    rng = np.random.default_rng(2)
    field = np.repeat(np.arange(8), 100)
    y = (rng.random(800) < 0.5).astype(float)
    s = np.clip(0.5 + (y - 0.5) * np.where(field % 2, 0.9, 0.0) + rng.normal(0, 0.2, 800), 0, 1)
    by_cell = bootstrap(y, s, seed=0)["auroc"]
    by_field = bootstrap(y, s, groups=field, seed=0)["auroc"]
    assert by_field[1] - by_field[0] > 2 * (by_cell[1] - by_cell[0])
    assert np.isnan(bootstrap(y, s, groups=np.zeros(800, int))["auroc"]).all()


def test_resamples_do_not_depend_on_chunks_and_are_seeded(monkeypatch):
    whole = np.concatenate(list(resample_weights(50, 20, groups=None, seed=5)))
    monkeypatch.setattr("nimbus_sd.arrays.evaluation._CHUNK", 150)
    parts = list(resample_weights(50, 20, groups=None, seed=5))
    assert len(parts) == 7
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert (whole.sum(1) == 50).all()
    assert not np.array_equal(whole, np.concatenate(list(resample_weights(50, 20, groups=None, seed=6))))
    assert all(np.isnan(v).all() for v in bootstrap(np.empty(0), np.empty(0)).values())


def test_bootstrap_of_twenty_thousand_cells_is_quick():
    rng = np.random.default_rng(0)
    y = (rng.random(20_000) < 0.2).astype(float)
    s = rng.random(20_000)
    start = time.process_time()
    bootstrap(y, s, n_resamples=200)
    assert time.process_time() - start < 3  # some 0.3 s; 40 markers in a dozen seconds


@pytest.mark.parametrize("strategy", ["width", "mass"])
def test_reliability_bins_hold_every_cell_once(strategy):
    rng = np.random.default_rng(0)
    s = np.round(rng.beta(0.4, 1.2, 500), 2)
    y = (rng.random(500) < s).astype(float)
    y[:20] = np.nan
    bins = reliability_bins(y, s, n_bins=10, strategy=strategy)
    assert bins.count.sum() == 480
    assert (bins.lower < bins.upper).all()
    assert ((bins.mean_score >= bins.lower) & (bins.mean_score <= bins.upper)).all()
    kept = ~np.isnan(y)
    assert np.average(bins.share_positive, weights=bins.count) == pytest.approx(y[kept].mean())
    ece = expected_calibration_error(y, s, n_bins=10, strategy=strategy)
    assert ece == pytest.approx(bins.expected_calibration_error)
    assert ece < 0.06
    if strategy == "width":
        assert ece == pytest.approx(slow_ece(y[kept], s[kept], 10))
    else:
        assert bins.count.max() < 3 * 48


def test_reliability_edge_cases():
    assert reliability_bins(np.ones(3), np.zeros(3)).expected_calibration_error == 1
    assert expected_calibration_error(np.ones(3), np.ones(3), strategy="mass") == 0
    assert np.isnan(expected_calibration_error(np.array([np.nan]), np.array([0.3])))
    with pytest.raises(InputError, match=r"must lie in \[0, 1\]"):
        reliability_bins(np.ones(2), np.array([0.5, 3]))
    with pytest.raises(InputError, match="valid: width, mass"):
        reliability_bins(np.ones(2), np.ones(2), strategy="rank")
