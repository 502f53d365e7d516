"""Whoever predicts, in whatever blocks and batches, and however often the run was cut off: the same cells."""

import pickle
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nimbus_sd._core.errors import InputError, NimbusWarning, WeightsError
from nimbus_sd.engine.embedding import margins
from nimbus_sd.engine.embedding.patches import PatchSample
from nimbus_sd.engine.journal import Journal
from nimbus_sd.engine.patch_job import PatchConfig
from nimbus_sd.engine.patch_scorer import output_bytes
from nimbus_sd.engine.run import run_job
from nimbus_sd.engine.source import ArrayImage
from nimbus_sd.engine.subtyping.job import SubtypeJob
from nimbus_sd.engine.subtyping.predictor import SubtypePredictor
from nimbus_sd.engine.subtyping.run import SubtypeRunner
from nimbus_sd.models.subtyper import SubtypeModel, save_subtyper
from nimbus_sd.testing import random_image, tiny_subtype_model

PATCH, MPP = 32, 0.325
# the first as the model wants it; of the others patches are 21, 64 and 32 px wide
SECTIONS = (((150, 130), 0.325), ((70, 200), 0.5), ((140, 90), 0.1625), ((60, 60), 0.3249))


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    out = []
    for i, (shape, mpp) in enumerate(SECTIONS):
        n = 40
        centers = rng.uniform(-0.5, np.array(shape) - 0.5001, (n, 2))
        centers[:4] = [[-0.5, -0.5], [0, shape[1] - 1], [shape[0] - 1, 0.4], [shape[0] - 0.6, shape[1] - 0.6]]
        image = ArrayImage(f"he{i}", random_image((3, *shape), seed=i, dtype="uint8"), ("r", "g", "b"))
        ids = rng.permutation(9 * n)[:n].astype(np.int64)
        out.append(PatchSample(f"cells{i}", image, ids, centers, mpp))
    return tuple(out)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    tiny = tiny_subtype_model(patch=PATCH, mpp=MPP)
    return save_subtyper(tiny, tmp_path_factory.mktemp("tiny"))


def make_job(samples, config, **options):
    return SubtypeJob(samples=tuple(samples), config=config, patch=PATCH, mpp=MPP, **options)


