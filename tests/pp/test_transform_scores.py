"""nb.pp.transform_scores: the formulas, clusters that get better, and bad input."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.special import logit
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError


@pytest.fixture
def table():
    scores = np.random.default_rng(0).random((50, 3), dtype=np.float32)
    scores[:2] = [[0, 1, 0.3], [1, 0, 0.3]]
    scores[:, 2] = 0.3
    return ad.AnnData(scores, var=pd.DataFrame(index=["CD3", "CD8", "CD20"]))


def z(x):
    return (x - x.mean(0)) / np.array([*x[:, :2].std(0), 1])


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("logit", lambda s: logit(np.clip(s, 0.01, 0.99))),
        ("logit_z", lambda s: z(logit(np.clip(s, 0.01, 0.99)))),
        ("arcsine", lambda s: np.arcsin(np.sqrt(s))),
        ("arcsine_z", lambda s: z(np.arcsin(np.sqrt(s)))),
        ("z", z),
    ],
)
def test_values_equal_the_formula(table, method, expected, tmp_path):
    before = table.X.copy()
    nb.pp.transform_scores(table, method=method, key_added="t")
    np.testing.assert_allclose(table.layers["t"], expected(before.astype(float)), atol=1e-5)
    np.testing.assert_array_equal(table.obsm["X_t"], table.layers["t"])
    np.testing.assert_array_equal(table.X, before)
    assert table.layers["t"].dtype == np.float32
    assert table.uns["t"]["method"] == method
    table.write_h5ad(tmp_path / "t.h5ad")
    assert ad.read_h5ad(tmp_path / "t.h5ad").uns["t"]["eps"] == 0.01
    nb.pp.transform_scores(table, key_added="t")  # again: its own result may be replaced


def test_rare_types_come_out_better_than_from_bare_scores():
    rng = np.random.default_rng(0)
    types = rng.choice(4, 900, p=[0.5, 0.35, 0.1, 0.05])
    truth = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])[types]
    scores = 1 / (1 + np.exp(-(6 * truth - 3 + rng.normal(size=truth.shape))))
    scores[:, 2:] *= 0.15  # markers that never get far
    table = ad.AnnData(scores.astype(np.float32))
    nb.pp.transform_scores(table)

    def agreement(x):
        found = [KMeans(4, n_init=3, random_state=s).fit_predict(x) for s in range(3)]
        return np.mean([adjusted_rand_score(types, f) for f in found])

    assert agreement(table.layers["transformed"]) > agreement(table.X) + 0.05


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"method": "log"}, InputError, "method='log', eps=0.01; valid: 'logit_z'"),
        ({"eps": 0.5}, InputError, "eps=0.5"),
        ({"layer": "nope"}, ElementNotFoundError, "no layer 'nope'"),
        ({"layer": "raw"}, InputError, r"outside \[0, 1\] in CD3 \(1 cells\)"),
        ({"layer": "gap"}, InputError, r"NaN or .* in CD8 \(2 cells\)"),
        ({"key_added": "X"}, InputError, "key_added='X'"),
        ({"key_added": "nimbus"}, InputError, "would be lost"),
    ],
)
def test_bad_input_changes_nothing(table, options, error, match):
    table.uns["nimbus"] = {}
    for name, where, value in (("raw", (0, 0), 7), ("gap", (slice(0, 2), 1), np.nan)):
        table.layers[name] = table.X.copy()
        table.layers[name][where] = value
    with pytest.raises(error, match=match):
        nb.pp.transform_scores(table, **options)
    assert (set(table.layers), list(table.obsm), list(table.uns)) == ({"raw", "gap"}, [], ["nimbus"])
    with pytest.raises(InputError, match="empty"):
        nb.pp.transform_scores(table[:0].copy())
