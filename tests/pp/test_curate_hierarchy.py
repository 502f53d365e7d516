"""nb.pp.curate_hierarchy: what becomes undefined, what is counted, bad trees and labels."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError

NAN = np.nan
MARKERS = ["CD20", "CD45", "CD3e", "CD4", "CD8a"]
LABELS = np.array(
    [
        [0, 1, 1, 1, 0],  # fine
        [1, 0, 1, 0, 0],  # CD3e without CD45
        [0, 0, NAN, 1, 0],  # CD4 without CD45
        [0, 1, 0, 1, 1],  # CD4, CD8a without CD3e
        [0, NAN, NAN, 1, NAN],  # nothing to contradict
        [0, 0, 0, 0, 0],
    ],
    np.float32,
)


@pytest.fixture
def table():
    adata = ad.AnnData(np.zeros(LABELS.shape), var=pd.DataFrame(index=MARKERS))
    adata.layers["gated"] = LABELS.copy()
    return adata


def test_contradicting_cells_become_undefined_and_are_counted(table):
    report = nb.pp.curate_hierarchy(table)
    expected = LABELS.copy()
    expected[1:4, 1:] = NAN
    np.testing.assert_array_equal(table.layers["gated"], expected)
    assert table.layers["gated"].dtype == np.float32
    assert report["n_cells"].to_dict() == {
        "CD3e+ CD45-": 1,
        "CD4+ CD3e-": 1,
        "CD4+ CD45-": 1,
        "CD8a+ CD3e-": 1,
        "CD8a+ CD45-": 0,
        "any": 3,
    }
    assert report.loc["CD4+ CD3e-", ["marker", "implies"]].tolist() == ["CD4", "CD3e"]
    assert report.loc["CD3e+ CD45-", "share"] == 1 / 2
    assert report.loc["CD4+ CD3e-", "share"] == 1 / 4
    assert report.loc["any", "share"] == 3 / 5
    record = table.uns["gated_hierarchy"]
    assert json.loads(record["tree"]) == {"CD3e": "CD45", "CD4": "CD3e", "CD8a": "CD3e"}
    assert record["n_labels"] == 4 + 3 + 4
    assert record["rule"][-1] == "any"
    assert record["n_cells"].tolist() == report["n_cells"].tolist()
    assert table.obs["gated_inconsistent"].tolist() == [False, True, True, True, False, False]


def test_a_second_call_finds_nothing_and_forgets_nothing(table):
    nb.pp.curate_hierarchy(table)
    once = table.layers["gated"].copy()
    again = nb.pp.curate_hierarchy(table)
    assert again["n_cells"].sum() == 0
    np.testing.assert_array_equal(table.layers["gated"], once)
    assert table.obs["gated_inconsistent"].sum() == 3


def test_another_layer_and_tree(table):
    report = nb.pp.curate_hierarchy(table, {"CD20": "CD45"}, key_added="curated")
    np.testing.assert_array_equal(table.layers["gated"], LABELS)
    assert report["n_cells"].tolist() == [1, 1]
    assert np.isnan(table.layers["curated"][1, :2]).all()
    np.testing.assert_array_equal(table.layers["curated"][:, 2:], LABELS[:, 2:])
    assert table.obs["curated_inconsistent"].sum() == 1
    empty = nb.pp.curate_hierarchy(table, {}, key_added="same")
    assert empty["n_cells"].tolist() == [0]
    assert np.isnan(empty.loc["any", "share"])
    np.testing.assert_array_equal(table.layers["same"], LABELS)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"tree": {"CD3e": "CD2"}}, InputError, "names CD2, missing from the labels; valid: CD20, CD45"),
        ({"tree": {"CD3e": "CD4", "CD4": "CD3e"}}, InputError, "runs in a circle"),
        ({"tree": "CD45"}, InputError, "must map each marker"),
        ({"layer": "gold"}, ElementNotFoundError, "no layer 'gold'; valid: 'X', 'gated'"),
        ({"key_added": "X"}, InputError, "can't hold labels"),
    ],
)
def test_bad_arguments_change_nothing(table, arguments, error, match):
    with pytest.raises(error, match=match):
        nb.pp.curate_hierarchy(table, **arguments)
    np.testing.assert_array_equal(table.layers["gated"], LABELS)
    assert not table.uns
    assert table.obs.empty


def test_probabilities_are_no_labels(table):
    table.layers["gated"][0, 1] = 0.7
    with pytest.raises(InputError, match=r"CD45' holds \[0\.69"):
        nb.pp.curate_hierarchy(table)


def test_the_default_tree_is_that_of_the_markers_there_are(table):
    report = nb.pp.curate_hierarchy(table[:, ["CD4", "CD45"]].copy())
    assert report["n_cells"].to_dict() == {"CD4+ CD45-": 1, "any": 1}
    some = table[:, ["CD45", "CD4", "CD8a"]].copy()
    report = nb.pp.curate_hierarchy(some)
    assert report.index.tolist() == ["CD4+ CD45-", "CD8a+ CD45-", "any"]
    assert json.loads(some.uns["gated_hierarchy"]["tree"]) == {"CD4": "CD45", "CD8a": "CD45"}
    assert nb.pp.curate_hierarchy(table[:, ["CD45"]].copy())["n_cells"].to_dict() == {"any": 0}
    with pytest.raises(InputError, match=r"none of CD45, CD3e, CD4, CD8a; pass tree=.*CD20"):
        nb.pp.curate_hierarchy(table[:, ["CD20"]].copy())
    with pytest.raises(InputError, match="tree names CD3e, missing from the labels"):
        nb.pp.curate_hierarchy(some, {"CD4": "CD3e", "CD3e": "CD45"})


def test_labels_that_were_never_made(table):
    del table.layers["gated"]
    with pytest.raises(ElementNotFoundError, match=r"no layer 'gated'; valid: 'X'; nb\.pp\.gate writes it"):
        nb.pp.curate_hierarchy(table)
