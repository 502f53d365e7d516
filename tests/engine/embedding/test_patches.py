"""Blocks of patches: equal to naive slicing for every cell, and each chunk read once in a pass."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import Interval
from nimbus_sd.engine.embedding import margins
from nimbus_sd.engine.embedding.margins import MarginCache, block_edges
from nimbus_sd.engine.embedding.patches import PatchSample, blocks_of, plan_blocks, read_block
from nimbus_sd.engine.source import ArrayImage
from nimbus_sd.testing import strategies

DTYPES = ("uint8", "uint16", "uint32", "int16", "int32", "float16", "float32", "float64", "bool", ">u2")


class ChunkedImage(ArrayImage):
    """An array with chunks that counts how often each is touched."""

    def __init__(self, array, chunks):
        super().__init__("image", array, tuple(f"m{i}" for i in range(len(array))))
        object.__setattr__(self, "grid", chunks)
        object.__setattr__(self, "reads", Counter())

    @property
    def chunks(self):
        return (1,) * len(self.array), *self.grid

    def read(self, channels, y, x):
        edges = [np.cumsum([0, *g]) for g in self.grid]
        rows, columns = (
            range(np.searchsorted(e, r.start, "right") - 1, np.searchsorted(e, r.stop, "left"))
            for e, r in zip(edges, (y, x), strict=True)
        )
        self.reads.update((i, j) for i in rows for j in columns)
        return super().read(channels, y, x)


def cells(shape, n, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.random((n, 2)) * np.array(shape) - 0.5
    # corners and edges, where every error of borders shows
    corners = [[0, 0], [0, shape[1] - 1], [shape[0] - 1, 0], [shape[0] - 1, shape[1] - 1], [-0.5, -0.5]]
    return np.concatenate([centers, np.array(corners, float)])


def naive(image, center, size):
    """Pad the whole image by reflection and slice."""
    before = size // 2
    wide = np.pad(image, [(0, 0), (before, before), (before, before)], mode="reflect")
    y, x = (int(np.floor(v + 0.5)) for v in center)
    return wide[:, y : y + size, x : x + size]


def check(sample, channels, size, cache=None):
    seen = np.zeros(len(sample), int)
    for block in plan_blocks(sample, size):
        found = read_block(sample, channels, block, size, margins=cache)
        assert found.shape == (len(block.rows), len(channels), size, size)
        for row, patch in zip(block.rows, found, strict=True):
            expected = naive(sample.image.array[channels], sample.centers[row], size)
            np.testing.assert_array_equal(patch, expected)
        seen[block.rows] += 1
    assert (seen == 1).all()


@st.composite
def samples(draw):
    shape = draw(strategies.shapes(3, 40))
    size = draw(st.integers(1, min(shape)))
    dtype = draw(st.sampled_from(DTYPES))
    image = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 250, (3, *shape)).astype(dtype)
    centers = cells(shape, draw(st.integers(0, 12)), draw(st.integers(0, 9)))
    source = ChunkedImage(image, draw(strategies.chunks(shape)))
    return PatchSample("cells", source, np.arange(len(centers)) + 5, centers), size


@given(samples(), st.sampled_from([(1, 3), (4, 8), (16, 32)]), st.booleans())
def test_every_patch_is_a_slice_of_the_padded_image(drawn, sides, cached):
    sample, size = drawn
    with pytest.MonkeyPatch.context() as patch:  # blocks of a few px, so that small images have many
        patch.setattr(margins, "_SIDE", sides[0])
        patch.setattr(margins, "_LONGEST", sides[1])
        check(sample, [2, 0], size, MarginCache(size) if cached else None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_patches_have_the_dtype_of_the_image_in_this_machines_byte_order(dtype):
    image = np.random.default_rng(0).integers(0, 2, (2, 20, 20)).astype(dtype)
    sample = PatchSample("cells", ChunkedImage(image, ((20,), (20,))), np.arange(25), cells((20, 20), 20))
    (block,) = plan_blocks(sample, 8)
    assert read_block(sample, [0, 1], block, 8).dtype == np.dtype(dtype).newbyteorder("=")
    check(sample, [0, 1], 8)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=20))
def test_blocks_lie_on_chunk_borders_and_are_neither_tiny_nor_huge(chunks):
    edges, borders = block_edges(chunks), {0, *np.cumsum(chunks).tolist()}
    assert (edges[0], edges[-1]) == (0, sum(chunks))
    sides = np.diff(edges)
    assert (sides > 0).all()
    assert sides.max() <= max(2048 + 512, 1)
    if sum(chunks) >= 512:
        assert sides.min() >= 512
    if max(chunks) <= 1024:
        assert set(edges.tolist()) <= borders


@pytest.mark.parametrize("chunk", [8, 20, 40])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_pass_reads_each_chunk_once_plus_none_for_margins(chunk, threads, monkeypatch):
    monkeypatch.setattr(margins, "_SIDE", 16)
    shape = (80, 120)
    image = np.random.default_rng(0).integers(0, 9, (2, *shape)).astype("uint16")
    source = ChunkedImage(image, tuple((chunk,) * (n // chunk) for n in shape))
    sample = PatchSample("cells", source, np.arange(2005), cells(shape, 2000))
    cache, plan = MarginCache(9), plan_blocks(sample, 9)
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda b: read_block(sample, [0, 1], b, 9, margins=cache), plan))
    for block, patches in zip(plan, found, strict=True):
        for row, patch in zip(block.rows, patches, strict=True):
            np.testing.assert_array_equal(patch, naive(image, sample.centers[row], 9))
    assert len(source.reads) == (80 // chunk) * (120 // chunk)
    if threads == 1:
        assert set(source.reads.values()) == {1}
        source.reads.clear()
        for block in plan:
            read_block(sample, [0, 1], block, 9)
        assert max(source.reads.values()) > 1  # so the cache is what made it once


def test_margins_beyond_the_limit_are_read_again(monkeypatch):
    monkeypatch.setattr(margins, "_SIDE", 16)
    shape = (64, 64)
    image = np.random.default_rng(0).integers(0, 9, (1, *shape)).astype("uint8")
    source = ChunkedImage(image, ((16,) * 4, (16,) * 4))
    sample = PatchSample("cells", source, np.arange(505), cells(shape, 500))
    check(sample, [0], 9, MarginCache(9, limit=1))
    assert max(source.reads.values()) > 1


@pytest.mark.parametrize("in_order", [True, False])
def test_margins_of_a_row_of_blocks_are_enough_for_a_pass(in_order, monkeypatch):
    monkeypatch.setattr(margins, "_SIDE", 16)
    monkeypatch.setattr(margins, "_AHEAD", 2)
    monkeypatch.setattr(margins, "_BLOCKS", 70)
    shape = (320, 64)
    source = ChunkedImage(np.zeros((1, *shape), "uint8"), ((16,) * 20, (16,) * 4))
    sample = PatchSample("cells", source, np.arange(3005), cells(shape, 3000))
    cache, held = MarginCache(9, in_order=in_order), []
    for block in plan_blocks(sample, 9):
        read_block(sample, [0], block, 9, margins=cache)
        held.append(len(cache._entries))
    assert set(source.reads.values()) == {1}
    assert max(held) == (7 if in_order else 70)


def test_one_cache_serves_several_passes_and_images(monkeypatch):
    monkeypatch.setattr(margins, "_SIDE", 16)
    cache = MarginCache(9)
    for seed in (0, 1, 0):
        image = np.random.default_rng(seed).integers(0, 99, (2, 40, 40)).astype("uint8")
        source = ChunkedImage(image, ((20, 20), (20, 20)))
        sample = PatchSample("cells", source, np.arange(105), cells((40, 40), 100))
        for channels in ([0], [1, 0], [1, 0]):
            check(sample, channels, 9, cache)


def test_a_block_that_is_read_again_at_the_worst_moment_counts_once():
    cache, block = MarginCache(4), (Interval(0, 16), Interval(0, 16))

    class Again(ChunkedImage):
        def read(self, channels, y, x):
            if not self.reads:  # another thread starts on the block when the margins are there, not counted
                (entry,) = cache._entries.values()
                entry.margins.add_done_callback(lambda _: cache.read(self, channels, block, block))
            return super().read(channels, y, x)

    cache.read(Again(np.zeros((1, 16, 16), "uint8"), ((16,), (16,))), [0], block, block)
    assert cache._held == 2 * 4 * 16


def test_an_error_of_one_block_does_not_hang_the_blocks_that_wait_for_it(monkeypatch):
    monkeypatch.setattr(margins, "_SIDE", 16)

    class Broken(ChunkedImage):
        def read(self, channels, y, x):
            if y.start < 20 and x.start < 20:
                msg = "gone"
                raise OSError(msg)
            return super().read(channels, y, x)

    source = Broken(np.zeros((1, 40, 40), "uint8"), ((20, 20), (20, 20)))
    sample = PatchSample("cells", source, np.arange(105), cells((40, 40), 100))
    cache = MarginCache(9)
    for block in plan_blocks(sample, 9):
        with pytest.raises(OSError, match="gone"):
            read_block(sample, [0], block, 9, margins=cache)


def test_the_border_flag_is_that_of_patches_beyond_the_image():
    sample = PatchSample(
        "cells",
        ChunkedImage(np.zeros((1, 20, 30)), ((20,), (30,))),
        np.arange(4),
        np.array([[4.0, 4.0], [3.0, 9.0], [16.0, 26.0], [16.0, 27.0]]),
    )
    assert sample.border(8).tolist() == [False, True, False, True]


def test_blocks_of_several_samples_name_their_sample():
    image = ChunkedImage(np.zeros((1, 20, 30)), ((20,), (30,)))
    some = PatchSample("a", image, np.arange(8), cells((20, 30), 3))
    none = PatchSample("b", image, np.arange(0), np.empty((0, 2)))
    assert [i for i, _ in blocks_of([some, none, some], 8)] == [0, 2]


@pytest.mark.parametrize("size", [21, 39, 40, 100])
def test_a_patch_larger_than_the_image_is_an_error(size):
    sample = PatchSample(
        "cells", ChunkedImage(np.zeros((1, 20, 30)), ((20,), (30,))), np.arange(5), cells((20, 30), 0)
    )
    said = f"'image' is 20 x 30 px, too small for patches of {size} px; they can have at most 20"
    with pytest.raises(InputError, match=said):
        plan_blocks(sample, size)
    check(sample, [0], 20)


@pytest.mark.parametrize("size", [0, -3, 2.5, True, "32"])
def test_a_size_that_is_no_whole_number_is_an_error(size):
    sample = PatchSample(
        "cells", ChunkedImage(np.zeros((1, 20, 30)), ((20,), (30,))), np.arange(5), cells((20, 30), 0)
    )
    with pytest.raises(InputError, match="whole number of px"):
        plan_blocks(sample, size)


@pytest.mark.parametrize("center", [[-0.6, 3.0], [19.5, 3.0], [3.0, 29.5], [np.nan, 3.0], [3.0, np.inf]])
def test_a_centre_outside_the_image_is_an_error(center):
    centers = np.array([[3.0, 3.0], center, [19.4, 29.4]])
    sample = PatchSample(
        "nuclei", ChunkedImage(np.zeros((1, 20, 30)), ((20,), (30,))), np.array([7, 8, 9]), centers
    )
    with pytest.raises(InputError, match=r"1 of 3 centres of 'nuclei' lie outside image 'image'.*id 8"):
        plan_blocks(sample, 8)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (-1.0, "negative"), (np.inf, "infinite")])
def test_bad_pixels_name_image_and_channel(value, word):
    image = np.zeros((2, 20, 30))
    image[1, 10, 10] = value
    sample = PatchSample("cells", ChunkedImage(image, ((20,), (30,))), np.arange(5), cells((20, 30), 0))
    (block,) = plan_blocks(sample, 8)
    with pytest.raises(InputError, match=f"image 'image', channel 'm1': 1 {word}"):
        read_block(sample, [0, 1], block, 8)
    read_block(sample, [0], block, 8)
