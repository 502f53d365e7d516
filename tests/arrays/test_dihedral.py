"""The eight views: all different, each undone, as NumPy's rotations say."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import VIEWS, apply_view, invert_view

NUMPY = {
    "identity": lambda a: a,
    "flip_y": lambda a: np.flip(a, -2),
    "flip_x": lambda a: np.flip(a, -1),
    "rot180": lambda a: np.rot90(a, 2, axes=(-2, -1)),
    "transpose": lambda a: np.swapaxes(a, -1, -2),
    "rot90": lambda a: np.rot90(a, 1, axes=(-2, -1)),
    "rot270": lambda a: np.rot90(a, 3, axes=(-2, -1)),
    "antitranspose": lambda a: np.swapaxes(np.rot90(a, 2, axes=(-2, -1)), -1, -2),
}


@pytest.mark.parametrize("view", VIEWS)
@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)))
def test_applied_as_numpy_does_and_undone(view, shape):
    x = np.arange(np.prod(shape)).reshape(shape)
    there = apply_view(x, view)
    np.testing.assert_array_equal(there, NUMPY[view](x))
    np.testing.assert_array_equal(invert_view(there, view), x)


@pytest.mark.parametrize("view", VIEWS)
def test_torch_and_numpy_agree(view):
    x = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    there = apply_view(torch.from_numpy(x), view)
    np.testing.assert_array_equal(there.numpy(), apply_view(x, view))
    assert torch.equal(invert_view(there, view), torch.from_numpy(x))


def test_all_eight_are_different():
    x = np.arange(9).reshape(3, 3)
    seen = {apply_view(x, view).tobytes() for view in VIEWS}
    assert len(VIEWS) == len(seen) == 8
    seen = {invert_view(x, view).tobytes() for view in VIEWS}
    assert len(seen) == 8


def test_an_unknown_view_lists_the_valid_ones():
    with pytest.raises(InputError, match=r"'rot45'.*antitranspose"):
        apply_view(np.zeros((2, 2)), "rot45")
    with pytest.raises(InputError, match=r"'rot45'"):
        invert_view(np.zeros((2, 2)), "rot45")
