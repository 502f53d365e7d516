"""Whoever computes the blocks, and however often the run was cut off: the same cells."""

import os
import signal
import time
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster

from nimbus_sd._core.errors import ClusterError
from nimbus_sd.engine.cluster import run_on_cluster, survey
from nimbus_sd.engine.job import Block, Job
from nimbus_sd.engine.journal import Journal
from nimbus_sd.engine.local import run_local
from nimbus_sd.engine.predict import Predictor
from nimbus_sd.engine.run import Runner, plan_all, run_job
from nimbus_sd.engine.settings import PredictConfig
from nimbus_sd.engine.source import ArrayImage, ArrayLabels, Sample
from nimbus_sd.models import LoadedModel, loading
from nimbus_sd.testing import random_image, random_labels, tiny_unet_model

CHANNELS = ("a", "b", "c")
SCALE = np.full(3, 900.0)
SHAPES = ((150, 130), (70, 200))


@pytest.fixture(scope="module")
def samples():
    return [
        Sample(
            f"cells{i}",
            ArrayImage(f"image{i}", random_image((3, *shape), seed=i), CHANNELS),
            ArrayLabels(f"cells{i}", random_labels(shape, n=40, seed=i)),
            1.0,
        )
        for i, shape in enumerate(SHAPES)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    found = tiny_unet_model()
    folder = tmp_path_factory.mktemp("tiny")
    loading.save(found.net, folder, found.card, half=False)
    return loading.load(folder)


@contextmanager
def local_cluster(n, **options):
    options = {"threads_per_worker": 1, "processes": True, "dashboard_address": ":0"} | options
    with (
        warnings.catch_warnings(),
        LocalCluster(n_workers=n, **options) as made,
        Client(made) as client,
    ):
        warnings.simplefilter("ignore")
        if n:
            client.wait_for_workers(n, timeout=60)
        yield client


@pytest.fixture(scope="module")
def clusters():
    """Clusters by their number of workers, started when they are asked for."""
    with ExitStack() as stack:
        yield cache(lambda n: stack.enter_context(local_cluster(n)))


@pytest.fixture
def cluster(clusters):
    return clusters(2)


def compute(samples, model, path, *, client=None, **config):
    config = PredictConfig(**{"device": "cpu", "precision": "float32", "tile": 64} | config)
    runner = Runner.make(model, config, client)
    with Journal(path, {}) as journal:
        plans = plan_all(runner, samples, journal)
        job = Job(tuple(samples), plans, CHANNELS, SCALE, runner.config, key=str(path))
        return run_job(runner, job, journal)


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.count, b.count)
        for name in ("score", "intensity"):
            np.testing.assert_allclose(a.means[name], b.means[name], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(a.means["position"], b.means["position"], rtol=1e-12)


@pytest.fixture(scope="module")
def serial(samples, model, tmp_path_factory):
    return compute(samples, model, tmp_path_factory.mktemp("serial") / "j", n_threads=0)


@pytest.mark.parametrize("tile", [64, 32, 1024])
@pytest.mark.parametrize(
    "how",
    ["serial", "threads", "two devices", "1 worker", "2 workers", "4 workers", "interrupted"],
)
def test_every_runner_gives_the_same_cells(how, tile, samples, model, serial, clusters, tmp_path):
    options = {
        "serial": {"n_threads": 0},
        "threads": {"n_threads": 3},
        "two devices": {"device": ("cpu", "cpu")},
        "interrupted": {"n_threads": 1},
    }.get(how) or {"client": clusters(int(how[0]))}
    if how == "interrupted":
        cut_off(samples, model, tmp_path / "j", tile)
    same(compute(samples, model, tmp_path / "j", tile=tile, **options), serial)


def cut_off(samples, model, path, tile):
    """Finish some blocks, then stop as ctrl-C does, with a torn record at the end."""
    runner = Runner.make(model, PredictConfig(device="cpu", precision="float32", tile=tile), None)
    with Journal(path, {}) as journal:
        plans = plan_all(runner, samples, journal)
        job = Job(tuple(samples), plans, CHANNELS, SCALE, runner.config)
        for done, scored in enumerate(runner.run(job, job.blocks())):
            journal.add(scored)
            if done == len(job) // 2:
                break
    os.truncate(path, path.stat().st_size - 3)


def test_finished_blocks_are_not_computed_again(samples, model, serial, tmp_path):
    cut_off(samples, model, tmp_path / "j", 64)
    with Journal(tmp_path / "j", {}) as journal:
        before = len(journal)
    assert before > 1
    runner = Runner.make(model, PredictConfig(device="cpu", precision="float32", tile=64), None)
    asked = []
    score = runner.predictor.score
    runner.predictor.score = lambda job, blocks: score(job, (asked.append(b) or b for b in blocks))
    with Journal(tmp_path / "j", {}) as journal:
        plans = plan_all(runner, samples, journal)
        job = Job(tuple(samples), plans, CHANNELS, SCALE, runner.config)
        same(run_job(runner, job, journal), serial)
    assert len(asked) == len(job) - before


def test_a_resumed_run_keeps_the_tiles_of_the_first(samples, model, tmp_path):
    with Journal(tmp_path / "j", {}) as journal:
        runner = Runner.make(model, PredictConfig(device="cpu", precision="float32", tile=48), None)
        plan_all(runner, samples, journal)
    with Journal(tmp_path / "j", {}) as journal:
        other = Runner.make(model, PredictConfig(device="cpu", precision="float32"), None)
        assert [p.tile for p in plan_all(other, samples, journal)] == [48, 48]


def test_a_killed_worker_costs_nothing_but_time(samples, model, serial, tmp_path):
    with local_cluster(2) as client:
        runner = Runner.make(model, PredictConfig(device="cpu", precision="float32", tile=32), client)
        with Journal(tmp_path / "j", {}) as journal:
            plans = plan_all(runner, samples, journal)
            job = Job(tuple(samples), plans, CHANNELS, SCALE, runner.config, key="killed")
            pids = client.run(os.getpid)
            for done, scored in enumerate(runner.run(job, job.blocks())):
                journal.add(scored)
                if done == 1:
                    os.kill(next(iter(pids.values())), signal.SIGKILL)
            assert len(journal) == len(job)
            same(run_job(runner, job, journal), serial)


def test_a_cluster_without_workers_is_refused():
    with (
        local_cluster(0, processes=False) as client,
        pytest.raises(ClusterError, match=r"no workers.*client\.wait_for_workers"),
    ):
        survey(client, "cpu", "float32")


def test_a_model_in_memory_reaches_the_workers(samples, model, serial, cluster, tmp_path):
    loose = LoadedModel(model.net, model.card)
    same(compute(samples, loose, tmp_path / "j", client=cluster), serial)


@pytest.mark.parametrize("file", ["other weights", "gone"])
def test_workers_get_the_weights_of_this_process(file, samples, model, serial, cluster, tmp_path):
    loading.save(model.net, tmp_path / "m", model.card, half=False)
    mine = loading.load(tmp_path / "m")
    other = tiny_unet_model(seed=1)
    loading.save(other.net, tmp_path / "m", other.card, half=False)
    if file == "gone":
        mine.path.unlink()
    same(compute(samples, mine, tmp_path / "j", client=cluster), serial)


def test_a_file_that_holds_the_model_is_not_copied(model):
    runner = Runner.make(model, PredictConfig(device="cpu", precision="float32"), None)
    with runner._model_file() as path:
        assert path == model.path


def test_an_error_on_a_worker_comes_through(samples, model, cluster, tmp_path):
    pixels = samples[0].image.array.astype(np.float32)
    pixels[1, 100, 100] = np.nan
    bad = [replace(samples[0], image=ArrayImage("image0", pixels, CHANNELS))]
    with pytest.raises(ValueError, match=r"image 'image0', channel 'b': 1 NaN"):
        compute(bad, model, tmp_path / "j", client=cluster)
    with Journal(tmp_path / "j", {}) as journal:
        assert Block(0, 99) not in journal


def test_an_error_on_one_device_ends_the_run(samples, model):
    config = PredictConfig(device=("cpu", "cpu"), precision="float32", tile=32)
    pixels = samples[0].image.array.astype(np.float32)
    pixels[1, 100, 100] = np.nan
    bad = replace(samples[0], image=ArrayImage("image0", pixels, CHANNELS))
    predictors = [Predictor(model, config, torch.device("cpu")) for _ in range(2)]
    job = Job((bad,), (predictors[0].plan(bad),), CHANNELS, SCALE, config)
    with pytest.raises(ValueError, match="1 NaN"):
        list(run_local(job, job.blocks(), predictors))


def test_a_caller_who_stops_leaves_no_threads(samples, model):
    import threading

    config = PredictConfig(device=("cpu", "cpu"), precision="float32", tile=32)
    predictors = [Predictor(model, config, torch.device("cpu")) for _ in range(2)]
    job = Job((samples[0],), (predictors[0].plan(samples[0]),), CHANNELS, SCALE, config)
    stream = run_local(job, job.blocks(), predictors)
    next(stream)
    stream.close()
    time.sleep(0.05)
    assert not [t for t in threading.enumerate() if t.name.startswith("nimbus-cpu")]


def test_workers_that_declare_gpus_are_the_ones_used(samples, model, serial, tmp_path):
    with local_cluster(2, threads_per_worker=2, processes=False, resources={"GPU": 1}) as client:
        found = survey(client, "cpu", "float32")
        assert found.slots == 2
        assert found.resources == {"GPU": 1.0}
        same(compute(samples, model, tmp_path / "j", client=client), serial)
        job = Job(tuple(samples), (), CHANNELS, SCALE, PredictConfig())
        assert list(run_on_cluster(job, [], client, found)) == []


def keep_all(stream, journal):
    for scored in stream:
        journal.add(scored)


def test_a_block_that_takes_down_workers_is_named(samples, model, tmp_path):
    import dask

    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), local_cluster(1) as client:
        runner = Runner.make(model, PredictConfig(device="cpu", precision="float32", tile=16), client)
        with Journal(tmp_path / "j", {}) as journal:
            plans = plan_all(runner, samples, journal)
            job = Job(tuple(samples), plans, CHANNELS, SCALE, runner.config, key="down")
            (pid,) = client.run(os.getpid).values()
            stream = runner.run(job, job.blocks())
            journal.add(next(stream))
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(
                ClusterError, match=r"labels 'cells\d', block \d+ \(y .*finished blocks are kept"
            ):
                keep_all(stream, journal)
            assert 0 < len(journal) < len(job)
