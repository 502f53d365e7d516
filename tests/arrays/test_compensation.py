"""Compensated pixels are the best non-negative fit: against all sets of channels, and SciPy."""

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import nnls

from nimbus_sd.arrays.compensation import compensate_pixels


def best_fit(spillover, observed):
    """Least squares over every set of channels that may be positive; the best that is not negative."""
    c = len(observed)
    best, least = np.zeros(c), (observed**2).sum()
    for chosen in chain.from_iterable(combinations(range(c), k) for k in range(1, c + 1)):
        part = spillover[list(chosen)].T
        x = np.zeros(c)
        x[list(chosen)] = np.linalg.lstsq(part, observed, rcond=None)[0]
        misfit = ((x @ spillover - observed) ** 2).sum()
        if x.min() >= 0 and misfit < least - 1e-12:
            best, least = x, misfit
    return best


def panel(c, seed, *, strong=False):
    """Spill to neighbours, as of a mass cytometer, or so strong that it is hard to undo."""
    rng = np.random.default_rng(seed)
    out = np.eye(c)
    for step, most in ((1, 0.6), (2, 0.3)) if strong else ((1, 0.04), (16, 0.05)):
        for i in range(c - step):
            out[i, i + step] = rng.uniform(0, most)
            out[i + step, i] = rng.uniform(0, most / 2)
    return out


@given(hnp.arrays(np.uint8, (4, 5), elements=st.integers(0, 30)), st.integers(0, 50), st.booleans())
def test_equals_the_best_of_all_sets_of_channels(pixels, seed, strong):
    spillover = panel(4, seed, strong=strong)
    found = compensate_pixels(pixels, spillover)
    expected = np.array([best_fit(spillover, p) for p in pixels.T.astype(float)]).T
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("strong", [False, True])
def test_many_channels_against_scipy_and_the_conditions_of_an_optimum(rng, strong):
    spillover = panel(30, 1, strong=strong)
    pixels = rng.poisson(rng.gamma(0.3, 5, (30, 1)), (30, 400))
    found = compensate_pixels(pixels, spillover).astype(float)
    slow = np.array([nnls(spillover.T, p.astype(float))[0] for p in pixels.T]).T
    assert found.min() >= 0
    misfit = [((x.T @ spillover - pixels.T) ** 2).sum() for x in (found, slow)]
    assert misfit[0] <= misfit[1] * (1 + 1e-6)
    gradient = ((found.T @ spillover - pixels.T) @ spillover.T).T
    assert gradient.min() > -1e-4
    assert np.abs(gradient[found > 0]).max() < 1e-4 * pixels.max()


def test_what_was_spilled_comes_back(rng):
    spillover = panel(20, 3)
    true = rng.poisson(3, (20, 9, 7)).astype(float)
    observed = np.einsum("cyx,cd->dyx", true, spillover)
    for method in ("nnls", "linear"):
        found = compensate_pixels(observed, spillover, method=method)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, true, atol=1e-5)


def test_nothing_stays_nothing_and_no_spill_changes_nothing(rng):
    pixels = rng.integers(0, 9, (3, 4, 5)).astype(np.uint16)
    np.testing.assert_array_equal(compensate_pixels(pixels, np.eye(3)), pixels)
    assert not compensate_pixels(pixels * 0, panel(3, 0)).any()


def test_the_direction_of_spill():
    # the first channel emits: what arrived in the second is taken out of that one
    spillover = np.array([[1, 0.5], [0, 1]])
    found = compensate_pixels(np.array([[10.0], [5.0]]), spillover)
    np.testing.assert_allclose(found, [[10], [0]], atol=1e-6)


def test_a_pixel_does_not_depend_on_its_company(rng):
    spillover = panel(12, 5, strong=True)
    pixels = rng.poisson(2, (12, 9000))
    whole = compensate_pixels(pixels, spillover)
    some = rng.permutation(9000)[:700]
    np.testing.assert_allclose(compensate_pixels(pixels[:, some], spillover), whole[:, some], atol=1e-6)
