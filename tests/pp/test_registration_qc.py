"""registration_qc: shifts are found, exactly the displaced blocks are flagged, pixels are read once."""

from __future__ import annotations

import re
import warnings
from itertools import pairwise

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from scipy import ndimage
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Translation, set_transformation

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd._core.stain import combine
from nimbus_sd.engine.registration import _rectangles, match_config
from nimbus_sd.engine.source import ArrayImage
from nimbus_sd.testing import CountedArray

MPP = 0.5
SHAPE = (480, 640)


def nuclei(shape=SHAPE, seed=0, n=None) -> np.ndarray:
    """Round nuclei of 6 µm from 0 to 1, a few touch."""
    rng = np.random.default_rng(seed)
    places = np.zeros(shape)
    n = n or shape[0] * shape[1] // 500
    places[tuple((rng.random((n, 2)) * shape).astype(int).T)] = 1
    return np.minimum(ndimage.gaussian_filter(places, 3.5) * 2 * np.pi * 3.5**2, 1)


def stain(density: np.ndarray) -> np.ndarray:
    hed = np.stack([0.08 * density, 0.015 + 0 * density, 0 * density], axis=-1)
    return np.moveaxis(combine(hed), -1, 0)


def hoechst(density: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.poisson(200 + 4000 * density).astype(np.uint16)


def pair(shape=SHAPE, seed=0, shift=(0.0, 0.0), system="s") -> SpatialData:
    """H&E whose nuclei lie (dy, dx) px off those of the fluorescence, labels and their table."""
    density = nuclei(shape, seed)
    to = {system: Identity(), "microns": Scale([MPP, MPP], axes=("x", "y"))}
    fluorescence = np.stack([hoechst(density), np.zeros(shape, np.uint16)])
    labels = np.zeros(shape, np.uint32)
    for i, (y, x) in enumerate(np.ndindex(shape[0] // 20, shape[1] // 20)):
        labels[20 * y + 8 : 20 * y + 13, 20 * x + 8 : 20 * x + 13] = 7 + 3 * i
    image = Image2DModel.parse(
        fluorescence, dims=("c", "y", "x"), c_coords=["Hoechst", "CD45"], transformations=dict(to)
    )
    he = Image2DModel.parse(
        stain(ndimage.shift(density, shift, order=3, mode="reflect")),
        dims=("c", "y", "x"),
        transformations=dict(to),
    )
    region = f"{system}_labels"
    return SpatialData(
        images={f"{system}_if": image, f"{system}_he": he},
        labels={region: Labels2DModel.parse(labels, dims=("y", "x"), transformations=dict(to))},
        tables={"table": table(region, np.unique(labels)[1:])},
    )


def table(region: str, ids: np.ndarray) -> ad.AnnData:
    ids = np.random.default_rng(0).permutation(ids.astype(np.int64))  # rows must not be taken by position
    obs = pd.DataFrame({"region": pd.Categorical([region] * len(ids)), "instance_id": ids})
    obs.index = [f"{region}_{i}" for i in ids]
    adata = ad.AnnData(np.zeros((len(ids), 1), np.float32), obs=obs, var=pd.DataFrame(index=["CD45"]))
    return TableModel.parse(adata, region=region, region_key="region", instance_key="instance_id")


def check(sdata, he="s_he", image="s_if", **options) -> pd.DataFrame:
    return nb.pp.registration_qc(sdata, he=he, image=image, **{"block_um": 80, "progress": False} | options)


# ---- shifts ----------------------------------------------------------------------------------------------


def test_images_that_lie_on_each_other():
    found = check(pair())
    assert found["ok"].all()
    assert found["judged"].all()
    assert (found["correlation"] > 0.8).all()
    np.testing.assert_allclose(found["peak"], found["correlation"])
    assert found["shift"].max() < 0.5 * MPP
    assert len(found) == 12
    assert found["tissue"].between(0.2, 1).all()
    # blocks tile the image, and their middles are in the coordinate system
    area = (found["y1"] - found["y0"]) * (found["x1"] - found["x0"])
    assert area.sum() == SHAPE[0] * SHAPE[1]
    np.testing.assert_array_equal(
        found[["y", "x"]].iloc[0], [found["y1"].iloc[0] / 2, found["x1"].iloc[0] / 2]
    )


@pytest.mark.parametrize("shift", [(3.3, -4.6), (-6.2, 1.1), (0.4, 0.5)])
def test_a_shift_within_a_nucleus_is_measured_and_allowed(shift):
    found = check(pair(shift=shift))
    assert found["ok"].all()
    np.testing.assert_allclose(found[["dy", "dx"]] / MPP, np.tile(shift, (len(found), 1)), atol=0.5)
    assert (found["correlation"] <= found["peak"]).all()


def test_a_larger_shift_is_warned_of_with_its_direction():
    with pytest.warns(NimbusWarning) as caught:
        found = check(pair(shift=(14, -9)), table="table")
    (told,) = [str(w.message) for w in caught]
    for part in ("12 of 12 blocks", "12 lie off by more than 3.5 µm", "768 cells", "about (7.0, -4.5) µm"):
        assert part in told
    first = found.iloc[0]
    place = f"({first.y:.0f}, {first.x:.0f}) by ({first.dy:.1f}, {first.dx:.1f}) µm"
    assert f"Blocks: at (y, x) = {place}, at" in told
    assert ", and 9 more. All" in told
    assert not found["ok"].any()
    np.testing.assert_allclose(found[["dy", "dx"]], np.tile([7, -4.5], (12, 1)), atol=0.5 * MPP)


def test_other_tissue_matches_nowhere():
    sdata = pair()
    sdata["s_he"] = pair(seed=5)["s_he"]
    with pytest.warns(
        NimbusWarning, match=r"correlate with less than 0\.25.*\) nothing matches \(0\.\d\d\).*same section"
    ):
        found = check(sdata)
    assert found["ok"].mean() < 0.2


def test_exactly_the_displaced_blocks_are_flagged():
    sdata = pair()
    first = check(sdata)
    chosen = [2, 7]
    he = sdata["s_he"].values.copy()
    moved = np.roll(he, (12, 9), axis=(1, 2))
    for i in chosen:
        y0, y1, x0, x1 = first.loc[i, ["y0", "y1", "x0", "x1"]].astype(int)
        he[:, y0:y1, x0:x1] = moved[:, y0:y1, x0:x1]
    to = {"s": Identity(), "microns": Scale([MPP, MPP], axes=("x", "y"))}
    sdata["s_he"] = Image2DModel.parse(he, dims=("c", "y", "x"), transformations=to)
    with pytest.warns(NimbusWarning, match=r"2 of 12 blocks .* and \d+ cells in them are left out") as caught:
        found = check(sdata, table="table")
    named = str(caught[0].message).split("Blocks: ")[1]
    assert re.findall(r"at \(y, x\) = \((\d+), (\d+)\) by", named) == [
        (f"{found.y[i]:.0f}", f"{found.x[i]:.0f}") for i in chosen
    ]
    assert "more" not in named
    assert np.flatnonzero(~found["ok"]).tolist() == chosen
    np.testing.assert_allclose(found.loc[chosen, ["dy", "dx"]], [[6, 4.5]] * 2, atol=0.5 * MPP)
    # and exactly their cells
    cells, labels = sdata["table"], sdata["s_labels"].values
    for i, registered in zip(cells.obs["instance_id"], cells.obs["registered"], strict=True):
        y, x = (part.mean() + 0.5 for part in np.nonzero(labels == i))
        inside = [bool(found.y0[k] <= y < found.y1[k] and found.x0[k] <= x < found.x1[k]) for k in chosen]
        assert registered == (not any(inside))


@pytest.mark.parametrize("options", [{"rotation": 6.0}, {"he_mpp": 0.25}, {"rotation": -3.0, "he_mpp": 0.4}])
def test_simulated_sections_with_other_grids(options):
    options |= {"shape": (448, 448), "registration_error": 0.0, "seed": 3}
    sdata = nb.datasets.simulated_sections(**options)
    found = check(sdata, "p0s0_he", "p0s0_if", block_um=70, table="table")
    assert found["ok"].all()
    assert found["shift"].max() < 0.5 * 0.325
    assert sdata["table"].obs["registered"].all()
    moved = nb.datasets.simulated_sections(**options, offset=(2.0, -1.5))
    found = check(moved, "p0s0_he", "p0s0_if", block_um=70)
    np.testing.assert_allclose(found[["dy", "dx"]].median(), [2.0, -1.5], atol=0.5 * 0.325)


def test_an_he_that_covers_a_part():
    sdata = pair()
    crop = sdata["s_he"].values[:, :, :400]
    sdata["s_he"] = Image2DModel.parse(crop, dims=("c", "y", "x"), transformations={"s": Identity()})
    with pytest.warns(NimbusWarning):
        found = check(sdata, table="table")
    np.testing.assert_array_equal(found["ok"], found["x1"] <= 480)
    assert (found.loc[found["x0"] >= 400, "tissue"] == 0).all()
    assert (found.loc[found["x0"] >= 400, "peak"] == 0).all()


@pytest.mark.parametrize("turn", [False, True])
def test_cells_outside_the_he_are_not_registered(turn):
    sdata = pair()
    width = 580  # of 640: blocks 160 px wide are covered for the most part, and well registered
    crop = sdata["s_he"].values[:, :, :width]
    to = Identity()
    if turn:  # columns run the other way
        crop, to = crop[..., ::-1], Affine([[-1, 0, width], [0, 1, 0], [0, 0, 1]], ("x", "y"), ("x", "y"))
    sdata["s_he"] = Image2DModel.parse(crop.copy(), dims=("c", "y", "x"), transformations={"s": to})
    with pytest.warns(NimbusWarning, match=r"72 cells in well registered blocks lie outside the H&E.*'s_he'"):
        found = check(sdata, table="table")
    assert found["ok"].all()
    labels = sdata["s_labels"].values
    for i, registered in zip(*sdata["table"].obs[["instance_id", "registered"]].to_numpy().T, strict=True):
        assert registered == (np.nonzero(labels == i)[1].mean() + 0.5 < width)


def test_labels_without_a_cell_are_left_out():
    one, two = pair(seed=1, system="a"), pair(seed=2, system="b")
    gone = Labels2DModel.parse(
        np.zeros(SHAPE, np.uint32),
        dims=("y", "x"),
        transformations={"b": Identity(), "microns": Scale([MPP, MPP], axes=("x", "y"))},
    )
    both = SpatialData(
        images={**one.images, **two.images},
        labels={**one.labels, "b_labels": gone},
        tables={"table": _joined(one["table"], two["table"])},
    )
    with pytest.warns(NimbusWarning, match=r"no cell in 'b_labels': 768 rows of table 'table' .* left out"):
        check(both, {"a_he": "a_if", "b_he": "b_if"}, None, table="table")
    obs = both["table"].obs
    np.testing.assert_array_equal(obs["registered"], obs["region"] == "a_labels")
    with pytest.warns(NimbusWarning, match="no cell in 'b_labels'"):
        check(both, "b_he", "b_if", table="table")
    np.testing.assert_array_equal(both["table"].obs["registered"], obs["region"] == "a_labels")


def test_places_without_nuclei_are_what_their_neighbours_are():
    sdata = pair()
    image, he = sdata["s_if"].values.copy(), sdata["s_he"].values.copy()
    image[0, :160, :320] = 200
    he[:, :160, :320] = 245
    to = {"s": Identity(), "microns": Scale([MPP, MPP], axes=("x", "y"))}
    sdata["s_if"] = Image2DModel.parse(
        image, dims=("c", "y", "x"), c_coords=["Hoechst", "CD45"], transformations=dict(to)
    )
    sdata["s_he"] = Image2DModel.parse(he, dims=("c", "y", "x"), transformations=dict(to))
    found = check(sdata, table="table")
    empty = (found["y1"] <= 160) & (found["x1"] <= 320)
    np.testing.assert_array_equal(found["judged"], ~empty)
    assert found.loc[empty, ["correlation", "peak", "dy", "dx", "shift"]].isna().all(axis=None)
    assert found["ok"].all()
    assert sdata["table"].obs["registered"].all()


# ---- how it is read --------------------------------------------------------------------------------------


def test_each_chunk_is_read_once_and_other_channels_never():
    shape = (2300, 1300)
    density = nuclei(shape)
    image = CountedArray(np.stack([hoechst(density)] * 3), chunks=(1, 256, 256))
    he = CountedArray(stain(density), chunks=(3, 512, 256))
    to = {"s": Identity(), "microns": Scale([MPP, MPP], axes=("x", "y"))}
    sdata = SpatialData(
        images={
            "if": Image2DModel.parse(
                image.dask, dims=("c", "y", "x"), c_coords=["CD45", "DAPI", "CD3e"], transformations=dict(to)
            ),
            "he": Image2DModel.parse(he.dask, dims=("c", "y", "x"), transformations=dict(to)),
        }
    )
    image.reads.clear()
    he.reads.clear()
    found = check(sdata, "he", "if", block_um=100)
    assert found["ok"].all()
    assert {chunk[0] for chunk in image.reads} == {1}
    assert len(image.reads) == 9 * 6
    assert set(image.reads.values()) == {1}
    assert len(he.reads) == he.n_chunks
    # rectangles follow the chunks of the image: the H&E's, twice as tall, are met by two at most
    assert max(he.reads.values()) <= 2


@pytest.mark.parametrize("shape", [(100, 90), (1100, 2050), (3000, 700)])
def test_blocks_tile_the_image_without_slivers(shape):
    config = match_config(mpp=0.5, block_um=100, search_um=12, nucleus_radius_um=3.5)
    source = ArrayImage("x", np.broadcast_to(np.uint8(0), (1, *shape)), ("a",))
    seen = np.zeros(shape, int)
    for rows, columns in _rectangles(source, config.block):
        for y0, y1 in pairwise(rows):
            for x0, x1 in pairwise(columns):
                seen[y0:y1, x0:x1] += 1
                assert y1 - y0 >= min(config.block / 2, shape[0])
                assert x1 - x0 <= 1.5 * config.block
    assert (seen == 1).all()


def test_threads_change_nothing():
    sdata = pair(shift=(2, 1))
    pd.testing.assert_frame_equal(check(sdata, n_threads=0), check(sdata, n_threads=3))


# ---- tables ----------------------------------------------------------------------------------------------


def test_what_is_written_survives_a_store(tmp_path):
    sdata = pair()
    check(sdata, table="table")
    assert sdata["table"].obs["registered"].dtype == bool
    facts = sdata["table"].uns["registration"]["s_he"]
    assert facts["n_bad"] == 0
    assert facts["n_blocks"] == 12
    assert facts["coordinate_system"] == "s"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata.write(tmp_path / "s.zarr")
        back = sd.read_zarr(tmp_path / "s.zarr")
    nb.io.write_table(back, "table")
    assert back["table"].obs["registered"].all()
    assert back["table"].uns["registration"]["s_he"]["n_judged"] == 12


def test_sections_share_a_table():
    one, two = pair(seed=1, system="a"), pair(seed=2, shift=(14, 0), system="b")
    both = SpatialData(
        images={**one.images, **two.images},
        labels={**one.labels, **two.labels},
        tables={"table": _joined(one["table"], two["table"])},
    )
    with pytest.warns(NimbusWarning, match="'b_he': 12 of 12"):
        found = check(both, {"a_he": "a_if", "b_he": "b_if"}, None, table="table")
    assert found.groupby("he")["ok"].mean().to_dict() == {"a_he": 1.0, "b_he": 0.0}
    obs = both["table"].obs
    np.testing.assert_array_equal(obs["registered"], obs["region"] == "a_labels")
    assert set(both["table"].uns["registration"]) == {"a_he", "b_he"}
    # one alone leaves the other's cells as they are
    check(both, "a_he", "a_if", table="table")
    np.testing.assert_array_equal(both["table"].obs["registered"], obs["region"] == "a_labels")


def _joined(*tables):
    joined = ad.concat(tables)
    regions = [t.obs["region"].iloc[0] for t in tables]
    joined.obs["region"] = pd.Categorical(joined.obs["region"])
    return TableModel.parse(joined, region=regions, region_key="region", instance_key="instance_id")


def test_a_row_whose_label_has_no_pixel_is_not_registered():
    sdata = pair()
    labels = sdata["s_labels"].values.copy()
    labels[labels == 7] = 0
    to = {"s": Identity(), "microns": Scale([MPP, MPP], axes=("x", "y"))}
    sdata["s_labels"] = Labels2DModel.parse(labels, dims=("y", "x"), transformations=to)
    check(sdata, table="table")
    obs = sdata["table"].obs
    np.testing.assert_array_equal(obs["registered"], obs["instance_id"] != 7)


# ---- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"he": "s_if", "image": "s_he"}, "an H&E has 3"),
        ({"he": {"s_he": "s_if"}, "image": "s_if"}, "give a name each"),
        ({"image": None}, "give a name each"),
        ({"block_um": 0}, "block_um=0 must be a positive"),
        ({"search_um": float("nan")}, "search_um=nan must be a positive"),
        ({"search_um": 50}, "at most half of block_um"),
        ({"search_um": 2}, "at least nucleus_radius_um"),
        ({"min_correlation": 1}, "min_correlation=1 must be from 0 to below 1"),
        ({"coordinate_system": "other"}, r"not registered.*system 'other' \(H&E: s, microns"),
        ({"mpp": -1}, "mpp=-1 must be a positive number"),
        ({"nuclear": "CD45"}, "channel 'CD45' shows no nuclei"),
    ],
)
def test_bad_arguments_change_nothing(unchanged, options, message):
    sdata = pair()
    with unchanged(sdata), pytest.raises(InputError, match=message):
        check(sdata, **{"table": "table"} | options)


@pytest.mark.parametrize(
    "options", [{"he": "none"}, {"image": "none"}, {"nuclear": "DNA9"}, {"table": "none"}], ids=str
)
def test_names_that_are_not_there(unchanged, options):
    sdata = pair()
    with unchanged(sdata), pytest.raises(ElementNotFoundError):
        check(sdata, **options)


def test_pairs_that_are_not_registered(unchanged):
    sdata = pair()
    set_transformation(sdata["s_he"], {"elsewhere": Identity()}, set_all=True)
    with unchanged(sdata), pytest.raises(InputError, match=r"not registered.*nb\.pp\.register_landmarks"):
        check(sdata, table="table")
    set_transformation(sdata["s_he"], {"s": Translation([5000, 0], axes=("x", "y"))}, set_all=True)
    with pytest.raises(InputError, match="don't overlap"):
        check(sdata)


def test_an_unknown_pixel_size_and_a_channel_that_is_not_named():
    sdata = pair()
    for name in ("s_he", "s_if"):
        set_transformation(sdata[name], {"s": Identity()}, set_all=True)
    with pytest.raises(InputError, match=r"'s_if': how large is a px\? Pass mpp="):
        check(sdata)
    assert check(sdata, mpp=MPP)["ok"].all()
    sdata["s_if"] = sdata["s_if"].assign_coords(c=["a", "b"])
    with pytest.raises(InputError, match="no channel that looks nuclear"):
        check(sdata, mpp=MPP)
    assert check(sdata, mpp=MPP, nuclear="a")["ok"].all()


def test_a_table_of_other_cells(unchanged):
    sdata = pair()
    far = Affine(np.array([[1, 0, 9000], [0, 1, 0], [0, 0, 1]]), ("x", "y"), ("x", "y"))
    set_transformation(sdata["s_labels"], {"s": far}, set_all=True)
    with unchanged(sdata), pytest.raises(InputError, match="none of which overlaps image 's_if'"):
        check(sdata, table="table")
