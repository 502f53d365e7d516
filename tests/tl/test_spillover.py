"""nb.tl.spillover: false positives rank above true ones on simulated tissue; fields are apart; bad input."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError

PAIRS = [("CD3", "CD20"), ("CD3", "PanCK"), ("CD45", "PanCK"), ("CD20", "PanCK")]
CHANNELS = ["CD45", "CD3", "CD20", "VIM", "PanCK"]


@pytest.fixture(scope="module")
def scored():
    sdata = nb.datasets.simulated_tissue(n_fovs=2, shape=(512, 512), channels=CHANNELS, seed=2)
    nb.tl.predict(sdata, channels="all", progress=False)
    truth = sdata["truth"].to_df().reindex(index=sdata["nimbus"].obs_names, columns=CHANNELS)
    return sdata["nimbus"], truth.to_numpy()


def test_false_positives_rank_above_true_ones(scored):
    table, truth = scored
    before = table.X.copy()
    report = nb.tl.spillover(table)
    single = table.layers["spillover"].copy()
    nb.tl.spillover(table, exclusive=PAIRS)
    pairs = table.layers["spillover"]
    assert (pairs >= single - 1e-6).all()
    called = (table.X > 0.5) & ~np.isnan(truth)
    for found, least in ((single, 0.7), (pairs, 0.75)):
        per = [
            roc_auc_score(truth[rows, k] == 0, found[rows, k])
            for k, rows in enumerate(called.T)
            if min((truth[rows, k] == 0).sum(), (truth[rows, k] == 1).sum()) >= 5
        ]
        assert len(per) >= 3
        assert np.mean(per) > least
    np.testing.assert_array_equal(table.X, before)
    assert pairs.dtype == np.float32
    assert pairs.min() >= 0
    assert pairs.max() <= 1
    assert not pairs[table.X <= 0.5].any()
    assert report["n_positive"].tolist() == (table.X > 0.5).sum(0).tolist()
    assert table.var["spillover_n"].tolist() == (pairs > 0.5).sum(0).tolist()


def test_fields_are_apart_and_order_does_not_matter(scored):
    table = scored[0].copy()
    nb.tl.spillover(table)
    expected = pd.DataFrame(table.layers["spillover"], index=table.obs_names)
    mixed = table[np.random.default_rng(0).permutation(table.n_obs)].copy()
    nb.tl.spillover(mixed)
    got = pd.DataFrame(mixed.layers["spillover"], index=mixed.obs_names).loc[table.obs_names]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    moved = table.copy()  # fields may lie anywhere relative to each other
    moved.obsm["spatial"] = (
        moved.obsm["spatial"] + 1e4 * (moved.obs["region"] == "fov1_labels").to_numpy()[:, None]
    )
    nb.tl.spillover(moved)
    np.testing.assert_allclose(moved.layers["spillover"], expected, atol=1e-6)


def test_too_few_cells_say_so(scored):
    few = scored[0][:15].copy()
    report = nb.tl.spillover(few)
    assert report["reason"].str.contains("only").all()
    assert not few.layers["spillover"].any()


@pytest.mark.parametrize(
    ("spoil", "options", "error", "match"),
    [
        (lambda t: t.obsm.pop("spatial"), {}, InputError, r"no obsm\['spatial'\]"),
        (lambda t: t.obsm["spatial"].__setitem__((0, 0), np.nan), {}, InputError, "of 1 cells is not finite"),
        (lambda t: t.layers.pop("integrated_expression"), {}, ElementNotFoundError, "no layer 'integrated_"),
        (lambda t: t.X.__setitem__((0, 1), np.nan), {}, InputError, "X: CD3 is nan in 1 cells"),
        (lambda t: None, {"expression_layer": "X"}, ElementNotFoundError, "no layer 'X'"),
        (lambda t: None, {"layer": "integrated_expression"}, InputError, r"scores in \[0, 1\]"),
        (lambda t: None, {"region_key": "fov"}, ElementNotFoundError, "no column 'fov'"),
        (lambda t: None, {"exclusive": [("CD3", "CD21")]}, ElementNotFoundError, "names CD21"),
        (lambda t: None, {"exclusive": ["CD3"]}, InputError, "pairs of two"),
        (lambda t: None, {"n_neighbors": 0}, InputError, "n_neighbors=0"),
        (lambda t: None, {"max_distance": 0}, InputError, "max_distance=0"),
    ],
)
def test_bad_input_changes_nothing(scored, spoil, options, error, match):
    table = scored[0][:100].copy()
    table.layers.pop("spillover", None)
    spoil(table)
    layers, columns = list(table.layers), list(table.var)
    with pytest.raises(error, match=match):
        nb.tl.spillover(table, **options)
    assert (list(table.layers), list(table.var)) == (layers, columns)
