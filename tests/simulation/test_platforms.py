"""Each platform's numbers look like that platform's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus_sd.simulation.config import PlatformConfig
from nimbus_sd.simulation.noise import fibres, smooth_noise
from nimbus_sd.simulation.platforms import Exposure, detect


def flat(level, size=200):
    image = np.full((size, size), level, np.float32)
    return Exposure(image, np.zeros_like(image))


@settings(max_examples=10, deadline=None)
@given(level=st.floats(0.05, 1), counts=st.floats(1, 50), mpp=st.sampled_from([0.5, 1.0]))
def test_ions_are_poisson(level, counts, mpp):
    pixels = detect(np.random.default_rng(0), flat(level), PlatformConfig("ions", counts=counts), mpp)
    expected = level * counts * mpp**2
    assert pixels.dtype == np.uint16
    assert pixels.mean() == pytest.approx(expected, rel=0.15)
    assert pixels.var() == pytest.approx(expected, rel=0.2)


def test_denoising_removes_isolated_counts_and_keeps_dense_ones():
    image = np.full((200, 200), 0.002, np.float32)
    image[80:100, 80:100] = 1
    config = PlatformConfig("ions_denoised", counts=20, denoise=0.8)
    pixels = detect(np.random.default_rng(0), Exposure(image, image), config, 0.5)
    assert pixels.dtype == np.uint8
    assert pixels[82:98, 82:98].mean() == pytest.approx(5, rel=0.1)
    assert (pixels[:70] > 0).mean() < 0.002


def test_hot_pixels():
    config = PlatformConfig("ions", counts=20, hot=10)
    pixels = detect(np.random.default_rng(0), flat(0), config, 1.0)
    assert (pixels > 0).sum() == pytest.approx(400, rel=0.25)


def test_an_empty_channel_is_zero_for_ions():
    for kind in ("ions", "ions_denoised"):
        assert not detect(np.random.default_rng(0), flat(0), PlatformConfig(kind), 1.0).any()


@pytest.mark.parametrize(("kind", "top"), [("fluorescence8", 255), ("fluorescence16", 65535)])
def test_cameras_saturate(kind, top):
    config = PlatformConfig(kind, counts=1000)
    dark, lit, glare = (detect(np.random.default_rng(0), flat(v), config, 1.0) for v in (0, 0.5, 5))
    assert dark.mean() < 0.01 * top
    assert lit.mean() == pytest.approx(0.225 * top, rel=0.05)
    assert (glare == top).all()


def test_float_platform_keeps_sign_of_noise():
    pixels = detect(np.random.default_rng(0), flat(0), PlatformConfig("float"), 1.0)
    assert pixels.dtype == np.float32
    assert (pixels < 0).any()


@settings(max_examples=10, deadline=None)
@given(
    shape=st.tuples(st.integers(32, 90), st.integers(32, 90)),
    scale=st.floats(1, 30),
    seed=st.integers(0, 999),
)
def test_noise_is_finite_and_of_the_shape_asked_for(shape, scale, seed):
    field = smooth_noise(np.random.default_rng(seed), shape, scale)
    assert field.shape == shape
    assert np.isfinite(field).all()
    bundles = fibres(np.random.default_rng(seed), shape, scale)
    assert bundles.min() >= 0
    assert bundles.max() <= 1


def test_noise_has_unit_variance_and_is_smooth():
    field = smooth_noise(np.random.default_rng(0), (400, 400), 5)
    assert field.std() == pytest.approx(1, abs=0.1)
    assert np.diff(field, axis=0).std() < 0.4
