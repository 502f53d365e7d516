"""Per-cell summaries against NumPy over each cell's pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine import expression
from nimbus_sd.engine.expression import n_blocks, summarise
from nimbus_sd.engine.source import ArrayImage, ArrayLabels, Sample
from nimbus_sd.testing import CountedArray, random_image, random_labels, strategies

QUANTILES = (0.0, 0.25, 0.5, 0.99)


class Chunked(ArrayImage):
    """A dask image."""

    @property
    def chunks(self):
        return self.array.chunks

    def read(self, channels, y, x):
        return self.array[channels, y.slice, x.slice].compute(scheduler="synchronous")


def sample(image, labels):
    return Sample("cells", image, ArrayLabels("seg", labels), None)


def check(got, array, labels):
    ids = [int(i) for i in np.unique(labels) if i]
    assert got.partials.ids.tolist() == ids
    for row, i in enumerate(ids):
        pixels = array[:, labels == i].astype(np.float64)
        assert got.partials.count[row] == pixels.shape[1]
        np.testing.assert_allclose(got.statistic("mean")[row], pixels.mean(1), rtol=1e-12)
        np.testing.assert_allclose(got.statistic("sum")[row], pixels.sum(1), rtol=1e-12)
        np.testing.assert_array_equal(got.statistic("min")[row], pixels.min(1))
        np.testing.assert_array_equal(got.statistic("max")[row], pixels.max(1))
        np.testing.assert_allclose(got.quantiles[row], np.quantile(pixels, QUANTILES, axis=1).T, rtol=1e-12)


@settings(max_examples=25)
@given(st.data(), st.sampled_from(["uint8", "uint16", "float16", "float32"]), st.integers(0, 2))
def test_equals_numpy_over_each_cell(data, dtype, n_threads):
    labels = data.draw(strategies.labels())
    array = data.draw(strategies.images((2, *labels.shape), dtype))
    got = summarise(
        sample(ArrayImage("i", array, ("a", "b")), labels),
        ["a", "b"],
        extremes=True,
        quantiles=QUANTILES,
        n_threads=n_threads,
    )
    check(got, array, labels)


@pytest.mark.parametrize("chunks", [(1, 16, 16), (3, 40, 7), (2, 60, 50)])
def test_cells_that_cross_blocks(monkeypatch, chunks):
    monkeypatch.setattr(expression, "_BLOCK", 16)
    array, labels = random_image((3, 60, 50)), random_labels((60, 50), n=30)
    counter = CountedArray(array, chunks)
    field = sample(Chunked("i", counter.dask, ("a", "b", "c")), labels)
    done = []
    got = summarise(field, ["c", "a"], extremes=True, quantiles=QUANTILES, on_progress=done.append)
    assert sum(done) == n_blocks(field) > (1 if chunks[1] < 60 else 0)
    check(got, array[[2, 0]], labels)
    assert set(counter.reads.values()) == {1}
    np.testing.assert_array_equal(got.partials.sums["position"], positions(labels))


def positions(labels):
    y, x = np.mgrid[: labels.shape[0], : labels.shape[1]]
    return [[y[labels == i].sum(), x[labels == i].sum()] for i in np.unique(labels) if i]


def test_blocks_without_labels_are_not_read(monkeypatch):
    monkeypatch.setattr(expression, "_BLOCK", 16)
    labels = np.zeros((64, 64), np.uint16)
    labels[20, 20] = 3
    counter = CountedArray(random_image((1, 64, 64)), (1, 16, 16))
    got = summarise(sample(Chunked("i", counter.dask, ("a",)), labels), ["a"])
    assert dict(counter.reads) == {(0, 1, 1): 1}
    assert got.statistic("mean")[0, 0] == counter.array[0, 20, 20]


def test_no_labelled_pixel_gives_no_rows():
    image = ArrayImage("i", random_image((2, 20, 20)), ("a", "b"))
    got = summarise(sample(image, np.zeros((20, 20), np.uint8)), ["a", "b"], extremes=True, quantiles=(0.5,))
    assert [got.statistic(s).shape for s in expression.STATISTICS] == [(0, 2)] * 4
    assert got.quantiles.shape == (0, 2, 1)


def test_bad_pixels_and_labels_are_named():
    array = random_image((2, 20, 20), dtype="float32")
    array[1, 5, 5] = -1
    image = ArrayImage("slide", array, ("a", "b"))
    with pytest.raises(InputError, match=r"image 'slide', channel 'b': 1 negative"):
        summarise(sample(image, np.ones((20, 20), int)), ["a", "b"])
    with pytest.raises(InputError, match=r"labels 'seg': .*-1"):
        summarise(sample(image, np.full((20, 20), -1)), ["a"])
