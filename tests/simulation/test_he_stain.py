"""Light through dye: Beer-Lambert there and back, laboratories that differ, compression that loses little."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus_sd._core.stain import separate
from nimbus_sd.simulation import Stain, random_stain, vary_stain
from nimbus_sd.simulation.he_stain import compress, scan

PURE = Stain(hues=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), white=(1.0, 1.0, 1.0), blur=0, noise=0, quality=100)


def _dyes(rng, shape=(24, 40)):
    """Haematoxylin and eosin without red cells."""
    dyes = rng.uniform(0, [0.1, 0.06], (*shape, 2))
    return np.concatenate([dyes, np.zeros((*shape, 1))], -1).astype(np.float32)


def test_separation_undoes_the_scan():
    dyes = _dyes(np.random.default_rng(0))
    back = separate(np.moveaxis(scan(np.random.default_rng(1), dyes, PURE, 0.325), 0, -1))
    # a grey value is worth more dye where little light is left
    np.testing.assert_allclose(back[..., :2], dyes[..., :2], atol=0.004)
    assert back[..., 2].max() < 0.006


def test_no_dye_is_the_lamp_and_more_dye_is_darker():
    white = scan(
        np.random.default_rng(0), np.zeros((8, 8, 3), np.float32), Stain(noise=0, quality=100), 0.325
    )
    np.testing.assert_allclose(white[:, 0, 0] / 255, Stain().white, atol=0.003)
    dyes = _dyes(np.random.default_rng(0))
    once, twice = (scan(np.random.default_rng(1), k * dyes, PURE, 0.325).astype(int) for k in (1, 2))
    assert (twice <= once).all()


def test_strength_is_a_factor_of_the_dye():
    dyes = _dyes(np.random.default_rng(0)) / 2
    strong = Stain(**{**PURE.__dict__, "haematoxylin": 1.5})
    back = separate(np.moveaxis(scan(np.random.default_rng(1), dyes, strong, 0.325), 0, -1))
    np.testing.assert_allclose(back[..., 0], 1.5 * dyes[..., 0], atol=0.004)
    np.testing.assert_allclose(back[..., 1], dyes[..., 1], atol=0.004)


def test_sections_of_a_laboratory_are_more_alike_than_laboratories():
    dyes = np.broadcast_to(np.array([0.05, 0.02, 0], np.float32), (16, 16, 3))

    def colour(stain):
        return scan(np.random.default_rng(0), dyes, stain, 0.325).mean((1, 2))

    labs = [random_stain(np.random.default_rng(i)) for i in range(30)]
    within = [
        np.linalg.norm(np.subtract(*(colour(vary_stain(np.random.default_rng(k), lab)) for k in (1, 2))))
        for lab in labs
    ]
    between = [np.linalg.norm(colour(a) - colour(b)) for a, b in pairwise(labs)]
    assert np.mean(between) > 1.5 * np.mean(within) > 1


@given(height=st.integers(1, 30), width=st.integers(1, 30), seed=st.integers(0, 99))
def test_compression_keeps_shape_and_flat_areas(height, width, seed):
    level = np.random.default_rng(seed).uniform(20, 230)
    image = np.full((height, width, 3), level, np.float32)
    back = compress(image, 80)
    assert back.shape == image.shape
    np.testing.assert_allclose(back, image, atol=2)


def test_better_quality_loses_less():
    image = np.random.default_rng(0).uniform(90, 160, (64, 64, 3)).astype(np.float32)
    loss = [np.abs(compress(image, quality) - image).mean() for quality in (20, 50, 80, 95)]
    assert loss == sorted(loss, reverse=True)
    assert loss[-1] < 4


@pytest.mark.parametrize("pixel", [0.25, 1.0])
def test_blur_is_in_micrometres(pixel):
    line = np.zeros((65, 65, 3), np.float32)
    line[:, 32, 0] = 0.02
    stain = Stain(**{**PURE.__dict__, "blur": 2.0})
    seen = separate(np.moveaxis(scan(np.random.default_rng(0), line, stain, pixel), 0, -1))[32, :, 0]
    half = (seen > seen.max() / 2).sum() * pixel
    assert half == pytest.approx(2.355 * 2.0, rel=0.4)
