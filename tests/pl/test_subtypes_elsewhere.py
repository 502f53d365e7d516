"""Plots of the other rooms on a table of sub-types, where an H&E lies on the fluorescence."""

import numpy as np
import pytest

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.pl import _style as style
from nimbus_sd.testing import tiny_subtype_model


@pytest.fixture(scope="module")
def section():
    sdata = nb.datasets.simulated_sections(shape=(128, 128), he_mpp=0.5, seed=7)
    model = tiny_subtype_model(patch=16)
    nb.tl.predict_subtypes(sdata, model=model, thresholds={"CD45": 0.625}, progress=False)
    positive = sdata["subtypes"].layers["positive"]
    positive[:, 0] = np.resize([1, 0, np.nan], len(positive))
    return sdata


def test_scores_without_intensities_and_lines_at_their_thresholds(section):
    axes = nb.pl.score_distribution(section["subtypes"], show=False)
    assert axes.shape == (4, 1)
    assert [ax.lines[-1].get_xdata()[0] for ax in axes[:, 0]] == [0.625, 0.5, 0.5, 0.5]
    axes = nb.pl.score_distribution(section["subtypes"], "CD45", threshold=0.25, show=False)
    assert axes[0, 0].lines[-1].get_xdata()[0] == 0.25
    assert not nb.pl.score_distribution(section["subtypes"], "CD45", threshold=None, show=False)[0, 0].lines
    with pytest.raises(InputError, match="threshold='x'; valid: a number, 'table' or None"):
        nb.pl.score_distribution(section["subtypes"], threshold="x")
    with pytest.raises(ElementNotFoundError, match="no layer 'integrated_expression'"):
        nb.pl.score_distribution(section["truth"])  # no table of sub-types


def test_calls_of_a_marker_on_the_tissue(section):
    table = section["subtypes"]
    for data in (section, table):
        fig = nb.pl.spatial_map(data, "CD45", table="subtypes", return_fig=True)
        (found,) = fig.legends
        assert [t.get_text() for t in found.get_texts()] == ["positive", "negative", "undefined"]
    (dots,) = fig.axes[0].collections
    colours = {"positive": style.POSITIVE, "negative": style.NEGATIVE, "undefined": style.MISSING}
    expected = [colours[("positive", "negative", "undefined")[i % 3]] for i in range(table.n_obs)]
    drawn = ["#{:02X}{:02X}{:02X}".format(*(c[:3] * 255).round().astype(int)) for c in dots.get_facecolors()]
    assert drawn == [c.upper() for c in expected]
    assert "CD45" not in table.obs
    assert "CD45_colors" not in table.uns
    with pytest.raises(ElementNotFoundError, match=r"it is a marker: a layer 'positive' \(1, 0, NaN\)"):
        nb.pl.spatial_map(section, "CD45", table="truth")


def test_overlay_takes_the_fluorescence_beside_an_he(section):
    ax = nb.pl.overlay(section, "CD45", show=False)
    named = nb.pl.overlay(section, "CD45", image="p0s0_if", show=False)
    np.testing.assert_array_equal(ax.images[0].get_array(), named.images[0].get_array())
    fig = nb.pl.overlay(section, "CD45", table="subtypes", groupby="CD45", return_fig=True)
    words = [[t.get_text() for t in each.get_texts()] for each in fig.legends]
    assert ["positive", "negative", "undefined"] in words


def test_two_fluorescence_images_are_still_asked_for(section):
    section["more"] = section["p0s0_if"]
    with pytest.raises(InputError, match="several images overlap it: 'p0s0_if', 'more'"):
        nb.pl.overlay(section, "CD45")
    del section.images["more"]
