"""From 8-bit patches to a network's input."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.subtyping.inputs import native_size, prepare


@given(patch=st.integers(8, 256), mpp=st.floats(0.1, 2))
def test_patches_show_as_much_tissue_whatever_the_pixels(patch, mpp):
    side = native_size(patch, 0.325, mpp)
    assert abs(side * mpp - patch * 0.325) <= mpp / 2 + 1e-9 or side == 2


def test_no_pixel_size_no_patch():
    for wrong in (0, -1, float("nan")):
        with pytest.raises(InputError, match="µm per px"):
            native_size(112, 0.325, wrong)


def test_values_are_a_share_of_the_light():
    raw = torch.randint(0, 256, (2, 3, 9, 9), dtype=torch.uint8)
    assert torch.equal(prepare(raw, 9), raw.float() / 255)


@pytest.mark.parametrize("factor", [2, 3])
def test_shrinking_averages_and_does_not_shift(factor):
    """A smooth ramp stays the ramp: what a shrunk px shows is the middle of those it replaces."""
    side = 12 * factor
    ramp = np.arange(side, dtype=np.float64)
    raw = torch.from_numpy(np.tile(np.rint(ramp * 3), (1, 3, side, 1)).astype(np.uint8))
    found = prepare(raw, 12)[0, 0, 5, 2:-2].numpy() * 255
    middle = (ramp.reshape(12, factor).mean(1) * 3)[2:-2]
    np.testing.assert_allclose(found, middle, atol=0.6)


def test_growing_does_not_shift():
    ramp = torch.arange(10, dtype=torch.uint8) * 20
    found = prepare(ramp.expand(1, 3, 10, 10).contiguous(), 20)[0, 0, 9].numpy() * 255
    expected = (np.arange(20) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(found[1:-1], expected[1:-1] * 20, atol=1e-3)
