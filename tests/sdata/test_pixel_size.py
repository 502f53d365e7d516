"""Pixel sizes of elements without a scale of their own, from the one that the object gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation, set_transformation

import nimbus_sd as nb
from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata.elements import mpp_of
from nimbus_sd._sdata.he import he_centers
from nimbus_sd._sdata.resolve import resolve_pairs, resolve_sample
from nimbus_sd._sdata.samples import resolve_samples

MPP = 0.325


def scaled(factor):
    return Scale([factor, factor], axes=("x", "y"))


def build(*, system="s", attrs=MPP, **scales) -> SpatialData:
    """Images ``he`` and ``if``, labels ``cells``, … by the size of their px in the shared system."""
    elements = {}
    for name, to in scales.items():
        where = {system: scaled(to) if isinstance(to, float) else to}
        if name == "points":
            elements[name] = PointsModel.parse(np.full((3, 2), 5.0), transformations=where)
        elif name.startswith("cells"):
            labels = np.eye(64, dtype=np.uint32)
            elements[name] = Labels2DModel.parse(labels, dims=("y", "x"), transformations=where)
        else:
            pixels = np.full((3, 64, 64), 9, np.uint8 if name == "he" else np.uint16)
            elements[name] = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=where)
    return SpatialData.init_from_elements(elements, attrs={"nimbus_sd": {"mpp": attrs} if attrs else {}})


def own(sdata, *names, mpp=MPP):
    """Give elements a scale of their own."""
    for name in names:
        set_transformation(sdata[name], scaled(mpp), "microns")
    return sdata


@pytest.mark.parametrize("image", [None, "he"])
def test_an_he_of_other_px_than_the_fluorescence(image):
    sdata = build(he=2.0, cells=1.0, **{"if": 1.0})
    (found,) = he_centers(sdata, image=image, centers=None).samples
    assert found.mpp == pytest.approx(2 * MPP)
    with pytest.warns(NimbusWarning, match=r"^mpp=0.5, but by sdata.attrs\['nimbus_sd'\] image 'he' has"):
        (told,) = he_centers(sdata, image=image, centers=None, mpp=0.5).samples
    assert told.mpp == 0.5


@pytest.mark.parametrize("rotation", [0.0, 5.0, -90.0])
def test_a_simulated_he_whose_scale_is_lost(rotation):
    sdata = nb.datasets.simulated_sections(shape=(128, 128), he_mpp=0.65, rotation=rotation)
    assert mpp_of(sdata, "images", "p0s0_he") == pytest.approx(0.65)
    for lost in ("p0s0_he", "p0s0_labels", "p0s0_if"):  # one after the other, till none has it
        place = get_transformation(sdata[lost], "p0s0")
        set_transformation(sdata[lost], {"p0s0": place}, set_all=True)
        assert mpp_of(sdata, "images", "p0s0_he") == pytest.approx(0.65, rel=1e-3)
        assert mpp_of(sdata, "images", "p0s0_if") == pytest.approx(0.325)
        assert mpp_of(sdata, "labels", "p0s0_labels") == pytest.approx(0.325)


def test_points_with_a_scale_tell_as_well():
    sdata = own(build(he=2.0, points=1.0), "points")
    assert he_centers(sdata, image=None, centers="points").samples[0].mpp == pytest.approx(2 * MPP)


@pytest.mark.parametrize(
    "to", [Identity(), scaled(0.5), Affine([[0, 3, 1], [-3, 0, 9], [0, 0, 1]], ("x", "y"), ("x", "y"))]
)
def test_images_that_share_the_grid_of_their_labels_have_the_size_that_is_given(to):
    sdata = build(he=to, cells=to, **{"if": to})
    for name in ("he", "if"):
        assert mpp_of(sdata, "images", name) == pytest.approx(MPP)
    (pair,) = resolve_pairs(sdata, image="if")
    assert resolve_sample(sdata, pair).sample.mpp == pytest.approx(MPP)


def test_labels_on_a_coarser_grid():
    sdata = build(cells=4.0, **{"if": 1.0})
    assert mpp_of(sdata, "images", "if") == pytest.approx(MPP)
    assert mpp_of(sdata, "labels", "cells") == pytest.approx(4 * MPP)
    none = build(cells=0.8, **{"if": 0.2})  # no px is a unit: the image's is given
    assert mpp_of(none, "images", "if") == pytest.approx(MPP)
    assert mpp_of(none, "labels", "cells") == pytest.approx(4 * MPP)


def test_nuclei_found_in_the_he_change_nothing():
    sdata = build(he=2.0, cells=1.0, cells_he=2.0, **{"if": 1.0})
    assert mpp_of(sdata, "images", "he") == pytest.approx(2 * MPP)


@pytest.mark.parametrize(
    "scales",
    [
        {"he": 2.0, "cells_he": 2.0, "if": 1.0},  # the only labels are the H&E's, the units the other's
        {"he": 0.4, "if": 0.2},
        {"he": 0.4, "if": 0.2, "cells": 0.2},
    ],
)
def test_what_could_be_meant_of_several_is_asked_for(scales):
    sdata = build(**scales)
    with pytest.raises(InputError, match=r"images 'he': how large is a px\? .*pass mpp="):
        mpp_of(sdata, "images", "he")
    other = own(sdata, "if")
    assert mpp_of(other, "images", "he") == pytest.approx(2 * MPP)
    assert mpp_of(own(build(attrs=None, **scales), "if"), "images", "he") is None


def test_elements_elsewhere_say_nothing():
    sdata = build(he=2.0)
    other = build(system="t", cells=1.0, **{"if": 1.0})
    for name in ("cells", "if"):
        sdata[name] = other[name]
    assert mpp_of(sdata, "images", "he") == pytest.approx(MPP)


def test_px_that_are_not_square():
    sdata = build(he=Scale([2, 3], axes=("x", "y")), cells=1.0, **{"if": 1.0})
    with pytest.raises(InputError, match=r"0\.65 x 0\.975 µm, not square"):
        mpp_of(sdata, "images", "he")


def samples(sdata, mpp=None, **more):
    return resolve_samples(sdata, image=None, labels=None, channels="all", mpp=mpp, **more).samples


@pytest.mark.parametrize(
    ("mpp", "said"),
    [
        (325, r"^mpp=325; µm per px lie between 0.05 and 10; is that in nm\? Pass mpp=0.325$"),
        (0.000325, r"^mpp=0.000325; .* in mm\? Pass mpp=0.325$"),
        (11.0, r"^mpp=11; .* between 0.05 and 10; pass it in µm, for instance mpp=0.5$"),
        (0.04, r"^mpp=0.04; .*; pass it in µm"),
        (1e-6, r"^mpp=1e-06; .*; pass it in µm"),
    ],
)
def test_a_size_that_no_px_has_is_refused_everywhere(mpp, said):
    sdata = own(build(cells=1.0, **{"if": 1.0}), "if", "cells")
    folder = Path("nothing")
    for call in (
        lambda: nb.tl.predict(sdata, mpp=mpp, channels="all", progress=False),
        lambda: nb.tl.estimate(sdata, mpp=mpp, channels="all"),
        lambda: nb.pp.integrated_expression(sdata, mpp=mpp, channels="all"),
        lambda: nb.pp.cell_patches(sdata, mpp=mpp, channels="all"),
        lambda: nb.pp.expand_labels(sdata, "cells", distance=1.0, mpp=mpp),
        lambda: nb.io.read_fovs(folder, mpp=mpp),
    ):
        with pytest.raises(InputError, match=said):
            call()
    assert not sdata.tables


@pytest.mark.parametrize("mpp", [0.05, 0.1, 2.0, 10.0])
def test_sizes_that_px_may_have(mpp):
    assert samples(own(build(cells=1.0, **{"if": 1.0}), "if", "cells", mpp=mpp))[0].sample.mpp == mpp


def test_an_object_whose_own_size_no_px_has():
    sdata = own(build(attrs=None, cells=1.0, **{"if": 1.0}), "if", "cells", mpp=488.0)
    with pytest.raises(
        InputError, match=r"^image 'if' says that a px is 488 µm wide; .*nm\? Pass mpp=0\.488"
    ):
        samples(sdata)
    with pytest.raises(InputError, match=r"^labels 'cells' says that a px is 488 µm wide"):
        nb.pp.expand_labels(sdata, "cells", distance=1.0)
    assert samples(sdata, need_mpp=False)[0].sample.mpp == 488.0, "nothing is scaled by it"
    with pytest.warns(NimbusWarning, match=r"^mpp=0.5, but the scale of image 'if' to 'microns' says 488 µm"):
        assert samples(sdata, mpp=0.5)[0].sample.mpp == 0.5


def test_another_size_than_the_object_says_is_said_once_for_all_images():
    sdata = own(build(cells=1.0, **{"if": 1.0}), "if", "cells", mpp=0.488)
    told = r"mpp=0.3, but the scale of image 'if' to 'microns' says 0.488 µm per px"
    with pytest.warns(NimbusWarning, match=told + r"; the former is used\. Leave mpp= out") as seen:
        assert samples(sdata, mpp=0.3)[0].sample.mpp == 0.3
    assert len(seen) == 1
    with pytest.warns(NimbusWarning, match=told + r" \(1 more images differ") as seen:
        assert len(samples({"a": sdata, "b": sdata}, mpp=0.3)) == 2
    assert len(seen) == 1
    with pytest.warns(NimbusWarning, match=r"mpp=0.3, but by sdata\.attrs\['nimbus_sd'\] image 'if' has"):
        samples(build(cells=1.0, **{"if": 1.0}), mpp=0.3)
    assert samples(sdata, mpp=0.489)[0].sample.mpp == 0.489, "close enough"
    assert samples(build(attrs=None, cells=1.0, **{"if": 1.0}), mpp=0.3)[0].sample.mpp == 0.3
