"""Counts in discs equal a loop over pixels; boxes equal a sum over the whole image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus_sd.arrays import Interval
from nimbus_sd.arrays.background import box_sums, disc_areas, disc_sums, noise_bound
from nimbus_sd.testing import strategies as own


def slow_sums(plane, radius):
    y, x = np.mgrid[: plane.shape[0], : plane.shape[1]]
    out = np.zeros(plane.shape)
    for i, j in np.ndindex(plane.shape):
        out[i, j] = plane[(y - i) ** 2 + (x - j) ** 2 <= radius**2].sum()
    return out


@given(own.shapes(1, 14), st.sampled_from([1, 1.5, 3, 5.2, 20]), st.sampled_from(["uint8", "float32"]))
def test_sums_over_discs(shape, radius, dtype):
    counts = np.random.default_rng(0).poisson(1, (2, *shape)).astype(dtype)
    found = disc_sums(counts, radius=radius)
    np.testing.assert_array_equal(found, [slow_sums(p, radius) for p in counts])


@given(own.shapes(1, 14), st.sampled_from([1, 2.5, 6]))
def test_areas_of_discs_and_of_parts_of_the_image(shape, radius):
    whole = slow_sums(np.ones(shape), radius)
    y, x = (Interval(n // 3, n) for n in shape)
    part = disc_areas(shape, radius=radius, y=y, x=x)
    np.testing.assert_array_equal(part, whole[y.slice, x.slice])


@given(own.shapes(1, 20), st.integers(1, 7), st.data())
def test_boxes_add_up_whatever_the_chunks(shape, side, data):
    plane = np.random.default_rng(1).integers(0, 9, shape).astype(np.uint8)
    rows, columns = (n // side for n in shape)
    cut = plane[: rows * side, : columns * side].astype(int)
    expected = cut.reshape(rows, side, columns, side).sum((1, 3))
    out = np.zeros((rows, columns), dtype=np.int64)
    in_y, in_x = data.draw(own.chunks(shape))
    for y, h in zip(np.cumsum((0, *in_y)), in_y, strict=False):
        for x, w in zip(np.cumsum((0, *in_x)), in_x, strict=False):
            box_sums(plane[y : y + h, x : x + w], side=side, start=(int(y), int(x)), out=out)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("level", [0.5, 4, 20])
def test_noise_hardly_reaches_the_bound_and_signal_does(level, rng):
    noise = rng.poisson(level, 20_000)
    bound = noise_bound(np.bincount(np.concatenate([noise, rng.poisson(8 * level + 20, 3000)])))
    assert (noise >= bound).mean() < 0.03
    assert bound < 8 * level + 20
