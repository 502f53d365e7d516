"""Silver labels: every cell gets what its type, or its intensity, says; what can't be said is counted."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd.arrays.silver import CHECKS, assign_labels, disagreement, threshold_labels

MATRIX = pd.DataFrame(
    {"CD3": [1, 0, 0], "CD20": [0, 1, np.nan]}, index=pd.Index(["T", "B", "other"], name="cell_type")
)


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    types = np.array(["T", "B", "other"])[rng.integers(3, size=200)]
    intensity = rng.gamma(1, 1, (200, 3)).astype(np.float32)
    intensity[types == "T", 0] += 5
    table = ad.AnnData(np.zeros((200, 3), np.float32), obs={"cell_type": pd.Categorical(types)})
    table.obs_names, table.var_names = [f"c{i}" for i in range(200)], ["CD3", "CD20", "CD68"]
    table.layers["integrated_expression"] = intensity
    return table


def test_each_cell_gets_what_its_type_says(adata):
    nb.pp.silver_labels(adata, MATRIX)
    found = adata.to_df("silver")
    for cell, kind in adata.obs["cell_type"].items():
        for marker in MATRIX:
            np.testing.assert_equal(found.loc[cell, marker], np.float32(MATRIX.loc[kind, marker]))
    assert found["CD68"].isna().all()
    assert adata.layers["silver"].dtype == np.float32


def test_a_file_says_the_same_as_the_frame(adata, tmp_path):
    nb.pp.silver_labels(adata, MATRIX)
    first = adata.layers["silver"].copy()
    MATRIX.to_csv(tmp_path / "m.csv")
    nb.pp.silver_labels(adata, tmp_path / "m.csv")
    np.testing.assert_array_equal(adata.layers["silver"], first)


def test_types_that_the_matrix_lacks_are_undefined_with_one_counted_warning(adata):
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(object)
    adata.obs.iloc[:3, 0] = ["odd", None, "odd"]
    with pytest.warns(NimbusWarning, match=r"3 of 200 cells.*odd \(2\), \(none\) \(1\)") as said:
        nb.pp.silver_labels(adata, MATRIX)
    assert len(said) == 1
    assert np.isnan(adata.layers["silver"][:3]).all()
    with pytest.raises(InputError, match="3 of 200"):
        nb.pp.silver_labels(adata, MATRIX, strict=True)


def test_thresholds_are_the_second_route(adata, tmp_path):
    adata.layers["integrated_expression"][0, 0] = np.nan
    nb.pp.silver_labels(adata, thresholds={"CD3": 4.0})
    x = adata.layers["integrated_expression"][:, 0]
    np.testing.assert_array_equal(adata.layers["silver"][1:, 0], (x > 4)[1:])
    assert np.isnan(adata.layers["silver"][0, 0])
    first = adata.layers["silver"].copy()
    pd.DataFrame({"marker": ["CD3"], "threshold": [4.0]}).to_csv(tmp_path / "t.csv", index=False)
    nb.pp.silver_labels(adata, thresholds=tmp_path / "t.csv")
    np.testing.assert_array_equal(adata.layers["silver"], first)


def test_the_report_counts_and_flags(adata):
    adata.layers["integrated_expression"][:, 1] = np.random.default_rng(1).random(200)
    report = nb.pp.silver_labels(adata, MATRIX)
    assert report.loc["CD3", "auroc"] > 0.99
    assert report.loc["CD3", "flag"] == ""
    assert report.loc["CD20", "flag"] == "poor"
    assert (report.n_positive + report.n_negative + report.n_undefined == 200).all()
    one = nb.pp.silver_labels(adata, MATRIX.assign(CD3=0.0))
    assert one.loc["CD3", "flag"] == "one class"
    assert np.isnan(one.loc["CD3", "auroc"])


def test_names_and_separators_of_a_file_are_taken_as_they_are(adata, tmp_path):
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"other": "NA"})
    (tmp_path / "m.csv").write_text("cell_type,CD3\nT,1\nB,0\nNA,\n")
    nb.pp.silver_labels(adata, tmp_path / "m.csv")
    (tmp_path / "s.csv").write_text("cell_type;CD3\nT;1\n")
    with pytest.raises(InputError, match="comma-separated"):
        nb.pp.silver_labels(adata, tmp_path / "s.csv")


def test_without_intensities_the_report_says_so(adata):
    del adata.layers["integrated_expression"]
    assert (nb.pp.silver_labels(adata, MATRIX).flag == "no intensity").all()


def test_excluded_markers_stay_undefined(adata):
    nb.pp.silver_labels(adata, MATRIX, exclude=["CD20"])
    assert adata.to_df("silver")["CD20"].isna().all()
    assert adata.to_df("silver")["CD3"].notna().all()


def test_the_record_survives_a_file(adata, tmp_path):
    nb.pp.silver_labels(adata, MATRIX)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    assert again.uns["silver"]["route"] == "assignment"
    np.testing.assert_array_equal(again.layers["silver"], adata.layers["silver"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda: {"assignment": MATRIX.rename(columns={"CD3": "X"})}, InputError, r"no markers \['X'\]"),
        (lambda: {"assignment": MATRIX.replace(1, 2)}, InputError, "valid: 1 positive, 0 negative"),
        (lambda: {"assignment": MATRIX.astype(object).replace(1, "+")}, InputError, "1, 0 or empty"),
        (lambda: {"assignment": pd.concat([MATRIX, MATRIX])}, InputError, "cell types repeat"),
        (lambda: {"assignment": MATRIX, "cell_type_key": "type"}, ElementNotFoundError, "no column 'type'"),
        (lambda: {"assignment": MATRIX, "exclude": ["x"]}, InputError, "exclude: no markers"),
        (lambda: {"assignment": MATRIX, "thresholds": {"CD3": 1}}, InputError, "one of the two"),
        (dict, InputError, "one of the two"),
        (lambda: {"thresholds": {"CD99": 1}}, InputError, "no markers"),
        (lambda: {"thresholds": {}}, InputError, "there are none"),
        (lambda: {"thresholds": {"CD3": "high"}}, InputError, "marker to number"),
        (lambda: {"thresholds": {"CD3": 1}, "layer": "raw"}, ElementNotFoundError, "no layer 'raw'"),
        (lambda: {"assignment": "nowhere.csv"}, InputError, "no file at"),
        (lambda: {"assignment": "."}, InputError, "no file at"),
        (lambda: {"assignment": MATRIX[[]]}, InputError, "no cell types or no markers"),
        (lambda: {"thresholds": {"CD3": np.nan}}, InputError, "none that is finite"),
        (lambda: {"assignment": MATRIX, "key_added": "nimbus"}, InputError, "is taken by"),
    ],
)
def test_bad_input_says_so_and_writes_nothing(adata, change, error, message):
    adata.layers["silver"] = np.ones(adata.shape, np.float32)
    with pytest.raises(error, match=message):
        nb.pp.silver_labels(adata, **change())
    assert (adata.layers["silver"] == 1).all()
    assert "silver" not in adata.uns


@given(st.lists(st.integers(-1, 2), min_size=1, max_size=30))
def test_assignment_is_a_lookup(codes):
    matrix = np.array([[1, 0], [0, np.nan], [np.nan, 1]])
    found = assign_labels(np.array(codes), matrix)
    for row, code in zip(found, codes, strict=True):
        np.testing.assert_array_equal(row, np.full(2, np.nan) if code < 0 else matrix[code])


@given(st.integers(0, 99))
def test_disagreement_against_a_slow_version(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, np.nan], 30)
    x = rng.integers(0, 6, 30).astype(float)
    found = dict(zip(CHECKS, disagreement(labels, x), strict=True))
    p, n = x[labels == 1], x[labels == 0]
    if not len(p) or not len(n):
        assert np.isnan(found["auroc"])
        return
    pairs = [(a > b) + 0.5 * (a == b) for a in p for b in n]
    assert found["auroc"] == pytest.approx(np.mean(pairs))
    assert found["dim_positives"] == pytest.approx(np.mean([a < np.median(n) for a in p]))
    assert found["bright_negatives"] == pytest.approx(np.mean([b > np.median(p) for b in n]))


def test_thresholds_without_a_value_are_undefined():
    found = threshold_labels(np.array([[1.0, 2.0], [np.nan, 0.0]]), np.array([1.5, np.nan]))
    np.testing.assert_array_equal(found, [[0, np.nan], [np.nan, np.nan]])


@pytest.mark.parametrize("name", ["immune", "breast", "colon", "simulated"])
def test_matrices_that_come_along_are_sound(name):
    matrix = nb.datasets.assignment_matrix(name)
    assert matrix.index.is_unique
    assert matrix.columns.is_unique
    assert matrix.stack().isin([0, 1]).all()
    assert matrix.notna().any(axis=1).all()


def test_an_unknown_matrix_lists_the_known():
    with pytest.raises(ElementNotFoundError, match="breast, colon, immune, simulated"):
        nb.datasets.assignment_matrix("lung")


def test_the_check_is_drawn_worst_first(adata):
    nb.pp.silver_labels(adata, MATRIX)
    axes = nb.pl.silver_check(adata, show=False)
    values = [float(ax.get_title().split()[-1]) for ax in axes]
    assert values == sorted(values)
    with pytest.raises(InputError, match="no marker has"):
        nb.pl.silver_check(adata, ["CD68"], show=False)
