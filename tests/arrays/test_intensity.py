"""Streamed quantiles against numpy.quantile of all pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import RELATIVE_ERROR, IntensityHistogram, check_pixels

EXACT = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
QUANTILES = st.one_of(st.sampled_from([0.0, 0.5, 0.999, 0.9999, 1.0]), st.floats(0, 1))
FLOAT_RANGE = {"float16": (2**-14, 65_504.0), "float32": (2**-126, 1e38), "float64": (2**-126, 1e38)}


def pixels(dtype, max_size=60):
    if dtype == "bool":
        elements = st.booleans()
    elif dtype in FLOAT_RANGE:
        width = np.dtype(dtype).itemsize * 8
        low, high = (float(np.dtype(dtype).type(v)) for v in FLOAT_RANGE[dtype])
        elements = st.one_of(st.just(0.0), st.floats(low, high, width=width))
    else:
        elements = st.integers(0, min(np.iinfo(dtype).max, 65_535))
    return hnp.arrays(dtype, st.integers(1, max_size), elements=elements)


@pytest.mark.parametrize("dtype", EXACT)
@given(data=st.data(), q=QUANTILES)
def test_integer_quantiles_are_exact(dtype, data, q):
    x = data.draw(pixels(dtype))
    histogram = IntensityHistogram(np.dtype(dtype))
    histogram.update(x)
    assert histogram.quantile(q) == pytest.approx(np.quantile(x.astype(float), q), rel=1e-12, abs=1e-12)
    assert histogram.n_pixels == x.size
    assert histogram.n_zero == (x == 0).sum()
    assert histogram.maximum == x.max()


@pytest.mark.parametrize("dtype", sorted(FLOAT_RANGE))
@given(data=st.data(), q=QUANTILES)
def test_float_quantiles_keep_the_stated_error(dtype, data, q):
    x = data.draw(pixels(dtype))
    histogram = IntensityHistogram(np.dtype(dtype))
    histogram.update(x)
    expected = np.quantile(x.astype(np.float64), q)
    # 1e-6: float64 pixels are first rounded to float32
    assert abs(histogram.quantile(q) - expected) <= expected * (RELATIVE_ERROR + 1e-6)


def test_integers_above_16_bits_keep_the_float_error():
    x = np.random.default_rng(0).integers(0, 2**31 - 1, 5000, dtype=np.int32)
    x[::3] = np.arange(x[::3].size)
    histogram = IntensityHistogram(x.dtype)
    histogram.update(x)
    for q in (0.01, 0.2, 0.5, 0.99, 1.0):
        assert histogram.quantile(q) == pytest.approx(np.quantile(x, q), rel=RELATIVE_ERROR)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
@given(data=st.data(), q=QUANTILES)
def test_merging_blocks_equals_the_whole(dtype, data, q):
    x = data.draw(pixels(dtype))
    cut = data.draw(st.integers(0, x.size))
    whole, left, right = (IntensityHistogram(np.dtype(dtype)) for _ in range(3))
    whole.update(x)
    left.update(x[:cut])
    right.update(x[cut:])
    merged = right + left
    assert merged.quantile(q) == whole.quantile(q)
    assert (merged.n_pixels, merged.maximum) == (whole.n_pixels, whole.maximum)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
@given(data=st.data(), q=QUANTILES)
def test_positive_leaves_zeros_out(dtype, data, q):
    x = data.draw(pixels(dtype))
    histogram = IntensityHistogram(np.dtype(dtype))
    histogram.update(x)
    positive = x[x > 0].astype(np.float64)
    expected = np.quantile(positive, q) if positive.size else 0.0
    assert histogram.quantile(q, positive=True) == pytest.approx(expected, rel=RELATIVE_ERROR + 1e-6)


def test_shapes_do_not_matter_and_nothing_is_nothing():
    histogram = IntensityHistogram(np.uint8)
    histogram.update(np.empty((0, 3), np.uint8))
    assert histogram.quantile(0.5) == 0.0
    histogram.update(np.full((2, 3, 4), 7, np.uint8)[:, ::2])
    assert histogram.quantile(0.5) == 7.0
    assert histogram.n_pixels == 16


@pytest.mark.parametrize(
    ("dtype", "top", "expected"),
    [("uint8", 255, 5), ("uint8", 254, 0), ("uint16", 4095, 5), ("uint16", 65_535, 5), ("float32", 255, 0)],
)
def test_saturation_is_counted_at_the_full_scale_of_a_detector(dtype, top, expected):
    x = np.arange(100, dtype=dtype)
    x[:5] = top
    histogram = IntensityHistogram(np.dtype(dtype))
    histogram.update(x)
    assert histogram.n_saturated == expected


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (np.array([1.0, np.nan, np.nan], np.float32), "2 NaN"),
        (np.array([1.0, np.inf], np.float16), "1 infinite"),
        (np.array([0, -3, -1], np.int16), "2 negative"),
        (np.array([-0.5, 1.0]), "1 negative"),
        (np.array([1 + 2j]), "complex128"),
        (np.array(["a"]), "<U1"),
    ],
)
def test_bad_pixels_are_named_and_counted_nowhere(bad, said):
    with pytest.raises(InputError, match=said):
        check_pixels(bad)
    if bad.dtype.kind in "if":
        histogram = IntensityHistogram(bad.dtype)
        with pytest.raises(InputError, match=said):
            histogram.update(bad)
        assert histogram.n_pixels == 0


def test_float_and_integer_counts_do_not_mix():
    with pytest.raises(InputError, match=r"uint8 and float32.*cast"):
        IntensityHistogram(np.uint8) + IntensityHistogram(np.float32)
