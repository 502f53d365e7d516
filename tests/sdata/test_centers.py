"""Where cells lie: index coordinates of the image, positions in the world, areas, pixel sizes."""

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData, get_centroids
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel
from spatialdata.transformations import Affine, Identity, Scale, Translation

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata.centers import resolve_centers
from nimbus_sd.testing import CountedArray, random_image, random_labels

SHAPE = (60, 44)
TURN = Affine([[0, 2, 5], [-2, 0, 90], [0, 0, 1]], ("x", "y"), ("x", "y"))


def build(to_image, to_cells, *, points=False):
    if points:
        frame = pd.DataFrame(np.random.default_rng(0).random((20, 2)) * 20 + 12, columns=["x", "y"])
        cells = PointsModel.parse(frame, transformations={"global": to_cells})
    else:
        cells = Labels2DModel.parse(
            random_labels(SHAPE), dims=("y", "x"), transformations={"global": to_cells}
        )
    image = Image2DModel.parse(
        random_image((2, *SHAPE)),
        dims=("c", "y", "x"),
        c_coords=["a", "b"],
        transformations={"global": to_image},
    )
    return SpatialData.init_from_elements({"image": image, "cells": cells})


@pytest.mark.parametrize("transformation", [Identity(), Scale([0.5, 0.5], ("x", "y")), TURN])
def test_positions_of_labels_are_those_of_spatialdata(transformation):
    sdata = build(transformation, transformation)
    (found,) = resolve_centers(sdata).samples
    expected = get_centroids(sdata["cells"], coordinate_system="global").compute()
    assert found.ids.tolist() == expected.index[expected.index > 0].tolist()
    np.testing.assert_allclose(found.positions(), expected.loc[found.ids, ["x", "y"]], atol=1e-9)
    labels = sdata["cells"].to_numpy()
    assert found.count.tolist() == [(labels == i).sum() for i in found.ids]
    middle = [np.argwhere(labels == i).mean(axis=0) for i in found.ids]
    np.testing.assert_allclose(found.centers, middle, atol=1e-9)
    assert (found.ids.dtype, found.centers.dtype, found.count.dtype) == (np.int64, np.float64, np.int64)


@pytest.mark.parametrize(
    ("to_image", "to_cells"),
    [(Identity(), Identity()), (Translation([-3, 2], ("x", "y")), Identity()), (TURN, TURN)],
)
def test_points_keep_their_place_in_the_world(to_image, to_cells):
    sdata = build(to_image, to_cells, points=True)
    (found,) = resolve_centers(sdata).samples
    expected = get_centroids(sdata["cells"], coordinate_system="global").compute()
    np.testing.assert_allclose(found.positions(), expected[["x", "y"]], atol=1e-9)
    assert (found.kind, found.count, found.system) == ("points", None, "global")


@pytest.mark.parametrize("chunks", [(60, 44), (7, 44), (13, 10)])
def test_labels_that_cross_chunks_are_read_once_and_exact(chunks, monkeypatch):
    monkeypatch.setattr("nimbus_sd._sdata.center_elements._SIDE", 8)
    labels = random_labels(SHAPE, ids=[3, 2**31, 4_000_000_000])
    counted = CountedArray(labels, chunks)
    sdata = build(Identity(), Identity())
    sdata["cells"] = Labels2DModel.parse(counted.dask, dims=("y", "x"))
    counted.reads.clear()
    (found,) = resolve_centers(sdata).samples
    assert set(counted.reads.values()) == {1}
    assert len(counted.reads) == counted.n_chunks
    assert found.ids.tolist() == np.unique(labels)[1:].tolist()
    middle = [np.argwhere(labels == i).mean(axis=0) for i in found.ids]
    np.testing.assert_allclose(found.centers, middle, atol=1e-9)


def test_centres_outside_the_image_can_be_left_out():
    sdata = build(Identity(), Translation([30, 0], ("x", "y")))
    with pytest.raises(InputError, match="lie outside image"):
        resolve_centers(sdata)
    (whole,) = resolve_centers(build(Identity(), Identity())).samples
    kept = whole.centers[:, 1] + 30 < SHAPE[1] - 0.5
    assert 0 < kept.sum() < len(kept)
    (found,) = resolve_centers(sdata, strict=False).samples
    assert found.outside == (~kept).sum()
    np.testing.assert_array_equal(found.ids, whole.ids[kept])
    np.testing.assert_array_equal(found.count, whole.count[kept])
    np.testing.assert_allclose(found.centers, whole.centers[kept] + [0, 30])
    assert resolve_centers(build(Identity(), Identity()), strict=False).samples[0].outside == 0


def test_labels_without_a_cell():
    sdata = build(Identity(), Identity())
    sdata["cells"] = Labels2DModel.parse(np.zeros(SHAPE, np.uint32), dims=("y", "x"))
    with pytest.raises(InputError, match="no cell in them"):
        resolve_centers(sdata)
    (found,) = resolve_centers(sdata, strict=False).samples
    assert (len(found), found.outside) == (0, 0)


def test_the_pixel_size_is_that_of_the_image(factory):
    (found,) = resolve_centers(factory(1, mpp=0.4)).samples
    assert found.mpp == pytest.approx(0.4)
    assert resolve_centers(factory(1, mpp=None)).samples[0].mpp is None
    with pytest.warns(NimbusWarning, match=r"mpp=0.7, but the scale of image 'fov0_image'"):
        (told,) = resolve_centers(factory(1, mpp=0.4), mpp=0.7).samples
    assert (told.mpp, told.patches.mpp) == (0.7, 0.7)


def test_fields_are_not_paired_by_micrometres_in_which_all_of_them_overlap(factory):
    found = resolve_centers(factory(3))
    assert [(s.region, s.image_name, s.system) for s in found.samples] == [
        (f"fov{i}_labels", f"fov{i}_image", f"fov{i}") for i in range(3)
    ]


def test_objects_of_a_cohort_tell_their_elements_apart(factory):
    found = resolve_centers({"p1": factory(1), "p2": factory(1)})
    assert [s.patches.region for s in found.samples] == ["p1/fov0_labels", "p2/fov0_labels"]
    assert [s.image.name for s in found.samples] == ["p1/fov0_image", "p2/fov0_image"]
    assert len(found) == sum(len(s) for s in found.samples)


def test_score_maps_are_no_candidates(factory):
    sdata = factory(1)
    sdata["scores"] = sdata["fov0_image"]
    with pytest.raises(InputError, match="several images overlap: 'fov0_image', 'scores'"):
        resolve_centers(sdata)
    sdata.attrs["nimbus_sd"] = {"maps": ["scores"]}
    assert resolve_centers(sdata).samples[0].image_name == "fov0_image"
