"""Haematoxylin by tables, against scikit-image's colour deconvolution."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import rgb2hed

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.stain import combine
from nimbus_sd.arrays.haematoxylin import haematoxylin


def test_it_is_that_of_scikit_image():
    rgb = np.random.default_rng(0).integers(0, 256, (3, 80, 90), dtype=np.uint8)
    rgb[:, 0, :3] = [[0, 255, 0], [0, 255, 255], [0, 255, 0]]
    found = haematoxylin(rgb)
    assert found.dtype == np.float32
    assert (found > 0).any()
    assert (found == 0).any()
    np.testing.assert_allclose(found, rgb2hed(np.moveaxis(rgb, 0, -1))[..., 0], atol=1e-6)


@given(st.floats(0, 0.08), st.floats(0, 0.05))
def test_what_was_mixed_comes_back(blue, pink):
    found = haematoxylin(combine(np.array([blue, pink, 0.0]))[:, None, None])
    np.testing.assert_allclose(found, blue, atol=1.5e-3)  # of rounding to 8 bit


def test_a_part_is_the_same_to_the_last_bit():
    rgb = np.random.default_rng(1).integers(0, 256, (3, 64, 70), dtype=np.uint8)
    whole = haematoxylin(rgb)
    for y in range(0, 64, 7):
        part = haematoxylin(rgb[:, y : y + 7, 3:50])
        np.testing.assert_array_equal(part, whole[y : y + 7, 3:50])


@pytest.mark.parametrize(
    "rgb", [np.zeros((4, 2, 2), np.uint8), np.zeros((3, 2, 2)), np.zeros((3, 2), np.uint8)]
)
def test_what_is_no_he_is_refused(rgb):
    with pytest.raises(InputError, match=r"valid: \(3, y, x\) of uint8"):
        haematoxylin(rgb)
