"""The map between pixel grids against a loop over pixels."""

from itertools import pairwise
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import AxisMap, resample_axis, scale_factor

FACTORS = st.sampled_from([0.25, 0.5, 2 / 3, 1.0, 1.5, 1.538, 2.0, 2.7, 3.0, 4.0])
AXES = st.builds(AxisMap, st.integers(1, 150), FACTORS)


@pytest.mark.parametrize(
    ("image", "model", "factor"),
    [
        (0.488, 1.0, 2.0),
        (0.5, 1.0, 2.0),
        (1.0, 1.0, 1.0),
        (1.09, 1.0, 1.0),
        (0.65, 1.0, 1 / 0.65),
        (2.0, 1.0, 0.5),
        (1.9, 1.0, 0.5),
        (1.5, 1.0, 1 / 1.5),
        (0.325, 1.0, 3.0),
        (0.25, 0.5, 2.0),
    ],
)
def test_ratios_near_an_integer_become_it(image, model, factor):
    assert scale_factor(image, model) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("bad", [0, -1.0, np.nan, np.inf])
def test_a_pixel_size_must_be_a_positive_number(bad):
    with pytest.raises(InputError, match="image's pixel size"):
        scale_factor(bad, 1.0)
    with pytest.raises(InputError, match="model's pixel size"):
        scale_factor(1.0, bad)


@given(AXES)
def test_the_padded_axis_is_a_multiple_of_16_and_at_least_32(axis):
    assert axis.model_size % 16 == 0
    assert axis.model_size >= 32
    assert axis.model_size - 16 < max(axis.size / axis.factor + 1e-6, 32)
    assert axis.padded_size >= axis.size
    # as many model px come back as went in
    assert int(np.ceil(axis.padded_size / axis.factor - 1e-6)) >= axis.model_size


@given(AXES)
def test_padding_is_numpy_reflect_or_edge(axis):
    x = np.arange(axis.size)
    extra = axis.padded_size - axis.size
    padded = np.pad(x, (0, extra), mode="reflect" if extra < axis.size else "edge")
    np.testing.assert_array_equal(axis.source(np.arange(axis.padded_size)), padded)


@given(AXES, st.data())
def test_any_crop_samples_what_the_whole_axis_samples(axis, data):
    start = data.draw(st.integers(0, axis.model_size - 1))
    stop = data.draw(st.integers(start + 1, axis.model_size))
    for function in (axis.nearest, lambda a, b: np.stack(axis.linear(a, b))):
        whole = function(0, axis.model_size)
        np.testing.assert_array_equal(function(start, stop), whole[..., start:stop])


@given(AXES, st.integers(0, 99))
def test_resampling_equals_a_loop_over_pixels(axis, seed):
    x = np.random.default_rng(seed).random((2, axis.size), dtype=np.float32)
    extra = axis.padded_size - axis.size
    padded = np.pad(x, ((0, 0), (0, extra)), mode="reflect" if extra < axis.size else "edge")
    expected, nearest = [], []
    for i in range(axis.model_size):
        position = min(max((i + 0.5) * axis.factor - 0.5, 0), axis.padded_size - 1)
        low = floor(position)
        high = min(low + 1, axis.padded_size - 1)
        expected.append(padded[:, low] * (low + 1 - position) + padded[:, high] * (position - low))
        nearest.append(padded[:, floor(i * axis.factor + 1e-9)])
    lower, upper, weight = axis.linear(0, axis.model_size)
    got = resample_axis(x, lower, upper, weight, axis=-1)
    np.testing.assert_allclose(got, np.stack(expected, 1), atol=2e-6)
    np.testing.assert_array_equal(x[:, axis.nearest(0, axis.model_size)], np.stack(nearest, 1))
    again = resample_axis(x.T.copy(), lower, upper, weight, axis=-2)
    np.testing.assert_array_equal(again.T, got)


@given(AXES)
def test_going_back_takes_the_pixel_that_covers_the_centre(axis):
    back = axis.model_index(0, axis.size)
    expected = [min(floor((j + 0.5) / axis.factor + 1e-9), axis.model_size - 1) for j in range(axis.size)]
    np.testing.assert_array_equal(back, expected)


@given(AXES, st.integers(1, 5))
def test_owned_intervals_tile_the_axis(axis, tile):
    edges = [*range(0, axis.model_size, 16 * tile), axis.model_size]
    owner = np.full(axis.size, -1)
    back = axis.model_index(0, axis.size)
    for start, stop in pairwise(edges):
        low, high = axis.owned(start, stop)
        assert 0 <= low <= high <= axis.size
        assert (owner[low:high] == -1).all()
        owner[low:high] = start
        assert ((back[low:high] >= start) & (back[low:high] < stop)).all()
    assert (owner >= 0).all()


def test_an_axis_without_pixels_is_rejected():
    with pytest.raises(InputError, match="no pixels"):
        AxisMap(0, 1.0)
