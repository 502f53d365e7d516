"""Images and labels on different grids: scored on the finer one, at the right place."""

import numpy as np
import pytest
from spatialdata import SpatialData, get_centroids
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import Affine, Identity, Scale, Translation

import nimbus_sd as nb
from nimbus_sd._core.errors import NimbusWarning
from nimbus_sd._sdata.align import WarpedImage, WarpedLabels
from nimbus_sd.arrays import Interval
from nimbus_sd.engine.source import ArrayImage, ArrayLabels
from nimbus_sd.testing import random_image, random_labels, whole_image_scores

SHAPE = (60, 44)


def build(image, labels, to_image, to_labels):
    return SpatialData.init_from_elements(
        {
            "image": Image2DModel.parse(
                image, dims=("c", "y", "x"), c_coords=["a", "b"], transformations={"global": to_image}
            ),
            "cells": Labels2DModel.parse(labels, dims=("y", "x"), transformations={"global": to_labels}),
        }
    )


def check(table, image, labels, model, factor=1.0):
    ids, expected = whole_image_scores(
        image, labels, model.net, scale=table.var["scale"].to_numpy(), factor=factor
    )
    assert table.obs["instance_id"].tolist() == ids.tolist()
    np.testing.assert_allclose(table.X, expected[..., 0], atol=1e-5)
    return ids


def scale(x, y=None):
    return Scale([x, y or x], axes=("x", "y"))


@pytest.mark.parametrize("tile", [16, 512])
def test_an_image_twice_as_fine_as_its_labels(model, score, tile):
    image, labels = random_image((2, *SHAPE)), random_labels((30, 22))
    sdata = build(image, labels, Identity(), scale(2))
    table = score(sdata, mpp=0.5, tile=tile)
    fine = labels.repeat(2, 0).repeat(2, 1)
    ids = check(table, image, fine, model, factor=2.0)
    assert table.obs["area_px"].tolist() == [(fine == i).sum() for i in ids]
    np.testing.assert_allclose(table.obs["area_um2"], table.obs["area_px"] * 0.25)
    centroids = get_centroids(sdata["cells"], coordinate_system="global").compute()
    np.testing.assert_allclose(table.obsm["spatial"], centroids[["x", "y"]], atol=1e-9)


@pytest.mark.parametrize("tile", [16, 512])
def test_labels_twice_as_fine_as_their_image(model, score, tile):
    image, labels = random_image((2, 30, 22)), random_labels(SHAPE)
    table = score(build(image, labels, scale(2), Identity()), mpp=2.0, tile=tile)
    # bilinear, the px of the border reaching to its edge
    position = [np.clip((np.arange(n) + 0.5) / 2 - 0.5, 0, n // 2 - 1) for n in SHAPE]
    low = [np.floor(p).astype(int) for p in position]
    high = [np.minimum(a + 1, n // 2 - 1) for a, n in zip(low, SHAPE, strict=True)]
    wy, wx = position[0] - low[0], position[1] - low[1]
    rows = image[:, low[0]] * (1 - wy[:, None]) + image[:, high[0]] * wy[:, None]
    fine = rows[:, :, low[1]] * (1 - wx) + rows[:, :, high[1]] * wx
    ids = check(table, fine, labels, model)
    np.testing.assert_allclose(table.obs["area_um2"], [(labels == i).sum() for i in ids])
    mean = [[plane[labels == i].mean() for plane in fine] for i in ids]
    np.testing.assert_allclose(table.layers["integrated_expression"], mean, rtol=1e-5)


@pytest.mark.parametrize("shift", [(5, -3), (-7, 11)])
@pytest.mark.parametrize("tile", [16, 512])
def test_a_translated_image(model, score, shift, tile):
    dx, dy = shift
    image, labels = random_image((2, *SHAPE)), random_labels(SHAPE)
    sdata = build(image, labels, Translation([dx, dy], axes=("x", "y")), Identity())
    with pytest.warns(NimbusWarning, match=f"reach up to {max(abs(dx), abs(dy))} px beyond image"):
        table = score(sdata, mpp=1.0, tile=tile)
    moved = np.zeros_like(image)
    there = np.s_[max(dy, 0) : SHAPE[0] + min(dy, 0), max(dx, 0) : SHAPE[1] + min(dx, 0)]
    back = np.s_[max(-dy, 0) : SHAPE[0] + min(-dy, 0), max(-dx, 0) : SHAPE[1] + min(-dx, 0)]
    moved[:, *there] = image[:, *back]
    check(table, moved, labels, model)


def test_a_quarter_turn(model, score):
    image, labels = random_image((2, 40, 60)), random_labels((60, 40))
    # (x, y) of the image to (60 - ... ): the labels are the image's rotation
    turn = Affine([[0, 1, 0], [-1, 0, 60], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    table = score(build(image, labels, turn, Identity()), mpp=1.0)
    check(table, np.rot90(image, axes=(1, 2)).copy(), labels, model)


def test_equal_transformations_of_other_numbers_are_the_same_grid(model, score):
    image, labels = random_image((2, *SHAPE)), random_labels(SHAPE)
    shared = Affine([[0.5, 0, 3], [0, 0.5, -4], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    check(score(build(image, labels, shared, shared), mpp=1.0), image, labels, model)


def test_integrated_expression_on_different_grids():
    image, labels = random_image((2, *SHAPE)), random_labels((30, 22))
    sdata = build(image, labels, Identity(), scale(2))
    nb.pp.integrated_expression(sdata, progress=False)
    table = sdata["integrated_expression"]
    fine = labels.repeat(2, 0).repeat(2, 1)
    expected = [[plane[fine == i].mean() for plane in image] for i in table.obs["instance_id"]]
    np.testing.assert_allclose(table.X, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "matrix",
    [
        np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]]),
        np.array([[1, 0, 3.5], [0, 1, -7.5], [0, 0, 1]]),
        np.array([[0.6, -0.2, 4.1], [0.3, 0.7, -2.3], [0, 0, 1]]),
    ],
    ids=["scaled", "half a px", "turned"],
)
def test_a_crop_of_a_warped_element_is_the_crop_of_the_whole(matrix):
    ids = [1, 2**31, 4_000_000_000]
    labels = WarpedLabels(ArrayLabels("l", random_labels(SHAPE, n=30, ids=ids)), matrix, (50, 50))
    image = WarpedImage(ArrayImage("i", random_image((2, *SHAPE)), ("a", "b")), matrix, (50, 50))
    whole = Interval(0, 50)
    for y, x in [(Interval(0, 7), Interval(43, 50)), (Interval(11, 30), Interval(2, 3))]:
        np.testing.assert_array_equal(labels.read(y, x), labels.read(whole, whole)[y.slice, x.slice])
        np.testing.assert_allclose(
            image.read([1], y, x),
            image.read([0, 1], whole, whole)[[1], y.slice, x.slice],
            rtol=1e-5,
            atol=1e-3,
        )
    assert set(np.unique(labels.read(whole, whole))) <= {0, *ids}
