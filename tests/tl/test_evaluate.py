"""nb.tl.evaluate and the paper's averages: groups, thresholds, several scores, bad labels."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as oracle

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd.arrays.metrics import METRICS

MARKERS = ["CD3", "CD8", "CD20", "FOXP3"]


@pytest.fixture
def table():
    """240 cells in 3 fields of 2 data sets; CD20 has no positives, FOXP3 no labels."""
    rng = np.random.default_rng(0)
    n = 240
    truth = (rng.random((n, 4)) < [0.5, 0.2, 0, 0.3]).astype(np.float32)
    scores = np.clip(0.35 * truth + 0.65 * rng.random((n, 4)), 0, 1).astype(np.float32)
    truth[rng.random((n, 4)) < 0.1] = np.nan
    truth[:, 3] = np.nan
    region = np.repeat(["f0", "f1", "f2"], n // 3)
    obs = pd.DataFrame(
        {
            "region": pd.Categorical(region),
            "dataset": np.where(region == "f2", "b", "a"),
            "cell_type": rng.choice(["T", "B"], n),
        },
        index=[f"{r}_{i}" for i, r in enumerate(region)],
    )
    adata = ad.AnnData(scores, obs=obs, var=pd.DataFrame(index=MARKERS))
    adata.layers["silver"] = truth
    adata.layers["intensity"] = scores * 50
    return adata


def test_one_row_per_marker_and_layer_equals_sklearn(table):
    found = nb.tl.evaluate(
        table, "silver", ["X", "intensity"], threshold={"X": 0.5, "intensity": 20}, n_bootstrap=20
    )
    assert found[["marker", "scores"]].values.tolist() == [
        [m, s] for m in MARKERS for s in ("X", "intensity")
    ]
    for _, row in found[found.marker.isin(["CD3", "CD8"])].iterrows():
        y = table.layers["silver"][:, MARKERS.index(row.marker)]
        s = (table.X if row.scores == "X" else table.layers["intensity"])[:, MARKERS.index(row.marker)]
        y, s = y[~np.isnan(y)], s[~np.isnan(y)]
        calls = s > (0.5 if row.scores == "X" else 20)
        assert row.f1 == pytest.approx(oracle.f1_score(y, calls))
        assert row.balanced_accuracy == pytest.approx(oracle.balanced_accuracy_score(y, calls))
        assert row.auroc == pytest.approx(oracle.roc_auc_score(y, s))
        assert [row.tn, row.fp, row.fn, row.tp] == oracle.confusion_matrix(y, calls).ravel().tolist()
        assert (row.n, row.n_positive, row.n_undefined) == (y.size, y.sum(), 240 - y.size)
        for name in METRICS[:6]:
            assert row[f"{name}_lower"] <= row[name] <= row[f"{name}_upper"]
        assert np.isnan(row.ece) == (row.scores == "intensity")
        assert row.reason == ("" if row.scores == "X" else "scores outside [0, 1]: ece undefined")


def test_one_class_and_unlabelled_markers_are_nan_with_a_reason(table):
    found = nb.tl.evaluate(table, "silver", n_bootstrap=5).set_index("marker")
    cd20 = found.loc["CD20"]
    assert cd20[["precision", "recall", "f1", "auroc", "average_precision", "f1_lower"]].isna().all()
    assert cd20.specificity > 0
    assert cd20.reason.startswith("no positive cells")
    assert found.loc["FOXP3", list(METRICS)].isna().all()
    assert found.loc["FOXP3", "reason"] == "no cell with both a truth and a score"
    assert found.loc["FOXP3", ["n", "n_undefined"]].tolist() == [0, 240]


def test_groups_partition_the_cells(table):
    everything = nb.tl.evaluate(table, "silver", by=(), n_bootstrap=0)
    assert len(everything) == 1
    for by in ["region", ("cell_type", "marker"), ("marker", "dataset", "region")]:
        found = nb.tl.evaluate(table, "silver", by=by, n_bootstrap=0)
        names = [by] if isinstance(by, str) else list(by)
        assert list(found)[: len(names)] == names
        assert not found.duplicated(names).any()
        for count in ("n", "n_positive", "n_undefined", "tp", "fp", "tn", "fn"):
            assert found[count].sum() == everything[count][0]
    one = nb.tl.evaluate(table[table.obs.region == "f1"].copy(), "silver", n_bootstrap=0)
    found = nb.tl.evaluate(table, "silver", by=("marker", "region"), n_bootstrap=0)
    same = found[found.region == "f1"].drop(columns="region").reset_index(drop=True)
    pd.testing.assert_frame_equal(same, one)


def test_cells_are_joined_by_name_and_missing_ones_counted(table):
    frame = table.to_df("silver")
    expected = nb.tl.evaluate(table, "silver", n_bootstrap=3)
    pd.testing.assert_frame_equal(nb.tl.evaluate(table, frame[::-1], n_bootstrap=3), expected)
    other = ad.AnnData(table.layers["silver"], obs=table.obs, var=table.var)
    pd.testing.assert_frame_equal(nb.tl.evaluate(table, other[::-1], n_bootstrap=3), expected)
    some = nb.tl.evaluate(table, frame.iloc[:100], markers="CD3", n_bootstrap=0)
    assert some.n_undefined[0] == 140 + frame.CD3[:100].isna().sum()
    with pytest.warns(NimbusWarning, match="40 of 240 cells are not in the table"):
        nb.tl.evaluate(table[40:].copy(), frame, n_bootstrap=0)


def test_scores_from_frames_and_with_gaps(table):
    frame = table.to_df()[["CD3", "CD8"]] ** 2
    frame.iloc[:7, 0] = np.nan
    found = nb.tl.evaluate(table, "silver", {"mine": frame[::-1], "theirs": "X"}, n_bootstrap=0)
    mine = found[found.scores == "mine"].set_index("marker")
    assert mine.loc["CD3", "n_unscored"] == table.to_df("silver").CD3[:7].notna().sum()
    assert mine.loc["CD20", "reason"] == "no cell with both a truth and a score"
    assert mine.loc["CD8", "auroc"] == found[found.scores == "theirs"].set_index("marker").loc["CD8", "auroc"]


def test_thresholds_per_marker_also_when_pooled(table):
    cut = {"CD3": 0.3, "CD8": 0.6, "CD20": 0.9}
    each = nb.tl.evaluate(table, "silver", threshold={"X": cut}, markers=list(cut), n_bootstrap=0)
    pooled = nb.tl.evaluate(table, "silver", threshold={"X": cut}, markers=list(cut), by=(), n_bootstrap=4)
    for count in ("tp", "fp", "tn", "fn"):
        assert pooled[count][0] == each[count].sum()
    tp, fp, fn = (pooled[c][0] for c in ("tp", "fp", "fn"))
    assert pooled.f1[0] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    y, s = table.layers["silver"][:, :3].ravel(), table.X[:, :3].ravel()
    assert pooled.auroc[0] == pytest.approx(oracle.roc_auc_score(y[~np.isnan(y)], s[~np.isnan(y)]))
    with pytest.raises(InputError, match="lacks the markers CD20"):
        nb.tl.evaluate(table, "silver", threshold={"X": {"CD3": 0.1, "CD8": 0.1}}, markers=list(cut))
    with pytest.raises(InputError, match="none for scores 'intensity'"):
        nb.tl.evaluate(table, "silver", "intensity", threshold={"X": 0.5})


def test_resampling_by_field_and_seed(table):
    cells = nb.tl.evaluate(table, "silver", n_bootstrap=30)
    pd.testing.assert_frame_equal(cells, nb.tl.evaluate(table, "silver", n_bootstrap=30))
    fields = nb.tl.evaluate(table, "silver", n_bootstrap=30, resample="region")
    pd.testing.assert_series_equal(cells.f1, fields.f1)
    assert (cells.f1_lower[:2] != fields.f1_lower[:2]).all()
    with pytest.warns(NimbusWarning, match="3 of 4 rows have labelled cells of one 'region' only: no limits"):
        lone = nb.tl.evaluate(table[:80].copy(), "silver", n_bootstrap=5, resample="region")
    assert lone.f1_lower.isna().all()


def test_labels_of_another_segmentation_are_refused(table):
    frame = table.to_df("silver")
    with pytest.raises(InputError, match=r"only 0 of 240 cells \('other_0'.*another segmentation"):
        nb.tl.evaluate(table, frame.set_axis([f"other_{i}" for i in range(240)]))
    mostly = frame.set_axis([*frame.index[:100], *(f"x{i}" for i in range(140))])
    with pytest.raises(InputError, match="only 100 of 240"):
        nb.tl.evaluate(table, mostly)
    table.obs["area_px"] = np.arange(240)
    other = ad.AnnData(table.layers["silver"], obs=table.obs.assign(area_px=99), var=table.var)
    with pytest.raises(InputError, match="100% of the cells with equal names differ in area_px"):
        nb.tl.evaluate(table, other)


@pytest.mark.parametrize(
    ("change", "options", "error", "match"),
    [
        ({}, {"truth": "gold"}, ElementNotFoundError, "no layer 'gold'; valid: 'X', 'silver'"),
        ({}, {"scores": "nope"}, ElementNotFoundError, "no layer 'nope'"),
        ({}, {"scores": []}, InputError, "scores= is empty"),
        ({}, {"scores": {"m": pd.DataFrame({"a": [1]}, index=["f0_0"])}}, InputError, "none of the markers"),
        ({}, {"markers": ["CD3", "CD99"]}, ElementNotFoundError, r"the table has no marker CD99; valid: CD3"),
        ({}, {"by": "tissue"}, ElementNotFoundError, "no column 'tissue'; valid: 'marker', 'region'"),
        ({}, {"by": ("marker", "marker")}, InputError, "name each once"),
        ({}, {"level": 1.0}, InputError, "level=1.0"),
        ({}, {"threshold": np.nan}, InputError, "finite"),
        ({}, {"truth": 3}, InputError, "truth is a int; pass"),
        ({"silver": 2.0}, {}, InputError, r"truth of 'CD3' holds \[2.0\]; valid"),
    ],
)
def test_bad_arguments(table, change, options, error, match):
    for layer, value in change.items():
        table.layers[layer][3, 0] = value
    with pytest.raises(error, match=match):
        nb.tl.evaluate(table, **({"truth": "silver", "n_bootstrap": 0} | options))


def test_labelled_markers_that_the_table_lacks_are_listed(table):
    frame = table.to_df("silver").assign(CD99=1.0, HH3=1.0, KI67=np.nan)
    with pytest.raises(ElementNotFoundError, match="1 markers that the table lacks: CD99; the table has CD3"):
        nb.tl.evaluate(table, frame)
    found = nb.tl.evaluate(table, frame.drop(columns="CD99"), n_bootstrap=0)
    assert found.marker.tolist() == MARKERS
    assert nb.tl.evaluate(table, frame, markers=["CD8"], n_bootstrap=0).marker.tolist() == ["CD8"]
    with pytest.raises(ElementNotFoundError, match="none of the table's markers"):
        nb.tl.evaluate(table, frame[["HH3"]])


def test_other_bad_tables(table):
    with pytest.raises(InputError, match="expected an AnnData"):
        nb.tl.evaluate(table.to_df(), "silver")
    table.obs_names = ["a"] * 240
    with pytest.raises(InputError, match="obs_names are not unique"):
        nb.tl.evaluate(table, "silver")


def test_cells_without_a_group_are_counted(table):
    table.obs["tissue"] = [None] * 5 + ["colon"] * 235
    with pytest.warns(NimbusWarning, match="5 cells have no value in tissue"):
        found = nb.tl.evaluate(table, "silver", by="tissue", n_bootstrap=0)
    assert found.n_undefined[0] + found.n[0] == 235 * 4


def test_the_papers_average(table):
    table.layers["silver"][table.obs.region == "f1", 1] = 0  # a sample without positives
    frame = nb.tl.evaluate(table, "silver", by=("dataset", "marker", "region"), n_bootstrap=0)
    average = nb.tl.average_evaluation(frame)
    assert average[["n_datasets", "n_samples"]].values.tolist() == [[2, 12]]
    for name in METRICS:
        per_dataset = {"a": [], "b": []}
        for _, row in frame.iterrows():
            if not np.isnan(row[name]):
                per_dataset[row.dataset].append(row[name])
        assert average[name][0] == pytest.approx(np.mean([np.mean(v) for v in per_dataset.values()]))
        assert average[f"{name}_samples"][0] == sum(map(len, per_dataset.values()))
    assert average.specificity_samples[0] > average.recall_samples[0]
    per_marker = nb.tl.average_evaluation(frame, by="marker").set_index("marker")
    assert np.isnan(per_marker.loc["CD20", "f1"])
    assert per_marker.loc["CD20", "specificity_samples"] == 3
    assert nb.tl.average_evaluation(frame, dataset=None).n_datasets[0] == 1
    with pytest.raises(ElementNotFoundError, match="no column"):
        nb.tl.average_evaluation(frame, dataset="study")
    with pytest.raises(InputError, match=r"nb\.tl\.evaluate"):
        nb.tl.average_evaluation(table.to_df())
