"""Blobs and noise of a whole image: the same whatever the blocks and chunks, each chunk counted once."""

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays.blobs import blob_response, local_peaks
from nimbus_sd.engine.noise import noise_bounds
from nimbus_sd.engine.nuclei import BlobConfig, find_blobs
from nimbus_sd.engine.source import ArrayImage


class Chunked(ArrayImage):
    """An image that says its chunks are these."""

    sizes = None

    @property
    def chunks(self):
        return self.sizes


def tissue(shape=(90, 70), seed=0, *, n=25, dtype="uint16"):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    centers = rng.uniform(0, 1, (n, 2)) * np.array(shape)
    light = sum(np.exp(-((y - a) ** 2 + (x - b) ** 2) / 14) for a, b in centers)
    planes = rng.poisson(np.stack([20 * light, 9 * light]) + 0.5)
    return ArrayImage("fov", planes.astype(dtype), ("DAPI", "H3"))


def edges(n):
    """Any borders from 0 to n."""
    return st.sets(st.integers(1, n - 1), max_size=5).map(lambda cuts: [0, *sorted(cuts), n])


@settings(max_examples=40)
@given(
    edges(90),
    edges(70),
    st.sampled_from(["log", "local_maxima"]),
    st.sampled_from(["uint16", "flat", "float32"]),
    st.sampled_from([1.0, 2.6, 4.0]),
)
def test_blocks_do_not_show(rows, columns, method, kind, min_distance):
    image = tissue(dtype="uint16" if kind == "flat" else kind)
    if kind == "flat":  # plateaus, cut off at 1
        image = ArrayImage("fov", np.minimum(image.array, 8), image.channels)
    config = BlobConfig(1.7, min_distance, method=method)
    scale = (5.0 if kind == "flat" else 20.0, 6.0)
    whole = find_blobs(image, [0, 1], scale, config=config, edges=([0, 90], [0, 70]), n_threads=0)
    parts = find_blobs(image, [0, 1], scale, config=config, edges=(rows, columns), n_threads=2)
    np.testing.assert_array_equal(parts.centers, whole.centers)
    np.testing.assert_array_equal(parts.response, whole.response)
    np.testing.assert_array_equal(parts.snr, whole.snr)
    assert len(whole.centers) > 5


def test_equals_the_steps_done_by_hand():
    image = tissue()
    config = BlobConfig(2.0, 2.0, refine=False)
    found = find_blobs(image, [1], [7.0], config=config)
    response = blob_response(np.minimum(image.array[1] / np.float32(7), 1), sigma=2.0)
    rows, columns = local_peaks(response, min_distance=2)
    np.testing.assert_array_equal(found.centers, np.stack([rows, columns], axis=1))
    np.testing.assert_array_equal(found.response, response[rows, columns])
    distances = np.linalg.norm(found.centers[:, None] - found.centers[None], axis=2)
    assert distances[distances > 0].min() > 2


def test_the_mean_of_channels_counts():
    image = tissue()
    config = BlobConfig(2.0, 2.0)
    both = find_blobs(image, [0, 1], [20.0, 9.0], config=config)
    other_order = find_blobs(image, [1, 0], [9.0, 20.0], config=config)
    np.testing.assert_array_equal(both.centers, other_order.centers)
    one = find_blobs(image, [0], [20.0], config=config)
    assert not np.array_equal(both.response, one.response)


def test_places_that_are_known():
    y, x = np.mgrid[:60, :80]
    true = np.array([[12.0, 65.2], [20.4, 10.7], [40.0, 41.5]])
    light = sum(np.exp(-((y - a) ** 2 + (x - b) ** 2) / 18) for a, b in true)
    image = ArrayImage("fov", (100 * light[None]).astype(np.float32), ("DAPI",))
    found = find_blobs(image, [0], [100.0], config=BlobConfig(3.0, 5.0), edges=([0, 20, 60], [0, 11, 80]))
    np.testing.assert_allclose(found.centers[found.response > 0.05], true, atol=0.2)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"sigma": 0.1}, "sigma=0.1 must be at least 0.5"),
        ({"sigma": np.nan}, "sigma=nan"),
        ({"min_distance": 0.5}, "min_distance=0.5 must be at least 1 px"),
        ({"method": "dog"}, "method='dog'; valid: 'log', 'local_maxima'"),
    ],
)
def test_configs_that_make_no_sense(config, said):
    with pytest.raises(InputError, match=said):
        BlobConfig(**({"sigma": 2.0, "min_distance": 2.0} | config))


@pytest.mark.parametrize("value", [np.nan, -1, np.inf])
def test_pixels_that_are_none_name_image_and_channel(value):
    image = tissue(dtype="float32")
    image.array[1, 40, 40] = value
    with pytest.raises(InputError, match="image 'fov', channel 'H3': 1 "):
        find_blobs(image, [0, 1], [1, 1], config=BlobConfig(2.0, 2.0))


@given(st.data())
def test_noise_is_the_same_whatever_the_chunks(data):
    image = tissue(shape=(33, 40), n=6)
    y, x = data.draw(edges(33)), data.draw(edges(40))
    chunked = Chunked("fov", image.array, image.channels)
    together = data.draw(st.booleans())
    c = (2,) if together else (1, 1)
    object.__setattr__(
        chunked, "sizes", (c, tuple(b - a for a, b in pairwise(y)), tuple(b - a for a, b in pairwise(x)))
    )
    options = {"area": 13}
    found = noise_bounds([chunked, image], ["H3", "DAPI"], **options)
    assert found == noise_bounds([image, image], ["DAPI", "H3"], **options)
    boxes = image.array[:, :32].reshape(2, 8, 4, 10, 4).sum((2, 4))
    level = np.quantile(boxes[1][boxes[1] > 0], 0.25, method="inverted_cdf")
    assert found["H3"] == max(np.ceil(np.ceil(level + 3 * np.sqrt(level)) * 13 / 16), 3)


class Tall(ArrayImage):
    """Ones without end, in rows of chunks."""

    @property
    def shape(self):
        return 60_000, 512

    @property
    def chunks(self):
        return (1,), (500,) * 120, (512,)

    def read(self, channels, y, x):
        return np.ones((len(channels), y.size, x.size), np.uint8)


def test_boxes_of_a_whole_slide_are_never_held():
    image = Tall("slide", np.ones((1, 1, 1), np.uint8), ("DAPI",))
    tracemalloc.start()
    found = noise_bounds([image], ["DAPI"], area=9, n_threads=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == {"DAPI": 9 + 3 * 3}
    assert peak < 10 << 20  # all boxes would be 27 MB


def test_fractions_are_no_counts():
    image = tissue(dtype="float32")
    assert noise_bounds([image], ["DAPI"], area=81)["DAPI"] >= 3
    image.array[0, 5, 5] = 0.5
    with pytest.raises(InputError, match="image 'fov', channel 'DAPI': pixels are not whole numbers"):
        noise_bounds([image], ["DAPI"], area=81)
