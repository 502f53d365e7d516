"""Whoever embeds, in whatever blocks and batches, and however often the run was cut off: the same cells."""

import os
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from nimbus_sd._core.errors import InputError, NimbusWarning, OutOfMemoryError, WeightsError
from nimbus_sd.engine.embedding import margins
from nimbus_sd.engine.embedding.embedder import Embedder, pass_bytes
from nimbus_sd.engine.embedding.job import EmbedJob
from nimbus_sd.engine.embedding.patches import PatchSample
from nimbus_sd.engine.embedding.run import EmbedRunner
from nimbus_sd.engine.journal import Journal
from nimbus_sd.engine.patch_job import PatchConfig
from nimbus_sd.engine.run import run_job
from nimbus_sd.engine.source import ArrayImage
from nimbus_sd.models.channelwise import magnitude
from nimbus_sd.models.embedding import EmbeddingModel, load_embedding, save_embedding
from nimbus_sd.testing import random_image, tiny_embedding_model

MARKERS = ("a", "b", "c")
IN_IMAGE = ("c", "x", "a", "b")  # another order, and one that the network does not know
SCALE = np.array([800.0, 500.0, 300.0])
SHAPES = ((150, 130), (70, 200))
QUANTITIES = ("embedding", "activation", "occlusion", "gradient_x_input")


