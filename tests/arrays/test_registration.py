"""Kernels of the registration check against slow oracles."""

import numpy as np
import pytest
from scipy import ndimage

from nimbus_sd.arrays import registration as reg

SHAPE = (60, 52)


def nuclei(shape, n, rng):
    y, x = np.ogrid[: shape[0], : shape[1]]
    plane = np.zeros(shape)
    for a, b in rng.uniform(0, 1, (n, 2)) * shape:
        plane += np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * 2.5**2))
    return np.minimum(plane, 1)


def slow_correlation(fixed, moving, masks, dy, dx):
    """Pairs of px one by one."""
    a, b = [], []
    for y, x in np.ndindex(fixed.shape):
        v, u = y + dy, x + dx
        inside = 0 <= v < fixed.shape[0] and 0 <= u < fixed.shape[1]
        if inside and masks[0][y, x] and masks[1][v, u]:
            a.append(fixed[y, x])
            b.append(moving[v, u])
    return np.corrcoef(a, b)[0, 1]


@pytest.mark.parametrize("masked", [False, True])
def test_correlation_map_is_the_pearson_correlation_of_what_both_have(rng, masked):
    fixed, moving = rng.normal(1000, 50, (2, *SHAPE))
    moving[20:40, 10:30] += 3 * (fixed[18:38, 13:33] - 1000)
    masks = (np.ones(SHAPE, bool), np.ones(SHAPE, bool))
    if masked:
        masks = rng.random((2, *SHAPE)) < 0.8
        fixed[~masks[0]], moving[~masks[1]] = 1e4, -1e4  # must not be looked at
    found = reg.correlation_map(fixed, moving, tuple(masks), radius=5)
    assert found.shape == (11, 11)
    for dy, dx in [(0, 0), (2, -3), (-5, 5), (5, 4), (-1, 0)]:
        expected = slow_correlation(fixed, moving, masks, dy, dx)
        assert found[5 + dy, 5 + dx] == pytest.approx(expected, abs=1e-9)
    assert np.unravel_index(found.argmax(), found.shape) == (7, 2)


