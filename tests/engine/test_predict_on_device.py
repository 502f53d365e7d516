"""The way over the device gives what the way over the host gives; here mostly with the CPU as the device."""

import gc
import threading
import warnings
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from nimbus_sd._core.errors import InputError, NimbusWarning, OutOfMemoryError, WeightsError
from nimbus_sd.arrays import VIEWS
from nimbus_sd.engine import device_path, groups
from nimbus_sd.engine.device_path import DevicePath
from nimbus_sd.engine.host_path import HostPath
from nimbus_sd.engine.job import Job
from nimbus_sd.engine.local import run_local
from nimbus_sd.engine.predict import PredictConfig, Predictor
from nimbus_sd.engine.source import ArrayImage, ArrayLabels, Sample
from nimbus_sd.testing import DirectionalNet, directional_model, random_image, random_labels, tiny_unet_model

DEVICES = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
CHANNELS = ("a", "b", "c", "d")
SCALE = np.array([700.0, 300.0, 1000.0, 50.0])
UNET = tiny_unet_model(width=3, depth=3)


def sample(shape=(90, 75), *, mpp=1.0, dtype="uint16", n=30, seed=0):
    image = random_image((4, *shape), seed=seed, dtype=dtype)
    labels = random_labels(shape, n=n, seed=seed)
    return Sample("cells", ArrayImage("i", image, CHANNELS), ArrayLabels("l", labels), mpp)


def predictor(model=UNET, *, on_device=True, **config):
    config = {"device": "cpu", "precision": "float32", "tile": 32} | config
    return Predictor(model, PredictConfig(**config), on_device=on_device)


class Keep:
    """A map in memory, in model px."""

    def __init__(self):
        self.written = {}

    def write(self, tile, markers, probabilities):
        assert probabilities.dtype == np.float32
        self.written[tile.index, tuple(markers)] = probabilities.copy()


def same(found, expected):
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.count, expected.count)
    assert found.sums.keys() == expected.sums.keys()
    for name in found.sums.keys() & {"position", "n_tiles"}:
        np.testing.assert_array_equal(found.sums[name], expected.sums[name])
    for name in found.sums.keys() & {"score", "score_view"}:
        count = expected.count.reshape(-1, *[1] * (expected.sums[name].ndim - 1))
        np.testing.assert_allclose(found.sums[name] / count, expected.sums[name] / count, atol=1e-5)
    if "intensity" in found.sums:
        np.testing.assert_array_equal(found.sums["intensity"], expected.sums["intensity"])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", [directional_model(), UNET], ids=["directional", "unet"])
@pytest.mark.parametrize("mpp", [1.0, 0.5, 0.65, 2.0])
@pytest.mark.parametrize(
    "how",
    [
        {"views": tuple(VIEWS), "per_view": True},
        {"views": ("identity", "rot90", "flip_x"), "batch_size": 5, "n_threads": 0},
        {"intensity": False, "tile": 512},
        {"batch_size": 1, "n_threads": 3, "tile": 16},
    ],
    ids=["all views", "some views", "no intensity", "one by one"],
)
def test_both_ways_give_the_same_partials_and_maps(how, mpp, model, device):
    field, maps = sample(mpp=mpp), (Keep(), Keep())
    expected = predictor(model, on_device=False, **how).run(field, CHANNELS, SCALE, sink=maps[0])
    found = predictor(model, device=device, **how).run(field, CHANNELS, SCALE, sink=maps[1])
    same(found, expected)
    assert expected.sums["score"].std() > 0
    assert list(maps[0].written) == list(maps[1].written)
    for key, probabilities in maps[0].written.items():
        np.testing.assert_allclose(maps[1].written[key], probabilities, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "uint64", "float16", "float64"])
