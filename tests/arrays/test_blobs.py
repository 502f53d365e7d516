"""Responses equal SciPy's, peaks equal a loop over all pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import gaussian_filter, gaussian_laplace

from nimbus_sd.arrays.blobs import (
    blob_response,
    local_peaks,
    noise_reach,
    peak_offsets,
    reach,
    response_noise,
)


def slow_peaks(response, min_distance, threshold):
    """As the docstring says it, px by px."""
    places = [(y, x) for y in range(response.shape[0]) for x in range(response.shape[1])]

    def near(a):
        return [b for b in places if b != a and (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 <= min_distance**2]

    tops = [p for p in places if response[p] > threshold and all(response[q] <= response[p] for q in near(p))]
    return [p for p in tops if not any(q < p for q in near(p) if q in tops)]


def test_responses_are_those_of_scipy(rng):
    plane = rng.random((60, 45)).astype(np.float32)
    for sigma in (1.0, 2.5):
        # SciPy's kernel answers to flat ground, and is not scaled to answer 1 to x²/2
        expected = -(sigma**2) * gaussian_laplace(plane.astype(float) - plane.mean(), sigma)
        np.testing.assert_allclose(blob_response(plane, sigma=sigma), expected, atol=0.03 * expected.std())
        smooth = blob_response(plane, sigma=sigma, method="local_maxima")
        np.testing.assert_allclose(smooth, gaussian_filter(plane.astype(float), sigma), atol=2e-5)


@pytest.mark.parametrize("radius", [3, 6, 9])
def test_discs_answer_most_at_their_own_size(radius):
    y, x = np.ogrid[:81, :81]
    disc = ((y - 40) ** 2 + (x - 40) ** 2 <= radius**2).astype(np.float32)
    sigmas = radius / np.sqrt(2) * np.array([0.6, 0.8, 1.0, 1.25, 1.6])
    answers = [blob_response(disc, sigma=s)[40, 40] for s in sigmas]
    assert int(np.argmax(answers)) == 2


def test_flat_and_rising_ground_answer_nothing():
    y, x = np.mgrid[:50, :50].astype(np.float32)
    inner = slice(20, 30)
    for ground in (np.full((50, 50), 1000, np.float32), 3 * y + 2 * x + 7):
        response = blob_response(ground, sigma=3)[inner, inner]
        np.testing.assert_allclose(response, 0, atol=1e-5 * ground.max())


@pytest.mark.parametrize("sigma", [1.0, 2.5, 5.0])
def test_noise_of_the_response_is_its_spread_where_there_is_nothing_else(rng, sigma):
    plane = rng.normal(0.5, np.where(np.arange(600) < 300, 0.01, 0.1), (300, 600))
    for part in (slice(30, 270), slice(330, 570)):  # each half has its own
        spread = blob_response(plane, sigma=sigma)[:, part].std()
        np.testing.assert_allclose(response_noise(plane, sigma=sigma)[:, part].mean(), spread, rtol=0.1)
    y, x = np.mgrid[:300, :600]
    smooth = 0.5 + 0.4 * np.sin(y / 9) * np.sin(x / 9)
    np.testing.assert_allclose(
        response_noise(plane * 0.5 + smooth, sigma=sigma)[:, 330:570].mean(),
        0.5 * response_noise(plane, sigma=sigma)[:, 330:570].mean(),
        rtol=0.01,
    )


@pytest.mark.parametrize("sigma", [2.2, 5.0])
def test_noise_depends_on_what_is_within_its_reach(rng, sigma):
    plane = rng.random((90, 90)).astype(np.float32)
    before = response_noise(plane, sigma=sigma)
    plane[45, 45] += 50
    changed = np.argwhere(response_noise(plane, sigma=sigma) != before) - 45
    assert np.abs(changed).max() == noise_reach(sigma)


def test_a_pixel_depends_on_what_is_within_reach(rng):
    plane = rng.random((50, 50)).astype(np.float32)
    before = blob_response(plane, sigma=2.2)
    r = reach(2.2)
    plane[25, 25] += 50
    changed = np.argwhere(blob_response(plane, sigma=2.2) != before) - 25
    assert np.abs(changed).max() <= r


@given(
    hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-1, 3)),
    st.sampled_from([1, 1.5, 2, 3.7]),
    st.sampled_from([-2.0, 0.0, 1.0]),
)
def test_peaks_equal_a_loop_over_pixels(values, min_distance, threshold):
    response = values.astype(np.float32)
    found = list(
        zip(
            *(p.tolist() for p in local_peaks(response, min_distance=min_distance, threshold=threshold)),
            strict=True,
        )
    )
    assert found == slow_peaks(response, min_distance, threshold)


def test_a_large_plateau_has_no_crowd_of_peaks():
    rows, columns = local_peaks(np.ones((300, 300), np.float32), min_distance=10)
    assert rows.tolist() == [0]
    assert columns.tolist() == [0]


def test_places_finer_than_a_pixel(rng):
    y, x = np.mgrid[:30, :30]
    for center in rng.uniform(12, 17, (20, 2)):
        plane = np.exp(-((y - center[0]) ** 2 + (x - center[1]) ** 2) / 18)
        response = blob_response(plane, sigma=3)
        peaks = local_peaks(response, min_distance=3)
        places = np.stack(peaks, axis=1) + peak_offsets(response, *peaks)
        np.testing.assert_allclose(places, [center], atol=0.03)


def test_borders_and_plateaus_are_not_moved():
    response = np.ones((4, 4))
    response[0, 0] = 2
    assert not peak_offsets(response, np.array([0, 2]), np.array([0, 2])).any()
