"""Sections stained twice: the same cells in both images, registered as well as asked, and as hard as said."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.hierarchy import MARKERS
from nimbus_sd._core.stain import separate
from nimbus_sd.simulation import Placement, SectionConfig, Stain, simulate_section
from nimbus_sd.simulation.warp import local_error

SMALL = SectionConfig(shape=(128, 160))
EXACT = Placement(error=0)
CLEAN = Stain(noise=0, quality=100)


@pytest.fixture(scope="module")
def section():
    """Larger, so that shares mean something."""
    return simulate_section(1, SectionConfig(shape=(800, 800), placement=EXACT))


def _measured(section, plane):
    """Mean of a (y, x) plane over each label."""
    flat = section.labels.ravel()
    return (np.bincount(flat, weights=plane.ravel()) / np.maximum(np.bincount(flat), 1))[1:]


def _haematoxylin(he):
    return separate(np.moveaxis(he, 0, -1))[..., 0]


def test_same_seed_same_arrays_other_seed_other_arrays():
    first, again, other = (simulate_section(seed, SMALL) for seed in (3, 3, 4))
    for item in fields(first):
        a, b = getattr(first, item.name), getattr(again, item.name)
        for key in a if isinstance(a, dict) else [...]:
            np.testing.assert_array_equal(*(x[key] if isinstance(x, dict) else x for x in (a, b)))
    assert not np.array_equal(first.he, other.he)
    assert not np.array_equal(first.labels, other.labels)


@settings(max_examples=6)
@given(
    shape=st.tuples(st.integers(64, 131), st.integers(64, 131)),
    mpp=st.sampled_from([0.25, 0.325, 0.5, 1.0]),
    he_mpp=st.sampled_from([None, 0.25, 0.5]),
    turn=st.sampled_from([0.0, 30.0, -95.0]),
    immune=st.sampled_from([0.0, 0.2, 0.7]),
    seed=st.integers(0, 2**31),
)
def test_any_shape_pixel_size_and_turn(shape, mpp, he_mpp, turn, immune, seed):
    placement = Placement(mpp=he_mpp, turn=turn)
    s = simulate_section(seed, SectionConfig(shape=shape, mpp=mpp, immune=immune, placement=placement))
    n = len(s.instance_ids)
    assert s.fluorescence.shape == (8, *shape)
    assert s.fluorescence.dtype == np.uint16
    assert s.he.shape[0] == 3
    assert s.he.dtype == np.uint8
    assert s.labels.shape == s.true_labels.shape == shape
    assert n == s.labels.max()
    assert s.positive.shape == (n, len(MARKERS))
    assert np.isin(s.positive[~np.isnan(s.positive)], (0, 1)).all()
    assert s.expression.shape == (n, 8)
    corners = np.array([[0, 0], [shape[1], 0], [0, shape[0]], [shape[1], shape[0]]])
    inside = np.linalg.solve(s.matrix, np.c_[corners, np.ones(4)].T)[:2].T
    assert (inside > -1e-6).all()
    assert (inside < np.array(s.he.shape[:0:-1]) + 1e-6).all()


def test_pixel_size_changes_the_grid_and_not_the_cells():
    coarse, fine = (
        simulate_section(0, SectionConfig(shape=(n, n), mpp=mpp)) for n, mpp in ((320, 0.5), (640, 0.25))
    )
    diameters = [np.nanmedian(s.morphology["diameter"][s.cell_types == "epithelial"]) for s in (coarse, fine)]
    assert diameters[0] == pytest.approx(diameters[1], rel=0.06)
    areas = [np.median(np.bincount(s.labels.ravel())[1:]) for s in (coarse, fine)]
    assert areas[1] / areas[0] == pytest.approx(4, rel=0.35)


def test_prevalence_is_that_of_the_paper_or_what_is_asked(section):
    share = dict(zip(MARKERS, np.nanmean(section.positive, 0), strict=True))
    assert share["CD45"] == pytest.approx(0.2, abs=0.04)
    assert 0.06 < share["CD3e"] < 0.14
    assert 0.02 < share["CD8a"] < 0.08
    assert 0.02 < share["CD4"] < 0.09
    many = simulate_section(1, SectionConfig(shape=(500, 500), immune=0.5))
    assert np.nanmean(many.positive[:, 0]) == pytest.approx(0.5, abs=0.08)


def test_truth_follows_the_hierarchy_and_the_types(section):
    positive = section.positive
    for child, parent in ((1, 0), (2, 1), (3, 1)):
        known = ~np.isnan(positive[:, [child, parent]]).any(1)
        assert (positive[known, child] <= positive[known, parent]).all()
    assert np.nanmean(positive[section.cell_types == "CD8 T", 3]) > 0.95
    assert np.nanmean(positive[section.cell_types == "epithelial", 0]) < 0.02


def test_lymphocytes_are_small_dark_and_round_and_epithelium_is_not(section):
    look, t_cell = section.morphology, np.isin(section.cell_types, ["CD4 T", "CD8 T"])
    epithelium, spindle = section.cell_types == "epithelial", section.cell_types == "fibroblast"
    assert np.median(look["diameter"][t_cell]) < 0.85 * np.median(look["diameter"][epithelium])
    assert np.median(look["ratio"][t_cell]) < 1.4 < 2.5 < np.median(look["ratio"][spindle])
    # and so in the image, not only on paper
    seen = _measured(section, _haematoxylin(section.he))
    assert np.median(seen[t_cell]) > 1.2 * np.median(seen[epithelium])
    area = np.bincount(section.labels.ravel())[1:]
    assert np.median(area[t_cell]) < 0.8 * np.median(area[epithelium])


def test_types_overlap(section):
    look, t_cell = section.morphology, np.isin(section.cell_types, ["CD4 T", "CD8 T"])
    other = ~np.isin(section.cell_types, ["CD4 T", "CD8 T", "Treg", "B", ""])
    for name in ("diameter", "haematoxylin", "ratio", "clumps", "eosin"):
        low, high = np.quantile(look[name][t_cell], [0.1, 0.9])
        between = (look[name][other] > low) & (look[name][other] < high)
        assert 0.01 < between.mean() < 0.9, name


def test_lumen_is_white_nuclei_are_blue_and_stroma_is_pink(section):
    rgb = np.moveaxis(section.he, 0, -1).astype(int)
    bright = rgb.sum(-1) > 3 * 232
    assert 0.005 < bright.mean() < 0.35
    lymphocytes = np.isin(section.cell_types, ["CD4 T", "CD8 T", "B"])
    nuclei = rgb[np.isin(section.labels, section.instance_ids[lymphocytes])].mean(0)
    assert nuclei[2] > nuclei[0] > nuclei[1]
    stroma = rgb[(section.true_labels == 0) & ~bright].mean(0)
    assert stroma[0] > stroma[2] > stroma[1] + 15


def test_haematoxylin_lies_where_dna_does(section):
    blue, dna = _haematoxylin(section.he), section.fluorescence[0].astype(float)
    assert np.corrcoef(blue.ravel(), dna.ravel())[0, 1] > 0.8


@pytest.mark.parametrize("size", [0.5, 2.0])
def test_local_registration_error_is_as_large_as_asked(size):
    placement = Placement(error=size)
    fields = [local_error(np.random.default_rng(i), (700, 900), placement, 0.325) for i in range(5)]
    lengths = [(field**2).sum(-1).mean() for field in fields]
    assert np.sqrt(np.mean(lengths)) == pytest.approx(size, rel=0.2)
    # neighbours move together: it is a registration's error, not a jitter
    step = np.abs(np.diff(fields[0], axis=1)).max()
    assert step < 0.1 * size
    section = simulate_section(0, replace(SMALL, placement=placement))
    assert 0.05 * size < np.hypot(*section.error.T).mean() < 3 * size


def test_cells_lie_where_the_error_says():
    """The H&E under each cell's offset is the H&E that a perfect registration shows there."""
    config = SectionConfig(shape=(300, 300), stain=CLEAN, placement=EXACT)
    perfect = simulate_section(2, config)
    wrong = simulate_section(2, replace(config, placement=Placement(error=0, offset=(6.5, -3.25))))
    moved = np.roll(perfect.he, (20, -10), (1, 2))
    inner = np.s_[:, 40:-40, 40:-40]
    assert np.abs(moved[inner].astype(int) - wrong.he[inner]).mean() < 0.5
    np.testing.assert_allclose(wrong.error, [[6.5, -3.25]] * len(wrong.error))


