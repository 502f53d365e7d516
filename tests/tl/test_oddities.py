"""Legal oddities work, and give what the slow oracle gives."""

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel

from nimbus_sd._core.errors import NimbusWarning
from nimbus_sd.testing import random_image, random_labels, whole_image_scores

CHANNELS = ["a", "b"]


def build(image, labels, **parse):
    return SpatialData.init_from_elements(
        {
            "image": Image2DModel.parse(image, dims=("c", "y", "x"), c_coords=CHANNELS, **parse),
            "cells": Labels2DModel.parse(labels, dims=("y", "x"), **parse),
        }
    )


def check(table, image, labels, model):
    ids, expected = whole_image_scores(
        np.asarray(image), np.asarray(labels), model.net, scale=table.var["scale"].to_numpy()
    )
    assert table.obs["instance_id"].tolist() == ids.tolist()
    np.testing.assert_allclose(table.X, expected[..., 0], atol=1e-5)
    assert np.isfinite(table.X).all()


def test_an_empty_channel_is_flagged_and_its_scores_are_finite(model, score):
    image, labels = random_image((2, 60, 50)), random_labels((60, 50))
    image[1] = 0
    with pytest.warns(NimbusWarning, match="empty channels: b"):
        table = score(build(image, labels), mpp=1.0)
    assert table.var["qc"].tolist() == ["", "empty"]
    assert table.var["scale"].tolist()[1] == 1.0
    check(table, image, labels, model)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 40), (5, 3), (15, 15), (16, 17), (31, 32), (33, 47), (100, 13)]
)
def test_any_size(shape, model, score):
    image, labels = random_image((2, *shape)), random_labels(shape, n=6)
    image[:, 0, 0] = 500
    check(score(build(image, labels), mpp=1.0), image, labels, model)


def test_one_pixel_cells_and_one_cell(model, score):
    image = random_image((2, 40, 40))
    labels = np.zeros((40, 40), np.int64)
    labels[::3, ::3] = np.arange(1, 14 * 14 + 1).reshape(14, 14)
    table = score(build(image, labels), mpp=1.0)
    assert table.n_obs == 196
    assert (table.obs["area_px"] == 1).all()
    check(table, image, labels, model)
    one = np.zeros((40, 40), np.uint8)
    one[3:30, 7:20] = 9
    table = score(build(image, one), mpp=1.0)
    assert table.n_obs == 1
    check(table, image, one, model)
    everything = np.ones((40, 40), np.uint8)
    check(score(build(image, everything), mpp=1.0), image, everything, model)


@pytest.mark.parametrize("dtype", ["uint32", "int64", "uint64"])
def test_huge_ids(dtype, model, score, tmp_path):
    ids = [4_000_000_000, 7, 2**32 - 1, 2**31]
    image, labels = random_image((2, 50, 60)), random_labels((50, 60), n=20, ids=ids, dtype=dtype)
    sdata = build(image, labels)
    table = score(sdata, mpp=1.0, tile=16)
    assert "cells_4000000000" in table.obs_names
    check(table, image, labels, model)
    sdata.write(tmp_path / "s.zarr")
    again = sd.read_zarr(tmp_path / "s.zarr")
    assert again["nimbus"].obs["instance_id"].tolist() == sorted(ids)
    np.testing.assert_array_equal(
        score(again, mpp=1.0, overwrite=True).X, score(sdata, mpp=1.0, overwrite=True).X
    )


@pytest.mark.parametrize("dtype", ["bool", "int16", "uint8", "int64"])
def test_labels_of_any_integer_dtype(dtype, model, score):
    image, labels = random_image((2, 40, 50)), random_labels((40, 50)).astype(dtype)
    check(score(build(image, labels), mpp=1.0), image, labels.astype(np.int64), model)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "float16", "float32", "float64"]
)
def test_images_of_any_real_dtype(dtype, model, score):
    image, labels = (
        random_image((2, 40, 50), dtype="uint8", maximum=120).astype(dtype),
        random_labels((40, 50)),
    )
    table = score(build(image, labels), mpp=1.0)
    check(table, image, labels, model)
    np.testing.assert_allclose(
        table.layers["integrated_expression"],
        [[plane[labels == i].mean(dtype=float) for plane in image] for i in table.obs["instance_id"]],
        rtol=1e-6,
    )


@pytest.mark.parametrize("backing", ["numpy", "dask", "multiscale", "disk", "multiscale on disk"])
def test_backings_agree(backing, model, score, tmp_path):
    image, labels = random_image((2, 90, 70)), random_labels((90, 70), n=20)
    parse = {"scale_factors": [2, 2]} if "multiscale" in backing else {}
    sdata = build(image, labels, **parse)
    if backing == "numpy":
        sdata["image"].data, sdata["cells"].data = image, labels
    elif backing == "dask":
        sdata["image"].data = da.from_array(image, chunks=(2, 33, 17))
        sdata["cells"].data = da.from_array(labels, chunks=(20, 70))
    elif "disk" in backing:
        sdata.write(tmp_path / "s.zarr")
        sdata = sd.read_zarr(tmp_path / "s.zarr")
        assert sdata.is_backed()
    check(score(sdata, mpp=1.0, tile=32), image, labels, model)


def test_channels_without_names_and_with_numbers(model, score):
    image, labels = random_image((2, 40, 40)), random_labels((40, 40))
    sdata = build(image, labels)
    sdata.images["image"] = Image2DModel.parse(image, dims=("c", "y", "x"))
    table = score(sdata, mpp=1.0)
    assert list(table.var_names) == ["0", "1"]
    check(table, image, labels, model)


def test_saturated_and_sparse_channels_are_flagged(score):
    image = np.zeros((2, 200, 200), np.uint16)
    image[0, :20] = 65_535
    image[1, 0, 0] = 3
    with pytest.warns(NimbusWarning) as caught:
        table = score(build(image, random_labels((200, 200))), mpp=1.0)
    assert table.var["qc"].tolist() == ["saturated", "sparse"]
    assert table.var["n_saturated"].tolist() == [4000, 0]
    assert sorted(str(w.message).split(" ")[0] for w in caught) == ["saturated", "sparse"]
