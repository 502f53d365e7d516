"""nb.tl.calibrate, apply_calibration, recalibrate: groups, fall-backs, honest figures."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd.arrays.calibration import fit_calibrator, logit
from nimbus_sd.arrays.recalibration import agreeing_shift

MARKERS = ["A", "B", "rare", "none"]


def make(n=2000, seed=0):
    """Logits of A are half as steep as they should be, those of B lie 2 too low."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-0.5, 2.5, (n, 4))
    true[:, 2] -= 11
    truth = (rng.random((n, 4)) < expit(true)).astype(np.float32)
    truth[:, 3] = np.nan
    scores = expit(np.column_stack([true[:, 0] / 2, true[:, 1] - 2, true[:, 2], true[:, 3]]))
    obs = pd.DataFrame(
        {
            "region": np.repeat([f"f{i}" for i in range(10)], n // 10),
            "platform": np.repeat(["x", "y"], n // 2),
        },
        index=[f"c{i}" for i in range(n)],
    )
    adata = ad.AnnData(scores.astype(np.float32), obs=obs, var=pd.DataFrame(index=MARKERS))
    adata.layers["silver"] = truth
    return adata


@pytest.fixture
def table():
    return make()


POOLED = "ignore:.*get the fit over all:nimbus_sd._core.errors.NimbusWarning"


def test_each_marker_is_fitted_alone_and_the_rest_pooled(table):
    with pytest.warns(NimbusWarning, match="2 of 4 groups of 'marker' have fewer than 100.*: rare, none"):
        report = nb.tl.calibrate(table, "silver", method="platt")
    assert report.group.tolist() == [*MARKERS, "(all)"]
    assert report.fit.tolist() == ["own", "own", "pooled", "pooled", "own"]
    out, y = table.layers["calibrated"], table.layers["silver"]
    assert out.dtype == np.float32
    pooled = fit_calibrator(y[:, :3].ravel(), table.X[:, :3].ravel(), method="platt")
    for j, name in enumerate(MARKERS):
        fit = pooled if name in ("rare", "none") else fit_calibrator(y[:, j], table.X[:, j], method="platt")
        np.testing.assert_allclose(out[:, j], fit.apply(table.X[:, j]), rtol=1e-5)
    own = report.set_index("group").loc[["A", "B"]]
    assert (own.ece_before > 0.05).all()
    assert (own.ece_after < 0.04).all()
    assert report.set_index("group").loc["none", "n"] == 0
    assert np.isnan(report.set_index("group").loc["none", "ece_after"])


@pytest.mark.filterwarnings(POOLED)
def test_figures_are_of_cells_that_the_fit_has_not_seen(table):
    table.X = np.random.default_rng(5).random(table.shape, dtype=np.float32)  # scores that know nothing
    report = nb.tl.calibrate(table[:200].copy(), "silver", method="isotonic", n_bins=5).set_index("group")
    seen = table[:200].copy()
    nb.tl.calibrate(seen, "silver", method="isotonic")
    flattered = nb.tl.evaluate(seen, "silver", "calibrated", n_bootstrap=0, n_bins=5).set_index("marker")
    assert flattered.loc["A", "ece"] < 0.01
    assert report.loc["A", "ece_after"] > 0.02


@pytest.mark.filterwarnings(POOLED)
@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_stated_error_rates_hold(table, method):
    report = nb.tl.calibrate(table, "silver", method=method, error_rate=0.1).set_index("group")
    calls, y = table.layers["call"], table.layers["silver"]
    assert set(np.unique(calls[~np.isnan(calls)])) <= {0, 1}
    for j, name in enumerate(["A", "B"]):
        for side in (0, 1):
            called = calls[:, j] == side
            assert (y[called, j] != side).mean() <= 0.1
        assert 0.3 < np.isfinite(calls[:, j]).mean() <= 1
        assert report.loc[name, "called"] == pytest.approx(np.isfinite(calls[:, j]).mean())
        assert report.loc[name, "error"] <= 0.1
        assert report.loc[name, "error_cross"] < 0.13
        # calls follow the calibrated scores
        low, high = report.loc[name, ["low", "high"]]
        c = table.layers["calibrated"][:, j]
        np.testing.assert_array_equal(calls[c > high + 1e-6, j], 1)
        np.testing.assert_array_equal(calls[c < low - 1e-6, j], 0)


def test_by_platform_and_cells_of_no_group(table):
    table.obs.loc[table.obs_names[:30], "platform"] = None
    report = nb.tl.calibrate(table, "silver", by="platform", field_key=None)
    assert report.group.tolist() == ["x", "y", "(all)"]
    assert np.isfinite(table.layers["calibrated"]).all()
    assert report.n.tolist()[2] == 2000 * 3


@pytest.mark.filterwarnings(POOLED)
def test_another_table_gets_the_same_map_and_it_survives_the_disk(table, tmp_path):
    nb.tl.calibrate(table, "silver", error_rate=0.1)
    table.write_h5ad(tmp_path / "t.h5ad")
    stored = ad.read_h5ad(tmp_path / "t.h5ad")
    other = make(seed=3)
    for source in (table, stored, stored.uns["calibration"]):
        target = other.copy()
        nb.tl.apply_calibration(target, source)
        again = other.copy()
        nb.tl.calibrate(again, "silver", error_rate=0.1)
        assert np.isfinite(target.layers["call"]).mean() > 0.3
        fit = fit_calibrator(table.layers["silver"][:, 0], table.X[:, 0])
        np.testing.assert_allclose(target.layers["calibrated"][:, 0], fit.apply(target.X[:, 0]), rtol=1e-5)
    same = table.copy()
    nb.tl.apply_calibration(same, table)
    np.testing.assert_array_equal(same.layers["call"], table.layers["call"])
    other.var_names = ["A", "B", "rare", "new"]
    with pytest.warns(NimbusWarning, match="1 groups of 'marker' are not in the calibration.*: new"):
        nb.tl.apply_calibration(other, table)
    with pytest.raises(InputError, match="no calibration there"):
        nb.tl.apply_calibration(other, make())


@pytest.mark.filterwarnings(POOLED)
def test_missing_scores_stay_missing(table):
    table.X[:5, 0] = np.nan
    report = nb.tl.calibrate(table, "silver", error_rate=0.1)
    assert np.isnan(table.layers["calibrated"][:5, 0]).all()
    assert np.isnan(table.layers["call"][:5, 0]).all()
    assert report.n[0] == 1995


@pytest.mark.parametrize(
    ("spoil", "options", "error", "match"),
    [
        (lambda t: None, {"method": "beta"}, InputError, "valid: temperature, platt, isotonic"),
        (lambda t: None, {"n_folds": 1}, InputError, "n_folds=1"),
        (lambda t: None, {"error_rate": 0.0}, InputError, r"error_rate=0.0 must lie in \(0, 1\)"),
        (lambda t: None, {"by": "site"}, ElementNotFoundError, "no column 'site'; valid: 'marker', 'region'"),
        (lambda t: None, {"layer": "raw"}, ElementNotFoundError, "no layer 'raw'"),
        (lambda t: None, {"key_added": "silver"}, InputError, "intensities or labels"),
        (lambda t: None, {"key_added": "integrated_expression"}, InputError, "intensities or labels"),
        (lambda t: None, {"key_added": "a/b"}, InputError, "is no name"),
        (lambda t: None, {"key_call": "calibrated", "error_rate": 0.1}, InputError, "are one layer"),
        (lambda t: None, {"markers": "D"}, ElementNotFoundError, "no marker D"),
        (lambda t: t.layers.update(silver=t.layers["silver"] * 0), {}, InputError, "needs both classes"),
        (lambda t: t.layers.update(silver=t.X * np.nan), {}, InputError, "0 labelled cells"),
        (lambda t: setattr(t, "X", t.X * 30), {}, InputError, r"X holds values.*only scores in \[0, 1\]"),
    ],
)
def test_bad_input_writes_nothing(table, spoil, options, error, match):
    spoil(table)
    with pytest.raises(error, match=match):
        nb.tl.calibrate(table, "silver", **options)
    assert set(table.layers) == {"silver"}
    assert "calibration" not in table.uns


@pytest.mark.filterwarnings(POOLED)
def test_calls_go_with_the_scores_that_they_were_made_of(table):
    nb.tl.calibrate(table, "silver", error_rate=0.1)
    called = table.copy()
    nb.tl.calibrate(table, "silver", key_added="other")
    assert set(table.layers) == {"silver", "calibrated", "call", "other"}
    nb.tl.calibrate(called, "silver", error_rate=0.1, key_call="mine")
    assert set(called.layers) == {"silver", "calibrated", "mine"}
    plain = make(seed=1)
    nb.tl.calibrate(plain, "silver", markers=["A"])
    nb.tl.apply_calibration(called, plain)
    assert set(called.layers) == {"silver", "calibrated"}
    with pytest.raises(InputError, match="groups can't be read"):
        nb.tl.apply_calibration(called, plain.uns["calibration"] | {"groups": "[]"})


@pytest.fixture
def shifted():
    """Scores 2.5 too low in A, right in B; C has one mode, D few positives, E no intensities."""
    rng = np.random.default_rng(0)
    n = 1500
    truth = rng.random((n, 5)) < [0.3, 0.3, 0, 0.005, 0.3]
    intensity = np.exp(rng.normal(np.where(truth, 2, -1), 0.5))
    intensity[:, 3] *= np.where(truth[:, 3], 20, 1)
    scores = expit(rng.normal(np.where(truth, 2.5, -3), 0.8) - [2.5, 0, 0, 0, 0])
    adata = ad.AnnData(scores.astype(np.float32), var=pd.DataFrame(index=list("ABCDE")))
    adata.layers["integrated_expression"] = intensity.astype(np.float32)
    adata.layers["integrated_expression"][:, 4] = np.nan
    adata.layers["truth"] = truth.astype(np.float32)
    return adata


def test_recalibration_mends_what_is_off_and_says_why_it_leaves_the_rest(shifted, tmp_path):
    before = shifted.X.copy()
    report = nb.tl.recalibrate(shifted).set_index("marker")
    assert report.loc["A", "shift"] > 1
    assert report.loc["A", "reason"] == ""
    for marker, why in {
        "B": "agree as well",
        "C": "one mode",
        "D": "cells are positive",
        "E": "fewer than 10",
    }.items():
        assert why in report.loc[marker, "reason"]
        assert report.loc[marker, "shift"] == 0
    out = shifted.layers["recalibrated"]
    np.testing.assert_array_equal(out[:, 1:], before[:, 1:])
    np.testing.assert_array_equal(shifted.X, before)
    np.testing.assert_allclose(logit(out[:, 0]) - logit(before[:, 0]), report.loc["A", "shift"], atol=1e-4)
    f1 = nb.tl.evaluate(shifted, "truth", ["X", "recalibrated"], markers="A", n_bootstrap=0).f1
    assert f1[1] > f1[0] + 0.1
    assert report.loc["A", "share_after"] > report.loc["A", "share_before"]
    shifted.write_h5ad(tmp_path / "t.h5ad")
    assert ad.read_h5ad(tmp_path / "t.h5ad").uns["recalibration"]["marker"].tolist() == list("ABCDE")


def test_recalibration_keeps_ranks_and_its_limits(shifted):
    found = agreeing_shift(shifted.X[:, 0], shifted.layers["integrated_expression"][:, 0], max_shift=0.4)
    assert found.shift == 0.4
    nb.tl.recalibrate(shifted)
    out = shifted.layers["recalibrated"][:, 0]
    assert (np.argsort(out, kind="stable") == np.argsort(shifted.X[:, 0], kind="stable")).mean() > 0.999


@pytest.mark.parametrize(
    ("change", "options", "error", "match"),
    [
        ({}, {"strength": 0}, InputError, "strength=0"),
        ({}, {"expression_layer": "mean"}, ElementNotFoundError, "no layer 'mean'; layers: integrated"),
        ({"integrated_expression": -1.0}, {}, InputError, "'A' is negative"),
        ({}, {"layer": "integrated_expression"}, InputError, r"only scores in \[0, 1\]"),
    ],
)
def test_bad_recalibration_writes_nothing(shifted, change, options, error, match):
    for layer, value in change.items():
        shifted.layers[layer][0, 0] = value
    with pytest.raises(error, match=match):
        nb.tl.recalibrate(shifted, **options)
    assert "recalibrated" not in shifted.layers
