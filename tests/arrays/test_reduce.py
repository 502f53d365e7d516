"""Per-label sums against a loop over the labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import LabelIndex, Partials, merge_partials
from nimbus_sd.testing import random_labels, strategies


def loop(labels, values):
    ids = [int(i) for i in np.unique(labels) if i != 0]
    count = [int((labels == i).sum()) for i in ids]
    sums = [[float(plane[labels == i].sum(dtype=np.float64)) for plane in values] for i in ids]
    return ids, count, np.reshape(sums, (len(ids), len(values)))


@given(strategies.labels(), st.integers(0, 99))
def test_sums_equal_the_loop(labels, seed):
    values = np.random.default_rng(seed).random((2, *labels.shape), dtype=np.float32)
    ids, count, sums = loop(labels, values)
    index = LabelIndex(labels)
    assert index.ids.tolist() == ids
    assert index.count.tolist() == count
    assert index.ids.dtype == index.count.dtype == np.int64
    np.testing.assert_allclose(index.sum(values), sums, rtol=1e-12)
    assert index.sum(values).dtype == np.float64


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64"]
)
def test_every_integer_dtype(dtype):
    top = np.iinfo(dtype).max if dtype != "bool" else 1
    wanted = [1] if dtype == "bool" else [3, 2, min(top, 2**63 - 1)]
    labels = random_labels((30, 30), n=20, ids=wanted, dtype=dtype)
    assert LabelIndex(labels).ids.tolist() == sorted(set(wanted))


@given(strategies.small_labels())
def test_centroid_sums(labels):
    index = LabelIndex(labels)
    y, x = np.mgrid[: labels.shape[0], : labels.shape[1]]
    np.testing.assert_array_equal(index.centroid_sums, loop(labels, [y, x])[2])


@given(strategies.labels(), st.integers(1, 4), st.integers(0, 99))
def test_gather_equals_bringing_the_grid_to_full_resolution_first(labels, factor, seed):
    y, x = (np.arange(n) // factor for n in labels.shape)
    coarse = np.random.default_rng(seed).random((2, y[-1] + 1, x[-1] + 1))
    index = LabelIndex(labels)
    matrix = index.gather(y, x, coarse.shape[2])
    matrix.resize((index.ids.size, coarse[0].size))
    np.testing.assert_allclose(matrix @ coarse.reshape(2, -1).T, index.sum(coarse[:, y][:, :, x]), rtol=1e-12)


@given(strategies.labels(), st.integers(0, 99), st.randoms())
def test_blocks_merge_to_the_whole_in_any_order(labels, cut, random):
    values = np.random.default_rng(cut).random((3, *labels.shape))
    cuts = cut % labels.shape[0], cut % labels.shape[1]
    blocks = [
        np.s_[a, b]
        for a in (slice(cuts[0]), slice(cuts[0], None))
        for b in (slice(cuts[1]), slice(cuts[1], None))
    ]
    parts = [partial(labels[b], values[:, *b]) for b in blocks]
    random.shuffle(parts)
    nested = merge_partials([merge_partials(parts[:2]), merge_partials(parts[2:])])
    for merged in (merge_partials(parts), nested):
        ids, count, sums = loop(labels, values)
        assert merged.ids.tolist() == ids
        assert merged.count.tolist() == count
        np.testing.assert_allclose(merged.sums["s"], sums, rtol=1e-12)


def partial(labels, values):
    index = LabelIndex(labels)
    return Partials(index.ids, index.count, {"s": index.sum(values)})


def test_three_axes_merge_and_nothing_merges_to_nothing():
    part = Partials(np.array([4]), np.array([2]), {"v": np.ones((1, 2, 8))})
    assert merge_partials([part, part]).sums["v"].tolist() == (2 * np.ones((1, 2, 8))).tolist()
    empty = merge_partials([])
    assert (empty.ids.size, empty.count.size) == (0, 0)
    assert part.nbytes == 8 + 8 + 128


def test_no_labelled_pixel():
    index = LabelIndex(np.zeros((5, 6), np.uint16))
    assert index.ids.size == 0
    assert index.sum(np.ones((2, 5, 6))).shape == (0, 2)
    assert index.centroid_sums.shape == (0, 2)
    assert index.gather(np.arange(5), np.arange(6), 6).shape[0] == 0


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.ones((2, 2)), r"float64.*integers"),
        (np.ones((2, 2), np.float16), r"float16.*astype"),
        (np.array([[0, -7]]), r"-7.*relabel"),
        (np.array([[2**63]], np.uint64), r"9223372036854775808.*relabel"),
    ],
)
def test_what_is_no_label_is_rejected(labels, said):
    with pytest.raises(InputError, match=said):
        LabelIndex(labels)