def test_the_matrix_leads_from_the_turned_slide_to_the_section():
    config = SectionConfig(shape=(240, 300), stain=replace(CLEAN, blur=0.4), placement=EXACT)
    straight = simulate_section(5, config)
    turned = simulate_section(5, replace(config, placement=Placement(mpp=0.25, turn=25, error=0)))
    rows, columns = np.mgrid[60:180, 60:240]
    x, y = np.linalg.solve(
        turned.matrix, np.stack([columns.ravel() + 0.5, rows.ravel() + 0.5, np.ones(rows.size)])
    )[:2]
    back = ndimage.map_coordinates(_haematoxylin(turned.he), [y - 0.5, x - 0.5], order=1)
    there = _haematoxylin(straight.he)[rows, columns].ravel()
    assert np.corrcoef(back, there)[0, 1] > 0.98


def test_simple_thresholds_on_the_immunofluorescence_find_the_truth(section):
    """Halfway on the log scale between both populations, a margin left undefined."""
    for k, marker in enumerate(MARKERS):
        value = section.expression[:, section.channel_names.index(marker)]
        truth = section.positive[:, k]
        centre = np.sqrt(np.quantile(value, 0.5) * np.quantile(value[truth == 1], 0.5))
        known = ~np.isnan(truth) & ((value < 0.8 * centre) | (value > 1.8 * centre))
        assert known.mean() > 0.75, marker
        assert ((value[known] > centre) == truth[known]).mean() >= 0.98, marker


@pytest.mark.parametrize(
    "make",
    [
        lambda: SectionConfig(shape=(32, 100)),
        lambda: SectionConfig(mpp=0),
        lambda: SectionConfig(immune=1.5),
        lambda: SectionConfig(markers=()),
        lambda: Placement(mpp=0),
        lambda: Placement(error=-1),
        lambda: Placement(error=float("nan")),
        lambda: Placement(turn=float("inf")),
        lambda: Placement(offset=(1.0,)),
        lambda: Placement(offset=(float("nan"), 0.0)),
        lambda: Stain(haematoxylin=0),
        lambda: Stain(quality=0),
        lambda: Stain(white=(1.0, 1.0)),
        lambda: Stain(white=(1.0, 1.0, 2.0)),
    ],
)
def test_impossible_requests_are_refused(make):
    with pytest.raises(InputError):
        make()
