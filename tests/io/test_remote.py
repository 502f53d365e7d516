"""Stores behind a URL, against a real S3-compatible server: read, scored, written to."""

from __future__ import annotations

import pickle
import shutil
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import s3fs
import spatialdata as sd
import zarr
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, TableModel
from spatialdata.transformations import Scale, get_transformation
from upath import UPath
from xarray import DataTree

import nimbus_sd as nb
from nimbus_sd._core.errors import DataError, InputError, NimbusWarning
from nimbus_sd._sdata import persist_remote
from nimbus_sd._sdata.elements import ElementImage, finest, get_image
from nimbus_sd._sdata.persist import persist_map
from nimbus_sd._sdata.remote import make_remote, open_remote
from nimbus_sd._sdata.resolve import resolve_pairs
from nimbus_sd._sdata.zarr_source import zarr_of
from nimbus_sd.arrays import Interval
from nimbus_sd.cli._options import is_store, open_store
from nimbus_sd.testing import random_image, random_labels

pytestmark = pytest.mark.filterwarnings("ignore")  # spatialdata's, zarr's and boto's own

CHANNELS = ("CD3", "CD8", "CD20")
SHAPE = (70, 52)


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
    lean = data["expression"]  # every array is some requests, for every write and every time it is opened
    lean.obs, lean.obsm = lean.obs[["region", "instance_id"]], {}
    lean.uns = {TableModel.ATTRS_KEY: lean.uns[TableModel.ATTRS_KEY]}
    store = tmp_path_factory.mktemp("local") / "data.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.write(store)
    return store


def copied(files: s3fs.S3FileSystem, local: Path, name: str) -> str:
    found = [file for file in local.rglob("*") if file.is_file()]
    files.pipe({f"{name}/{file.relative_to(local).as_posix()}": file.read_bytes() for file in found})
    return f"s3://{name}"


@pytest.fixture(scope="module")
def shared(files: s3fs.S3FileSystem, local: Path) -> str:
    """A copy of the local store in the bucket, for tests that write nothing."""
    return copied(files, local, "bucket/shared [1].zarr")


@pytest.fixture
def url(files: s3fs.S3FileSystem, local: Path, request: pytest.FixtureRequest) -> str:
    """A copy of the local store in the bucket, one per test."""
    return copied(files, local, f"bucket/{request.node.name}.zarr")


@pytest.fixture
def bare(server: str, files: s3fs.S3FileSystem, request: pytest.FixtureRequest) -> str:
    """A store without elements: writes to it take few requests."""
    url = f"s3://bucket/{request.node.name}.zarr"
    make_remote(url)
    return url


def tree(files: s3fs.S3FileSystem, url: str, below: str = "") -> dict[str, str]:
    """Hash of every file's content: what these servers call ETag."""
    prefix = url.removeprefix("s3://") + below
    found = files.find(prefix, detail=True)
    return {name.removeprefix(prefix): about["ETag"] for name, about in found.items()}


def test_what_is_opened_is_what_was_written(shared, server, local):
    here = sd.read_zarr(local)
    for there in (
        open_store(shared),
        open_remote(UPath(shared, endpoint_url=server)),
        open_store(Path(shared)),
    ):
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


def test_is_store(shared, local):
    assert is_store(shared)
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


def test_the_same_expression_and_scales_as_from_the_local_copy(shared, local):
    here, there = sd.read_zarr(local), open_store(shared)
    assert (
        nb.pp.normalization(there, image="im", progress=False).scale
        == nb.pp.normalization(here, image="im", progress=False).scale
    )
    for data in (here, there):
        nb.pp.integrated_expression(data, image="im", table="again", progress=False)
    np.testing.assert_array_equal(there["again"].X, here["again"].X)
    assert there["again"].obs["instance_id"].tolist() == here["again"].obs["instance_id"].tolist()


def test_the_same_scores_as_from_the_local_copy(shared, local, score):
    here, there = sd.read_zarr(local), open_store(shared)
    wanted, found = (score(data, image="im", mpp=0.5) for data in (here, there))
    np.testing.assert_array_equal(found.X, wanted.X)


def test_elements_are_read_directly(shared):
    image = ElementImage("im", get_image(open_store(shared), "im"), CHANNELS)
    assert isinstance(image.array, zarr.Array)
    assert zarr_of(get_image(open_store(shared), "pyramid").data) is not None
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


def with_table(url: str, local: Path, value: float) -> SpatialData:
    data = open_store(url)
    table = sd.read_zarr(local)["expression"]
    table.X[:] = value
    data["nimbus"] = table
    return data


def stored(url: str, name: str) -> np.ndarray:
    """X of a table, as readers of the consolidated metadata find it."""
    return zarr.open_group(url, mode="r", use_consolidated=True)["tables"][name]["X"][:]


def test_a_table_is_written_and_read_back(url, local, files):
    before = tree(files, url)
    data = with_table(url, local, 1.0)
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


def test_a_taken_name_gets_a_version(bare, local, files):
    data = with_table(bare, local, 1.0)
    nb.io.write_table(data)
    old = tree(files, bare, "/tables/nimbus/")
    data["nimbus"].X[:] = 2
    with pytest.raises(InputError, match=r"table 'nimbus' is there already\. Give overwrite=True"):
        nb.io.write_table(data, overwrite=False)
    for version, value in (("nimbus_v2", 2.0), ("nimbus_v3", 3.0)):
        data["nimbus"].X[:] = value
        with pytest.warns(NimbusWarning, match=f"stays; the new one is '{version}'"):
            assert nb.io.write_table(data) == version
        assert (value == stored(bare, version)).all()
    assert set(open_store(bare).tables) == {"nimbus", "nimbus_v2", "nimbus_v3"}
    assert tree(files, bare, "/tables/nimbus/") == old
    with pytest.raises(InputError, match="'im' is an element of images already"):
        persist_remote.free_name("im", {"im": "images"}, overwrite=True, where="s3://b")
    with pytest.raises(InputError, match=r"'t' is an element of tables already\. Give the image another"):
        persist_remote.free_name("t", {"t": "tables"}, overwrite=True, where="s3://b", kind="images")


