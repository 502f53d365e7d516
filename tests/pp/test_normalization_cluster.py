"""``nb.pp.normalization`` on a cluster: stores on disk are read by the workers."""

import os
import warnings

import numpy as np
import pytest
import spatialdata as sd
from distributed import Client, LocalCluster
from spatialdata import SpatialData

import nimbus_sd as nb
from nimbus_sd._core.errors import DataError, InputError
from nimbus_sd._sdata.elements import ElementImage

pytestmark = pytest.mark.filterwarnings("ignore:saturated channels")


@pytest.fixture(scope="module")
def client():
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with LocalCluster(**options) as made, Client(made, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
            yield client


@pytest.fixture
def store(tmp_path, factory):
    def write(dtype: str) -> SpatialData:
        made = factory(2, shape=(200, 150), dtype=dtype, chunks=(1, 64, 64))
        made.write(tmp_path / "fields.zarr")
        return sd.read_zarr(tmp_path / "fields.zarr")

    return write


@pytest.fixture
def reads(monkeypatch):
    """Rectangles that this process reads."""
    seen, read = [], ElementImage.read

    def counted(self, *rect):
        seen.append(rect)
        return read(self, *rect)

    monkeypatch.setattr(ElementImage, "read", counted)
    return seen


@pytest.mark.parametrize("rule", ["dataset", "fov_mean"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_scales_of_one_process(dtype, rule, store, client, reads):
    sdata = store(dtype)
    options = {"rule": rule, "quantile": 0.99, "progress": False}
    there = nb.pp.normalization(sdata, client=client, **options)
    assert not reads
    assert there == nb.pp.normalization(sdata, client=False, **options)
    assert reads


def test_the_active_client_is_used(store, client, reads):
    sdata = store("uint16")
    with client.as_current():
        nb.pp.normalization(sdata, progress=False)
        assert not reads
        nb.pp.normalization(sdata, client=False, progress=False)
    assert reads
    with pytest.raises(InputError, match=r"client='tcp://1'.*dask\.distributed\.Client"):
        nb.pp.normalization(sdata, client="tcp://1", progress=False)


def test_what_is_in_memory_is_read_here(factory, client, reads):
    sdata = factory(2)
    fitted = nb.pp.normalization(sdata, client=client, progress=False)
    assert len(reads) >= 2
    assert fitted == nb.pp.normalization(sdata, client=False, progress=False)


def test_a_damaged_chunk_is_named(store, client, tmp_path):
    sdata = store("uint16")
    (chunk,) = (tmp_path / "fields.zarr" / "images" / "fov1_image").glob("*/c/1/2/1")
    content = chunk.read_bytes()
    chunk.write_bytes(b"\x00" * len(content))
    said = r"image 'fov1_image', channel 'CD8', y 128–192, x 64–128: a chunk can't be read"
    for where in (client, False):
        with pytest.raises(DataError, match=said):
            nb.pp.normalization(sdata, client=where, progress=False)
    found = nb.pp.normalization(sdata, channels=["CD3"], client=client, progress=False)
    assert found.channels == ("CD3",)
    assert np.isfinite(found.scale).all()
    assert os.getpid() not in client.run(os.getpid).values()
