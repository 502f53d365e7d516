"""What happens in long jobs: kills, full disks, damaged chunks, two runs at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd
import torch

import nimbus_sd as nb
from nimbus_sd._core.errors import DataError, InputError
from nimbus_sd.engine.run_folder import run_folder
from nimbus_sd.models import loading
from nimbus_sd.testing import tiny_unet_model

# small fields of simulated tissue reach the full scale
pytestmark = pytest.mark.filterwarnings("ignore:saturated channels")

HERE = Path(__file__).parent
MARKERS = ["CD3", "CD20", "PanCK"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    found = tiny_unet_model()
    folder = tmp_path_factory.mktemp("tiny")
    loading.save(found.net, folder, found.card, half=False)
    return folder


@pytest.fixture
def store(tmp_path):
    sdata = nb.datasets.simulated_tissue(n_fovs=2, shape=(160, 128), mpp=1.0, channels=MARKERS)
    del sdata["truth"]
    sdata.write(tmp_path / "tissue.zarr")
    return tmp_path / "tissue.zarr"


def predict(store, model, **options):
    sdata = sd.read_zarr(store)
    options = {"write": True, "overwrite": True, "tile": 32, "device": "cpu", "n_threads": 0} | options
    nb.tl.predict(sdata, model=model, precision="float32", progress=False, **options)
    return sdata["nimbus"]


def runs_of(store):
    return store.parent / f".{store.name}.nimbus-runs"


def test_killed_at_random_moments_and_resumed(store, model, tmp_path):
    command = [sys.executable, str(HERE / "killed_runs.py"), str(store), str(model), str(tmp_path), "10"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report) == 10
    for seed in report:
        assert seed["old_table_whole"], seed
        assert seed["code"] == 0, seed
        assert seed["equal"], seed
        assert seed["cleaned"], seed
    assert any(seed["killed"] and seed["journal"] for seed in report)


def chunk_of(store, channel):
    """File of the channel's first chunk of the first field's image."""
    found = sorted((store / "images" / "fov0_image").glob(f"*/c/{channel}/0/0"))
    assert found
    return found[0]


def test_a_damaged_chunk_is_named_and_the_rest_is_kept(store, model):
    expected = predict(store, model).X
    # scales of an earlier run: a new fit would meet the damage before any block is done
    scales = nb.pp.normalization(sd.read_zarr(store), progress=False)
    chunk = chunk_of(store, 1)
    labels = sd.read_zarr(store)["fov1_labels"]
    assert np.asarray(labels).any()
    good = chunk.read_bytes()
    stat = chunk.stat()
    chunk.write_bytes(b"\x00garbage" * (len(good) // 8) + b"x" * (len(good) % 8))
    os.utime(chunk, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    # the damaged field comes last
    order = {"labels": ["fov1_labels", "fov0_labels"], "normalization": scales}
    with pytest.raises(DataError, match=r"image 'fov0_image', channel 'CD20'.*y \d+.*x \d+"):
        predict(store, model, **order)
    assert list(runs_of(store).glob("*/blocks"))
    np.testing.assert_array_equal(sd.read_zarr(store)["nimbus"].X, expected)
    chunk.write_bytes(good)
    os.utime(chunk, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = predict(store, model, **order)
    assert again.n_obs == len(expected)
    assert not runs_of(store).exists()


def test_a_disk_that_fills_up_leaves_the_old_table(store, model):
    expected = predict(store, model)
    command = [sys.executable, str(HERE / "full_disk.py"), str(store), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 7, done.stderr
    found = sd.read_zarr(store)
    assert list(found.tables) == ["nimbus"]
    np.testing.assert_array_equal(found["nimbus"].X, expected.X)


def test_two_runs_on_one_store(store, model):
    with run_folder([runs_of(store)], "first", resume=True):
        with pytest.raises(InputError, match=rf"another run works on this store: process {os.getpid()} on"):
            predict(store, model)
        assert "nimbus" not in sd.read_zarr(store).tables
    predict(store, model)


@pytest.fixture
def interrupted(store, model, monkeypatch):
    """Predict on the store until nine blocks are done; returns the journal."""
    from nimbus_sd.engine import run

    class Stop(BaseException):
        pass

    def stopping(journal, add):
        def once(scored):
            add(scored)
            if len(journal) == 9:
                raise Stop

        return once

    made = run.run_job

    def cut_short(runner, job, journal, **options):
        journal.add = stopping(journal, journal.add)
        return made(runner, job, journal, **options)

    with monkeypatch.context() as patch:
        patch.setattr("nimbus_sd._sdata.run.run_job", cut_short)
        with pytest.raises(Stop):
            predict(store, model, channels=MARKERS)
    (journal,) = runs_of(store).glob("*/blocks")
    return journal


def test_channels_that_are_named_anew_start_a_new_run(store, model, interrupted):
    before = interrupted.read_bytes()
    sdata = sd.read_zarr(store)
    for name in sdata.images:
        sdata.set_channel_names(name, sdata[name].c.values[::-1].tolist(), write=True)
    found = predict(store, model, channels=MARKERS).copy()
    expected = predict(store, model, channels=MARKERS, resume=False)
    assert found.var_names.tolist() == expected.var_names.tolist()
    np.testing.assert_allclose(found.X, expected.X, atol=1e-6)
    assert interrupted.read_bytes() == before


@pytest.mark.usefixtures("interrupted")
def test_interrupted_and_resumed_without_a_second_fit(store, model, monkeypatch):
    def no_fit(*args, **options):
        pytest.fail("the scales are in the journal")

    with monkeypatch.context() as patch:
        patch.setattr("nimbus_sd._sdata.run.fit_over", no_fit)
        resumed = predict(store, model, channels=MARKERS).copy()
    assert not runs_of(store).exists()
    whole = predict(store, model, channels=MARKERS, resume=False)
    np.testing.assert_allclose(resumed.X, whole.X, atol=1e-6)


def test_changed_pixels_start_a_new_run(store, model, monkeypatch, caplog):
    monkeypatch.setattr("nimbus_sd._sdata.run.run_job", lambda *a, **k: (_ for _ in ()).throw(OSError("cut")))
    with pytest.raises(OSError, match="cut"):
        predict(store, model)
    monkeypatch.undo()
    (kept,) = runs_of(store).glob("*/blocks")
    chunk = chunk_of(store, 0)
    chunk.write_bytes(chunk.read_bytes())
    os.utime(chunk, ns=(1, 1))
    predict(store, model)
    assert "left alone" in caplog.text
    assert kept.exists()


def test_objects_in_memory_leave_nothing_behind(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(96, 96), mpp=1.0, channels=["CD3"])
    nb.tl.predict(sdata, model=model, device="cpu", progress=False)
    assert not list(tmp_path.iterdir())
