"""zarr reads zeros of an array that is gone: that must not become anybody's result."""

import pickle
import shutil

import numpy as np
import pytest
import spatialdata as sd

from nimbus_sd._core.errors import DataError
from nimbus_sd._sdata import zarr_source
from nimbus_sd._sdata.elements import ElementImage, ElementLabels, get_image, get_labels
from nimbus_sd.arrays import Interval

RECT = Interval(0, 20), Interval(0, 20)


@pytest.fixture
def opened(factory, tmp_path, monkeypatch):
    """An image and labels with a corner of zeros, as a process gets them that has read nothing yet."""
    monkeypatch.setattr(zarr_source, "_found", set())
    made = factory(shape=(64, 64), chunks=(1, 32, 32))
    for name in ("fov0_image", "fov0_labels"):
        pixels = np.asarray(made[name].data).copy()
        pixels[..., :32, :32] = 0
        made[name].data = pixels
    made.write(tmp_path / "s.zarr")
    sdata = sd.read_zarr(tmp_path / "s.zarr")
    image = ElementImage("im", get_image(sdata, "fov0_image"), ("a", "b", "c"))
    found = image, ElementLabels("cells", get_labels(sdata, "fov0_labels"))
    return pickle.loads(pickle.dumps(found))  # noqa: S301


def test_a_store_that_is_gone_is_no_image_of_zeros(opened, tmp_path):
    image, labels = opened
    shutil.rmtree(tmp_path / "s.zarr")
    with pytest.raises(DataError, match=r"image 'im': there is no zarr array at .*s\.zarr.*every worker"):
        image.read([0], *RECT)
    with pytest.raises(DataError, match=r"labels 'cells': there is no zarr array at"):
        labels.read(*RECT)


def test_zeros_are_zeros_and_cost_one_look(opened, monkeypatch):
    image, labels = opened
    looks, look = [], zarr_source.zarr.open_array

    def counted(*args, **options):
        looks.append(args)
        return look(*args, **options)

    monkeypatch.setattr(zarr_source.zarr, "open_array", counted)
    assert image.read([0], Interval(32, 64), Interval(0, 64)).any()
    assert labels.read(Interval(0, 64), Interval(0, 64)).any()
    assert not looks
    for _ in range(3):
        assert not image.read([0, 1], *RECT).any()
        assert not labels.read(*RECT).any()
    assert len(looks) == 2
