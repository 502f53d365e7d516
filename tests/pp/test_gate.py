"""nb.pp.gate, nb.pp.suggest_thresholds: labels, forms of thresholds, bad ones, on disk, simulated truth."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning

COLUMNS = ["negative", "positive", "overexposed"]
MARKERS = ["DNA", "CD3e", "CD4"]


@pytest.fixture
def table():
    """60 cells in two sections; CD3e 0..59, CD4 59..0 with a NaN."""
    x = np.stack([np.full(60, 7.0), np.arange(60.0), np.arange(60.0)[::-1]], 1)
    x[5, 2] = np.nan
    obs = pd.DataFrame({"section": ["b", "a"] * 30, "slide": pd.Categorical(["s1"] * 20 + ["s2"] * 40)})
    obs.index = [f"cell{i}" for i in range(60)]
    return ad.AnnData(np.zeros((60, 3)), obs=obs, var=pd.DataFrame(index=MARKERS), layers={"raw": x})


def frame(rows, index):
    return pd.DataFrame(rows, index=index, columns=COLUMNS, dtype=float)


def per_section():
    index = pd.MultiIndex.from_product([["CD3e", "CD4"], ["a", "b"]], names=["marker", "section"])
    return frame([[10, 20, 50], [5, 30, 40], [3, 3, 50], [0, 1, np.inf]], index)


def test_one_set_of_thresholds_for_all(table):
    counts = nb.pp.gate(table, frame([[10, 20, 50]], ["CD3e"]), layer="raw")
    labels = table.layers["gated"]
    assert labels.dtype == np.float32
    assert np.isnan(labels[:, [0, 2]]).all()
    expected = [0] * 11 + [np.nan] * 9 + [1] * 30 + [np.nan] * 10
    np.testing.assert_array_equal(labels[:, 1], expected)
    uncertain, over = (table.obsm[f"gated_{name}"] for name in ("uncertain", "overexposed"))
    assert list(uncertain) == list(over) == ["CD3e"]
    assert np.flatnonzero(uncertain["CD3e"]).tolist() == list(range(11, 20))
    assert np.flatnonzero(over["CD3e"]).tolist() == list(range(50, 60))
    assert counts.index.names == ["marker", "section"]
    assert counts.sum().tolist() == [11, 9, 30, 10, 0]
    assert counts.loc[("CD3e", "a")].tolist() == [5, 5, 15, 5, 0]
    assert set(counts.dtypes) == {np.dtype(np.int64)}
    assert table.uns["gated"]["layer"] == "raw"


def test_thresholds_of_each_section_equal_a_loop(table):
    limits = per_section()
    counts = nb.pp.gate(table, limits, layer="raw")
    for i in range(60):
        for j, marker in enumerate(["CD3e", "CD4"], start=1):
            low, high, over = limits.loc[(marker, table.obs.section.iloc[i])]
            x = table.layers["raw"][i, j]
            expected = np.nan
            if x < over and x <= low:
                expected = 0
            elif high <= x < over:
                expected = 1
            np.testing.assert_equal(float(table.layers["gated"][i, j]), float(expected))
    assert counts.loc[("CD4", "a"), "n_missing"] == 1
    assert counts.groupby("marker").sum().sum(axis=1).tolist() == [60, 60]


def test_every_form_of_thresholds_gives_the_same_labels(table, tmp_path):
    limits = per_section()
    nb.pp.gate(table, limits, layer="raw")
    expected = table.layers["gated"].copy()
    limits.assign(note="edited").to_csv(tmp_path / "t.csv")
    forms = [
        tmp_path / "t.csv",
        str(tmp_path / "t.csv"),
        limits.reset_index(),
        limits.reset_index("section"),
        limits.swaplevel()[::-1],
        {key: tuple(row) for key, row in zip(limits.index, limits.to_numpy(), strict=True)},
        {key: row.to_dict() for key, row in limits.iterrows()},
    ]
    for form in forms:
        nb.pp.gate(table, form, layer="raw", section="section", key_added="again")
        np.testing.assert_array_equal(table.layers["again"], expected)
    more = pd.concat([limits, limits.rename(index={"a": "elsewhere"}, level=1).loc[:, ["elsewhere"], :]])
    nb.pp.gate(table, more, layer="raw", key_added="again")
    np.testing.assert_array_equal(table.layers["again"], expected)
    assert set(table.uns["again"]["section"]) == {"a", "b"}


def test_where_intensities_and_sections_come_from(table):
    limits = frame([[10, 20, 50]], ["CD3e"])
    assert nb.pp.gate(table, limits)["n_negative"].sum() == 60  # X is 0
    table.layers["integrated_expression"] = table.layers["raw"]
    assert nb.pp.gate(table, limits)["n_negative"].sum() == 11
    assert table.uns["gated"]["layer"] == "integrated_expression"
    assert nb.pp.gate(table, limits, layer="X")["n_negative"].sum() == 60
    del table.obs["section"]
    assert nb.pp.gate(table, limits).index.tolist() == ["CD3e"]
    assert nb.pp.gate(table, limits, section="slide").index.tolist() == [("CD3e", "s1"), ("CD3e", "s2")]
    table.obs["region"] = pd.Categorical(["x_labels"] * 60)
    table.uns["spatialdata_attrs"] = {
        "region": "x_labels",
        "region_key": "region",
        "instance_key": "instance_id",
    }
    assert nb.pp.gate(table, limits).index.tolist() == [("CD3e", "x_labels")]


@pytest.mark.parametrize(
    ("thresholds", "match"),
    [
        (frame([[20, 10, 50]], ["CD3e"]), r"CD3e are out of order \(the first: negative 20, positive 10"),
        (frame([[1, 10, 5]], ["CD3e"]), "negative ≤ positive ≤ overexposed"),
        (
            frame([[1, np.nan, 5]], ["CD3e"]),
            "CD3e are not all given; where nothing is over-exposed write inf",
        ),
        (frame([[1, 2, 5]] * 2, ["CD3e", "CD3e"]), "CD3e are given twice"),
        (frame([[1, 2, 5]] * 2, ["CD3e", "CD99"]), "name CD99, which the table lacks; valid: DNA, CD3e"),
        (frame([[1, 2, 5]], ["CD3e"]).drop(columns="positive"), r"columns \['positive'\] are missing"),
        (frame([[1, 2, 5]], ["CD3e"])[:0], "there are none"),
        ({"CD3e": (1, "two", 5)}, "must be numbers"),
        (per_section().drop(("CD4", "b")), r"lack CD4 in b; sections with thresholds: a, b"),
        (per_section().reset_index().assign(section=["a", "", "a", "b"]), "rows without a section"),
        ({"CD3e": (1, 2)}, r"thresholds of 'CD3e': \(1, 2\); valid: three numbers"),
        ({"CD3e": (1, 2, 5), ("CD4", "a"): (1, 2, 5)}, "all be markers, or all be"),
        ("nowhere.csv", "no file at nowhere.csv"),
        (3, "thresholds is a int"),
    ],
)
def test_bad_thresholds_change_nothing(table, thresholds, match):
    with pytest.raises(InputError, match=match):
        nb.pp.gate(table, thresholds, layer="raw")
    assert list(table.layers) == ["raw"]
    assert not table.obsm
    assert not table.uns


def test_other_bad_arguments(table, tmp_path):
    limits = frame([[1, 2, 5]], ["CD3e"])
    with pytest.raises(ElementNotFoundError, match="no layer 'nope'"):
        nb.pp.gate(table, limits, layer="nope")
    with pytest.raises(
        ElementNotFoundError, match=r"no obs\['slice'\]; valid for section=: 'section', 'slide'"
    ):
        nb.pp.gate(table, limits, section="slice")
    with pytest.raises(InputError, match="replace the intensities"):
        nb.pp.gate(table, limits, layer="raw", key_added="raw")
    with pytest.raises(InputError, match="choose another"):
        nb.pp.gate(table, limits, key_added="nimbus")
    (tmp_path / "t.csv").write_text("name,negative\nCD3e,1\n")
    with pytest.raises(InputError, match="column 'marker' is needed, there are 'name', 'negative'"):
        nb.pp.gate(table, tmp_path / "t.csv")
    table.obs["section"] = ["a"] * 59 + [None]
    with pytest.raises(InputError, match=r"obs\['section'\] is missing for 1 of"):
        nb.pp.gate(table, limits)
    del table.obs["section"]
    with pytest.raises(InputError, match="are for sections a, b; name the column"):
        nb.pp.gate(table, per_section())


def test_results_survive_the_disk(table, tmp_path):
    nb.pp.gate(table, per_section(), layer="raw")
    nb.pp.curate_hierarchy(table, {"CD4": "CD3e"})
    sdata = sd.SpatialData(tables={"table": table})
    sdata.write(tmp_path / "d.zarr")
    nb.io.write_table(sdata, "table")
    back = sd.read_zarr(tmp_path / "d.zarr")["table"]
    np.testing.assert_array_equal(back.layers["gated"], table.layers["gated"])
    for name in ("gated_uncertain", "gated_overexposed"):
        pd.testing.assert_frame_equal(back.obsm[name], table.obsm[name])
    for key, value in table.uns["gated"].items():
        np.testing.assert_array_equal(back.uns["gated"][key], value)
    assert back.uns["gated_hierarchy"]["tree"] == '{"CD4": "CD3e"}'
    np.testing.assert_array_equal(back.obs["gated_inconsistent"], table.obs["gated_inconsistent"])


@pytest.fixture(scope="module")
def simulated():
    return nb.datasets.simulated_sections(n_patients=2, shape=(640, 640), seed=3)


def test_suggested_thresholds_give_the_simulated_truth(simulated, tmp_path):
    table, truth = simulated["table"].copy(), simulated["truth"]
    found = nb.pp.suggest_thresholds(table)
    assert found.index.names == ["marker", "section"]
    found.to_csv(tmp_path / "thresholds.csv")
    nb.pp.gate(table, tmp_path / "thresholds.csv")
    nb.pp.curate_hierarchy(table)
    labels = table.to_df("gated")
    pd.testing.assert_index_equal(labels.index, truth.obs_names)
    for marker in truth.var_names:
        y, label = truth[:, marker].X.ravel(), labels[marker].to_numpy()
        known = ~np.isnan(label) & ~np.isnan(y)
        assert known.mean() > 0.6, marker
        assert (label[known] == y[known]).mean() >= 0.98, marker
        assert y[known & (label == 1)].mean() > 0.9, marker
        assert (label[y == 1] == 1).mean() > 0.4, marker
    assert np.isnan(labels["CD20"]).all()


def test_suggestions_are_seeded_and_follow_the_arguments(simulated):
    table = simulated["table"]
    few = [nb.pp.suggest_thresholds(table, "CD45", max_cells=200, seed=s) for s in (0, 0, 1)]
    pd.testing.assert_frame_equal(few[0], few[1])
    assert not few[0].equals(few[2])
    assert (few[0].n_cells == 200).all()
    whole = nb.pp.suggest_thresholds(table, ["CD45", "CD20"], section="region")
    assert whole.index.unique("marker").tolist() == ["CD45", "CD20"]
    assert set(whole.index.get_level_values("section")) == set(table.obs["region"])


def test_markers_without_positive_cells_are_said(table):
    rng = np.random.default_rng(0)
    table.layers["raw"] = rng.gamma(5, 20, (60, 3))
    with pytest.warns(NimbusWarning, match="no clearly positive cells of CD3e in b, CD3e in a"):
        found = nb.pp.suggest_thresholds(table, layer="raw")
    assert not found.clear.any()
    assert nb.pp.gate(table, found, layer="raw")["n_positive"].sum() == 0
    table.layers["raw"][:, 1] = 4
    with pytest.raises(InputError, match="CD3e in section 'b': all cells are alike in 'raw'"):
        nb.pp.suggest_thresholds(table, layer="raw")
    table.layers["raw"][:, 1] = np.nan
    with pytest.raises(InputError, match="fewer than 10 cells have an intensity"):
        nb.pp.suggest_thresholds(table, layer="raw")
    with pytest.raises(ElementNotFoundError, match="no marker CD99; valid: DNA"):
        nb.pp.suggest_thresholds(table, ["CD99"])
    with pytest.raises(InputError, match=r"confidence=0.3"):
        nb.pp.suggest_thresholds(table, confidence=0.3)
