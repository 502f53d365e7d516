"""register_landmarks: known maps are recovered, everything downstream finds the H&E where it is."""

from __future__ import annotations

import warnings

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from shapely import Point
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel
from spatialdata.transformations import (
    Identity,
    Scale,
    Translation,
    get_transformation,
    get_transformation_between_landmarks,
    set_transformation,
)

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd._sdata.elements import affine, mpp_of
from nimbus_sd._sdata.he import he_centers

MPP = 0.5
#: px of the H&E to px of the fluorescence: finer pixels, turned, shifted
TURN = np.deg2rad(7)
SIMILARITY = np.array(
    [[0.7 * np.cos(TURN), -0.7 * np.sin(TURN), 40], [0.7 * np.sin(TURN), 0.7 * np.cos(TURN), -5], [0, 0, 1]]
)
AFFINE = SIMILARITY + np.array([[0.003, 0.001, 0], [-0.001, 0.002, 0], [0, 0, 0]])
STAGE = np.array([1000, 500])
#: of the H&E, spread, and within both images
MARKS = np.array([[70.0, 60], [330, 80], [90, 290], [300, 300], [200, 150], [150, 220]])


def move(xy: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return xy @ matrix[:2, :2].T + matrix[:2, 2]


def images(microns: bool = True) -> SpatialData:
    to = {"if_px": Identity(), "stage": Translation(STAGE, axes=("x", "y"))}
    if microns:
        to["microns"] = Scale([MPP, MPP], axes=("x", "y"))
    labels = np.zeros((260, 300), np.uint32)
    labels[100:106, 120:126], labels[180:184, 60:66] = 4, 9
    return SpatialData(
        images={
            "if": Image2DModel.parse(
                np.zeros((2, 260, 300), np.uint16),
                dims=("c", "y", "x"),
                c_coords=["DAPI", "CD45"],
                transformations=dict(to),
                scale_factors=[2],
            ),
            "he": Image2DModel.parse(
                np.full((3, 360, 400), 230, np.uint8),
                dims=("c", "y", "x"),
                transformations={"he_px": Identity(), "stage": Identity()},
                scale_factors=[2],
            ),
        },
        labels={"cells": Labels2DModel.parse(labels, dims=("y", "x"), transformations=dict(to))},
    )


def register(sdata, landmarks, **options) -> float:
    return nb.pp.register_landmarks(sdata, he="he", reference="if", landmarks=landmarks, **options)


def frame(matrix=AFFINE) -> pd.DataFrame:
    there = move(MARKS, matrix)
    return pd.DataFrame(
        {"he_x": MARKS[:, 0], "he_y": MARKS[:, 1], "reference_x": there[:, 0], "reference_y": there[:, 1]}
    )


def with_elements(kind: str) -> tuple[SpatialData, tuple[str, str]]:
    """Landmarks as elements, in different orders; those of the fluorescence in its stage's coordinates."""
    sdata = images()
    there, order = move(MARKS, AFFINE) + STAGE, [3, 0, 5, 1, 4, 2]
    places = {"he_marks": (MARKS, range(6), "he_px"), "if_marks": (there[order], order, "stage")}
    for name, (xy, index, system) in places.items():
        if kind == "points":
            data = pd.DataFrame(xy, columns=["x", "y"], index=list(index)).sort_index()
            element = PointsModel.parse(data, transformations={system: Identity()})
        else:
            data = gpd.GeoDataFrame({"radius": 2.0}, geometry=[Point(*p) for p in xy], index=list(index))
            element = ShapesModel.parse(data, transformations={system: Identity()})
        sdata[name] = element
    return sdata, ("he_marks", "if_marks")


# ---- what comes back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["arrays", "frame", "csv", "points", "shapes"])
def test_a_known_affine_map_is_recovered(tmp_path, kind):
    sdata = images()
    if kind == "arrays":
        landmarks = (MARKS, move(MARKS, AFFINE).tolist())
    elif kind == "frame":
        landmarks = frame()
    elif kind == "csv":
        landmarks = tmp_path / "marks.csv"
        frame().to_csv(landmarks)
    else:
        sdata, landmarks = with_elements(kind)
    rms = register(sdata, landmarks)
    assert rms == pytest.approx(0, abs=1e-6)
    shift = np.array([[1, 0, 1000], [0, 1, 500], [0, 0, 1]])
    for system, to_world in {
        "if_px": np.eye(3),
        "stage": shift,
        "microns": np.diag([MPP, MPP, 1]),
    }.items():
        np.testing.assert_allclose(affine(sdata, "images", "he", system), to_world @ AFFINE, atol=1e-6)
    assert get_transformation(sdata["he"], "he_px") == Identity()  # the fluorescence has no such system
    sides = np.linalg.norm(AFFINE[:2, :2], axis=0) * MPP
    assert mpp_of(sdata, "images", "he") == pytest.approx(sides.mean())


@pytest.mark.parametrize("kind", ["points", "shapes"])
def test_elements_stay_on_their_he_and_a_second_run_is_the_same(kind):
    sdata, landmarks = with_elements(kind)
    register(sdata, landmarks)
    first = affine(sdata, "images", "he", "stage")
    world = affine(sdata, kind, "he_marks", "stage")
    np.testing.assert_allclose(move(MARKS, world), move(MARKS, AFFINE) + STAGE, atol=1e-6)
    register(sdata, landmarks)
    np.testing.assert_allclose(affine(sdata, "images", "he", "stage"), first, atol=1e-6)


def test_cells_of_the_fluorescence_are_found_on_the_he():
    sdata = images()
    register(sdata, frame())
    found = he_centers(sdata, image="he", centers="cells").samples[0]
    assert found.ids.tolist() == [4, 9]
    in_if = np.array([[123.0, 103], [63, 182]])  # (x, y), pixel 0 spans 0 to 1
    expected = move(in_if, np.linalg.inv(AFFINE))
    np.testing.assert_allclose(found.centers[:, ::-1] + 0.5, expected, atol=1e-6)
    assert found.mpp == pytest.approx(0.35, rel=0.01)
    np.testing.assert_allclose(found.positions(), in_if, atol=1e-6)


def test_similarity_is_spatialdatas():
    rng = np.random.default_rng(0)
    there = move(MARKS, SIMILARITY) + rng.normal(0, 1, MARKS.shape)
    sdata = images()
    rms = register(sdata, (MARKS, there), model="similarity")
    points = [PointsModel.parse(xy) for xy in (there, MARKS)]
    expected = get_transformation_between_landmarks(*points).to_affine_matrix(("x", "y"), ("x", "y"))
    found = affine(sdata, "images", "he", "if_px")
    np.testing.assert_allclose(found, expected)
    assert found[0, 0] == pytest.approx(found[1, 1])
    assert rms == pytest.approx(MPP * np.sqrt(((move(MARKS, found) - there) ** 2).sum(1).mean()))
    # the affine map has more freedom
    assert register(images(), (MARKS, there), mpp=MPP) < rms


def test_one_coordinate_system():
    sdata = images()
    register(sdata, frame(), coordinate_system="if_px")
    assert set(get_transformation(sdata["he"], get_all=True)) == {"if_px", "microns", "he_px"}


def test_pixel_sizes_that_the_transformations_do_not_tell():
    sdata = images(microns=False)
    with pytest.raises(InputError, match=r"'if': how large is a px\? Pass mpp="):
        register(sdata, frame())
    sdata.attrs["nimbus_sd"] = {"mpp": MPP}
    register(sdata, frame())
    assert mpp_of(sdata, "images", "he") == pytest.approx(0.35, rel=0.01)  # not the reference's
    other = images(microns=False)
    assert register(other, (MARKS, move(MARKS, AFFINE) + np.array([3, 0])), mpp=2.0) == pytest.approx(
        0, abs=1e-6
    )
    assert mpp_of(other, "images", "he") == pytest.approx(1.4, rel=0.01)


def test_it_can_be_stored(tmp_path):
    sdata = images()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata.write(tmp_path / "s.zarr")
        back = sd.read_zarr(tmp_path / "s.zarr")
        register(back, frame())
        back.write_transformations("he")
        again = sd.read_zarr(tmp_path / "s.zarr")
    np.testing.assert_allclose(affine(again, "images", "he", "if_px"), AFFINE, atol=1e-6)


def test_after_it_the_check_finds_the_nuclei_together():
    sdata = nb.datasets.simulated_sections(shape=(320, 320), registration_error=0.0, rotation=8.0, he_mpp=0.4)
    truth = np.linalg.inv(affine(sdata, "images", "p0s0_if", "p0s0")) @ affine(
        sdata, "images", "p0s0_he", "p0s0"
    )
    marks = np.array([[60.0, 60], [220, 70], [80, 210], [200, 200]])
    set_transformation(sdata["p0s0_he"], {"p0s0": Identity()}, set_all=True)
    rms = nb.pp.register_landmarks(
        sdata, he="p0s0_he", reference="p0s0_if", landmarks=(marks, move(marks, truth))
    )
    assert rms == pytest.approx(0, abs=1e-6)
    found = nb.pp.registration_qc(sdata, he="p0s0_he", image="p0s0_if", block_um=50, progress=False)
    assert found["ok"].all()
    assert found["shift"].max() < 0.2


# ---- doubtful landmarks ----------------------------------------------------------------------------------


def test_residuals_are_told():
    there = move(MARKS, AFFINE)
    there[4] += 40
    with pytest.warns(NimbusWarning) as caught:
        rms = register(images(), (MARKS, there))
    text = " ".join(str(w.message) for w in caught)
    assert "the worst is number 4 (from 0)" in text
    assert rms > 3.5
    # a smaller error is none to speak of
    there[4] -= 39
    assert 0.1 < register(images(), (MARKS, there)) < 1


def test_three_pairs_and_a_stretch_are_told():
    with pytest.warns(NimbusWarning, match="three pairs fit every affine map"):
        register(images(), (MARKS[:3], move(MARKS[:3], AFFINE)))
    stretched = np.diag([1.05, 1, 1]) @ SIMILARITY
    with pytest.warns(NimbusWarning, match=r"stretched by 5\.0 % in one direction.*model='similarity'"):
        register(images(), (MARKS, move(MARKS, stretched)))
    register(images(), (MARKS[:3], move(MARKS[:3], SIMILARITY)), model="similarity")


# ---- bad input -------------------------------------------------------------------------------------------

LINE = np.array([[70.0, 60], [130, 120], [190, 180], [250, 240.5]])
MIRROR = np.array([[-0.5, 0, 250], [0, 0.5, 20], [0, 0, 1]])


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        ((MARKS[:2] / 2, MARKS[:2] / 2), "2 pairs of landmarks; at least 3"),
        ((MARKS, move(MARKS, AFFINE)[:5]), "6 on 'he' and 5 on 'if'; give pairs"),
        ((LINE, move(LINE, AFFINE)), "the 4 landmarks of the H&E lie on a line"),
        ((MARKS[:4], LINE / 2), "the 4 landmarks of the reference lie on a line"),
        ((MARKS, move(MARKS, MIRROR)), "mirror the H&E"),
        ((MARKS, move(MARKS, AFFINE)[:, ::-1] * [1, 0.8]), "mirror the H&E"),
        ((MARKS * 10, move(MARKS, AFFINE)), "6 of 6 lie outside the image of 400 x 360 px"),
        ((MARKS, np.full((6, 2), np.nan)), "6 of 6 lie outside"),
        ((MARKS, [["a", "b"]] * 6), "are no numbers"),
        ((MARKS, MARKS[:, :1]), r"have the shape \(6, 1\)"),
        (5, "give two names of points elements"),
        ((MARKS,), "give two names of points elements"),
        (frame().drop(columns="he_x"), r"lack the columns \['he_x'\]"),
        ("nowhere.csv", "no file at nowhere.csv"),
        (("cells", "cells"), "one element for both images"),
        (("cells", "nothing"), "labels 'cells' are no landmarks"),
    ],
)
def test_bad_landmarks_change_nothing(unchanged, landmarks, message):
    sdata = images()
    before = get_transformation(sdata["he"], get_all=True)
    with unchanged(sdata), pytest.raises(InputError, match=message):
        register(sdata, landmarks)
    assert get_transformation(sdata["he"], get_all=True) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "rigid"}, "valid: 'affine', 'similarity'"),
        ({"coordinate_system": "he_px"}, "no coordinate system 'he_px'; valid: if_px, stage, microns"),
        ({"mpp": 0}, "mpp=0 must be a positive number"),
        ({"nucleus_radius_um": 0}, "must be a positive number of µm"),
        ({"he": "if"}, "an H&E has 3"),
        ({"reference": "he", "mpp": 1}, "are both 'he'"),
    ],
)
def test_bad_arguments(options, message):
    call = {"he": "he", "reference": "if", "landmarks": frame()} | options
    with pytest.raises(InputError, match=message):
        nb.pp.register_landmarks(images(), **call)


def test_elements_that_can_not_be_paired():
    sdata, landmarks = with_elements("points")
    with pytest.raises(ElementNotFoundError, match="no labels, points or shapes 'none'"):
        register(sdata, ("he_marks", "none"))
    set_transformation(sdata["he_marks"], {"alone": Identity()}, set_all=True)
    with pytest.raises(InputError, match="share no coordinate system"):
        register(sdata, landmarks)
    set_transformation(sdata["he_marks"], {"he_px": Identity()}, set_all=True)
    data = sdata["he_marks"].compute().rename(index={5: 77})
    sdata["he_marks"] = PointsModel.parse(data, transformations={"he_px": Identity()})
    with pytest.raises(InputError, match="have different indices"):
        register(sdata, landmarks)
