"""Stores opened by path and by URL, against a real S3-compatible server that checks its keys."""

import json
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import s3fs
import zarr
from moto.core import set_initial_no_auth_action_count
from upath import UPath

import nimbus_sd as nb
from nimbus_sd._core.errors import DataError, InputError
from nimbus_sd.cli import _options

pytestmark = pytest.mark.filterwarnings("ignore")  # spatialdata's, zarr's and boto's own


@pytest.fixture
def options(server, monkeypatch):
    """Nothing comes from the environment, so that what is passed is what counts."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()  # they are kept by options, and know their environment
    yield {"endpoint_url": server, "key": "test", "secret": "test"}
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    store = tmp_path_factory.mktemp("local") / "tissue.zarr"
    sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(64, 64), channels=["CD3", "CD20"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata.write(store)
    return store


@pytest.fixture
def bucket(options, request):
    files = s3fs.S3FileSystem(**options, skip_instance_cache=True, use_listings_cache=False)
    name = f"b{zlib.crc32(request.node.name.encode())}"
    files.mkdir(name)
    return files, name


@pytest.fixture
def url(bucket, local):
    files, name = bucket
    for file in local.rglob("*"):
        if file.is_file():
            files.pipe_file(f"{name}/tissue.zarr/{file.relative_to(local).as_posix()}", file.read_bytes())
    return f"s3://{name}/tissue.zarr"


def pixels(sdata):
    return np.asarray(sdata["fov0_image"].data)


def test_a_local_store_by_path_or_text(local):
    wanted = pixels(nb.io.open_store(local))
    assert wanted.shape == (2, 64, 64)
    for path in (str(local), local.as_uri(), UPath(local)):
        sdata = nb.io.open_store(path)
        np.testing.assert_array_equal(pixels(sdata), wanted)
        assert Path(sdata.path) == local


def test_a_store_behind_a_url(url, options, local):
    wanted = nb.io.open_store(local)
    for found in (nb.io.open_store(url, options), nb.io.open_store(UPath(url, **options))):
        np.testing.assert_array_equal(pixels(found), pixels(wanted))
        assert list(found.labels) == list(wanted.labels)
        assert found.path is None
    fitted = nb.pp.normalization(nb.io.open_store(url, options), progress=False)
    assert fitted == nb.pp.normalization(wanted, progress=False)


def test_the_object_can_be_written_to(url, options):
    sdata = nb.io.open_store(url, options)
    nb.pp.integrated_expression(sdata, mpp=0.5, table="expression", progress=False)
    assert nb.io.write_table(sdata, "expression") == "expression"
    np.testing.assert_array_equal(nb.io.open_store(url, options)["expression"].X, sdata["expression"].X)


def test_an_image_that_is_gone_is_not_read_as_zeros(url, options, bucket):
    files, _ = bucket
    sdata = nb.io.open_store(url, options)
    files.rm(f"{url.removeprefix('s3://')}/images", recursive=True)
    with pytest.raises(DataError, match=r"image 'fov0_image': there is no zarr array at"):
        nb.pp.normalization(sdata, progress=False)


def test_options_may_come_from_the_environment(url, options, server, monkeypatch, local):
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    np.testing.assert_array_equal(pixels(nb.io.open_store(url)), pixels(nb.io.open_store(local)))


def test_a_url_that_does_not_exist(bucket, options):
    _, name = bucket
    for missing in (f"s3://{name}/elsewhere.zarr", f"s3://{name}x/tissue.zarr"):
        with pytest.raises(
            InputError, match=rf"{missing}.*is not a SpatialData zarr store.*nb\.io\.read_fovs"
        ):
            nb.io.open_store(missing, options)


def test_a_url_that_is_no_zarr(bucket, options):
    files, name = bucket
    files.pipe_file(f"{name}/notes.zarr", b"not a folder")
    files.pipe_file(f"{name}/text.zarr/readme.txt", b"no group")
    files.pipe_file(f"{name}/torn.zarr/zarr.json", b'{"zarr_format": 3')
    for wrong, said in [
        ("notes", "is not a SpatialData zarr store"),
        ("text", "is not a SpatialData zarr store"),
        ("torn", "no zarr store can be opened there"),
    ]:
        with pytest.raises(InputError, match=rf"s3://{name}/{wrong}\.zarr.*{said}"):
            nb.io.open_store(f"s3://{name}/{wrong}.zarr", options)


def test_a_zarr_that_is_no_spatialdata(bucket, options):
    files, name = bucket
    group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    files.pipe_file(f"{name}/group.zarr/zarr.json", json.dumps(group).encode())
    zarr.create_array(f"s3://{name}/array.zarr", shape=(4,), dtype="u1", storage_options=options)
    with pytest.raises(
        InputError, match=r"group\.zarr is a zarr store without a SpatialData object.*sdata\.write"
    ):
        nb.io.open_store(f"s3://{name}/group.zarr", options)
    with pytest.raises(InputError, match=r"array\.zarr: no zarr store can be opened there"):
        nb.io.open_store(f"s3://{name}/array.zarr", options)


@pytest.mark.parametrize("wrong", [{"key": "nobody"}, {"secret": "guess"}, {"anon": True}])
def test_wrong_credentials(wrong, url, options):
    options = options | wrong
    if "anon" in wrong:
        del options["key"], options["secret"]
    refused = set_initial_no_auth_action_count(0)(nb.io.open_store)  # the server checks keys while it runs
    with pytest.raises(InputError, match=rf"{url}: no zarr store can be opened.*Check the URL and the cred"):
        refused(url, options)


def test_a_server_that_is_not_there(options):
    gone = options | {"endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 0}}}
    with pytest.raises(
        InputError, match=r"s3://b/tissue\.zarr: no zarr store can be opened there.*Check the URL"
    ):
        nb.io.open_store("s3://b/tissue.zarr", gone)


def test_a_kind_of_url_that_nobody_knows():
    with pytest.raises(InputError, match=r"nowhere://b/a\.zarr can't be opened"):
        nb.io.open_store("nowhere://b/a.zarr")


def test_local_paths_without_a_store(tmp_path, local):
    file = tmp_path / "file.zarr"
    file.write_text("no folder")
    for path in (tmp_path, tmp_path / "elsewhere", file):
        with pytest.raises(
            InputError, match=r"is not a SpatialData zarr store; check the path.*nimbus-sd convert"
        ):
            nb.io.open_store(path)
    with pytest.raises(InputError, match=r"local path and takes no storage_options \(got \['anon'\]\)"):
        nb.io.open_store(local, {"anon": True})


def test_the_shell_opens_stores_the_same_way():
    assert _options.open_store is nb.io.open_store
