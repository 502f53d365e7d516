"""Colours of dyes: scikit-image's deconvolution, and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.color import rgb2hed

from nimbus_sd._core.stain import HED_FROM_RGB, RGB_FROM_HED, combine, optical_density, separate


@given(hnp.arrays(np.uint8, (4, 5, 3)))
def test_dyes_are_those_of_scikit_image(rgb):
    np.testing.assert_allclose(separate(rgb), rgb2hed(rgb), atol=1e-12)
    np.testing.assert_allclose(separate(rgb / 255), rgb2hed(rgb), atol=1e-12)


@given(hnp.arrays(np.float64, (7, 3), elements=st.floats(0, 0.08)))
def test_colours_come_from_dyes_and_give_them_back(hed):
    # 8 bit: half a step of a dark colour is the most that is lost
    np.testing.assert_allclose(separate(combine(hed)), hed, atol=0.006)


def test_light_falls_off_exponentially():
    one, two = (combine(np.array([h, 0, 0])) / 255 for h in (0.03, 0.06))
    np.testing.assert_allclose(two, one**2, atol=0.01)
    assert combine(np.zeros(3)).tolist() == [255, 255, 255]
    assert optical_density(np.array([255, 0], np.uint8)) == pytest.approx([0, 1])
    np.testing.assert_allclose(HED_FROM_RGB @ RGB_FROM_HED, np.eye(3), atol=1e-12)
