"""nb.tl.phenotype: formats of rules, what is written, contradictions, and bad input that changes nothing."""

from __future__ import annotations

import json
import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd.tl._phenotype_rules import as_tree

MARKERS = ["CD45", "CD3", "CD4", "CD8", "CD20", "CD68", "CD163", "PanCK"]
# as scimap writes it: no names for the first two columns, empty cells where a marker does not matter
TABLE = """,,CD45,CD3,CD4,CD8,CD20,CD68,CD163,PanCK,NotInPanel
all,Immune,pos,,,,,,,,
all,Epithelial,neg,,,,,,,allpos,
Immune,T cells,,pos,,,neg,,,,
Immune,B cells,,allneg,,,pos,,,,
Immune,Macrophages,,,,,,anypos,anypos,,
T cells,CD4 T,,,pos,,,,,,
T cells,CD8 T,,,,pos,,,,,
"""
DICT = {
    "Immune": {
        "pos": "CD45",
        "children": {
            "T cells": {
                "pos": ["CD3"],
                "neg": ["CD20"],
                "children": {"CD4 T": {"pos": "CD4"}, "CD8 T": {"pos": "CD8"}},
            },
            "B cells": {"allneg": ["CD3"], "pos": ["CD20"]},
            "Macrophages": {"any_pos": ["CD68", "CD163"]},
        },
    },
    "Epithelial": {"neg": ["CD45"], "positive": ["PanCK"]},
}
YAML = """
Immune: {pos: CD45}
Epithelial: {neg: CD45, pos: [PanCK]}
T cells: {parent: Immune, pos: [CD3], neg: [CD20]}
B cells: {parent: Immune, neg: CD3, pos: CD20}
Macrophages:
  parent: Immune
  anypos: [CD68, CD163]
CD4 T: {parent: T cells, pos: CD4}
CD8 T: {parent: T cells, pos: CD8}
"""
CELLS = {
    "CD4 T": ["CD45", "CD3", "CD4"],
    "CD8 T": ["CD45", "CD3", "CD8"],
    "T cells": ["CD45", "CD3"],
    "B cells": ["CD45", "CD20"],
    "Macrophages": ["CD45", "CD163"],
    "Immune": ["CD45", "CD3", "CD20"],
    "Epithelial": ["PanCK"],
    "unassigned": [],
}


@pytest.fixture
def table():
    scores = np.array([[0.95 if m in on else 0.04 for m in MARKERS] for on in CELLS.values()], "float32")
    obs = pd.DataFrame(index=[f"c{i}" for i in range(len(scores))])
    return ad.AnnData(scores, obs=obs, var=pd.DataFrame(index=MARKERS))


def forms(folder):
    (folder / "rules.csv").write_text("\ufeff" + TABLE, encoding="utf-8")
    (folder / "rules.yml").write_text(YAML)
    (folder / "rules.json").write_text(json.dumps(DICT))
    frame = pd.read_csv(folder / "rules.csv")
    named = frame.rename(columns={frame.columns[0]: "parent", frame.columns[1]: "phenotype"})
    files = [folder / "rules.csv", str(folder / "rules.yml"), folder / "rules.json"]
    return [frame, named, DICT, *files]


def test_every_format_says_the_same_and_names_the_cells(table, tmp_path):
    expected = {(r.parent, r.name, r.conditions) for r in as_tree(DICT).rules}
    for rules in forms(tmp_path):
        assert {(r.parent, r.name, r.conditions) for r in as_tree(rules).rules} == expected
        one = table.copy()
        nb.tl.phenotype(one, rules)
        assert one.obs["phenotype"].tolist() == list(CELLS)


