"""nb.tl.confounders: the five figures per cell, units, fields, and a planted effect."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.feature_selection import mutual_info_classif

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.tl._confounders import CONFOUNDERS, _features, _unit


@pytest.fixture
def table():
    """Two fields of 300 cells, 0.5 µm px; small cells are called at random."""
    rng = np.random.default_rng(0)
    n = 600
    truth = (rng.random((n, 2)) < [0.5, 0.2]).astype(np.float32)
    area = rng.integers(20, 400, n)
    scores = np.where((area < 150)[:, None], rng.random((n, 2)), 0.1 + 0.8 * truth).astype(np.float32)
    obs = pd.DataFrame(
        {"region": np.repeat(["f0", "f1"], n // 2), "area_px": area, "area_um2": area * 0.25},
        index=[f"c{i}" for i in range(n)],
    )
    adata = ad.AnnData(scores, obs=obs, var=pd.DataFrame(index=["CD3", "CD8"]))
    adata.obsm["spatial"] = rng.random((n, 2)) * 600
    adata.layers["gold"] = truth
    adata.layers["integrated_expression"] = (truth * rng.random((n, 2)) + 0.1).astype(np.float32)
    return adata


def test_features_equal_counting_by_hand(table):
    truth = table.layers["gold"].astype(float)
    truth[5:9, 0] = np.nan
    found = _features(
        table,
        truth,
        ["CD3", "CD8"],
        radius=100,
        region_key="region",
        expression_layer="integrated_expression",
    )
    assert tuple(found) == CONFOUNDERS
    region, xy = table.obs.region.to_numpy(), table.obsm["spatial"]
    for i in (0, 7, 299, 300, 599):
        near = (region == region[i]) & (np.hypot(*(xy - xy[i]).T) <= 100)
        near[i] = False
        field = region == region[i]
        for k in range(2):
            assert found["cell_density"][i, k] == near.sum()
            assert found["marker_sparsity"][i, k] == (truth[near, k] == 1).sum()
            assert found["marker_rarity"][i, k] == pytest.approx(np.nanmean(truth[field, k]))
            e = table.layers["integrated_expression"][field, k]
            assert found["marker_heterogeneity"][i, k] == pytest.approx(e.std() / e.mean(), rel=1e-5)
            assert found["cell_size"][i, k] == table.obs.area_px.iloc[i]


def test_the_planted_confounder_is_found_and_seeded(table):
    found = nb.tl.confounders(table, "gold")
    one = found[found.marker == "CD3"].set_index("confounder")
    assert one.mutual_information.idxmax() == "cell_size"
    assert one.loc["cell_size", "share"] > 0.2
    assert one.loc[["cell_density", "marker_sparsity"], "mutual_information"].max() < 0.05
    wrong = (table.X[:, 0] > 0.5) != (table.layers["gold"][:, 0] == 1)
    expected = mutual_info_classif(table.obs[["area_px"]].to_numpy(float), wrong, random_state=0)[0]
    assert one.loc["cell_size", "mutual_information"] == pytest.approx(expected)
    assert one.loc["cell_size", ["n", "n_wrong"]].tolist() == [600, wrong.sum()]
    pd.testing.assert_frame_equal(found, nb.tl.confounders(table, "gold"))
    pooled = found[found.marker == "(all)"]
    assert (pooled.n == 1200).all()


def test_units_of_positions_and_of_the_radius(table):
    px = nb.tl.confounders(table, "gold", markers="CD3", radius=60)
    microns = table.copy()
    microns.obsm["spatial"] = table.obsm["spatial"] * 0.5
    pd.testing.assert_frame_equal(px, nb.tl.confounders(microns, "gold", markers="CD3", radius=60, unit=1))
    microns.uns["nimbus"] = {"coordinate_systems": {"f0": "microns", "f1": "microns"}}
    pd.testing.assert_frame_equal(px, nb.tl.confounders(microns, "gold", markers="CD3", radius=60))
    pd.testing.assert_frame_equal(px, nb.tl.confounders(table, "gold", markers="CD3", radius=30, mpp=2))
    assert _unit(table, None) == 0.5
    table.obs["area_um2"] *= np.where(table.obs.region == "f0", 1, 4)
    with pytest.raises(InputError, match=r"pixels of 0\.5 to 1 µm"):
        nb.tl.confounders(table, "gold")


def test_undefined_is_nan_with_a_reason(table):
    table.X = table.layers["gold"] * 0.8
    table.X[:2, 0] = 1 - table.layers["gold"][:2, 0]
    found = nb.tl.confounders(table, "gold").set_index(["marker", "confounder"])
    assert found.mutual_information.isna().all()
    assert found.loc[("CD3", "cell_size"), "reason"] == "only 2 cells are wrong"
    one = table[:300].copy()
    one.X = np.random.default_rng(0).random((300, 2), dtype=np.float32)
    found = nb.tl.confounders(one, "gold", markers="CD3", expression_layer=None).set_index("confounder")
    assert "marker_heterogeneity" not in found.index
    assert set(found.loc["marker_rarity", "reason"]) == {"does not vary here"}
    assert found.loc["cell_size", "mutual_information"].notna().all()


def test_a_draw_of_cells_keeps_the_counts(table):
    found = nb.tl.confounders(table, "gold", max_cells=200)
    assert found[found.marker == "(all)"].n.tolist() == [1200] * 5
    assert found[(found.marker == "CD3") & (found.confounder == "cell_size")].share.iloc[0] > 0.1


@pytest.mark.parametrize(
    ("spoil", "options", "error", "match"),
    [
        (lambda t: t.obsm.pop("spatial"), {}, InputError, r"no obsm\['spatial'\]"),
        (lambda t: t.obs.pop("area_um2"), {}, InputError, "unit of obsm.* unknown.*Pass unit="),
        (lambda t: t.obs.pop("area_px"), {"unit": 1}, ElementNotFoundError, "no column 'area_px'"),
        (lambda t: None, {"region_key": "fov"}, ElementNotFoundError, "no column 'fov'"),
        (lambda t: None, {"radius": 0}, InputError, "radius=0"),
        (lambda t: None, {"unit": -1}, InputError, "unit=-1"),
        (lambda t: None, {"threshold": {"Y": 1}}, InputError, "none for scores 'X'"),
        (lambda t: None, {"expression_layer": "raw"}, ElementNotFoundError, "no layer 'raw'"),
    ],
)
def test_bad_input(table, spoil, options, error, match):
    spoil(table)
    with pytest.raises(error, match=match):
        nb.tl.confounders(table, "gold", **options)
