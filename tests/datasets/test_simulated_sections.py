"""Simulated sections as a SpatialData object: names, systems, tables, and what the rest makes of them."""

from __future__ import annotations

import numpy as np
import pytest
from spatialdata import SpatialData, read_zarr

import nimbus_sd as nb
from nimbus_sd._core.errors import InputError
from nimbus_sd._core.hierarchy import MARKERS
from nimbus_sd._sdata.he import he_centers

SHAPE = (128, 160)


@pytest.fixture(scope="module")
def two():
    return nb.datasets.simulated_sections(n_patients=2, sections_per_patient=2, shape=SHAPE, seed=3)


def test_elements_and_systems(two):
    names = ["p0s0", "p0s1", "p1s0", "p1s1"]
    assert set(two.images) == {f"{name}_{kind}" for name in names for kind in ("if", "he")}
    assert set(two.labels) == {f"{name}_labels" for name in names}
    assert set(two.coordinate_systems) == {*names, "microns"}
    assert two["p1s0_if"].shape == (8, *SHAPE)
    assert two["p1s0_he"].shape == (3, *SHAPE)
    assert two["p1s0_he"].dtype == np.uint8
    assert list(two["p1s0_he"].coords["c"].values) == ["r", "g", "b"]
    assert {*MARKERS, "Hoechst", "Pan-CK"} < set(two["p0s0_if"].coords["c"].values)


def test_tables_have_a_row_for_every_label(two):
    for name in ("table", "truth"):
        obs = two[name].obs
        for region, rows in obs.groupby("region", observed=True):
            np.testing.assert_array_equal(rows["instance_id"], np.unique(two[region])[1:])
            assert (rows["section"].astype(str) + "_labels" == region).all()
            assert (rows["patient"].astype(str) == region[:2]).all()
        assert obs.index.is_unique
    assert list(two["truth"].var_names) == list(MARKERS)
    assert two["table"].obs_names.equals(two["truth"].obs_names)


def test_intensities_are_those_of_integrated_expression(two):
    part = two.subset([f"p0s0_{kind}" for kind in ("if", "labels")])
    nb.pp.integrated_expression(part, progress=False)
    table = part["integrated_expression"]
    mine = two["table"][table.obs_names]
    np.testing.assert_allclose(mine.X, table.X, rtol=1e-5)
    np.testing.assert_allclose(mine.obsm["spatial"], table.obsm["spatial"], atol=1e-6)
    np.testing.assert_array_equal(mine.obs["area_px"], table.obs["area_px"])


def test_same_seed_same_object_and_patients_do_not_depend_on_how_many(two):
    one = nb.datasets.simulated_sections(n_patients=1, sections_per_patient=1, shape=SHAPE, seed=3)
    for name in ("p0s0_he", "p0s0_if", "p0s0_labels"):
        np.testing.assert_array_equal(one[name], two[name])
    other = nb.datasets.simulated_sections(shape=SHAPE, seed=4)
    assert not np.array_equal(one["p0s0_he"], other["p0s0_he"])
    assert not np.array_equal(two["p0s0_labels"], two["p0s1_labels"])


@pytest.mark.parametrize("kwargs", [{}, {"he_mpp": 0.5}, {"he_mpp": 0.25, "rotation": 40.0}])
def test_centres_of_labels_are_found_on_the_slide(kwargs):
    sdata = nb.datasets.simulated_sections(shape=SHAPE, **kwargs)
    (sample,) = he_centers(sdata, image="p0s0_he", centers="p0s0_labels").samples
    assert sample.mpp == pytest.approx(kwargs.get("he_mpp", 0.325))
    assert len(sample) == sdata["table"].n_obs
    np.testing.assert_allclose(sample.positions(), sdata["table"].obsm["spatial"], atol=1e-6)


def test_gates_suggested_on_the_immunofluorescence_find_the_truth():
    sdata = nb.datasets.simulated_sections(n_patients=2, shape=(640, 640), seed=1)
    table, truth = sdata["table"], sdata["truth"].to_df()
    nb.pp.gate(table, nb.pp.suggest_thresholds(table, markers=list(MARKERS)))
    gated = table.to_df(layer="gated")
    for marker in MARKERS:
        known = gated[marker].notna() & truth[marker].notna()
        assert known.mean() > 0.5, marker
        assert (gated[marker] == truth[marker])[known].mean() >= 0.98, marker
        assert truth[marker][known & (gated[marker] == 1)].mean() > 0.85, marker


def test_the_object_survives_the_disk(two, tmp_path):
    two.write(tmp_path / "sections.zarr")
    back = read_zarr(tmp_path / "sections.zarr")
    assert isinstance(back, SpatialData)
    np.testing.assert_array_equal(back["p1s1_he"], two["p1s1_he"])
    for name in ("table", "truth"):
        np.testing.assert_array_equal(back[name].X, two[name].X)
        assert list(back[name].obs.columns) == list(two[name].obs.columns)


def test_offset_and_error_are_told():
    sdata = nb.datasets.simulated_sections(shape=SHAPE, registration_error=0, offset=(3.0, 4.0))
    np.testing.assert_allclose(sdata["truth"].obs["registration_error"], 5.0, rtol=1e-5)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"n_patients": 0},
        {"sections_per_patient": 0},
        {"shape": (10, 10)},
        {"mpp": 0.0},
        {"he_mpp": -1.0},
        {"immune": 2.0},
        {"registration_error": -0.5},
        {"rotation": float("nan")},
        {"offset": (1.0, 2.0, 3.0)},
    ],
)
def test_impossible_requests_are_refused(kwargs):
    with pytest.raises(InputError):
        nb.datasets.simulated_sections(**{"shape": SHAPE, **kwargs})
