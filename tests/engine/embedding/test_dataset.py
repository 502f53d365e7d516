"""The stream of patches: every cell once per pass, in an order that seed and epoch decide, bounded."""

from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.embedding import image_source, margins
from nimbus_sd.engine.embedding.dataset import PatchStream, StreamSettings
from nimbus_sd.engine.embedding.image_source import ImagePatches
from nimbus_sd.engine.embedding.patches import PatchSample
from nimbus_sd.engine.embedding.shuffle import draw
from nimbus_sd.engine.source import ArrayImage

MARKERS = ("b", "a")
SIZE = 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Many blocks and groups in a small image."""
    monkeypatch.setattr(margins, "_SIDE", 16)
    monkeypatch.setattr(margins, "_LONGEST", 24)
    monkeypatch.setattr(image_source, "_GROUP", 40)


def sample(region, n, *, seed=0, shape=(90, 70), channels=("a", "b", "c"), dtype="uint16"):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 200, (len(channels), *shape)).astype(dtype)
    centers = rng.random((n, 2)) * np.array(shape) - 0.5
    ids = rng.permutation(10 * n + 1)[:n] + 4_000_000_000
    return PatchSample(region, ArrayImage(f"{region}_image", image, channels), ids, centers)


SAMPLES = [
    sample("one", 150),
    sample("two", 90, seed=1, channels=("c", "b", "a")),
    sample("three", 0, seed=2),
]


def stream(samples=None, *, scale=None, **settings):
    samples = SAMPLES if samples is None else samples
    settings = StreamSettings(**({"size": SIZE, "batch_size": 16, "buffer": 50, "n_threads": 0} | settings))
    return PatchStream(ImagePatches(samples, MARKERS, SIZE), samples, MARKERS, settings=settings, scale=scale)


def naive(samples):
    """(region, id) to the patch that slicing gives, and whether it was reflected."""
    out = {}
    for s in samples:
        planes = s.image.array[[s.image.channels.index(m) for m in MARKERS]]
        wide = np.pad(planes, [(0, 0), (2, 2), (2, 2)], mode="reflect")
        for i, center in zip(s.ids.tolist(), s.centers, strict=True):
            y, x = np.floor(center + 0.5).astype(int)
            inside = 2 <= y < s.image.shape[0] - 2 and 2 <= x < s.image.shape[1] - 2
            out[s.region, i] = wide[:, y : y + SIZE, x : x + SIZE], not inside
    return out


def keys(batches):
    return [k for b in batches for k in zip(b["region"], b["instance_id"].tolist(), strict=True)]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize(("batch", "buffer"), [(16, 50), (16, 16), (16, 3), (1, 1), (1000, 10), (7, 100_000)])
def test_every_cell_comes_once_with_its_own_patch_and_flag(shuffle, threads, batch, buffer):
    found = stream(shuffle=shuffle, n_threads=threads, batch_size=batch, buffer=buffer)
    expected = naive(SAMPLES)
    batches = list(found.batches())
    assert Counter(keys(batches)) == Counter(list(expected))
    assert {len(b["region"]) for b in batches[:-1]} <= {batch}
    for b in batches:
        for region, i, patch, border in zip(
            b["region"], b["instance_id"].tolist(), b["patch"], b["border"].tolist(), strict=True
        ):
            slice_, reflected = expected[region, i]
            np.testing.assert_array_equal(patch.numpy(), slice_)
            assert border == reflected


def test_items_are_those_of_the_batches():
    found = stream(scale=np.array([90.0, 120.0]))
    assert len(found) == 240
    assert found.shape == (240, 2, SIZE, SIZE)
    items, batches = list(found), list(found.batches())
    assert [(i["region"], i["instance_id"]) for i in items] == keys(batches)
    assert [i["border"] for i in items] == torch.cat([b["border"] for b in batches]).tolist()
    torch.testing.assert_close(
        torch.stack([i["patch"] for i in items]), torch.cat([b["patch"] for b in batches])
    )


@pytest.mark.parametrize("transform", ["identity", "sqrt"])
def test_normalised_patches(transform):
    scale = np.array([90.0, 120.0])
    expected = naive(SAMPLES)
    for item in stream(scale=scale, transform=transform):
        raw = expected[item["region"], item["instance_id"]][0]
        x = np.clip(raw / scale[:, None, None], 0, 1)
        np.testing.assert_allclose(item["patch"], np.sqrt(x) if transform == "sqrt" else x, rtol=1e-6)
        assert item["patch"].dtype == torch.float32


def test_the_seed_and_the_epoch_decide_the_order_and_threads_do_not():
    first = keys(stream().batches())
    assert keys(stream().batches()) == first
    assert keys(stream(n_threads=3).batches()) == first
    other = stream(seed=1)
    assert keys(other.batches()) != first
    again = stream()
    again.set_epoch(1)
    later = keys(again.batches())
    assert later != first
    assert set(later) == set(first)
    again.set_epoch(0)
    assert keys(again.batches()) == first


def test_shuffling_mixes_and_its_absence_keeps_the_order_of_the_blocks():
    plain = keys(stream(shuffle=False).batches())
    assert [k[0] for k in plain] == ["one"] * 150 + ["two"] * 90
    rank = {k: i for i, k in enumerate(plain)}
    moved = [abs(i - rank[k]) for i, k in enumerate(keys(stream().batches()))]
    assert np.mean(moved) > 30


@pytest.mark.parametrize("of", [1, 2, 3, 50])
@pytest.mark.parametrize("shuffle", [True, False])
def test_parts_together_give_every_cell_once(of, shuffle):
    whole = stream(shuffle=shuffle)
    parts = [keys(whole.part(i, of).batches()) for i in range(of)]
    assert Counter(chain.from_iterable(parts)) == Counter(list(naive(SAMPLES)))
    if of == 2:
        assert all(parts)
    with pytest.raises(InputError, match="valid are 0 to"):
        whole.part(of, of)


class Counted(ArrayImage):
    """Of square chunks; counts how often each is touched."""

    def __init__(self, side, chunk):
        super().__init__("slide", np.zeros((1, side, side), np.uint8), ("a",))
        object.__setattr__(self, "chunk", chunk)
        object.__setattr__(self, "reads", Counter())

    @property
    def chunks(self):
        each = (self.chunk,) * (self.shape[0] // self.chunk)
        return (1,), each, each

    def read(self, channels, y, x):
        rows, columns = (range(r.start // self.chunk, (r.stop - 1) // self.chunk + 1) for r in (y, x))
        self.reads.update((i, j) for i in rows for j in columns)
        return super().read(channels, y, x)


@pytest.mark.parametrize(("chunk", "most", "mean"), [(20, 2, 1.6), (10, 4, 1.6), (60, 18, 14)])
def test_how_often_a_pass_over_many_blocks_decodes_a_chunk(chunk, most, mean):
    image = Counted(240, chunk)
    places = np.random.default_rng(0).random((9000, 2)) * 240 - 0.5
    slide = PatchSample("slide", image, np.arange(9000), places)
    settings = StreamSettings(size=SIZE, batch_size=16, buffer=50, n_threads=0)
    found = PatchStream(ImagePatches([slide], ("a",), SIZE), [slide], ("a",), settings=settings, scale=None)
    assert len(keys(found.batches())) == 9000
    times = list(image.reads.values())
    assert len(times) == (240 // chunk) ** 2
    assert 1 < np.mean(times) <= mean
    assert max(times) <= most
    image.reads.clear()
    found.settings = replace(settings, shuffle=False)
    assert len(keys(found.batches())) == 9000
    # a chunk of 60 px is read in 9 parts, shuffled each of them up to twice
    assert set(image.reads.values()) == {1 if chunk < 24 else 9}


def test_the_last_small_batch_can_be_left_out():
    sizes = [len(b["region"]) for b in stream().batches(100)]
    assert sizes == [100, 100, 40]
    assert [len(b["region"]) for b in stream().batches(100, drop_last=True)] == [100, 100]


def test_a_data_loader_collates_items_as_batches_are():
    found = stream(shuffle=False)
    for mine, theirs in zip(found.batches(16), DataLoader(found, batch_size=16), strict=True):
        assert mine["region"] == theirs["region"]
        for key in ("patch", "instance_id", "border"):
            torch.testing.assert_close(mine[key], theirs[key])
            assert mine[key].dtype == theirs[key].dtype


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("batched", [True, False])
def test_workers_of_a_data_loader_divide_the_cells(batched):
    found = stream(n_threads=1)
    data, size = (found.batches(16), None) if batched else (found, 16)
    loader = DataLoader(data, batch_size=size, num_workers=2, multiprocessing_context="fork")
    batches = list(loader)
    expected = naive(SAMPLES)
    assert Counter(keys(batches)) == Counter(list(expected))
    for b in batches:
        for region, i, patch in zip(b["region"], b["instance_id"].tolist(), b["patch"], strict=True):
            np.testing.assert_array_equal(patch.numpy(), expected[region, i][0])
    assert keys(loader) == keys(batches)


def test_images_of_several_dtypes_share_one_that_holds_both():
    both = [sample("small", 20, dtype="uint8"), sample("large", 20, seed=1, dtype="float32")]
    found = stream(both)
    assert found.dtype == np.float32
    expected = naive(both)
    for item in found:
        np.testing.assert_array_equal(item["patch"], expected[item["region"], item["instance_id"]][0])


def test_a_patch_is_not_overwritten_by_those_that_follow():
    items = list(stream(batch_size=4, buffer=4))
    expected = naive(SAMPLES)
    for item in items:
        np.testing.assert_array_equal(item["patch"], expected[item["region"], item["instance_id"]][0])


def test_the_buffer_holds_no_more_than_it_may():
    class Part:
        def __init__(self, first):
            self.sample, self.row = np.zeros(30, int), np.arange(first, first + 30)

        def fill(self, which, out, at):
            out[at, 0, 0, 0] = self.row[which]

    opened = (Part(first) for first in range(0, 300, 30))
    options = {"shape": (1, 1, 1), "dtype": np.dtype("int64"), "capacity": 40, "batch_size": 8}
    seen = []
    for drawn in draw(opened, rng=np.random.default_rng(0), **options):
        assert len(drawn.buffer) == 40
        assert drawn.buffer[drawn.at, 0, 0, 0].tolist() == drawn.row.tolist()
        # what is drawn lies among the first that could be there by then
        assert drawn.row.max() < len(seen) + 40
        seen += drawn.row.tolist()
    assert sorted(seen) == list(range(300))


def test_breaking_off_a_pass_and_starting_another():
    found = stream(n_threads=2)
    for _ in range(3):
        iterator = iter(found.batches())
        next(iterator)
        iterator.close()
    assert len(keys(found.batches())) == 240


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"buffer": 0},
        {"n_threads": -1},
        {"size": 0},
        {"seed": -1},
        {"seed": 1.5},
        {"batch_size": True},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"{name}=.* must be a whole number, at least"):
        StreamSettings(**wrong)


def test_a_batch_size_out_of_range_is_named():
    with pytest.raises(InputError, match="batch_size=0 must be"):
        stream().batches(0)
