"""nb.tl.evaluate of sub-types: balanced accuracy, patients drawn again, labels of another table."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as oracle

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd.arrays.evaluation import resample_weights

MARKERS = ["CD45", "CD4"]


def annotate(adata):
    adata.obs["region"] = pd.Categorical(adata.obs["region"])
    regions = list(adata.obs["region"].cat.categories)
    adata.uns["spatialdata_attrs"] = {
        "region": regions,
        "region_key": "region",
        "instance_key": "instance_id",
    }
    return adata


@pytest.fixture
def tables():
    """Predictions on 5 sections of 4 patients, and gates named otherwise and in another order."""
    rng = np.random.default_rng(0)
    n = 300
    truth = (rng.random((n, 2)) < [0.4, 0.1]).astype(np.float32)
    patient = rng.choice(["p0", "p1", "p2", "p3"], n)
    noise = rng.random((n, 2)) * np.where(patient == "p0", 1.0, 0.7)[:, None]
    x = np.clip(0.5 * truth + 0.5 * noise, 0, 1).astype(np.float32)
    truth[rng.random((n, 2)) < 0.2] = np.nan
    region = np.where(rng.random(n) < 0.2, "extra_he", np.char.add(patient, "_he"))
    obs = pd.DataFrame({"region": region, "instance_id": np.arange(n) + 1, "patient": patient})
    predicted = ad.AnnData(x, obs=obs.set_axis([f"a{i}" for i in range(n)]), var=pd.DataFrame(index=MARKERS))
    order = rng.permutation(n)
    # the same names for other cells: joining by name would be wrong
    theirs = obs.iloc[order].drop(columns="patient").set_axis([f"a{i}" for i in range(n)])
    gated = ad.AnnData(np.full((n, 2), 9.0), obs=theirs, var=pd.DataFrame(index=MARKERS))
    gated.layers["gated"] = truth[order]
    return annotate(predicted), annotate(gated), truth


def test_labels_of_another_table_are_joined_by_region_and_id(tables):
    predicted, gated, truth = tables
    found = nb.tl.evaluate(predicted, gated, truth_layer="gated", n_bootstrap=0).set_index("marker")
    for j, marker in enumerate(MARKERS):
        y, s = truth[:, j], predicted.X[:, j]
        y, s = y[~np.isnan(y)], s[~np.isnan(y)]
        tn, fp, fn, tp = oracle.confusion_matrix(y, s > 0.5).ravel()
        row = found.loc[marker]
        assert row.auroc == pytest.approx(oracle.roc_auc_score(y, s))
        assert row.balanced_accuracy == pytest.approx(oracle.balanced_accuracy_score(y, s > 0.5))
        assert row.recall == pytest.approx(tp / (tp + fn))
        assert row.specificity == pytest.approx(tn / (tn + fp))
    some = nb.tl.evaluate(predicted, gated[:200].copy(), truth_layer="gated", n_bootstrap=0)
    assert (some.n_undefined >= 100).all()
    with pytest.warns(NimbusWarning, match="100 of 300 cells are not in the table"):
        nb.tl.evaluate(predicted[:200].copy(), gated, truth_layer="gated", n_bootstrap=0)


def test_tables_of_other_elements_are_joined_by_name(tables):
    predicted, gated, _ = tables
    del gated.uns["spatialdata_attrs"]
    named = nb.tl.evaluate(predicted, gated.to_df("gated"), n_bootstrap=0)
    pd.testing.assert_frame_equal(nb.tl.evaluate(predicted, gated, truth_layer="gated", n_bootstrap=0), named)
    gated.obs["region"] = pd.Categorical([f"if_{r}" for r in gated.obs["region"]])
    pd.testing.assert_frame_equal(
        nb.tl.evaluate(predicted, annotate(gated), truth_layer="gated", n_bootstrap=0), named
    )


def test_patients_drawn_again_equal_a_loop(tables):
    predicted, gated, truth = tables
    options = {"truth_layer": "gated", "resample": "patient", "n_bootstrap": 40, "seed": 4}
    found = nb.tl.evaluate(predicted, gated, **options).set_index("marker")
    code = pd.factorize(predicted.obs["patient"])[0]
    code = np.unique(code, return_inverse=True)[1]
    draws = np.concatenate(list(resample_weights(300, 40, groups=code, seed=4)))
    for j, marker in enumerate(MARKERS):
        y, s = truth[:, j], predicted.X[:, j]
        values = {"auroc": [], "balanced_accuracy": [], "recall": [], "specificity": []}
        for weight in draws.astype(int):
            cells = np.repeat(np.arange(300), weight)
            cells = cells[~np.isnan(y[cells])]
            calls = s[cells] > 0.5
            values["auroc"].append(oracle.roc_auc_score(y[cells], s[cells]))
            values["balanced_accuracy"].append(oracle.balanced_accuracy_score(y[cells], calls))
            values["recall"].append(oracle.recall_score(y[cells], calls))
            values["specificity"].append(oracle.recall_score(1 - y[cells], ~calls))
        for name, every in values.items():
            limits = found.loc[marker, [f"{name}_lower", f"{name}_upper"]].to_numpy(float)
            np.testing.assert_allclose(limits, np.quantile(every, [0.025, 0.975]), atol=1e-6)
    for patient in np.unique(code):  # each as a whole
        assert (np.ptp(draws[:, code == patient], axis=1) == 0).all()


def test_one_patient_has_no_limits(tables):
    predicted, gated, _ = tables
    alone = predicted[predicted.obs["patient"] == "p1"].copy()
    labels = gated.to_df("gated").set_axis([f"a{i - 1}" for i in gated.obs["instance_id"]])
    labels = labels.loc[alone.obs_names]
    with pytest.warns(
        NimbusWarning, match="2 of 2 rows have labelled cells of one 'patient' only: no limits"
    ):
        found = nb.tl.evaluate(alone, labels, resample="patient")
    assert found.auroc.notna().all()
    assert found[["auroc_lower", "balanced_accuracy_upper"]].isna().all(axis=None)


def test_a_marker_with_one_class_says_why(tables):
    predicted, gated, _ = tables
    gated.layers["gated"][:, 1] = np.where(gated.layers["gated"][:, 1] == 1, np.nan, 0)
    found = nb.tl.evaluate(predicted, gated, truth_layer="gated", resample="patient", n_bootstrap=5)
    row = found.set_index("marker").loc["CD4"]
    assert row[["auroc", "balanced_accuracy", "recall", "auroc_lower"]].isna().all()
    assert row.specificity > 0
    assert row.reason.startswith("no positive cells: ")
    assert "auroc" in row.reason
    assert "balanced_accuracy" in row.reason


def test_bad_layers(tables):
    predicted, gated, _ = tables
    with pytest.raises(ElementNotFoundError, match="no layer 'gold'; valid: 'X', 'gated'"):
        nb.tl.evaluate(predicted, gated, truth_layer="gold")
    with pytest.raises(
        InputError, match="truth_layer='gated' is for a truth that is a table, not a DataFrame"
    ):
        nb.tl.evaluate(predicted, gated.to_df("gated"), truth_layer="gated")


def test_labels_of_further_elements_are_not_missed(tables):
    """Test sections alone are predicted, and all were gated."""
    predicted, gated, _ = tables
    some = annotate(predicted[predicted.obs["region"] == "p1_he"].copy())
    found = nb.tl.evaluate(some, gated, truth_layer="gated", n_bootstrap=0)
    mine = annotate(gated[gated.obs["region"].to_numpy() == "p1_he"].copy())
    pd.testing.assert_frame_equal(found, nb.tl.evaluate(some, mine, truth_layer="gated", n_bootstrap=0))


def test_columns_that_the_scores_lack_come_from_the_truth(tables):
    predicted, gated, _ = tables
    options = {"truth_layer": "gated", "by": ("marker", "patient"), "resample": "region", "n_bootstrap": 20}
    expected = nb.tl.evaluate(predicted, gated, **options)
    by_patient = nb.tl.evaluate(predicted, gated, truth_layer="gated", resample="patient", n_bootstrap=20)
    gated.obs["patient"] = (
        gated.obs[["region", "instance_id"]]
        .merge(predicted.obs, on=["region", "instance_id"], how="left")["patient"]
        .to_numpy()
    )
    del predicted.obs["patient"]
    pd.testing.assert_frame_equal(nb.tl.evaluate(predicted, gated, **options), expected)
    again = nb.tl.evaluate(predicted, gated, truth_layer="gated", resample="patient", n_bootstrap=20)
    pd.testing.assert_frame_equal(again, by_patient)
    # cells without labels are of no patient, and do not make one more
    some = gated[gated.obs["patient"] != "p3"].copy()
    few = nb.tl.evaluate(predicted, some, truth_layer="gated", resample="patient", n_bootstrap=20)
    mine = predicted[predicted.obs_names.isin(_known(predicted, some))].copy()
    alone = nb.tl.evaluate(mine, some, truth_layer="gated", resample="patient", n_bootstrap=20)
    pd.testing.assert_frame_equal(few.drop(columns="n_undefined"), alone.drop(columns="n_undefined"))
    grouped = nb.tl.evaluate(predicted, some, truth_layer="gated", by="patient", n_bootstrap=0)
    assert grouped["patient"].tolist() == ["p0", "p1", "p2"]
    with pytest.raises(
        ElementNotFoundError, match=r"no column 'slide', nor has that of the truth; valid: .*'patient'"
    ):
        nb.tl.evaluate(predicted, gated, truth_layer="gated", by="slide")
    with pytest.raises(ElementNotFoundError, match="obs has no column 'patient'; valid: 'marker', 'region'"):
        nb.tl.evaluate(predicted, predicted.to_df().round(), resample="patient")


def _known(predicted, gated):
    keys = set(zip(gated.obs["region"], gated.obs["instance_id"], strict=True))
    pairs = zip(predicted.obs["region"], predicted.obs["instance_id"], strict=True)
    return [name for name, key in zip(predicted.obs_names, pairs, strict=True) if key in keys]


def test_thresholds_beside_the_scores_are_the_default(tables):
    predicted, gated, truth = tables
    cuts = {"CD45": float(predicted.X[5, 0]), "CD4": 0.3}  # the first is a cell's own: it is positive
    predicted.var["threshold"] = pd.Series(cuts)
    found = nb.tl.evaluate(predicted, gated, truth_layer="gated", n_bootstrap=0).set_index("marker")
    for j, marker in enumerate(MARKERS):
        called = predicted.X[:, j] >= cuts[marker]
        assert found.loc[marker, "tp"] == (called & (truth[:, j] == 1)).sum()
        assert found.loc[marker, "fp"] == (called & (truth[:, j] == 0)).sum()
    half = predicted.copy()
    del half.var["threshold"]
    scores = {"mine": "X", "other": half, "frame": predicted.to_df(), "theirs": predicted}
    rows = nb.tl.evaluate(half, gated, scores, truth_layer="gated", n_bootstrap=0).set_index(
        ["scores", "marker"]
    )
    for name in ("mine", "other", "frame"):
        assert rows.loc[(name, "CD4"), "tp"] == ((predicted.X[:, 1] > 0.5) & (truth[:, 1] == 1)).sum()
    assert rows.loc[("theirs", "CD4"), "tp"] == found.loc["CD4", "tp"]
    given = nb.tl.evaluate(predicted, gated, truth_layer="gated", threshold=0.5, n_bootstrap=0)
    assert given["tp"].tolist() == rows.loc["mine", "tp"].tolist()
    predicted.var["threshold"] = np.nan
    with pytest.raises(InputError, match="threshold of 'X' must be finite"):
        nb.tl.evaluate(predicted, gated, truth_layer="gated", n_bootstrap=0)


def test_calls_that_are_undefined_are_left_out_where_calls_are_scored(tables):
    predicted, gated, truth = tables
    calls = (predicted.X >= 0.5).astype(np.float32)
    calls[::3] = np.nan
    predicted.layers["positive"] = calls
    found = nb.tl.evaluate(predicted, gated, "positive", truth_layer="gated", n_bootstrap=0)
    assert found["n_unscored"].tolist() == (~np.isnan(truth[::3])).sum(axis=0).tolist()
    assert found["tp"].tolist() == ((calls == 1) & (truth == 1)).sum(axis=0).tolist()


def test_layers_with_labels_are_named(tables):
    predicted, gated, _ = tables
    match = "X of the truth holds no labels; layers that hold 1, 0, NaN: 'gated'; name one with truth_layer="
    with pytest.raises(InputError, match=match):
        nb.tl.evaluate(predicted, gated)
    with pytest.raises(ElementNotFoundError, match=r"no layer 'gates'; .*hold 1, 0, NaN: 'gated'"):
        nb.tl.evaluate(predicted, gated, truth_layer="gates")
    gated.X[:, 1] = 0  # one column could be labels
    with pytest.raises(InputError, match=r"truth of 'CD45' holds \[9.0\].*hold 1, 0, NaN: 'gated'"):
        nb.tl.evaluate(predicted, gated)
    gated.X = None
    with pytest.raises(InputError, match="the truth has an empty X; layers that hold"):
        nb.tl.evaluate(predicted, gated)
    del gated.layers["gated"]
    with pytest.raises(
        ElementNotFoundError, match=r"no layer 'gated'.*none of its layers holds.*nb\.pp\.gate"
    ):
        nb.tl.evaluate(predicted, gated, truth_layer="gated")


def test_an_object_is_no_table():
    sdata = nb.datasets.simulated_sections(n_patients=1, shape=(128, 128))
    for call in (nb.pp.suggest_thresholds, lambda s: nb.pp.gate(s, {"CD45": (1, 2, 3)})):
        with pytest.raises(InputError, match=r"got SpatialData; pass one of the object's: sdata\['table'\]"):
            call(sdata)
