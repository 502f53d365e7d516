"""The interior mask against scikit-image's boundaries."""

import numpy as np
import pytest
from hypothesis import given
from skimage.segmentation import find_boundaries

from nimbus_sd.arrays import interior_mask
from nimbus_sd.testing import random_labels, strategies


def oracle(labels):
    return (labels > 0) & ~find_boundaries(labels, connectivity=1, mode="inner")


@given(strategies.small_labels())
def test_equals_the_published_rule(labels):
    before = labels.copy()
    np.testing.assert_array_equal(interior_mask(labels), oracle(labels))
    np.testing.assert_array_equal(labels, before)


@given(strategies.labels())
def test_awkward_ids(labels):
    np.testing.assert_array_equal(interior_mask(labels), oracle(labels))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "uint64"])
def test_any_integer_dtype(dtype):
    labels = random_labels((40, 30), ids=[1, 2, 100]).astype(dtype)
    np.testing.assert_array_equal(interior_mask(labels), oracle(labels.astype(np.int64)))


def test_one_pixel_of_margin_is_all_a_crop_needs():
    labels = random_labels((50, 41), n=30)
    whole = interior_mask(labels)
    for y, x in [(1, 1), (7, 20), (30, 3)]:
        crop = labels[y - 1 : y + 11, x - 1 : x + 9]
        np.testing.assert_array_equal(interior_mask(crop)[1:-1, 1:-1], whole[y : y + 10, x : x + 8])
