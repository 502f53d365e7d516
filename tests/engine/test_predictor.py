"""The runner: what it reads, in which groups, and what it does when memory ends."""

import warnings
from dataclasses import replace
from typing import ClassVar

import dask.array as da
import numpy as np
import pytest
import torch

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd.engine.device import available_devices, resolve_device, resolve_precision
from nimbus_sd.engine.predict import PredictConfig, Predictor
from nimbus_sd.engine.source import ArrayImage, ArrayLabels, Sample
from nimbus_sd.testing import CountedArray, DirectionalNet, directional_model, random_image, random_labels

SHAPE = (96, 64)


class Lazy(ArrayImage):
    """An image in dask, read as an element is; `groups` keeps the channels of every read."""

    groups: ClassVar[list] = []

    @property
    def chunks(self):
        return self.array.chunks

    def read(self, channels, y, x):
        self.groups.append(channels)
        return self.array[channels, y.slice, x.slice].compute(scheduler="synchronous")


def counted_sample(chunks, n=3, labels=None):
    counter = CountedArray(random_image((n, *SHAPE)), chunks)
    labels = random_labels(SHAPE, n=20) if labels is None else labels
    names = tuple(f"m{i}" for i in range(n))
    return counter, Sample("cells", Lazy("i", counter.dask, names), ArrayLabels("l", labels), 1.0)


def predictor(net=None, **config):
    config = {"device": "cpu", "precision": "float32", "tile": 512} | config
    return Predictor(directional_model(net), PredictConfig(**config))


def scores(partials):
    return partials.sums["score"] / partials.count[:, None]


def test_planning_reads_nothing():
    counter, sample = counted_sample((1, 32, 32))
    assert len(predictor(tile=16).plan(sample)) == 24
    assert not counter.reads


@pytest.mark.parametrize("chunks", [(1, 32, 32), (3, 96, 64), (2, 50, 30)])
def test_one_tile_reads_each_chunk_once(chunks):
    counter, sample = counted_sample(chunks)
    predictor().run(sample, sample.image.channels, np.full(3, 900.0))
    assert set(counter.reads.values()) == {1}
    assert len(counter.reads) == counter.n_chunks


@pytest.mark.parametrize("n_threads", [0, 2])
def test_only_the_wanted_channels_are_read(n_threads):
    counter, sample = counted_sample((1, 32, 32), n=5)
    got = predictor(n_threads=n_threads).run(sample, ["m3", "m1"], np.array([900.0, 500.0]))
    assert {c for c, *_ in counter.reads} == {1, 3}
    reverse = predictor().run(sample, ["m1", "m3"], np.array([500.0, 900.0]))
    np.testing.assert_allclose(scores(got), scores(reverse)[:, ::-1], atol=1e-6)


def test_channel_groups_follow_the_chunks(monkeypatch):
    # room for five channels at a time, four to a chunk: the groups must not cut a chunk in two
    monkeypatch.setattr("nimbus_sd.engine.groups._GROUP_BYTES", SHAPE[0] * SHAPE[1] * 10 * 5)
    counter, sample = counted_sample((4, 96, 64), n=10)
    Lazy.groups.clear()
    whole = predictor().run(sample, sample.image.channels, np.full(10, 900.0))
    assert sorted(map(len, Lazy.groups)) == [2, 4, 4]
    assert set(counter.reads.values()) == {1}
    assert scores(whole).shape[1] == 10
    monkeypatch.undo()
    np.testing.assert_array_equal(
        scores(whole), scores(predictor().run(sample, sample.image.channels, np.full(10, 900.0)))
    )


def test_tiles_without_labels_never_read_the_image():
    labels = np.zeros(SHAPE, np.uint32)
    labels[2:9, 3:8] = 5
    counter, sample = counted_sample((1, 16, 16), labels=labels)
    done = []
    got = predictor(tile=16).run(sample, sample.image.channels, np.full(3, 900.0), on_progress=done.append)
    assert got.ids.tolist() == [5]
    # the one tile and its halo of 16 px
    assert {(y, x) for _, y, x in counter.reads} == {(y, x) for y in range(2) for x in range(2)}
    assert sum(done) == 24 * 3


def test_no_labels_at_all_give_no_partials():
    counter, sample = counted_sample((1, 16, 16), labels=np.zeros(SHAPE, np.uint8))
    assert predictor().run(sample, sample.image.channels, np.full(3, 900.0)).ids.size == 0
    assert not counter.reads


class Greedy(DirectionalNet):
    """Has memory for `limit` markers."""

    def __init__(self, limit):
        super().__init__()
        self.limit, self.sizes = limit, []

    def forward(self, x):
        self.sizes.append(len(x))
        if len(x) > self.limit:
            raise torch.OutOfMemoryError
        return super().forward(x)