def compute(samples, model, path, *, client=None, **config):
    runner = SubtypeRunner.make(model, PatchConfig(**{"device": "cpu"} | config), client)
    job = make_job(samples, runner.config, key=str(path))
    with Journal(path, {}) as journal:
        return run_job(runner, job, journal)


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.count, b.count)
        assert a.means.keys() == b.means.keys()
        for name in a.means:
            np.testing.assert_allclose(a.means[name], b.means[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def serial(samples, model, tmp_path_factory):
    return compute(samples, model, tmp_path_factory.mktemp("serial") / "j", n_threads=0)


def one_by_one(sample, model):
    """Probabilities by padding the whole image, a patch at a time."""
    size = {0.325: 32, 0.5: 21, 0.1625: 64, 0.3249: 32}[sample.mpp]
    planes = sample.image.array.astype(np.float32) / 255
    padded = torch.from_numpy(np.pad(planes, [(0, 0), (size, size), (size, size)], mode="reflect"))
    out = []
    for y, x in np.floor(sample.centers + 0.5).astype(int) + size - size // 2:
        patch = padded[None, :, y : y + size, x : x + size]
        if size != PATCH:
            patch = F.interpolate(patch, size=(PATCH, PATCH), mode="bilinear", antialias=True)
        with torch.inference_mode():
            out.append(torch.sigmoid(model.net(patch))[0].numpy())
    return np.stack(out)[np.argsort(sample.ids)]


def test_blocks_equal_one_patch_at_a_time(samples, model, serial):
    for sample, cells in zip(samples, serial, strict=True):
        expected = one_by_one(sample, model)
        np.testing.assert_array_equal(cells.ids, np.sort(sample.ids))
        np.testing.assert_allclose(cells.means["probability"], expected, atol=1e-5)
        assert expected.std(axis=0).min() > 1e-3  # or anything would do
        assert 0 < cells.means["border"].mean() < 1


@pytest.mark.parametrize(
    "config",
    [
        {"batch_size": 1},
        {"batch_size": 7, "n_threads": 0},
        {"n_threads": 4},
        {"memory": 1 << 20},
        {"device": ("cpu", "cpu")},
    ],
)
def test_settings_make_no_difference(samples, model, serial, tmp_path, config):
    same(compute(samples, model, tmp_path / "j", **config), serial)


@pytest.mark.parametrize("n", [1, 2])
def test_workers_predict_the_same(samples, model, serial, clusters, tmp_path, n):
    same(compute(samples, model, tmp_path / "j", client=clusters(n)), serial)


def test_a_model_in_memory_reaches_the_workers(samples, model, serial, clusters, tmp_path):
    loose = SubtypeModel(model.net, model.card)
    same(compute(samples, loose, tmp_path / "j", client=clusters(2)), serial)


def small_blocks(monkeypatch):
    monkeypatch.setattr(margins, "_SIDE", 40)
    monkeypatch.setattr(margins, "_LONGEST", 50)


def test_blocks_make_no_difference(samples, model, serial, tmp_path, monkeypatch):
    small_blocks(monkeypatch)
    assert len(make_job(samples, PatchConfig())) > 20
    same(compute(samples, model, tmp_path / "j"), serial)
    same(compute(samples, model, tmp_path / "k", device=("cpu", "cpu"), batch_size=3), serial)


def test_a_run_that_was_cut_off_goes_on(samples, model, serial, tmp_path, monkeypatch):
    small_blocks(monkeypatch)
    path, whole = tmp_path / "j", tmp_path / "whole"
    compute(samples, model, whole)
    shutil.copy(whole, path)
    with path.open("r+b") as file:
        file.truncate(whole.stat().st_size * 2 // 5)
    runner = SubtypeRunner.make(model, PatchConfig(device="cpu"), None)
    asked, run = [], runner.run
    runner.run = lambda job, blocks: run(job, (asked.append(b) or b for b in blocks))
    job = make_job(samples, runner.config)
    with Journal(path, {}) as journal:
        before = len(journal)
        same(run_job(runner, job, journal), serial)
    assert before > 0
    assert len(asked) == len(job) - before < len(job)


def test_the_job_travels_without_its_plans(samples):
    job = make_job(samples, PatchConfig())
    before = len(pickle.dumps(job))
    assert len(job) == len(samples)
    assert len(pickle.dumps(job)) == before
    assert [job.size(i) for i in range(len(samples))] == [32, 21, 64, 32]


def test_the_pixel_size_must_be_known(samples):
    with pytest.raises(InputError, match=r"image 'he0': how large is a px\? Pass mpp="):
        make_job([replace(samples[0], mpp=None)], PatchConfig())


def test_weights_that_give_no_numbers_are_named(samples, tmp_path):
    broken = tiny_subtype_model(patch=PATCH, name="broken")
    with torch.no_grad():
        broken.net.heads[1][2].weight[0, 0] = torch.nan
    with pytest.raises(WeightsError, match=r"'broken' gave NaN"):
        compute(samples, broken, tmp_path / "j")


def test_out_of_memory_halves_the_batch(samples, model, serial, tmp_path, monkeypatch):
    answer = SubtypePredictor._answer

    def hungry(self, net, x):
        if len(x) > 7:
            msg = "DefaultCPUAllocator: not enough memory"
            raise RuntimeError(msg)
        return answer(self, net, x)

    monkeypatch.setattr(SubtypePredictor, "_answer", hungry)
    with pytest.warns(NimbusWarning, match=r"out of memory on cpu: batch size halved to [48]"):
        same(compute(samples, model, tmp_path / "j", batch_size=16), serial)


def test_half_precision_says_how_far_it_is(samples, model, serial):
    config = PatchConfig(device="cpu", precision="bfloat16")
    job = make_job(samples, config)
    scored = list(SubtypePredictor(model, config).score(job, job.blocks()))
    found, expected = scored[0].partials.sums["probability"], serial[0].means["probability"]
    assert found.dtype == np.float32
    assert 0 < scored[0].difference < 0.1
    assert np.abs(found - expected).max() < 0.1
    assert scored[-1].difference is None


def test_a_batch_fits_the_memory(samples, model):
    config = PatchConfig(device="cpu", memory=1 << 22)
    each = output_bytes(model.net, (1, 3, PATCH, PATCH))
    assert 1 <= SubtypePredictor(model, config)._per_pass(make_job(samples, config)) <= (1 << 22) // each
