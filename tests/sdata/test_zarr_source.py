"""Elements that lie in zarr are read from there: the same pixels, no graph, each chunk decoded once."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
import zarr
from hypothesis import given
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel

from nimbus_sd._core.errors import DataError
from nimbus_sd._sdata import zarr_source
from nimbus_sd._sdata.align import WarpedImage, WarpedLabels
from nimbus_sd._sdata.elements import ElementImage, ElementLabels, get_image, get_labels
from nimbus_sd._sdata.zarr_source import fingerprint_of, grid_of, read_planes, zarr_of
from nimbus_sd.arrays import Interval

CHANNELS = ("DNA", "CD3", "CD8", "CD20", "CD4")
SHAPE = (5, 70, 50)
PIXELS = np.random.default_rng(0).integers(0, 60_000, SHAPE, dtype=np.uint16)
LABELS = np.random.default_rng(1).integers(0, 9, SHAPE[1:], dtype=np.uint32)

pytestmark = pytest.mark.filterwarnings("ignore")  # spatialdata's and zarr's own, on every write


@pytest.fixture
def store(tmp_path: Path) -> Path:
    image = Image2DModel.parse(PIXELS, dims=("c", "y", "x"), c_coords=CHANNELS, chunks=(1, 32, 32))
    pyramid = Image2DModel.parse(
        PIXELS, dims=("c", "y", "x"), c_coords=CHANNELS, chunks=(2, 32, 32), scale_factors=[2]
    )
    labels = Labels2DModel.parse(LABELS, dims=("y", "x"), chunks=(32, 32))
    sdata = SpatialData(images={"im": image, "pyramid": pyramid}, labels={"cells": labels})
    sdata.write(tmp_path / "data.zarr")
    return tmp_path / "data.zarr"


def image_of(sdata: SpatialData, name: str = "im") -> ElementImage:
    return ElementImage(name, get_image(sdata, name), CHANNELS)


def again(thing: object) -> Any:
    """What another process gets."""
    return pickle.loads(pickle.dumps(thing))  # noqa: S301


def labels_of(sdata: SpatialData) -> ElementLabels:
    return ElementLabels("cells", get_labels(sdata, "cells"))


@pytest.mark.parametrize("name", ["im", "pyramid"])
def test_what_spatialdata_reads_is_a_zarr_array(store, name):
    sdata = sd.read_zarr(store)
    found = zarr_of(get_image(sdata, name).data)
    assert isinstance(found, zarr.Array)
    assert found.shape == SHAPE
    image = image_of(sdata, name)
    assert isinstance(image.array, zarr.Array)
    assert image.shape == SHAPE[1:]
    assert image.dtype == np.uint16
    assert image.chunks == get_image(sdata, name).data.chunks


@pytest.mark.parametrize(
    "touch",
    [
        lambda a: a + 1,
        lambda a: a[:, 1:],
        lambda a: a[:3],
        lambda a: a.rechunk((5, 70, 50)),
        lambda a: a.astype("float32"),
        lambda a: a.persist(),
        lambda a: da.concatenate([a, a]),
        lambda a: a.map_blocks(lambda block: block[::-1], dtype=a.dtype),
        lambda a: da.from_array(a.compute()),
        lambda a: a[:, ::-1],
    ],
)
def test_what_was_touched_is_read_through_dask(store, touch):
    array = touch(get_image(sd.read_zarr(store), "im").data)
    assert zarr_of(array) is None
    image = ElementImage("im", array, CHANNELS)
    np.testing.assert_array_equal(image.read([1, 2], Interval(3, 9), Interval(0, 7)), array[1:3, 3:9, :7])
    assert image.fingerprint is None


@pytest.mark.parametrize("name", ["im", "pyramid"])
@pytest.mark.parametrize("channels", [[0], [1, 2], [0, 1, 2, 3, 4], [0, 2, 4], [4, 0], [3, 3], [1, 3]])
def test_the_same_pixels_as_through_dask(store, name, channels):
    sdata = sd.read_zarr(store)
    read = image_of(sdata, name).read(channels, Interval(5, 66), Interval(30, 34))
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, PIXELS[channels, 5:66, 30:34])
    np.testing.assert_array_equal(
        labels_of(sdata).read(Interval(5, 66), Interval(30, 34)), LABELS[5:66, 30:34]
    )


@given(st.lists(st.integers(0, 19), min_size=1, max_size=12), st.integers(1, 7))
def test_each_chunk_is_in_one_slab(channels, chunk):
    slabs = zarr_source._slabs(channels, chunk)
    assert {c for c in channels if any(s.start <= c < s.stop for s in slabs)} == set(channels)
    touched = [i for s in slabs for i in range(s.start // chunk, (s.stop - 1) // chunk + 1)]
    assert len(touched) == len(set(touched))
    assert set(touched) == {c // chunk for c in channels}


def test_shards_are_read_whole_unless_they_are_large(tmp_path, monkeypatch):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=SHAPE, dtype="uint16", chunks=(1, 16, 16), shards=(1, 64, 32)
    )
    array[:] = PIXELS
    assert grid_of(array) == ((1,) * 5, (64, 6), (32, 18))
    np.testing.assert_array_equal(read_planes(array, [0, 3], Interval(1, 70), Interval(9, 50)),
                                  PIXELS[[0, 3], 1:70, 9:50])  # fmt: skip
    monkeypatch.setattr(zarr_source, "_LARGE", 100)
    assert grid_of(array) == ((1,) * 5, (16,) * 4 + (6,), (16,) * 3 + (2,))


def test_a_whole_slide_pickles_small_and_reads_at_once(tmp_path):
    slide = zarr.create_array(
        tmp_path / "slide.zarr", shape=(35, 45_477, 54_490), dtype="uint16", chunks=(1, 512, 512)
    )
    slide[7, :600, :600] = 5
    lazy = da.from_zarr(slide)
    image = ElementImage("slide", lazy, tuple(map(str, range(35))))
    assert len(pickle.dumps(image)) < 10_000
    assert [len(sizes) for sizes in image.chunks] == [35, 89, 107]
    image.read([7], Interval(0, 10), Interval(0, 10))  # starts zarr's threads
    times = []
    for _ in range(5):
        start = time.perf_counter()
        read = image.read([7], Interval(512, 1024), Interval(512, 1024))
        times.append(time.perf_counter() - start)
    assert read[0, :88, :88].min() == 5
    assert read.sum() == 88 * 88 * 5
    assert min(times) < 0.02  # culling the graph alone takes longer


CHILD = """
import pickle, sys
from pathlib import Path
from nimbus_sd.arrays import Interval
image, labels = pickle.loads(Path(sys.argv[1]).read_bytes())
print(int(image.read([0, 2], Interval(3, 60), Interval(2, 40)).sum()))
print(int(labels.read(Interval(3, 60), Interval(2, 40)).sum()))
print(image.fingerprint, labels.fingerprint)
"""


def test_sources_work_in_another_process(store, tmp_path):
    sdata = sd.read_zarr(store)
    image, labels = image_of(sdata), labels_of(sdata)
    (tmp_path / "sources.pickle").write_bytes(pickle.dumps((image, labels)))
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(tmp_path / "sources.pickle")]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert out == [
        str(PIXELS[[0, 2], 3:60, 2:40].sum()),
        str(LABELS[3:60, 2:40].sum()),
        image.fingerprint,
        labels.fingerprint,
    ]


def test_elements_in_memory_pickle_their_pixels():
    for array in (PIXELS, da.from_array(PIXELS, chunks=(1, 32, 32))):
        image = again(ElementImage("im", array, CHANNELS))
        np.testing.assert_array_equal(image.read([1], Interval(0, 9), Interval(1, 8))[0], PIXELS[1, :9, 1:8])
        assert image.fingerprint is None
        assert sum(image.chunks[1]) == 70


def test_the_fingerprint_follows_the_stored_pixels(store):
    first = image_of(sd.read_zarr(store)).fingerprint
    assert first is not None
    int(first, 16)
    again = image_of(sd.read_zarr(store))
    assert again.fingerprint == first
    assert image_of(sd.read_zarr(store), "pyramid").fingerprint != first
    chunk = store / "images" / "im" / "s0" / "c" / "2" / "1" / "0"
    before = chunk.stat()
    chunk.write_bytes(chunk.read_bytes())
    os.utime(chunk, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert image_of(sd.read_zarr(store)).fingerprint != first
    os.utime(chunk, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert image_of(sd.read_zarr(store)).fingerprint == first
    assert again.fingerprint == first  # told once
    chunk.unlink()
    assert image_of(sd.read_zarr(store)).fingerprint not in (first, None)
    assert fingerprint_of(zarr.create_array({}, shape=(2, 2), dtype="u1")) is None


def test_warped_sources_have_fingerprints_of_their_own(store):
    sdata = sd.read_zarr(store)
    image, labels = image_of(sdata), labels_of(sdata)
    half, third = np.diag([0.5, 0.5, 1.0]), np.diag([1 / 3, 1 / 3, 1.0])
    found = [
        WarpedImage(image, half, (140, 100)).fingerprint,
        WarpedImage(image, third, (140, 100)).fingerprint,
        WarpedImage(image, half, (140, 99)).fingerprint,
        WarpedLabels(labels, half, (140, 100)).fingerprint,
        image.fingerprint,
        labels.fingerprint,
    ]
    assert None not in found
    assert len(set(found)) == len(found)
    assert found[0] == WarpedImage(image_of(sdata), half.copy(), (140, 100)).fingerprint
    assert WarpedImage(ElementImage("im", PIXELS, CHANNELS), half, (140, 100)).fingerprint is None


class TestAChunkThatCantBeRead:
    def test_of_an_image(self, store):
        (store / "images" / "im" / "s0" / "c" / "1" / "0" / "1").write_bytes(b"not zstd at all")
        image = image_of(sd.read_zarr(store))
        told = r"image 'im', channel 'CD3', y 0–32, x 32–50: a chunk can't be read \(.+\): restore the file"
        with pytest.raises(DataError, match=told):
            image.read([0, 1, 4], Interval(0, 70), Interval(0, 50))
        with pytest.raises(DataError, match=told):
            again(image).read([1], Interval(31, 33), Interval(31, 33))
        image.read([0, 2, 3, 4], Interval(0, 70), Interval(0, 50))
        image.read([1], Interval(32, 70), Interval(0, 50))

    def test_of_labels(self, store):
        (store / "labels" / "cells" / "s0" / "c" / "2" / "0").write_bytes(b"")
        labels = labels_of(sd.read_zarr(store))
        with pytest.raises(
            DataError, match=r"labels 'cells', y 64–70, x 0–32: a chunk can't be read"
        ) as told:
            labels.read(Interval(0, 70), Interval(0, 50))
        assert str(again(told.value)) == str(told.value)

    def test_that_can_when_tried_again(self, store, monkeypatch):
        image = image_of(sd.read_zarr(store))
        from nimbus_sd._sdata import elements

        def flaky(*args: object) -> np.ndarray:
            msg = "connection reset"
            raise OSError(msg)

        monkeypatch.setattr(elements, "read_planes", flaky)
        with pytest.raises(
            DataError, match=r"could not be read once \(OSError: connection reset\).*run again"
        ):
            image.read([1], Interval(0, 70), Interval(0, 50))