def test_shifts_that_leave_little_are_not_compared(rng):
    fixed, moving = rng.normal(size=(2, 20, 20))
    masks = (np.ones((20, 20), bool), np.zeros((20, 20), bool))
    masks[1][:, :5] = True
    found = reg.correlation_map(fixed, moving, masks, radius=8)
    assert (found[8, :4] != 0).all()  # the strip meets other columns
    assert (found[:, 13:] == 0).all()  # two columns of five, or none, are left
    assert (reg.correlation_map(fixed, moving, (masks[0], masks[0] & False), radius=3) == 0).all()
    assert (reg.correlation_map(fixed, np.full((20, 20), 7.0), (masks[0],) * 2, radius=3) == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_shift_is_found_within_half_a_pixel(seed):
    rng = np.random.default_rng(seed)
    plane = nuclei((140, 140), 120, rng)
    shift = rng.uniform(-8, 8, 2)
    moved = ndimage.shift(plane, shift, order=3)
    cut = (slice(20, 120),) * 2
    noisy = [p[cut] + rng.normal(0, 0.2, (100, 100)) for p in (plane, moved)]
    mask = np.ones((100, 100), bool)
    contrast = [reg.local_contrast(p, mask, sigma=7) for p in noisy]
    peak, found = reg.best_shift(reg.correlation_map(*contrast, (mask, mask), radius=12))
    assert np.abs(found - shift).max() < 0.5
    assert peak > 0.5


def test_unrelated_nuclei_correlate_little(rng):
    mask = np.ones((100, 100), bool)
    peaks = []
    for _ in range(20):
        planes = [reg.local_contrast(nuclei((100, 100), 60, rng), mask, sigma=7) for _ in range(2)]
        peaks.append(reg.best_shift(reg.correlation_map(*planes, (mask, mask), radius=12))[0])
    assert np.median(peaks) < 0.2
    assert max(peaks) < 0.3


def test_local_contrast_forgets_trends_and_outliers(rng):
    plane = nuclei((100, 100), 60, rng)
    mask = np.ones((100, 100), bool)
    mask[:, 70:] = False
    trend = 5 + 0.02 * np.arange(100)[:, None] * np.ones((1, 100))
    debris = np.zeros((100, 100))
    debris[50, 50] = 1e4
    without = reg.local_contrast(plane, mask, sigma=7)
    inner = slice(15, 85), slice(15, 55)
    flat = reg.local_contrast(plane + trend, mask, sigma=7)
    assert np.corrcoef(flat[inner].ravel(), without[inner].ravel())[0, 1] == pytest.approx(1, abs=0.01)
    assert np.abs(reg.local_contrast(plane + debris, mask, sigma=7)).max() < 2
    assert (without[:, 70:] == 0).all()
    changed = plane.copy()
    changed[:, 70:] = 99
    np.testing.assert_array_equal(reg.local_contrast(changed, mask, sigma=7), without)
    assert (reg.local_contrast(plane, mask & False, sigma=7) == 0).all()


@pytest.mark.parametrize("shape", [(9, 12), (10, 13), (2, 30), (3, 3)])
def test_pool_is_the_mean_of_squares(rng, shape):
    planes = rng.integers(0, 65_536, (2, *shape)).astype(np.uint16)
    found = reg.pool(planes, 3)
    assert found.shape == (2, shape[0] // 3, shape[1] // 3)
    for i in np.ndindex(found.shape):
        c, y, x = i
        square = planes[c, 3 * y : 3 * y + 3, 3 * x : 3 * x + 3].astype(np.float64)
        assert found[i] == pytest.approx(square.mean(), rel=1e-6)


def test_fit_affine_inverts_an_affine_map(rng):
    matrix = np.array([[0.9, 0.2, 300.0], [-0.3, 1.1, -40.0], [0, 0, 1]])
    source = rng.uniform(0, 60_000, (7, 2))
    target = source @ matrix[:2, :2].T + matrix[:2, 2]
    np.testing.assert_allclose(reg.fit_affine(source, target), matrix, atol=1e-6)
    noisy = target + rng.normal(0, 5, target.shape)
    found = reg.fit_affine(source, noisy)

    def squares(m):
        return ((source @ m[:2, :2].T + m[:2, 2] - noisy) ** 2).sum()

    for i in range(6):  # nothing near is better
        for step in (-1e-4, 1e-4):
            other = found.copy()
            other[i // 3, i % 3] += step
            assert squares(other) > squares(found)


def test_flatness():
    line = np.array([[0, 0], [100, 50], [300, 150.0]])
    assert reg.flatness(line) < 1e-9
    assert reg.flatness(np.array([[0, 0], [1, 0], [0, 1], [1, 1.0]])) == pytest.approx(1)
    assert reg.flatness(np.zeros((4, 2))) == 0
    corners = np.array([[0, 0], [100, 0], [100, 1], [0, 1.0]])
    assert reg.flatness(corners) == pytest.approx(0.01)


def test_blocks_without_nuclei_are_what_their_neighbours_are():
    y, x = (part.ravel().astype(float) for part in np.mgrid[:6, :6])
    contrast = np.where((y + x) % 2 == 0, 10.0, 0.01)
    peak = np.where(contrast > 1, 0.6, 0.9)
    shift = np.where(x < 3, 0.5, 5.0)
    peak[y == 5] = np.where(contrast[y == 5] > 1, 0.1, 0.9)
    judged, ok = reg.judge(np.column_stack([y, x]), contrast, peak, shift, radius=3.5, least=0.25)
    np.testing.assert_array_equal(judged, contrast > 1)
    np.testing.assert_array_equal(ok[judged], ((x < 3) & (y < 5))[judged])
    for i in np.flatnonzero(~judged):
        near = judged & (np.hypot(y - y[i], x - x[i]) == 1)
        assert ok[i] in ok[near]
    assert reg.usual_contrast(contrast) == pytest.approx(10, rel=0.01)
    nothing = reg.judge(np.column_stack([y, x]), 0 * contrast, peak, shift, radius=3.5, least=0.25)
    assert not any(part.any() for part in nothing)
