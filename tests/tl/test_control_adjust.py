"""nb.tl.control_adjust: the formula, what stays as it is, and bad input."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError

MARKERS = ["CD3", "IgG1", "CD8", "IgG2"]


@pytest.fixture
def table():
    scores = np.random.default_rng(0).random((200, 4), dtype=np.float32)
    return ad.AnnData(scores, var=pd.DataFrame(index=MARKERS))


@pytest.mark.parametrize(("threshold", "strength"), [(0.5, 1.0), (0.7, 0.4), (0.0, 1.0), (0.5, 0.0)])
def test_scores_fall_as_the_formula_says(table, threshold, strength):
    before = table.X.copy()
    report = nb.tl.control_adjust(table, ["IgG1", "IgG2"], threshold=threshold, strength=strength)
    out = table.layers["control_adjusted"]
    assert out.dtype == np.float32
    for i, row in enumerate(before.astype(float)):
        c = max(row[1], row[3])
        w = 1 - strength * (c - threshold) / (1 - threshold) if c > threshold else 1
        np.testing.assert_allclose(out[i], row * [w, 1, w, 1], rtol=1e-5)
        assert table.obs["control_positive"].iloc[i] == (c > threshold)
        assert table.obs["control_positive_score"].iloc[i] == pytest.approx(c)
    np.testing.assert_array_equal(table.X, before)
    assert report["marker"].tolist() == ["CD3", "CD8"]
    lost = ((before > 0.5) & (out <= 0.5))[:, [0, 2]].sum(0)
    assert report["n_lost"].tolist() == lost.tolist()
    assert (lost > 0).all() == (strength > 0)


def test_a_sticky_marker_shows_in_the_report_and_all_is_written_to_disk(table, tmp_path):
    table.X[:, 0] = table.X[:, 1]
    report = nb.tl.control_adjust(table, "IgG1").set_index("marker")
    assert report.loc["CD3", "share_flagged"] == 1
    assert report.loc["CD8", "share_flagged"] == pytest.approx(table.obs["control_positive"].mean(), abs=0.15)
    table.write_h5ad(tmp_path / "t.h5ad")
    back = ad.read_h5ad(tmp_path / "t.h5ad")
    assert list(back.uns["control_adjusted"]["controls"]) == ["IgG1"]
    assert back.uns["control_adjusted"]["n_flagged"] == table.obs["control_positive"].sum()


def test_cells_without_a_control_score_keep_theirs(table):
    table.X[0, [1, 3]] = np.nan
    table.X[1, 1], table.X[1, 3], table.X[1, 0] = np.nan, 0.75, 0.8
    nb.tl.control_adjust(table, ["IgG1", "IgG2"])
    np.testing.assert_array_equal(table.layers["control_adjusted"][0, [0, 2]], table.X[0, [0, 2]])
    assert table.layers["control_adjusted"][1, 0] == pytest.approx(0.4)
    assert not table.obs["control_positive"].iloc[0]
    assert np.isnan(table.obs["control_positive_score"].iloc[0])


@pytest.mark.parametrize(
    ("controls", "options", "error", "match"),
    [
        (["IgG3"], {}, ElementNotFoundError, "names IgG3, not in the table"),
        ([], {}, InputError, "name some, not all"),
        (MARKERS, {}, InputError, "leaves 0 of 4"),
        ("IgG1", {"threshold": 1}, InputError, "threshold=1"),
        ("IgG1", {"strength": 2}, InputError, "strength=2"),
        ("IgG1", {"layer": "raw"}, InputError, r"from 0 to 7; valid: scores in \[0, 1\]"),
        ("IgG1", {"layer": "empty"}, InputError, "IgG1 is NaN in all"),
        ("IgG1", {"key_added": "X"}, InputError, "where the scores come from"),
        ("IgG1", {"key_added": "raw", "layer": "raw"}, InputError, "where the scores come from"),
        ("IgG1", {"key_added": "nimbus"}, InputError, "would be lost"),
        ("IgG1", {"flag": ""}, InputError, "new column"),
    ],
)
def test_bad_input_changes_nothing(table, controls, options, error, match):
    table.layers["raw"] = np.tile(np.array([0, 7], np.float32), (200, 2))
    table.layers["empty"] = np.full((200, 4), np.nan, np.float32)
    table.uns["nimbus"] = {"model": "m"}
    with pytest.raises(error, match=match):
        nb.tl.control_adjust(table, controls, **options)
    assert (set(table.layers), list(table.obs), list(table.uns)) == ({"raw", "empty"}, [], ["nimbus"])
