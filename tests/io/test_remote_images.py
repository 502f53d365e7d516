"""Images made from others go into a remote store, whole, and a second one beside the first."""

import numpy as np
import pandas as pd
import pytest

import nimbus_sd as nb
from nimbus_sd._sdata.elements import get_image
from nimbus_sd._sdata.remote import open_remote

pytestmark = pytest.mark.filterwarnings("ignore")  # spatialdata's, zarr's and boto's own


def test_compensated_images_behind_a_url(factory, files, tmp_path):
    factory(1, shape=(40, 48), channels=("CD3", "CD8")).write(tmp_path / "a.zarr")
    for file in (tmp_path / "a.zarr").rglob("*"):
        if file.is_file():
            name = f"bucket/images.zarr/{file.relative_to(tmp_path / 'a.zarr').as_posix()}"
            files.pipe_file(name, file.read_bytes())
    spillover = pd.DataFrame([[1, 0.2], [0, 1]], index=["CD3", "CD8"], columns=["CD3", "CD8"])
    sdata = open_remote("s3://bucket/images.zarr")
    nb.pp.compensate(sdata, spillover, write=True)
    nb.pp.compensate(sdata, spillover * 0 + np.eye(2), write=True, overwrite=True)
    there = open_remote("s3://bucket/images.zarr")
    first, second = (get_image(there, f"fov0_image_compensated{v}").data.compute() for v in ("", "_v2"))
    np.testing.assert_array_equal(second, get_image(there, "fov0_image").data)
    assert (first[1] < second[1]).any()
    facts = there.attrs["nimbus_sd"]["derived"]
    assert facts["fov0_image_compensated"]["spillover"] == spillover.to_numpy().tolist()
    assert facts["fov0_image_compensated_v2"]["image"] == "fov0_image"
