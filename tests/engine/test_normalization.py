"""Scales against numpy.quantile of all pixels; each chunk is read once."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import RELATIVE_ERROR, Interval
from nimbus_sd.engine.normalization import Normalization, fit_normalization
from nimbus_sd.engine.source import ArrayImage
from nimbus_sd.testing import CountedArray, random_image, strategies


class Chunked(ArrayImage):
    """A dask image."""

    @property
    def chunks(self):
        return self.array.chunks

    def read(self, channels, y, x):
        return self.array[channels, y.slice, x.slice].compute(scheduler="synchronous")


def image(array, name="i"):
    return ArrayImage(name, array, tuple(f"m{i}" for i in range(len(array))))


def oracle(arrays, channel, quantile, rule):
    if rule == "dataset":
        return np.quantile(np.concatenate([a[channel].ravel() for a in arrays]).astype(float), quantile)
    each = [
        np.quantile(a[channel][a[channel] > 0].astype(float), quantile) for a in arrays if a[channel].any()
    ]
    return np.mean(each)


@pytest.mark.parametrize("rule", ["dataset", "fov_mean"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("quantile", [0.5, 0.999, 0.9999, 1.0])
def test_rules(rule, dtype, quantile):
    arrays = [random_image((2, 50, 40 + i), seed=i, dtype=dtype, maximum=60.0 * (i + 1)) for i in range(3)]
    arrays[1][1] = 0  # a field without this marker counts for one rule and not for the other
    got = fit_normalization([image(a) for a in arrays], ["m1", "m0"], quantile=quantile, rule=rule)
    expected = [oracle(arrays, c, quantile, rule) for c in (1, 0)]
    np.testing.assert_allclose(got.scale, expected, rtol=RELATIVE_ERROR if dtype == "float32" else 1e-12)
    assert (got.quantile, got.rule, got.fitted_on) == (quantile, rule, ("i", "i", "i"))
    assert got.n_pixels == (sum(a[0].size for a in arrays),) * 2
    assert got.maximum == tuple(float(max(a[c].max() for a in arrays)) for c in (1, 0))


@settings(max_examples=20)
@given(st.data(), st.integers(0, 3))
def test_each_chunk_is_read_once_whatever_the_chunks(data, n_threads):
    array = random_image((4, 30, 23))
    chunks = data.draw(strategies.chunks(array.shape))
    counter = CountedArray(array, chunks)
    names = ("a", "b", "c", "d")
    wanted = data.draw(st.permutations(names))[: data.draw(st.integers(1, 4))]
    pixels = []
    got = fit_normalization(
        [Chunked("i", counter.dask, names)], wanted, n_threads=n_threads, on_progress=pixels.append
    )
    edges = np.cumsum([0, *counter.chunks[0]])
    groups = {int(np.searchsorted(edges, names.index(w), side="right")) - 1 for w in wanted}
    assert {c for c, *_ in counter.reads} == groups
    assert len(counter.reads) == len(groups) * len(chunks[1]) * len(chunks[2])
    assert set(counter.reads.values()) == {1}
    assert sum(pixels) == len(wanted) * 30 * 23
    assert got.scale == tuple(oracle([array], names.index(w), 0.9999, "dataset") for w in wanted)


def channel(**pixels):
    """1,000,000 px of 1, but for some."""
    x = np.ones(1_000_000, np.uint16)
    at = 0
    for value, n in pixels.items():
        x[at : at + n] = int(value[1:])
        at += n
    return x.reshape(1, 1000, 1000)


@pytest.mark.parametrize(
    ("array", "flag", "scale"),
    [
        (channel(v0=1_000_000), "empty", 1.0),
        (channel(v0=999_950, v7=50), "sparse", 7.0),
        (channel(v4095=200), "saturated", 4095.0),
        (channel(v4095=50), "", 1.0),
        (channel(v900=200), "debris", 900.0),
        (channel(v6=200), "", 6.0),
        (channel(v900=2_0000), "", 900.0),
    ],
)
def test_flags(array, flag, scale):
    got = fit_normalization([image(array)], ["m0"])
    assert got.flags == (flag,)
    assert got.scale == (scale,)
    assert got.n_saturated[0] == (array == 4095).sum()
    assert got.column("flags", ["m0", "elsewhere"]) == [flag, ""]


def test_images_of_several_integer_dtypes_count_together():
    arrays = [random_image((1, 30, 30), dtype="uint8", maximum=200), random_image((1, 30, 30), seed=1)]
    got = fit_normalization([image(a) for a in arrays], ["m0"], quantile=0.9)
    assert got.scale[0] == pytest.approx(oracle(arrays, 0, 0.9, "dataset"))


def test_bad_pixels_name_image_and_channel():
    array = random_image((2, 20, 20), dtype="float32")
    array[1, 3, 3] = np.nan
    with pytest.raises(InputError, match=r"image 'slide', channel 'm1': 1 NaN"):
        fit_normalization([image(array, "slide")], ["m0", "m1"])
    assert fit_normalization([image(array, "slide")], ["m0"]).channels == ("m0",)


@pytest.mark.parametrize(
    ("quantile", "rule", "said"),
    [(0, "dataset", "quantile=0"), (1.1, "dataset", "1.1"), (0.9, "max", "dataset, fov_mean")],
)
def test_rules_are_checked_before_anything_is_read(quantile, rule, said):
    counter = CountedArray(random_image((1, 8, 8)), (1, 4, 4))
    with pytest.raises(InputError, match=said):
        fit_normalization([Chunked("i", counter.dask, ("a",))], ["a"], quantile=quantile, rule=rule)
    assert not counter.reads


def test_saved_and_loaded(tmp_path):
    fitted = fit_normalization([image(random_image((2, 20, 20)), "µ")], ["m0", "m1"], quantile=0.99)
    fitted.save(tmp_path / "n.json")
    assert Normalization.load(tmp_path / "n.json") == fitted
    assert Normalization.from_dict(fitted.to_dict()) == fitted
    assert fitted.scale_of(["m1", "m0"]).tolist() == list(fitted.scale[::-1])


@pytest.mark.parametrize("text", ["{", '{"channels": []}', '{"a": 1}', "[]"])
def test_files_that_hold_no_normalisation(tmp_path, text):
    (tmp_path / "n.json").write_text(text)
    with pytest.raises(InputError, match=r"Normalization\.save"):
        Normalization.load(tmp_path / "n.json")


def test_a_normalisation_is_checked():
    with pytest.raises(InputError, match="2 channels but 1 scales"):
        Normalization(("a", "b"), (1.0,), 0.9, "dataset", ())
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(InputError, match=r"not for \['b'\]"):
            Normalization(("a", "b"), (1.0, bad), 0.9, "dataset", ())
    known = Normalization(("a",), (1.0,), 0.9, "dataset", ())
    with pytest.raises(InputError, match=r"no scale for \['c'\]; it knows \['a'\].*normalization"):
        known.scale_of(["a", "c"])
    assert known.column("n_saturated", ["a"]) == [0]


def test_array_images_chunk_by_rows():
    tall = image(np.zeros((1, 2500, 3), np.uint8))
    assert tall.chunks == ((1,), (1024, 1024, 452), (3,))
    assert tall.read([0], Interval(1, 3), Interval(0, 2)).shape == (1, 2, 2)
    assert json.dumps(fit_normalization([tall], ["m0"]).to_dict())


def test_memory_does_not_grow_with_the_number_of_images():
    import tracemalloc

    def peak(n):
        fields = [image(random_image((2, 32, 32), seed=i, dtype="float32"), f"i{i}") for i in range(n)]
        tracemalloc.start()
        fit_normalization(fields, ["m0", "m1"], rule="fov_mean", n_threads=0)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(8) < 1.3 * peak(3)


def test_integers_and_floats_are_not_mixed():
    fields = [image(random_image((1, 8, 8), dtype=d), d) for d in ("uint8", "float32")]
    with pytest.raises(InputError, match=r"\['float32'\] hold floats and \['uint8'\] integers"):
        fit_normalization(fields, ["m0"])