@pytest.mark.filterwarnings("ignore:Consolidated metadata:UserWarning")
def test_what_is_written_survives_the_disk(table, tmp_path, caplog):
    before = table.X.copy()
    with caplog.at_level(logging.INFO, "nimbus_sd"):
        nb.tl.phenotype(table, DICT, key_added="type", unassigned="nobody")
    assert "12.50 % of 8 cells unassigned, 1 with contradictory" in caplog.text
    np.testing.assert_array_equal(table.X, before)
    table.write_h5ad(tmp_path / "t.h5ad")
    with ad.settings.override(zarr_write_format=3):
        table.write_zarr(tmp_path / "t.zarr")
    for back in (ad.read_h5ad(tmp_path / "t.h5ad"), ad.read_zarr(tmp_path / "t.zarr")):
        record = back.uns["type"]
        assert float(record["share_unassigned"]) == 0.125
        assert dict(zip(record["names"], record["n_cells"], strict=True))["nobody"] == 1
        assert json.loads(str(record["rules"]))[0]["name"] == "Immune"
        assert back.obs["type"].tolist()[-1] == "nobody"
        assert back.obs["type_probability"].dtype == np.float32
        assert (back.obs["type_probability"].to_numpy()[:5] > 0.5).all()
        assert 0 < back.obs["type_probability"].iloc[-1] < 0.1
        nb.tl.phenotype(back, DICT, key_added="type")  # its own record may be replaced
    empty = {"T": {"pos": "CD3"}}
    nb.tl.phenotype(table, empty)  # no pairs: empty arrays survive too
    with ad.settings.override(zarr_write_format=3):
        table.write_zarr(tmp_path / "u.zarr")
    assert len(ad.read_zarr(tmp_path / "u.zarr").uns["phenotype"]["contradictions"]["first"]) == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_columns_live_in_a_store(tmp_path):
    sdata = nb.datasets.simulated_tissue(n_fovs=4, shape=(96, 96), channels=["CD45", "CD3", "CD20"])
    sdata.write(tmp_path / "data.zarr")
    table = sdata["truth"]
    table.X = np.nan_to_num(np.clip(table.X, 0.1, 0.9), nan=0.5)
    table.layers["integrated_expression"] = table.X * 3
    table.obsm["spatial"] = np.random.default_rng(0).random((table.n_obs, 2)) * 96
    nb.tl.phenotype(table, {"immune": {"pos": "CD45", "children": {"T/NK": {"pos": "CD3"}}}})
    nb.tl.control_adjust(table, "CD20")
    nb.tl.spillover(table, exclusive=[("CD3", "CD20")])
    nb.tl.batch_effects(table, min_cells=2)
    nb.pp.transform_scores(table)
    nb.io.write_table(sdata, "truth")
    back = sd.read_zarr(tmp_path / "data.zarr")["truth"]
    pd.testing.assert_frame_equal(back.obs, table.obs, check_dtype=False)
    pd.testing.assert_frame_equal(back.var, table.var)
    assert set(back.layers) == set(table.layers)
    for key in ("phenotype", "control_adjusted", "batch_effects", "transformed"):
        assert set(back.uns[key]) == set(table.uns[key])


def test_contradictions_are_counted_as_by_hand(table):
    rng = np.random.default_rng(0)
    many = ad.AnnData(rng.random((500, 8), dtype=np.float32), var=pd.DataFrame(index=MARKERS))
    nb.tl.phenotype(many, DICT)
    found = pd.DataFrame(many.uns["phenotype"]["contradictions"])
    assert {frozenset(p) for p in zip(found["first"], found["second"], strict=True)} == {
        frozenset(p) for p in (("CD45", "PanCK"), ("CD3", "CD20"), ("CD4", "CD8"))
    }
    positive = many.to_df() > 0.5
    some = np.zeros(500, bool)
    for row in found.itertuples():
        both = (positive[row.first] & positive[row.second]).to_numpy()
        assert (row.n_cells, row.n_first) == (both.sum(), positive[row.first].sum())
        some |= both
    assert found["n_cells"].is_monotonic_decreasing
    np.testing.assert_array_equal(many.obs["phenotype_contradictory"], some)
    nb.tl.phenotype(table, DICT, contradictions=[("CD3", "PanCK")])
    assert table.uns["phenotype"]["contradictions"]["n_cells"].tolist() == [0]


def test_threshold_layer_and_nan(table):
    nb.tl.phenotype(table, DICT, threshold=0.99)
    assert set(table.obs["phenotype"]) == {"unassigned"}
    table.layers["scores"] = table.X.copy()
    table.layers["scores"][0, 0] = np.nan
    table.X = np.full(table.shape, 7, np.float32)
    with pytest.warns(NimbusWarning, match="1 of 8 cells have NaN"):
        nb.tl.phenotype(table, DICT, layer="scores")
    assert table.obs["phenotype"].tolist()[:2] == ["unassigned", "CD8 T"]
    assert np.isnan(table.obs["phenotype_probability"].iloc[0])
    assert table.uns["phenotype"]["n_undefined"] == 1
    with pytest.raises(InputError, match=r"X: .* leaves \[0, 1\]"):
        nb.tl.phenotype(table, DICT)
    table.layers["scores"][:, 0] = np.nan
    with pytest.raises(InputError, match="CD45 is NaN in all cells"):
        nb.tl.phenotype(table, DICT, layer="scores")


def test_new_names_drop_the_edits_of_old_ones(table):
    nb.tl.phenotype(table, DICT)
    nb.tl.merge_clusters(table, {"CD4 T": "T cells"}, key="phenotype")
    nb.tl.phenotype(table, DICT)
    with pytest.raises(InputError, match="no edits"):
        nb.tl.undo_clusters(table, key="phenotype")