@pytest.mark.parametrize("taken", [False, True])
def test_each_step_of_a_write_may_fail(bare, local, files, taken):
    url = bare
    data = with_table(url, local, 1.0)
    if taken:
        nb.io.write_table(data)
        data = open_store(url)
    data["nimbus"].X[:] = 2
    before = tree(files, url)
    real_upload, real_read = persist_remote._upload, ad.read_zarr

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
        broken.setattr(ad, "read_zarr", other)
        with pytest.raises(InputError, match="X read back differently"):
            nb.io.write_table(data)
    assert tree(files, url) == before


def test_a_store_without_consolidated_metadata(bare, local, files):
    url, root = bare, bare.removeprefix("s3://")
    group = zarr.open_group(url, mode="r+", use_consolidated=False)
    attributes = group.attrs.asdict()
    files.rm_file(f"{root}/zarr.json")
    zarr.create_group(url, attributes=attributes)
    nb.io.write_table(with_table(url, local, 1.0))
    assert (open_store(url)["nimbus"].X == 1).all()
    assert zarr.open_group(url, mode="r").metadata.consolidated_metadata is None


def test_prediction_persists_to_where_the_object_came_from(url, score):
    data = open_store(url)
    score(data, image="im", mpp=0.5, write=True)
    np.testing.assert_array_equal(open_store(url)["nimbus"].X, data["nimbus"].X)
    with pytest.raises(InputError, match="exists; pass overwrite=True"):
        score(open_store(url), image="im", mpp=0.5, write=True)


def levels(element: DataTree) -> dict[str, np.ndarray]:
    return {name: next(iter(level.data_vars.values())).values for name, level in element.children.items()}


def test_maps_are_those_of_a_local_run(url, local, files, score, tmp_path):
    shutil.copytree(local, tmp_path / "data.zarr")
    here, there = sd.read_zarr(tmp_path / "data.zarr"), open_store(url)
    before = tree(files, url, "/images")
    for data in (here, there):
        score(data, image="im", mpp=0.5, maps="nimbus_maps", write=True)
    again = open_store(url)
    wanted = levels(sd.read_zarr(tmp_path / "data.zarr")["nimbus_maps"])
    assert list(wanted) == ["scale0", "scale1"]
    assert wanted["scale0"].any()
    for found in (there["nimbus_maps"], again["nimbus_maps"]):
        np.testing.assert_equal(levels(found), wanted)
        assert finest(found).coords["c"].values.tolist() == list(CHANNELS)
        assert zarr_of(finest(found).data) is not None  # and not what was computed
        where = [get_transformation(e, "microns") for e in (found, here["nimbus_maps"])]
        np.testing.assert_allclose(*(t.to_affine_matrix(("x", "y"), ("x", "y")) for t in where))
    assert tree(files, url, "/images").items() >= before.items()
    # it is known as a map from now on
    for data in (there, again):
        assert data.attrs["nimbus_sd"]["maps"] == ["nimbus_maps", "pyramid"]
    assert [pair.image for pair in resolve_pairs(again)] == ["im"]
    with pytest.raises(InputError, match="image 'nimbus_maps' exists; pass overwrite=True"):
        score(again, image="im", mpp=0.5, maps="nimbus_maps", table="second", write=True)


def a_map(value: int) -> DataTree:
    pixels = np.full((1, 20, 30), value, np.uint8)
    return Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["CD3"], scale_factors=[2])


def test_a_map_of_a_taken_name_gets_a_version(bare, files):
    data = open_store(bare)
    persist_map(data, "score", a_map(1))
    old = tree(files, bare, "/images/score/")
    with pytest.warns(NimbusWarning, match=r"image 'score' is there already and stays.*'score_v2'"):
        found = persist_map(data, "score", a_map(2))
    assert tree(files, bare, "/images/score/") == old
    again = open_store(bare)
    assert again.attrs["nimbus_sd"]["maps"] == ["score", "score_v2"]
    for element, value in ((again["score"], 1), (again["score_v2"], 2), (found, 2)):
        assert {int(level.max()) for level in levels(element).values()} == {value}


@pytest.mark.parametrize("taken", [False, True])
def test_a_map_that_fails_leaves_the_store_as_it_was(bare, files, taken, monkeypatch):
    data = open_store(bare)
    if taken:
        persist_map(data, "score", a_map(1))
    before = tree(files, bare)
    upload, consolidate = persist_remote._upload, persist_remote._consolidate

    def short(fs: s3fs.S3FileSystem, folder: Path, prefix: str) -> None:
        upload(fs, folder, prefix)
        fs.pipe_file(f"{prefix}/s0/zarr.json", b"{}")

    def late(store: object) -> None:
        consolidate(store)
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(persist_remote, "_upload", short)
        with pytest.raises(InputError, match=r"1 of \d+ files did not arrive whole, such as /s0/zarr\.json"):
            persist_map(data, "score", a_map(2))
    assert tree(files, bare) == before
    monkeypatch.setattr(persist_remote, "_consolidate", late)
    with pytest.raises(KeyboardInterrupt):
        persist_map(data, "score", a_map(2))
    assert tree(files, bare) == before