class Chunked(ArrayImage):
    """An image of small chunks."""

    @property
    def chunks(self):
        return tuple(
            (c,) * (n // c) + ((n % c,) if n % c else ())
            for n, c in zip(self.array.shape, (1, 32, 48), strict=True)
        )


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    out = []
    for i, shape in enumerate(SHAPES):
        n = 60
        centers = rng.uniform(-0.5, np.array(shape) - 0.5001, (n, 2))
        centers[:4] = [[-0.5, -0.5], [0, shape[1] - 1], [shape[0] - 1, 0.4], [shape[0] - 0.6, shape[1] - 0.6]]
        image = Chunked(f"image{i}", random_image((4, *shape), seed=i), IN_IMAGE)
        out.append(PatchSample(f"cells{i}", image, rng.permutation(9 * n)[:n].astype(np.int64), centers))
    return tuple(out)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_embedding(tiny_embedding_model(MARKERS), tmp_path_factory.mktemp("tiny"))


def make_job(samples, model, config, **options):
    card = model.card
    return EmbedJob(
        samples=tuple(samples),
        markers=MARKERS,
        scale=SCALE,
        transform=card.transform,
        crop=card.crop,
        config=config,
        **options,
    )


def compute(samples, model, path, *, client=None, quantities=("embedding", "activation"), **config):
    runner = EmbedRunner.make(model, PatchConfig(**{"device": "cpu"} | config), client)
    job = make_job(samples, model, runner.config, quantities=quantities, key=str(path))
    with Journal(path, {}) as journal:
        return run_job(runner, job, journal)


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.count, b.count)
        assert a.means.keys() == b.means.keys()
        for name in a.means:
            # a gradient is steep where a marker is faint: relative, and less exact
            rtol = 1e-3 if name == "gradient_x_input" else 0
            np.testing.assert_allclose(a.means[name], b.means[name], rtol=rtol, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def serial(samples, model, tmp_path_factory):
    return compute(samples, model, tmp_path_factory.mktemp("serial") / "j", n_threads=0)


def one_by_one(sample, model):
    """Embeddings, activations and border flags by padding the whole image, a patch at a time."""
    size = model.card.crop
    planes = sample.image.array[[IN_IMAGE.index(m) for m in MARKERS]].astype(np.float64)
    padded = np.pad(planes, [(0, 0), (size, size), (size, size)], mode="reflect")
    out = []
    for y, x in np.floor(sample.centers + 0.5).astype(int) + size - size // 2:
        raw = padded[:, y : y + size, x : x + size]
        patch = np.sqrt(np.clip(raw / SCALE[:, None, None], 0, 1))
        inside = min(y, x) >= size and y <= planes.shape[1] and x <= planes.shape[2]
        with torch.inference_mode():
            one = torch.from_numpy(patch).float()[None]
            found = model.net(one)[0].numpy(), magnitude(model.net.activations(one))[0].numpy()
        out.append((*found, not inside))
    order = np.argsort(sample.ids)
    return [np.stack([row[i] for row in out])[order] for i in range(3)]


def test_blocks_equal_one_patch_at_a_time(samples, model, serial):
    for sample, cells in zip(samples, serial, strict=True):
        embedding, activation, border = one_by_one(sample, model)
        np.testing.assert_array_equal(cells.ids, np.sort(sample.ids))
        np.testing.assert_allclose(cells.means["embedding"], embedding, atol=1e-5)
        np.testing.assert_allclose(cells.means["activation"], activation, atol=1e-5)
        np.testing.assert_array_equal(cells.means["border"][:, 0], border)
        assert 0 < border.sum() < border.size
        assert (cells.means["activation"] >= 0).all()
        assert np.ptp(cells.means["embedding"], axis=0).min() > 1e-3


@pytest.mark.parametrize(
    "how",
    ["threads", "batch of 1", "batch of 7", "two devices", "1 worker", "2 workers", "interrupted"],
)
def test_every_runner_gives_the_same_cells(how, samples, model, serial, clusters, tmp_path, monkeypatch):
    options = {
        "threads": {"n_threads": 3},
        "batch of 1": {"batch_size": 1},
        "batch of 7": {"batch_size": 7, "memory": 1 << 20},
        "two devices": {"device": ("cpu", "cpu")},
        "interrupted": {"n_threads": 1},
    }.get(how) or {"client": clusters(int(how[0]))}
    if "client" not in options:  # workers plan for themselves
        small_blocks(monkeypatch)
    if how == "interrupted":
        cut_off(samples, model, tmp_path / "j")
    same(compute(samples, model, tmp_path / "j", **options), serial)


@pytest.mark.parametrize("folder", ["other weights", "half replaced", "gone"])
def test_workers_get_the_weights_of_this_process(folder, samples, model, serial, clusters, tmp_path):
    mine = save_embedding(EmbeddingModel(model.net, model.card), tmp_path / "m")
    if folder == "gone":
        shutil.rmtree(tmp_path / "m")
    else:
        card = (tmp_path / "m" / "embedding.json").read_bytes()
        save_embedding(tiny_embedding_model(MARKERS, seed=1), tmp_path / "m")
        if folder == "half replaced":
            (tmp_path / "m" / "embedding.json").write_bytes(card)
    same(compute(samples, mine, tmp_path / "j", client=clusters(1)), serial)


def test_a_folder_that_holds_the_model_is_not_copied(model):
    runner = EmbedRunner(model, PatchConfig(device="cpu"), ("cpu",))
    with runner._model_folder() as folder:
        assert folder == model.path


def small_blocks(monkeypatch):
    monkeypatch.setattr(margins, "_SIDE", 32)
    monkeypatch.setattr(margins, "_LONGEST", 64)


def cut_off(samples, model, path):
    """Finish some blocks, then stop as ctrl-C does, with a torn record at the end."""
    runner = EmbedRunner.make(model, PatchConfig(device="cpu"), None)
    job = make_job(samples, model, runner.config)
    assert len(job) > 6
    with Journal(path, {}) as journal:
        for done, scored in enumerate(runner.run(job, job.blocks())):
            journal.add(scored)
            if done == len(job) // 2:
                break
    os.truncate(path, path.stat().st_size - 3)


def test_finished_blocks_are_not_computed_again(samples, model, serial, tmp_path, monkeypatch):
    small_blocks(monkeypatch)
    cut_off(samples, model, tmp_path / "j")
    runner = EmbedRunner.make(model, PatchConfig(device="cpu"), None)
    asked, run = [], runner.run
    runner.run = lambda job, blocks: run(job, (asked.append(b) or b for b in blocks))
    job = make_job(samples, model, runner.config)
    units = []
    with Journal(tmp_path / "j", {}) as journal:
        before = len(journal)
        same(run_job(runner, job, journal, on_progress=units.append), serial)
    assert len(asked) == len(job) - before < len(job)
    assert sum(units) == sum(job.units(b) for b in asked)


def test_blocks_make_no_difference(samples, model, serial, tmp_path, monkeypatch):
    small_blocks(monkeypatch)
    assert len(make_job(samples, model, PatchConfig())) > 10
    same(compute(samples, model, tmp_path / "j"), serial)


def test_attributions_are_the_same_everywhere_too(samples, model, clusters, tmp_path, monkeypatch):
    expected = compute(samples, model, tmp_path / "a", quantities=QUANTITIES, n_threads=0)
    found = compute(samples, model, tmp_path / "b", quantities=QUANTITIES, client=clusters(2))
    same(found, expected)
    small_blocks(monkeypatch)
    same(compute(samples, model, tmp_path / "c", quantities=QUANTITIES, batch_size=5), expected)


def test_a_model_in_memory_reaches_the_workers(samples, model, serial, clusters, tmp_path):
    loose = EmbeddingModel(model.net, model.card)
    same(compute(samples, loose, tmp_path / "j", client=clusters(2)), serial)


def test_the_job_travels_without_its_plans(samples, model):
    job = make_job(samples, model, PatchConfig())
    before = len(pickle.dumps(job))
    assert len(job) > 0
    assert len(pickle.dumps(job)) == before
    assert job.n_bytes == sum(24 * len(s) for s in samples)
    again = pickle.loads(pickle.dumps(job))  # noqa: S301 - it was made here
    assert len(again) == len(job)


def test_not_a_number_names_image_and_channel(samples, model, clusters, tmp_path):
    pixels = samples[0].image.array.astype(np.float32)
    pixels[IN_IMAGE.index("b"), 100, 100] = np.nan
    bad = [replace(samples[0], image=Chunked("image0", pixels, IN_IMAGE))]
    for client in (None, clusters(2)):
        with pytest.raises(ValueError, match=r"image 'image0', channel 'b': 1 NaN"):
            compute(bad, model, tmp_path / f"j{client is None}", client=client)


def test_a_channel_that_is_not_asked_for_may_hold_anything(samples, model, serial, tmp_path):
    pixels = samples[0].image.array.astype(np.float32)
    pixels[IN_IMAGE.index("x")] = np.nan
    other = [replace(samples[0], image=Chunked("image0", pixels, IN_IMAGE)), samples[1]]
    same(compute(other, model, tmp_path / "j"), serial)


def test_weights_that_give_no_numbers_are_named(samples, tmp_path):
    broken = tiny_embedding_model(MARKERS, name="broken")
    with torch.no_grad():
        broken.net.last.weight[0, 0] = torch.nan
    with pytest.raises(WeightsError, match=r"'broken' gave NaN"):
        compute(samples, broken, tmp_path / "j")


def test_out_of_memory_halves_the_batch(samples, model, serial, tmp_path, monkeypatch):
    passed, compute_pass = [], Embedder._pass

    def hungry(self, job, raw):
        if len(raw) > 7:
            msg = "DefaultCPUAllocator: not enough memory"
            raise RuntimeError(msg)
        passed.append(len(raw))
        return compute_pass(self, job, raw)

    monkeypatch.setattr(Embedder, "_pass", hungry)
    with pytest.warns(NimbusWarning, match=r"out of memory on cpu: batch size halved to [48]"):
        same(compute(samples, model, tmp_path / "j", batch_size=16), serial)
    assert max(passed) == 4


def test_no_memory_for_a_single_patch_is_an_error(samples, model, tmp_path, monkeypatch):
    def hungry(self, job, raw):
        msg = "DefaultCPUAllocator: not enough memory"
        raise RuntimeError(msg)

    monkeypatch.setattr(Embedder, "_pass", hungry)
    with pytest.raises(OutOfMemoryError, match="one patch per batch"):
        compute(samples, model, tmp_path / "j", batch_size=1)


def test_other_errors_come_through(samples, model, tmp_path, monkeypatch):
    def broken(self, job, raw):
        msg = "something else"
        raise RuntimeError(msg)

    monkeypatch.setattr(Embedder, "_pass", broken)
    with pytest.raises(RuntimeError, match="something else"):
        compute(samples, model, tmp_path / "j")


def test_half_precision_says_how_far_it_is(samples, model, serial, tmp_path):
    config = PatchConfig(device="cpu", precision="bfloat16")
    embedder = Embedder(model, config)
    job = make_job(samples, model, config)
    scored = list(embedder.score(job, job.blocks()))
    found = scored[0].partials.sums["embedding"]
    expected = serial[0].means["embedding"]
    gap = np.abs(found - expected).max() / np.abs(expected).max()
    assert found.dtype == np.float32
    assert 0 < scored[0].difference == pytest.approx(gap, rel=0.1)
    assert scored[0].difference < 0.5
    assert scored[-1].difference is None
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95


def test_the_caller_keeps_his_network(samples, tmp_path):
    mine = tiny_embedding_model(MARKERS, kind="cim")
    before = {k: v.clone() for k, v in mine.net.state_dict().items()}
    compute(samples, mine, tmp_path / "j", precision="bfloat16", quantities=QUANTITIES)
    for name, value in mine.net.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.requires_grad for p in mine.net.parameters())


def test_a_batch_fits_the_memory(model):
    config = PatchConfig(device="cpu", memory=1 << 20)
    embedder = Embedder(model, config)
    job = make_job([], model, config)
    n = embedder._per_pass(job)
    assert n >= 1
    assert n * pass_bytes(model.net, 16) <= 1 << 20 or n == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"n_threads": -1}, "n_threads=-1"),
        ({"memory": 5}, "memory=5 bytes is too little"),
        ({"batch_size": 2.5}, "batch_size=2.5 must be a whole number"),
    ],
)
def test_settings_are_checked(options, match):
    with pytest.raises(InputError, match=match):
        PatchConfig(**options)


def test_unknown_quantities_and_precisions_are_refused(model):
    with pytest.raises(InputError, match="gradient_x_input"):
        make_job([], model, PatchConfig(), quantities=("saliency",))
    with pytest.raises(InputError, match="precision='float8'"):
        EmbedRunner.make(model, PatchConfig(precision="float8", device="cpu"), None)


def test_loading_what_was_saved(model):
    again = load_embedding(model.path)
    x = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(again.net(x), model.net(x))