def test_simulated_cells_get_their_types():
    sdata = nb.datasets.simulated_tissue(n_fovs=2, shape=(384, 384), seed=3)
    truth = sdata["truth"]
    known = truth[~np.isnan(truth.X).any(1)].copy()
    rng = np.random.default_rng(0)
    known.X = np.clip(0.05 + 0.9 * known.X + rng.normal(0, 0.1, known.shape), 0, 1).astype(np.float32)
    rules = {
        "immune": {"pos": "CD45"},
        "T": {"parent": "immune", "pos": "CD3"},
        "CD8 T": {"parent": "T", "pos": "CD8"},
        "B": {"parent": "immune", "pos": "CD20"},
        "epithelial": {"pos": ["PanCK", "ECAD"], "neg": ["CD45", "CK5"]},
    }
    nb.tl.phenotype(known, rules)
    types, names = known.obs["cell_type"].astype(str), known.obs["phenotype"].astype(str)
    for name in ("CD8 T", "B", "epithelial"):
        assert (names[types == name] == name).mean() > 0.7
        assert (types[names == name] == name).mean() > 0.9


@pytest.mark.parametrize(
    ("rules", "error", "match"),
    [
        ({}, InputError, "no rules"),
        ({"T": {"pos": ["CD33"]}}, ElementNotFoundError, r"lacks: CD33 \(did you mean CD3\?\); valid: CD45"),
        ({"T": {"pos": ["cd3"]}}, ElementNotFoundError, r"did you mean CD3\?"),
        ({"T": {"pos": "CD3", "parent": "Immune"}}, InputError, "makes the parent 'Immune'"),
        ({"A": {"pos": "CD3", "parent": "B"}, "B": {"pos": "CD4", "parent": "A"}}, InputError, "circle"),
        ({"T": {"pos": "CD3", "parent": ["all", "all"]}}, InputError, "two rules for 'T'"),
        ({"T": {}}, InputError, "names no marker"),
        ({"T": "CD3"}, InputError, "'T' is 'CD3'; give"),
        ({"T": {"plus": "CD3"}}, InputError, "'T' has 'plus': 'CD3'; valid: pos"),
        ({True: {"pos": "CD3"}}, InputError, "True .* in quotes"),
        ({"unassigned": {"pos": "CD3"}}, InputError, "one of the phenotypes"),
        (3, InputError, "not int"),
        (pd.DataFrame(columns=["parent", "phenotype"]), InputError, "2 columns"),
        (pd.DataFrame(columns=["parent", "phenotype", "CD3"]), InputError, "no rules"),
        (
            pd.DataFrame([["all", "T", "yes"]], columns=["", "", "CD3"]),
            InputError,
            "CD3 is 'yes'; valid: pos",
        ),
        (pd.DataFrame([["", "T", 1, 1]], columns=["", "", "A", "A"]), InputError, "'A' comes twice"),
        ("rules.txt", InputError, "suffix '.txt'"),
        ("absent.csv", InputError, "can't be read"),
    ],
)
def test_bad_rules_change_nothing(table, rules, error, match):
    refuse(table, error, match, rules)


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("r.yaml", "T: {pos: CD3}\nT: {pos: CD4}\n", "r.yaml: line 2: 'T' comes twice"),
        ("r.yaml", "T: &a {pos: CD3, children: {U: *a}}", "within itself"),
        ("r.yaml", "T: [", "r.yaml: no YAML"),
        ("r.yaml", "- T\n", "holds a list"),
        ("r.yaml", "", "holds a NoneType"),
        ("r.csv", "", "0 columns"),
        ("r.csv", ",,CD3\nall,T,pos,neg\n", "row 1: 4 values for 3 columns"),
        ("r.csv", ",,CD3\nall,T,pos\nall,T,neg\n", "r.csv: two rules for 'T'"),
    ],
)
def test_bad_files_are_named(table, tmp_path, name, text, match):
    (tmp_path / name).write_text(text)
    refuse(table, InputError, match, tmp_path / name)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"threshold": 0}, InputError, "threshold=0"),
        ({"layer": "nope"}, ElementNotFoundError, "no layer 'nope'"),
        ({"key_added": "other"}, InputError, "uns.*holds something else"),
        ({"key_added": "a/b"}, InputError, "can't be the name of a new column"),
        ({"contradictions": ["CD3", "CD20"]}, InputError, "pairs of two markers"),
        ({"contradictions": [("CD3", "CD21")]}, ElementNotFoundError, "lacks: CD21"),
    ],
)
def test_bad_parameters_change_nothing(table, options, error, match):
    table.uns["other"] = {"precious": 1}
    refuse(table, error, match, DICT, **options)


def refuse(table, error, match, rules, **options):
    obs, uns = table.obs.copy(), dict(table.uns)
    with pytest.raises(error, match=match):
        nb.tl.phenotype(table, rules, **options)
    pd.testing.assert_frame_equal(table.obs, obs)
    assert table.uns == uns