def test_out_of_memory_halves_the_batch_and_says_so():
    _, sample = counted_sample((1, 96, 64), n=7)
    expected = predictor().run(sample, sample.image.channels, np.full(7, 900.0))
    greedy = predictor(Greedy(2), batch_size=16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = greedy.run(sample, sample.image.channels, np.full(7, 900.0))
    assert [w.category for w in caught] == [NimbusWarning] * 2
    assert [str(w.message).split(": ")[1] for w in caught] == [
        "batch size halved to 3",
        "batch size halved to 1",
    ]
    assert greedy.net.sizes == [7, 3, *[1] * 7]
    np.testing.assert_allclose(scores(got), scores(expected), atol=1e-6)


def test_out_of_memory_with_one_marker_says_what_to_do():
    _, sample = counted_sample((1, 96, 64))
    with pytest.raises(InputError, match=r"cpu ran out of memory.*smaller tile="):
        predictor(Greedy(0), batch_size=1).run(sample, sample.image.channels, np.full(3, 900.0))


def test_other_errors_of_a_network_come_through():
    class Broken(DirectionalNet):
        def forward(self, x):
            msg = "shapes don't fit"
            raise RuntimeError(msg)

    _, sample = counted_sample((1, 96, 64))
    with pytest.raises(RuntimeError, match="shapes don't fit"):
        predictor(Broken()).run(sample, sample.image.channels, np.full(3, 900.0))


@pytest.mark.parametrize(("bad", "said"), [(-1, "1 negative"), (np.nan, "1 NaN"), (np.inf, "1 infinite")])
def test_bad_pixels_name_image_and_channel(bad, said):
    image = random_image((2, *SHAPE), dtype="float32")
    image[1, 40, 20] = bad
    sample = Sample(
        "cells", ArrayImage("tissue", image, ("a", "b")), ArrayLabels("l", random_labels(SHAPE)), 1.0
    )
    with pytest.raises(InputError, match=rf"image 'tissue', channel 'b': {said}"):
        predictor(tile=32).run(sample, ("a", "b"), np.ones(2))


def test_bad_labels_and_pixel_sizes_are_named():
    _, sample = counted_sample((1, 96, 64))
    floats = replace(sample, labels=ArrayLabels("l", np.ones(SHAPE)))
    with pytest.raises(InputError, match="float64"):
        predictor().plan(floats)
    negative = replace(sample, labels=ArrayLabels("seg", np.full(SHAPE, -3)))
    with pytest.raises(InputError, match=r"labels 'seg': .*-3"):
        predictor().run(negative, sample.image.channels, np.ones(3))
    with pytest.raises(InputError, match=r"'cells'.*pixel size is unknown; pass mpp="):
        predictor().plan(replace(sample, mpp=None))


def test_maps_cover_the_owned_pixels_of_tiles_with_labels():
    _, sample = counted_sample((1, 96, 64))
    out = np.full((3, *SHAPE), np.nan)

    class Keep:
        def write(self, tile, markers, probabilities):
            # 1 µm per px: model px are the image's
            y, x = (slice(o.start, o.stop) for o in tile.core)
            out[list(markers), y, x] = probabilities

    got = predictor(tile=32).run(sample, sample.image.channels, np.full(3, 900.0), sink=Keep())
    labels = sample.labels.array
    for row, i in enumerate(got.ids):
        np.testing.assert_allclose(out[:, labels == i].mean(1), scores(got)[row], atol=1e-6)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"views": ()}, "give each view once"),
        ({"views": ("identity", "identity")}, "give each view once"),
        ({"views": ("rot45",)}, "rot45.*valid: identity"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"n_threads": -1}, "n_threads=-1"),
    ],
)
def test_configs_are_checked(config, said):
    with pytest.raises(InputError, match=said):
        PredictConfig(**config)


def test_devices_and_precisions_name_the_valid_ones():
    assert available_devices()[0] == "'cpu'"
    for device in ("gpu", "cuda:99", "meta"):
        with pytest.raises(InputError, match=rf"device='{device}'.*'auto', 'cpu'"):
            resolve_device(device)
    with pytest.raises(InputError, match=r"precision='half'.*'bfloat16'"):
        resolve_precision("half", torch.device("cpu"))
    assert resolve_precision("auto", torch.device("cpu")) in ("float32", "bfloat16")
    assert resolve_device("cpu") == torch.device("cpu")


def test_a_model_that_is_not_exact_says_so():
    with pytest.warns(NimbusWarning, match=r"'directional'.*scores depend on tile="):
        Predictor(directional_model(exact=False), PredictConfig(device="cpu"))


def test_dask_chunks_do_not_change_scores():
    image, labels = random_image((2, *SHAPE)), ArrayLabels("l", random_labels(SHAPE, n=20))
    got = [
        scores(
            predictor(tile=32).run(
                Sample("c", Lazy("i", da.from_array(image, chunks=c), ("a", "b")), labels, 1.0),
                ("a", "b"),
                np.full(2, 900.0),
            )
        )
        for c in [(1, 96, 64), (2, 7, 13), (1, 50, 64)]
    ]
    np.testing.assert_array_equal(got[0], got[1])
    np.testing.assert_array_equal(got[0], got[2])


def test_inputs_of_a_tile_go_before_the_next_are_taken(monkeypatch):
    import gc
    import weakref

    from nimbus_sd.engine import groups, host_path

    alive, most = weakref.WeakSet(), 0
    prepare = host_path.prepare

    def tracked(*args, **options):
        nonlocal most
        item = prepare(*args, **options)
        alive.add(item.batch)
        gc.collect()
        most = max(most, len(alive))
        return item

    monkeypatch.setattr(host_path, "prepare", tracked)
    monkeypatch.setattr(groups, "_GROUP_BYTES", 1)
    _, sample = counted_sample((1, 96, 64), n=12)
    config = PredictConfig(precision="float32", n_threads=1, device="cpu")
    Predictor(directional_model(), config).run(sample, sample.image.channels, np.ones(12))
    assert most <= 5
