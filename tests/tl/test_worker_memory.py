"""Workers that run out of memory in the middle of a block: another one takes it, or the error names it."""

import signal
import warnings
from contextlib import contextmanager
from pathlib import Path

import dask
import numpy as np
import pytest
import spatialdata as sd
import torch
from distributed import Client, LocalCluster

import nimbus_sd as nb
from nimbus_sd._core.errors import ClusterError
from nimbus_sd.models import loading
from nimbus_sd.testing import tiny_unet_model

# small fields of simulated tissue reach the full scale
pytestmark = pytest.mark.filterwarnings("ignore:saturated channels")

PRELOAD = Path(__file__).with_name("hungry_workers.py")
NAMED = r"labels 'fov0_labels', block \d+ \(y \d+–\d+, x \d+–\d+\)"


@contextmanager
def within(seconds):
    """Fail instead of waiting forever for a cluster."""

    def stop(*_):
        pytest.fail(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def cluster(hunger, *, allowed_failures=3):
    settings = {"distributed.scheduler.allowed-failures": allowed_failures}
    options = {"threads_per_worker": 1, "memory_limit": "1GiB", "preload": str(PRELOAD)}
    options |= {"env": {"NIMBUS_TEST_HUNGER": hunger}, "dashboard_address": ":0"}
    with within(240), warnings.catch_warnings(), dask.config.set(settings):
        warnings.simplefilter("ignore")
        with LocalCluster(n_workers=2, **options) as made, Client(made, timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
            yield client


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    found = tiny_unet_model()
    folder = tmp_path_factory.mktemp("tiny")
    loading.save(found.net, folder, found.card, half=False)
    return folder


@pytest.fixture
def store(tmp_path):
    """20 tiles of 32 px; with their halos those of the second to fourth row are 160 px tall."""
    sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(160, 128), mpp=1.0, channels=["CD3", "CD20"])
    del sdata["truth"]
    sdata.write(tmp_path / "tissue.zarr")
    return tmp_path / "tissue.zarr"


def predict(store, model, client):
    sdata = sd.read_zarr(store)
    nb.tl.predict(
        sdata,
        model=model,
        client=client,
        tile=32,
        device="cpu",
        precision="float32",
        write=True,
        overwrite=True,
        progress=False,
    )
    return sdata["nimbus"]


@pytest.fixture
def expected(store, model):
    return predict(store, model, False).X


def journals(store):
    return list((store.parent / f".{store.name}.nimbus-runs").glob("*/blocks"))


def killed_by_nannies(client):
    return [event["pid"] for _, event in client.get_events("worker-restart-memory")]


def resumed(store, model, monkeypatch):
    """Finish in this process what a cluster began, and count the blocks that were left to do."""
    from nimbus_sd.engine.run import Runner

    asked, run = [], Runner.run
    with monkeypatch.context() as patch:
        patch.setattr(
            Runner, "run", lambda s, job, blocks: run(s, job, (asked.append(b) or b for b in blocks))
        )
        table = predict(store, model, False)
    return table.X, len(asked)


def test_a_worker_killed_for_its_memory_costs_nothing_but_time(store, model, expected, tmp_path):
    with cluster(f"grow-once:{tmp_path / 'grown'}") as client:
        found = predict(store, model, client).X
        assert len(killed_by_nannies(client)) == 1
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not journals(store)


def test_a_block_that_no_worker_survives_is_named(store, model, expected, monkeypatch):
    with cluster("grow", allowed_failures=1) as client:
        with pytest.raises(ClusterError, match=rf"{NAMED}.*one by one.*finished blocks are kept.*tile="):
            predict(store, model, client)
        assert len(killed_by_nannies(client)) >= 2
    np.testing.assert_array_equal(sd.read_zarr(store)["nimbus"].X, expected)
    assert len(journals(store)) == 1
    found, left = resumed(store, model, monkeypatch)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert 0 < left < 20
    assert not journals(store)


def test_a_worker_without_memory_leaves_its_blocks_to_others(store, model, expected, caplog):
    with cluster("refuse:0") as client:
        (poor,) = (a for a, w in client.scheduler_info()["workers"].items() if w["id"] == 0)
        found = predict(store, model, client).X
        assert not killed_by_nannies(client)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    said = [r.getMessage() for r in caplog.records if "no memory on" in r.getMessage()]
    assert said
    assert all(f"no memory on {poor}" in line for line in said)


def test_a_block_that_no_worker_has_memory_for_is_named(store, model, expected, monkeypatch):
    with cluster("refuse") as client:
        with pytest.raises(ClusterError, match=rf"{NAMED}: no worker has the memory.*blocks are kept.*tile="):
            predict(store, model, client)
        assert not killed_by_nannies(client)
    assert len(journals(store)) == 1
    found, left = resumed(store, model, monkeypatch)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert 0 < left < 20
