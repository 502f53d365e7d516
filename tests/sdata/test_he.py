"""What is an H&E image, and centres in it."""

import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import Affine, Identity, Scale

import nimbus_sd as nb
from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata.he import he_centers


def pair(he=None, *, mpp=0.325, transformation=None):
    labels = np.zeros((64, 64), np.uint32)
    labels[10:14, 20:26] = 3
    he = np.full((3, 64, 64), 200, np.uint8) if he is None else he
    where = {"global": Identity() if transformation is None else transformation}
    if mpp is not None:
        where["microns"] = Scale([mpp, mpp], axes=("x", "y"))
    return SpatialData(
        images={"he": Image2DModel.parse(he, dims=("c", "y", "x"), transformations=where)},
        labels={"cells": Labels2DModel.parse(labels, dims=("y", "x"))},
    )


def test_centres_lie_in_the_he_through_its_own_affine():
    sdata = pair(
        np.full((3, 128, 128), 200, np.uint8), transformation=Scale([0.5, 0.5], axes=("x", "y")), mpp=0.1625
    )
    sample = he_centers(sdata, image="he", centers=None).samples[0]
    assert sample.centers.tolist() == [[23.5, 45.5]]  # the middle of rows 20–27 and columns 40–51
    assert sample.mpp == pytest.approx(0.1625)


def test_a_turned_he_is_found_too():
    turn = Affine([[0, 1, 0], [-1, 0, 64], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    sample = he_centers(pair(transformation=turn), image="he", centers=None).samples[0]
    # world (23, 12) is (x, y) = (52, 23) of the image, index (22.5, 51.5)
    np.testing.assert_allclose(sample.centers, [[22.5, 51.5]])


@pytest.mark.parametrize(
    ("he", "match"),
    [
        (np.zeros((3, 64, 64), np.uint16), "3 channels of uint16; an H&E has 3 .* convert it"),
        (np.zeros((4, 64, 64), np.uint8), "4 channels of uint8.*fourth channel"),
        (np.zeros((19, 64, 64), np.uint16), "19 channels.*immunofluorescence"),
        (np.zeros((1, 64, 64), np.uint8), "1 channels of uint8.*RGB"),
        (np.zeros((3, 64, 64), np.float32), "3 channels of float32"),
    ],
)
def test_images_that_are_no_he(he, match):
    with pytest.raises(InputError, match=match):
        he_centers(pair(he), image="he", centers=None)


def test_pixels_of_unknown_size():
    with pytest.raises(InputError, match="Pass mpp="):
        he_centers(pair(mpp=None), image="he", centers=None)
    assert he_centers(pair(mpp=None), image="he", centers=None, mpp=0.5).samples[0].mpp == 0.5


def test_an_unregistered_pair():
    sdata = pair()
    from spatialdata.transformations import remove_transformation, set_transformation

    set_transformation(sdata["he"], Identity(), "elsewhere")
    remove_transformation(sdata["he"], "global")
    with pytest.raises(InputError, match="don't overlap in a shared coordinate system"):
        he_centers(sdata, image="he", centers="cells")


def test_the_size_of_a_px_is_that_of_an_he():
    with pytest.raises(InputError, match=r"^mpp=325; µm per px of an H&E .*in nm\? Pass mpp=0\.325"):
        he_centers(pair(), image="he", centers=None, mpp=325)
    with pytest.raises(InputError, match="image 'he' says that a px is 250 µm wide"):
        he_centers(pair(mpp=250), image="he", centers=None)
    with pytest.warns(
        NimbusWarning, match=r"mpp=1.3, but the scale of image 'he' to 'microns' says 0.325 µm"
    ):
        found = he_centers(pair(), image="he", centers=None, mpp=1.3)
    assert found.samples[0].mpp == 1.3
    assert he_centers(pair(), image="he", centers=None, mpp=0.34).samples[0].mpp == 0.34, "close enough"


def test_the_argument_that_named_the_image_is_told():
    sdata = pair(np.zeros((5, 64, 64), np.uint16))
    with pytest.raises(InputError, match="name the H&E with image="):
        he_centers(sdata, image="he", centers=None)
    with pytest.raises(InputError, match="name the H&E with centers="):
        he_centers(sdata, image=None, centers={"cells": "he"})
    with pytest.raises(InputError, match="name the H&E with he="):
        nb.pp.registration_qc(sdata, he="he", image="he")
