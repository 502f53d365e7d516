"""nb.tl.batch_effects: planted shifts are found, equal fields are not flagged, numbers equal pandas'."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError


def cohort(seed=0, n_fields=10, n=300):
    rng = np.random.default_rng(seed)
    share = np.array([0.3, 0.05])
    positive = rng.random((n_fields * n, 2)) < share
    scores = np.where(positive, rng.beta(8, 2, positive.shape), rng.beta(1, 12, positive.shape))
    names = [f"f{i}" for i in range(n_fields)]
    obs = pd.DataFrame({"region": np.repeat(names, n)}, index=[f"c{i}" for i in range(n_fields * n)])
    table = ad.AnnData(scores.astype(np.float32), obs=obs, var=pd.DataFrame(index=["CD3", "CD8"]))
    gain = rng.lognormal(0, 0.1, n_fields).repeat(n)[:, None]
    table.layers["integrated_expression"] = (
        (0.2 + 3 * positive) * gain * rng.lognormal(0, 0.3, scores.shape)
    ).astype(np.float32)
    return table


def test_numbers_equal_pandas():
    table = cohort()
    found = nb.tl.batch_effects(table, quantiles=(0.5, 0.9)).set_index(["field", "marker"])
    frame = table.to_df().astype(float)
    for marker in table.var_names:
        groups = frame[marker].groupby(table.obs["region"].to_numpy())
        share, q = groups.apply(lambda v: (v > 0.5).mean()), groups.quantile(0.9)
        x = np.arcsin(np.sqrt(share))
        mad = (x - x.median()).abs().median() * 1.4826
        z = (x - x.median()) / np.sqrt(mad**2 + 1 / (4 * 300))
        unit = frame[marker].quantile(0.999) - frame[marker].min()
        spread = np.hypot((q - q.median()).abs().median() * 1.4826 / unit, 0.05)
        z_q = (q - q.median()) / unit / spread
        for field in share.index:
            row = found.loc[(field, marker)]
            assert row["share_positive"] == pytest.approx(share[field])
            assert row["z_share"] == pytest.approx(z[field])
            assert row["q0.9"] == pytest.approx(q[field])
            assert row["z_q0.9"] == pytest.approx(z_q[field])
            assert abs(row["z"]) == max(abs(row["z_share"]), abs(row["z_q0.5"]), abs(row["z_q0.9"]))


def test_equal_fields_are_rarely_flagged_and_planted_ones_always(tmp_path):
    flags = [nb.tl.batch_effects(cohort(seed), quantiles=(0.5,))["flag"].mean() for seed in range(5)]
    assert np.mean(flags) < 0.03
    table = cohort()
    odd = (table.obs["region"] == "f3").to_numpy()
    table.X[odd, 0] *= 0.5
    found = nb.tl.batch_effects(table)
    assert found.loc[0, ["field", "marker"]].tolist() == ["f3", "CD3"]
    assert found.loc[0, "flag"]
    assert found.loc[0, "z"] < 0
    record = table.uns["batch_effects"]
    assert dict(zip(record["fields"], record["n_flagged"], strict=True))["f3"] >= 1
    table.write_h5ad(tmp_path / "t.h5ad")
    back = pd.DataFrame(ad.read_h5ad(tmp_path / "t.h5ad").uns["batch_effects"]["columns"])
    pd.testing.assert_frame_equal(back[list(found)], found, check_dtype=False)


def test_a_gain_in_staining_shows_in_the_logarithms():
    table = cohort()
    odd = (table.obs["region"] == "f7").to_numpy()
    table.layers["integrated_expression"][odd, 1] *= 3
    found = nb.tl.batch_effects(table, layer="integrated_expression", log=True, threshold=None)
    assert found.loc[0, ["field", "marker"]].tolist() == ["f7", "CD8"]
    assert "share_positive" not in found
    one = found.iloc[0]
    assert min(one[f"z_q{q}"] for q in (0.25, 0.5, 0.75)) > 3.5


def test_small_fields_take_no_part():
    table = cohort()
    table = table[~table.obs["region"].isin(["f0"]) | (np.arange(table.n_obs) < 20)].copy()
    found = nb.tl.batch_effects(table)
    assert "f0" not in set(found["field"])
    assert set(found["field"]) == {f"f{i}" for i in range(1, 10)}


@pytest.mark.parametrize(
    ("spoil", "options", "error", "match"),
    [
        (lambda t: None, {"batch_key": "slide"}, ElementNotFoundError, "no column 'slide'"),
        (lambda t: None, {"min_cells": 1000}, InputError, "0 fields of at least 1000 cells"),
        (lambda t: t.obs.__setitem__("region", "one"), {}, InputError, "1 fields of at least 50"),
        (lambda t: None, {"quantiles": (1.2,)}, InputError, r"quantiles=\(1.2,\)"),
        (lambda t: None, {"quantiles": ()}, InputError, "at least one"),
        (lambda t: None, {"max_z": 0}, InputError, "max_z=0"),
        (lambda t: None, {"layer": "nope"}, ElementNotFoundError, "no layer 'nope'"),
        (lambda t: t.X.__setitem__((0, 1), np.nan), {}, InputError, r"not finite in CD8 \(1 cells\)"),
        (lambda t: t.X.__setitem__((0, 1), -1), {"log": True}, InputError, "at least 0; the lowest is -1"),
        (lambda t: None, {"key_added": "nimbus"}, InputError, "would be lost"),
    ],
)
def test_bad_input_changes_nothing(spoil, options, error, match):
    table = cohort()
    table.uns["nimbus"] = {}
    spoil(table)
    with pytest.raises(error, match=match):
        nb.tl.batch_effects(table, **options)
    assert list(table.uns) == ["nimbus"]
