"""Cutting patches: equal to naive slicing of a padded image, wherever they lie."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays.patches import beyond, corners, cut, reflected


@given(n=st.integers(1, 12), data=st.data())
def test_reflected_indices_are_those_of_numpy_pad(n, data):
    before, after = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))
    expected = np.pad(np.arange(n), (before, after), mode="reflect")
    assert reflected(-before, n + after, n).tolist() == expected.tolist()


@pytest.mark.parametrize(("start", "stop"), [(-5, 3), (0, 10), (-9, 2)])
def test_reflection_further_than_the_axis_is_long_is_an_error(start, stop):
    with pytest.raises(InputError, match="can't be reflected in 5 px"):
        reflected(start, stop, 5)


@pytest.mark.parametrize("size", [1, 2, 5, 32])
def test_the_px_of_the_centre_lies_in_the_middle_of_its_patch(size):
    centers = np.array([[10.0, 20.0], [10.49, 19.5], [9.5, 20.49], [-0.5, 0.0]])
    first = corners(centers, size)
    assert (first + size // 2).tolist() == [[10, 20], [10, 20], [10, 20], [0, 0]]


def test_beyond_tells_which_patches_reach_over_a_border():
    first = np.array([[0, 0], [-1, 3], [3, 4], [3, 5], [4, 4]])
    assert beyond(first, 4, (7, 8)).tolist() == [False, True, False, True, True]


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(4, 12), st.integers(4, 12)),
    size=st.integers(1, 4),
    dtype=st.sampled_from(["uint8", "uint16", "uint32", "int16", "float16", "float32", "float64", "bool"]),
    seed=st.integers(0, 99),
)
def test_patches_are_slices(shape, size, dtype, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 200, shape).astype(dtype)
    first = rng.integers(0, np.array(shape[1:]) - size + 1, (7, 2))
    found = cut(image, first, size)
    assert found.dtype == image.dtype
    assert found.shape == (7, shape[0], size, size)
    for patch, (y, x) in zip(found, first, strict=True):
        np.testing.assert_array_equal(patch, image[:, y : y + size, x : x + size])


def test_patches_go_to_the_rows_that_are_named_and_nowhere_else():
    image = np.arange(50.0).reshape(2, 5, 5)
    out = np.full((5, 2, 2, 2), -1.0)
    cut(image, np.array([[0, 0], [3, 3]]), 2, out=out, at=np.array([4, 1]))
    np.testing.assert_array_equal(out[4], image[:, :2, :2])
    np.testing.assert_array_equal(out[1], image[:, 3:, 3:])
    assert (out[[0, 2, 3]] == -1).all()


@pytest.mark.parametrize("first", [[-1, 0], [0, 3], [4, 0]])
def test_a_patch_beyond_the_image_is_an_error_not_a_wrapped_slice(first):
    with pytest.raises(InputError, match="2 px reach beyond an image of 5 x 4 px"):
        cut(np.zeros((1, 5, 4)), np.array([[0, 0], first]), 2)


def test_no_patches_at_all():
    assert cut(np.zeros((3, 5, 4), np.uint8), np.empty((0, 2), int), 2).shape == (0, 3, 2, 2)