def test_pixels_of_any_dtype(dtype, device):
    field = sample(dtype="uint8", mpp=0.65)
    field = replace(field, image=ArrayImage("i", field.image.array.astype(dtype), CHANNELS))
    expected = predictor(on_device=False).run(field, CHANNELS, SCALE)
    same(predictor(device=device).run(field, CHANNELS, SCALE), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_channel_groups_of_a_tile_share_its_label_sums(device, monkeypatch):
    made = []

    class Counted(device_path.LabelSums):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(weakref.ref(self))

    expected = predictor(on_device=False).run(sample(), CHANNELS, SCALE)
    monkeypatch.setattr(device_path, "LabelSums", Counted)
    monkeypatch.setattr(groups, "_GROUP_BYTES", 1)
    p = predictor(device=device)
    same(p.run(sample(), CHANNELS, SCALE), expected)
    assert len(made) == len(p.plan(sample())) == 9
    gc.collect()
    assert not any(ref() for ref in made)  # nothing of a run stays in the device's memory


def sparse_sample():
    """Tiles 0, 3 and 8 of nine have labels."""
    labels = np.zeros((96, 96), np.uint32)
    for i, (y, x) in enumerate([(4, 4), (40, 10), (80, 80)]):
        labels[y : y + 8, x : x + 8] = 5 - i
    field = sample((96, 96))
    return replace(field, labels=ArrayLabels("l", labels))


@pytest.mark.parametrize("on_device", [True, False])
def test_blocks_come_in_order_with_empty_ones_among_them(on_device):
    field, p = sparse_sample(), predictor(on_device=on_device)
    job = Job((field,), (p.plan(field),), CHANNELS, SCALE, p.config)
    scored = list(p.score(job, job.blocks()))
    assert [s.block.tile for s in scored] == list(range(9))
    assert [s.block.tile for s in scored if s.partials is not None] == [0, 3, 8]
    assert [s.partials.ids.tolist() for s in scored if s.partials is not None] == [[5], [4], [3]]
    (one,) = p.score(job, [scored[3].block])
    np.testing.assert_array_equal(one.partials.sums["score"], scored[3].partials.sums["score"])


@pytest.mark.parametrize(("on_device", "ahead"), [(True, 2), (False, 0)])
def test_the_next_groups_are_begun_before_one_is_waited_for(on_device, ahead, monkeypatch):
    monkeypatch.setattr(groups, "_GROUP_BYTES", 1)
    p, happened = predictor(on_device=on_device), []
    begin = p._path.begin

    def watched(item, *, maps):
        n = sum(what == "begin" for what, _ in happened)
        happened.append(("begin", n))
        result = begin(item, maps=maps)

        def wait():
            happened.append(("wait", n))
            return result()

        return wait

    p._path.begin = watched
    p.run(sample(), CHANNELS, SCALE)
    waits = [(i, n) for i, (what, n) in enumerate(happened) if what == "wait"]
    assert [n for _, n in waits] == list(range(9 * 4))
    for i, n in waits:
        begun = sum(what == "begin" for what, _ in happened[:i])
        assert begun == min(n + 1 + ahead, 9 * 4)


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


def test_out_of_memory_halves_the_batch():
    expected = predictor(directional_model(), on_device=False).run(sample(), CHANNELS, SCALE)
    greedy = predictor(directional_model(Greedy(1)), batch_size=16, tile=512)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = greedy.run(sample(), CHANNELS, SCALE)
    assert [w.category for w in caught] == [NimbusWarning] * 2
    assert greedy.net.sizes == [4, 2, 1, 1, 1, 1]
    np.testing.assert_allclose(found.sums["score"], expected.sums["score"], atol=1e-3)
    with pytest.raises(OutOfMemoryError, match=r"cpu ran out of memory.*smaller tile="):
        predictor(directional_model(Greedy(0)), batch_size=1).run(sample(), CHANNELS, SCALE)


@pytest.mark.parametrize("step", ["upload", "network_input", "LabelSums", "Pending"])
def test_out_of_memory_beside_the_network_says_what_to_do(step, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(device_path, step, full)
    with pytest.raises(OutOfMemoryError, match=r"cpu ran out of memory.*smaller tile="):
        predictor().run(sample(), CHANNELS, SCALE)


def test_other_errors_come_through():
    field = sample(dtype="float32")
    field.image.array[1, 40, 20] = np.nan
    with pytest.raises(InputError, match="image 'i', channel 'b': 1 NaN"):
        predictor().run(field, CHANNELS, SCALE)

    class Broken(DirectionalNet):
        def forward(self, x):
            msg = "shapes don't fit"
            raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="shapes don't fit"):
        predictor(directional_model(Broken())).run(sample(), CHANNELS, SCALE)
    damaged = tiny_unet_model(width=3, depth=3, name="worn")
    with torch.no_grad():
        damaged.net.final_conv.bias.fill_(float("nan"))
    with pytest.raises(WeightsError, match="'worn' gave NaN"):
        predictor(damaged).run(sample(), CHANNELS, SCALE)


@pytest.mark.parametrize("on_device", [True, False])
def test_the_difference_from_float32_is_measured_once(on_device):
    p = predictor(precision="bfloat16", on_device=on_device)
    job = Job((sample(),), (p.plan(sample()),), CHANNELS, SCALE, p.config)
    found = [s.difference for s in p.score(job, job.blocks())]
    assert 0 < found[0] < 0.1
    assert found[1:] == [None] * 8
    assert all(s.difference is None for s in p.score(job, job.blocks()))


def test_two_devices_share_the_blocks():
    field, config = sample((150, 130)), PredictConfig(device=("cpu", "cpu"), precision="float32", tile=32)
    both = [Predictor(UNET, config, torch.device("cpu"), on_device=True) for _ in range(2)]
    job = Job((field,), (both[0].plan(field),), CHANNELS, SCALE, config)
    expected = {s.block: s.partials for s in predictor(on_device=False).score(job, job.blocks())}
    found = {s.block: s.partials for s in run_local(job, job.blocks(), both)}
    assert found.keys() == expected.keys()
    for block, partials in found.items():
        assert (partials is None) == (expected[block] is None)
        if partials is not None:
            same(partials, expected[block])


def test_threads_that_share_a_predictor_do_not_meet(monkeypatch):
    monkeypatch.setattr(groups, "_GROUP_BYTES", 1)
    p = predictor()
    fields = [sample((100, 80), seed=i) for i in range(4)]
    expected = [predictor(on_device=False).run(f, CHANNELS, SCALE) for f in fields]
    found = [None] * 4

    def work(i):
        found[i] = p.run(fields[i], CHANNELS, SCALE)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        same(one, other)


def test_a_cpu_goes_the_host_way_unless_told():
    assert isinstance(predictor(on_device=None)._path, HostPath)
    assert isinstance(predictor(on_device=True)._path, DevicePath)


def test_a_run_that_is_left_early_frees_its_readers():
    p, field = predictor(n_threads=2), sample()
    job = Job((field,), (p.plan(field),), CHANNELS, SCALE, p.config)
    stream = p.score(job, job.blocks())
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("nimbus-read")]


@pytest.mark.skipif(len(DEVICES) == 1, reason="needs CUDA")
def test_the_host_never_waits_while_it_begins_a_group():
    p = predictor(device="cuda:0", views=tuple(VIEWS), per_view=True)
    assert isinstance(p._path, DevicePath)
    field = sample(mpp=0.65)
    expected = p.run(field, CHANNELS, SCALE, sink=Keep())  # warm
    begin = p._path.begin

    def strict(item, *, maps):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return begin(item, maps=maps)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    p._path.begin = strict
    same(p.run(field, CHANNELS, SCALE, sink=Keep()), expected)
