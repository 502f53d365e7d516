"""Stores behind a URL, against a real S3-compatible server: read, scored, written to."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import s3fs
import spatialdata as sd
import zarr
from moto.server import ThreadedMotoServer
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, TableModel
from spatialdata.transformations import Scale, get_transformation
from upath import UPath

import nimbus_sd as nb
from nimbus_sd._core.errors import DataError, InputError, NimbusWarning
from nimbus_sd._sdata import persist_remote
from nimbus_sd._sdata.elements import ElementImage, get_image
from nimbus_sd._sdata.remote import open_remote
from nimbus_sd._sdata.zarr_source import zarr_of
from nimbus_sd.arrays import Interval
from nimbus_sd.cli._options import is_store, open_store
from nimbus_sd.testing import random_image, random_labels

pytestmark = pytest.mark.filterwarnings("ignore")  # spatialdata's, zarr's and boto's own

CHANNELS = ("CD3", "CD8", "CD20")
SHAPE = (70, 52)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server in this process, on a free port."""
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    _, port = running.get_host_and_port()
    address = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", address)
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield address
    running.stop()


@pytest.fixture(scope="module")
def files(server: str) -> s3fs.S3FileSystem:
    found = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    found.mkdir("bucket")
    return found


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = {"microns": Scale([0.5, 0.5], axes=("x", "y"))}
    options = {"dims": ("c", "y", "x"), "c_coords": CHANNELS}
    pixels = random_image((3, *SHAPE))
    elements = {
        "im": Image2DModel.parse(pixels, chunks=(1, 32, 32), transformations=dict(to), **options),
        "pyramid": Image2DModel.parse(pixels, scale_factors=[2], **options),
    }
    labels = Labels2DModel.parse(random_labels(SHAPE, n=14), dims=("y", "x"), transformations=dict(to))
    data = SpatialData(images=elements, labels={"cells": labels}, attrs={"nimbus_sd": {"maps": ["pyramid"]}})
    nb.pp.integrated_expression(data, image="im", table="expression", progress=False)
    store = tmp_path_factory.mktemp("local") / "data.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.write(store)
    return store


@pytest.fixture
def url(files: s3fs.S3FileSystem, local: Path, request: pytest.FixtureRequest) -> str:
    """A copy of the local store in the bucket, one per test."""
    name = f"bucket/{request.node.name}.zarr"
    for file in local.rglob("*"):
        if file.is_file():
            files.pipe_file(f"{name}/{file.relative_to(local).as_posix()}", file.read_bytes())
    return f"s3://{name}"


def tree(files: s3fs.S3FileSystem, url: str, below: str = "") -> dict[str, bytes]:
    prefix = url.removeprefix("s3://") + below
    return {name.removeprefix(prefix): files.cat_file(name) for name in files.find(prefix)}


def test_what_is_opened_is_what_was_written(url, server, local):
    here = sd.read_zarr(local)
    for there in (open_store(url), open_remote(UPath(url, endpoint_url=server)), open_store(Path(url))):
        assert get_image(there, "im").coords["c"].values.tolist() == list(CHANNELS)
        np.testing.assert_array_equal(there["im"].values, here["im"].values)
        np.testing.assert_array_equal(there["cells"].values, here["cells"].values)
        assert list(there["pyramid"].children) == ["scale0", "scale1"]
        np.testing.assert_array_equal(there["pyramid"]["scale1"]["image"], here["pyramid"]["scale1"]["image"])
        assert get_transformation(there["im"], get_all=True) == get_transformation(here["im"], get_all=True)
        for axis in ("y", "x"):
            np.testing.assert_array_equal(there["im"].coords[axis], here["im"].coords[axis])
        assert there.attrs["nimbus_sd"] == here.attrs["nimbus_sd"]
        np.testing.assert_array_equal(there["expression"].X, here["expression"].X)
        assert there["expression"].uns[TableModel.ATTRS_KEY] == here["expression"].uns[TableModel.ATTRS_KEY]
        assert "cells" in repr(there)


def test_is_store(url, local):
    assert is_store(url)
    assert is_store(local)
    assert is_store(local.as_uri())
    assert open_store(local.as_uri()).path == local
    assert not is_store("s3://bucket/nothing.zarr")
    with pytest.raises(InputError, match=r"s3://bucket/nothing\.zarr is not a SpatialData zarr store"):
        open_store("s3://bucket/nothing.zarr")
    with pytest.raises(InputError, match=r"s3://bucket/nothing\.zarr: no zarr store can be opened there"):
        open_remote("s3://bucket/nothing.zarr")
    with pytest.raises(InputError, match="carrier-pigeon"):
        is_store("carrier-pigeon://bucket/data.zarr")


def test_the_same_expression_and_scales_as_from_the_local_copy(url, local):
    here, there = sd.read_zarr(local), open_store(url)
    assert (
        nb.pp.normalization(there, image="im", progress=False).scale
        == nb.pp.normalization(here, image="im", progress=False).scale
    )
    for data in (here, there):
        nb.pp.integrated_expression(data, image="im", table="again", progress=False)
    np.testing.assert_array_equal(there["again"].X, here["again"].X)
    assert there["again"].obs["instance_id"].tolist() == here["again"].obs["instance_id"].tolist()


def test_the_same_scores_as_from_the_local_copy(url, local, score):
    here, there = sd.read_zarr(local), open_store(url)
    wanted, found = (score(data, image="im", mpp=0.5) for data in (here, there))
    np.testing.assert_array_equal(found.X, wanted.X)


