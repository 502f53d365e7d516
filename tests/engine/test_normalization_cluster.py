"""Scales fitted on a cluster's workers: bitwise those of one process."""

import os
import pickle
import signal
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster

from nimbus_sd._core.errors import ClusterError, DataError, InputError
from nimbus_sd.arrays import IntensityHistogram
from nimbus_sd.engine import cluster_counts, pixel_counts
from nimbus_sd.engine.normalization import fit_normalization
from nimbus_sd.engine.source import ArrayImage
from nimbus_sd.testing import random_image

CHANNELS = ("a", "b", "c")


@dataclass(frozen=True)
class FileImage:
    """An image in a file, read where it is needed; `trouble` is met at channel b."""

    name: str
    path: Path
    trouble: str = ""

    channels = CHANNELS
    fingerprint = None

    @property
    def _array(self):
        return np.load(self.path, mmap_mode="r")

    @property
    def shape(self):
        return self._array.shape[1:]

    @property
    def dtype(self):
        return self._array.dtype

    @property
    def chunks(self):
        _, y, x = self._array.shape
        return (2, 1), (64,) * (y // 64) + (y % 64,), (x,)

    def read(self, channels, y, x):
        if self.trouble and 1 in channels and y.start:
            if self.trouble == "memory":
                raise MemoryError
            if self.trouble == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            msg = f"image {self.name!r}, channel 'b', y {y.start}–{y.stop}, x 0–130: a chunk"
            raise DataError(msg)
        with open(self.path.with_name(f"pid{os.getpid()}"), "a") as seen:  # noqa: PTH123
            seen.write("read\n")
        return np.array(self._array[channels, y.slice, x.slice])


def stored(folder, n=3, **options):
    made = []
    for i in range(n):
        path = folder / f"{i}.npy"
        np.save(path, random_image((3, 150 + 20 * i, 130), seed=i, **options))
        made.append(FileImage(f"image{i}", path))
    return made


@contextmanager
def local_cluster(n, **options):
    options = {"threads_per_worker": 2, "processes": True, "dashboard_address": ":0"} | options
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as path:
        warnings.simplefilter("ignore")
        # workers start with this process's path, and have to import FileImage from here
        path.syspath_prepend(Path(__file__).parents[2])
        with LocalCluster(n_workers=n, **options) as made, Client(made, timeout=60) as client:
            if n:
                client.wait_for_workers(n, timeout=60)
            yield client


@pytest.fixture(scope="module")
def client():
    with local_cluster(2) as made:
        yield made


@pytest.fixture
def small_parts(monkeypatch):
    """Many parts, so that several are in flight and an image has more than one."""
    monkeypatch.setattr(pixel_counts, "_PART", 20_000)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("rule", ["dataset", "fov_mean"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
def test_bitwise_the_same(rule, dtype, client, tmp_path):
    images = stored(tmp_path, dtype=dtype, maximum=100_000.0 if dtype == "int32" else 200.0)
    here, there = [], []
    wanted = ["c", "a"]
    alone = fit_normalization(images, wanted, quantile=0.99, rule=rule, on_progress=here.append)
    found = fit_normalization(
        images, wanted, quantile=0.99, rule=rule, on_progress=there.append, client=client
    )
    assert found == alone
    assert np.array(found.scale).tobytes() == np.array(alone.scale).tobytes()
    assert sum(there) == sum(here)
    assert len(there) > len(images)


@pytest.mark.usefixtures("small_parts")
def test_the_workers_read(client, tmp_path):
    fit_normalization(stored(tmp_path), CHANNELS, client=client)
    readers = {int(p.name[3:]) for p in tmp_path.glob("pid*")}
    assert readers
    assert os.getpid() not in readers
    assert readers <= set(client.run(os.getpid).values())


def test_images_in_memory_stay_here(client, tmp_path):
    there = stored(tmp_path, 2)
    here = ArrayImage("memory", random_image((3, 90, 80), seed=9), CHANNELS)
    unpicklable = ArrayImage("bound", Bound(random_image((3, 90, 80), seed=7)), CHANNELS)
    for images in ([here, *there], [there[0], here, there[1], unpicklable], [here]):
        found = fit_normalization(images, CHANNELS, rule="fov_mean", client=client)
        assert found == fit_normalization(images, CHANNELS, rule="fov_mean")
    with local_cluster(0, processes=False) as empty:
        assert fit_normalization([here], CHANNELS, client=empty) == fit_normalization([here], CHANNELS)
        with pytest.raises(ClusterError, match=r"no workers.*client\.wait_for_workers"):
            fit_normalization(there, CHANNELS, client=empty)


class Bound(np.ndarray):
    """An array that can't be pickled."""

    def __new__(cls, array):
        return array.view(cls)

    def __reduce_ex__(self, protocol):
        raise TypeError(protocol)


@pytest.mark.usefixtures("small_parts")
def test_errors_are_those_of_one_process(client, tmp_path):
    first, second, third = stored(tmp_path, dtype="float32")
    bad = FileImage("image1", second.path, "data")
    with pytest.raises(DataError, match=r"image 'image1', channel 'b', y 64–128, x 0–130: a chunk"):
        fit_normalization([first, bad, third], CHANNELS, client=client)
    pixels = np.load(second.path)
    pixels[1, 140, 3] = np.nan
    np.save(second.path, pixels)
    with pytest.raises(InputError, match=r"image 'image1', channel 'b': 1 NaN"):
        fit_normalization([first, second, third], CHANNELS, client=client)
    assert fit_normalization([first, second], ["a"], client=client).channels == ("a",)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("trouble", ["memory", "kill"])
def test_a_part_without_memory_is_named(trouble, tmp_path):
    (image,) = stored(tmp_path, 1)
    bad = [FileImage("image0", image.path, trouble)]
    # whatever a worker holds when it dies is blamed, also the channel that waits
    channels = r"\['a', 'b'\]" if trouble == "memory" else r"\[.*\]"
    said = rf"image 'image0', channels {channels}, from y \d+, x 0 to y \d+, x 130: the workers.*memory"
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), local_cluster(1) as client:
        with pytest.raises(ClusterError, match=said):
            fit_normalization(bad, CHANNELS, client=client)
        client.wait_for_workers(1, timeout=60)
        assert fit_normalization(bad, ["c"], client=client).channels == ("c",)


@pytest.mark.usefixtures("small_parts")
def test_a_killed_worker_changes_nothing(tmp_path):
    images = stored(tmp_path, 4)
    alone = fit_normalization(images, CHANNELS)
    with local_cluster(2, threads_per_worker=1) as client:
        pids = list(client.run(os.getpid).values())

        def kill_once(_):
            if len(pids) == 2:
                os.kill(pids.pop(), signal.SIGKILL)

        assert fit_normalization(images, CHANNELS, client=client, on_progress=kill_once) == alone


def test_few_parts_are_in_flight(client, tmp_path, monkeypatch):
    monkeypatch.setattr(pixel_counts, "_PART", 1)
    images = stored(tmp_path, 3)
    sent, done, ahead = [], [], []
    submit = client.submit

    def counted(function, *args, **options):
        if function is cluster_counts._count:
            sent.append(args)
            ahead.append(len(sent) - len(done))
        return submit(function, *args, **options)

    monkeypatch.setattr(client, "submit", counted)
    fit_normalization(images, CHANNELS, client=client, on_progress=done.append)
    assert len(sent) == len(done) == 3 * 2 * 3
    assert max(ahead) == 2 * 4  # of two workers with two threads


def test_only_bins_with_pixels_travel():
    for dtype, n in (("uint16", 65_536), ("float32", 500_000), ("int64", 500_000)):
        histogram = IntensityHistogram(np.dtype(dtype))
        assert len(pickle.dumps(histogram)) < 1000 < n
        pixels = random_image((1, 200, 200), dtype=dtype if dtype != "int64" else "int32", maximum=1e5)
        histogram.update(pixels)
        again = pickle.loads(pickle.dumps(histogram))  # noqa: S301
        assert again.n_pixels == 40_000
        for q in (0.1, 0.9, 1.0):
            assert again.quantile(q) == histogram.quantile(q)
        assert (again + histogram).n_pixels == 80_000