def test_elements_are_read_directly(url):
    image = ElementImage("im", get_image(open_store(url), "im"), CHANNELS)
    assert isinstance(image.array, zarr.Array)
    assert zarr_of(get_image(open_store(url), "pyramid").data) is not None
    assert len(pickle.dumps(image)) < 10_000
    again = pickle.loads(pickle.dumps(image))  # noqa: S301
    rect = Interval(3, 60), Interval(9, 50)
    np.testing.assert_array_equal(again.read([0, 2], *rect), image.read([0, 2], *rect))


def test_the_fingerprint_changes_with_a_chunk(url, files):
    def fingerprint() -> str | None:
        return ElementImage("im", get_image(open_store(url), "im"), CHANNELS).fingerprint

    first = fingerprint()
    assert first is not None
    assert fingerprint() == first
    chunk = f"{url.removeprefix('s3://')}/images/im/s0/c/1/0/1"
    content = files.cat_file(f"{url.removeprefix('s3://')}/images/im/s0/c/0/0/1")
    files.pipe_file(chunk, content)
    assert fingerprint() not in (first, None)


def test_a_chunk_that_cant_be_decoded_is_named(url, files):
    files.pipe_file(f"{url.removeprefix('s3://')}/images/im/s0/c/1/0/1", b"not zstd at all")
    image = ElementImage("im", get_image(open_store(url), "im"), CHANNELS)
    with pytest.raises(DataError, match=r"image 'im', channel 'CD8', y 0–32, x 32–52: a chunk"):
        image.read([0, 1], Interval(0, 70), Interval(0, 52))


def with_table(url: str, value: float) -> SpatialData:
    data = open_store(url)
    table = data["expression"].copy()
    table.X[:] = value
    data["nimbus"] = table
    return data


def test_a_table_is_written_and_read_back(url, files):
    before = tree(files, url)
    data = with_table(url, 1.0)
    assert nb.io.write_table(data) == "nimbus"
    found = open_store(url)
    assert set(found.tables) == {"expression", "nimbus"}
    assert (found["nimbus"].X == 1).all()
    assert found["nimbus"].obs_names.tolist() == data["nimbus"].obs_names.tolist()
    after = tree(files, url)
    same = {name for name in before if after[name] == before[name]}
    assert set(before) - same == {"/zarr.json"}  # the consolidated metadata
    root = zarr.open_group(url, mode="r", use_consolidated=True)
    assert sorted(root["tables"].group_keys()) == ["expression", "nimbus"]


def test_a_taken_name_gets_a_version(url, files):
    nb.io.write_table(with_table(url, 1.0))
    old = tree(files, url, "/tables/nimbus/")
    data = with_table(url, 2.0) if "nimbus" not in open_store(url).tables else open_store(url)
    data["nimbus"].X[:] = 2
    with pytest.raises(InputError, match=r"table 'nimbus' is there already\. Give overwrite=True"):
        nb.io.write_table(data, overwrite=False)
    for version, value in (("nimbus_v2", 2.0), ("nimbus_v3", 3.0)):
        data["nimbus"].X[:] = value
        with pytest.warns(NimbusWarning, match=f"stays; the new one is '{version}'"):
            assert nb.io.write_table(data) == version
        assert (value == open_store(url)[version].X).all()
    assert tree(files, url, "/tables/nimbus/") == old
    with pytest.raises(InputError, match="'im' is an element of images already"):
        persist_remote.free_name("im", {"im": "images"}, overwrite=True, where="s3://b")


@pytest.mark.parametrize("taken", [False, True])
def test_each_step_of_a_write_may_fail(url, files, taken):
    if taken:
        nb.io.write_table(with_table(url, 1.0))
    data = open_store(url) if taken else with_table(url, 1.0)
    data["nimbus"].X[:] = 2
    before = tree(files, url)
    real_upload, real_read = persist_remote._upload, persist_remote.ad.read_zarr

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    def half(fs: s3fs.S3FileSystem, folder: Path, prefix: str) -> None:
        real_upload(fs, folder / "obs", f"{prefix}/obs")
        raise OSError("connection reset")  # noqa: EM101

    def other(store: object) -> object:
        found = real_read(store)
        found.X[0, 0] += 1
        return found

    steps = [("_upload", half, OSError), ("_consolidate", stop, KeyboardInterrupt)]
    for name, replacement, error in steps:
        with pytest.MonkeyPatch.context() as broken:
            broken.setattr(persist_remote, name, replacement)
            with pytest.raises(error):
                nb.io.write_table(data)
        assert tree(files, url) == before
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(persist_remote.ad, "read_zarr", other)
        with pytest.raises(InputError, match="X read back differently"):
            nb.io.write_table(data)
    assert tree(files, url) == before


def test_a_store_without_consolidated_metadata(url, files):
    root = url.removeprefix("s3://")
    group = zarr.open_group(url, mode="r+", use_consolidated=False)
    attributes = group.attrs.asdict()
    files.rm_file(f"{root}/zarr.json")
    zarr.create_group(url, attributes=attributes)
    nb.io.write_table(with_table(url, 1.0))
    assert (open_store(url)["nimbus"].X == 1).all()
    assert zarr.open_group(url, mode="r").metadata.consolidated_metadata is None


def test_prediction_persists_to_where_the_object_came_from(url, score):
    data = open_store(url)
    score(data, image="im", mpp=0.5, write=True)
    np.testing.assert_array_equal(open_store(url)["nimbus"].X, data["nimbus"].X)
    with pytest.raises(InputError, match="exists; pass overwrite=True"):
        score(open_store(url), image="im", mpp=0.5, write=True)
