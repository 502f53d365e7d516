"""The table that ``nb.tl.predict`` writes, column by column, against the slow oracle."""

import json
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from spatialdata import get_centroids

import nimbus_sd as nb
from nimbus_sd._core.errors import NimbusWarning
from nimbus_sd.arrays import VIEWS
from nimbus_sd.testing import directional_model, tiny_unet_model, whole_image_scores

CHANNELS = ["CD3", "CD8", "CD20"]


def arrays(sdata, i=0):
    image, labels = (np.asarray(sdata[f"fov{i}_{kind}"].data) for kind in ("image", "labels"))
    return image, labels


def oracle(sdata, model, table, i=0, **options):
    return whole_image_scores(
        *arrays(sdata, i), model.net, scale=table.var["scale"], stride=model.card.stride, **options
    )


def test_the_table(sdata, model, score):
    assert nb.tl.predict(sdata, model=model, precision="float32", device="cpu", progress=False) is None
    table = sdata["nimbus"]
    image, labels = arrays(sdata)
    ids, expected = oracle(sdata, model, table)
    assert table.X.dtype == np.float32
    np.testing.assert_allclose(table.X, expected[..., 0], atol=1e-5)
    assert expected.std() > 0.02
    assert list(table.var_names) == CHANNELS
    assert isinstance(table.obs["region"].dtype, pd.CategoricalDtype)
    assert table.obs["region"].cat.categories.tolist() == ["fov0_labels"]
    assert table.obs["instance_id"].tolist() == ids.tolist()
    assert table.obs_names.tolist() == [f"fov0_labels_{i}" for i in ids]
    area = [(labels == i).sum() for i in ids]
    assert table.obs["area_px"].tolist() == table.obs["area_um2"].tolist() == area
    assert (table.obs["n_tiles"] == 1).all()
    assert table.obs.dtypes.astype(str).to_dict() == {
        "region": "category",
        "instance_id": "int64",
        "area_px": "int64",
        "area_um2": "float64",
        "n_tiles": "int64",
    }
    mean = [[plane[labels == i].mean() for plane in image] for i in ids]
    np.testing.assert_allclose(table.layers["integrated_expression"], mean, rtol=1e-6)
    assert table.layers["integrated_expression"].dtype == np.float32
    assert set(table.layers) == {"integrated_expression"}
    scale = [np.quantile(plane.astype(float), 0.9999) for plane in image]
    np.testing.assert_allclose(table.var["scale"], scale, rtol=1e-12)
    assert table.var["n_saturated"].tolist() == [0, 0, 0]
    assert table.var["qc"].tolist() == ["", "", ""]
    attrs = {"region": ["fov0_labels"], "region_key": "region", "instance_key": "instance_id"}
    assert {k: np.ravel(v).tolist() for k, v in table.uns["spatialdata_attrs"].items()} == {
        k: np.ravel(v).tolist() for k, v in attrs.items()
    }


def test_positions_are_spatialdata_centroids(factory, score):
    sdata = factory(2, mpp=0.5)
    table = score(sdata, coordinate_system=None)
    for i in range(2):
        mine = table[table.obs["region"] == f"fov{i}_labels"]
        centroids = get_centroids(sdata[f"fov{i}_labels"], coordinate_system=f"fov{i}").compute()
        np.testing.assert_allclose(
            mine.obsm["spatial"], centroids.loc[mine.obs["instance_id"], ["x", "y"]], atol=1e-9
        )
    microns = score(
        sdata, coordinate_system="microns", overwrite=True, labels="fov0_labels", image="fov0_image"
    )
    centroids = get_centroids(sdata["fov0_labels"], coordinate_system="microns").compute()
    np.testing.assert_allclose(microns.obsm["spatial"], centroids[["x", "y"]].to_numpy(), atol=1e-9)
    np.testing.assert_allclose(microns.obs["area_um2"], microns.obs["area_px"] * 0.25)


def test_provenance_is_written_and_read_back(sdata, model, score, tmp_path):
    score(sdata, views=8, quantile=0.99)
    sdata.write(tmp_path / "s.zarr")
    table = sd.read_zarr(tmp_path / "s.zarr")["nimbus"]
    for uns in (sdata["nimbus"].uns["nimbus"], table.uns["nimbus"]):
        assert uns["version"] == version("nimbus-sd")
        assert (uns["model"], uns["model_mpp"], uns["threshold"]) == ("directional", 1.0, 0.5)
        assert (uns["precision"], uns["device"]) == ("float32", "cpu")
        assert uns["views"].tolist() == list(VIEWS)
        assert uns["mpp"] == {"fov0_labels": 1.0}
        assert uns["images"] == {"fov0_labels": "fov0_image"}
        assert uns["coordinate_systems"] == {"fov0_labels": "fov0"}
        fitted = json.loads(uns["normalization"])
        assert (fitted["quantile"], fitted["rule"], fitted["fitted_on"]) == (0.99, "dataset", ["fov0_image"])
        assert pd.Timestamp(uns["date"]).tzinfo is not None
    pd.testing.assert_frame_equal(table.obs, sdata["nimbus"].obs, check_dtype=False)
    np.testing.assert_array_equal(table.X, sdata["nimbus"].X)
    np.testing.assert_array_equal(table.obsm["spatial"], sdata["nimbus"].obsm["spatial"])


def test_several_samples_share_one_table_and_one_scale(factory, model, score):
    sdata = factory(3, shape=(40, 55))
    table = score(sdata)
    assert table.obs["region"].cat.categories.tolist() == [f"fov{i}_labels" for i in range(3)]
    assert table.obs_names.is_unique
    everything = np.stack([arrays(sdata, i)[0] for i in range(3)], axis=1).reshape(3, -1)
    np.testing.assert_allclose(table.var["scale"], np.quantile(everything.astype(float), 0.9999, axis=1))
    for i in range(3):
        mine = table[table.obs["region"] == f"fov{i}_labels"]
        ids, expected = oracle(sdata, model, table, i)
        assert mine.obs["instance_id"].tolist() == ids.tolist()
        np.testing.assert_allclose(mine.X, expected[..., 0], atol=1e-5)


def test_samples_are_chosen_by_name(factory, score):
    sdata = factory(3, shape=(40, 40))
    chosen = {"fov2_labels": "fov2_image", "fov0_labels": "fov0_image"}
    assert score(sdata, image=chosen).obs["region"].cat.categories.tolist() == list(chosen)
    one = score(sdata, labels="fov1_labels", overwrite=True)
    assert one.obs["region"].cat.categories.tolist() == ["fov1_labels"]
    by_image = score(sdata, image="fov1_image", overwrite=True)
    np.testing.assert_array_equal(by_image.X, one.X)
    two = score(sdata, labels=["fov2_labels", "fov0_labels"], overwrite=True)
    assert two.obs["region"].cat.categories.tolist() == ["fov2_labels", "fov0_labels"]


def test_options_do_not_change_scores(factory, score):
    sdata = factory(chunks=(1, 16, 33), shape=(100, 83))
    expected = score(sdata).X
    for options in (
        {"tile": 16},
        {"tile": 48, "batch_size": 1},
        {"n_threads": 0},
        {"n_threads": 4, "tile": 32},
    ):
        table = score(sdata, overwrite=True, **options)
        np.testing.assert_allclose(table.X, expected, atol=1e-5)
    assert score(sdata, overwrite=True, tile=16).obs["n_tiles"].max() > 2


def test_views_mean_and_spread(sdata, score):
    model = tiny_unet_model(width=2, depth=4)
    table = score(sdata, model=model, views=8, score_std=True)
    _, expected = oracle(sdata, model, table, views=list(VIEWS))
    np.testing.assert_allclose(table.X, expected.mean(-1), atol=1e-5)
    np.testing.assert_allclose(table.layers["score_std"], expected.std(-1), atol=1e-5)
    assert table.layers["score_std"].max() > 1e-3
    two = score(sdata, model=model, views=["identity", "rot90"], overwrite=True, integrated_expression=False)
    np.testing.assert_allclose(two.X, expected[..., [0, list(VIEWS).index("rot90")]].mean(-1), atol=1e-5)
    assert not two.layers


def test_the_card_decides_where_arguments_do_not(sdata, score):
    model = directional_model(quantile=0.9, rule="fov_mean", transform="sqrt", mpp=2.0)
    table = score(sdata, model=model)
    image, labels = arrays(sdata)
    scale = [np.quantile(plane[plane > 0].astype(float), 0.9) for plane in image]
    np.testing.assert_allclose(table.var["scale"], scale)
    _, expected = whole_image_scores(image, labels, model.net, scale=scale, factor=2.0, transform="sqrt")
    np.testing.assert_allclose(table.X, expected[..., 0], atol=1e-5)


def test_a_normalisation_is_reused(factory, score):
    sdata = factory(2)
    fitted = nb.pp.normalization(sdata, labels="fov0_labels", quantile=0.7, progress=False)
    table = score(sdata, normalization=fitted)
    assert table.var["scale"].tolist() == list(fitted.scale)


def test_auto_leaves_out_what_is_no_marker_and_says_so(factory, score, caplog):
    names = ("DAPI", "CD3", "HH3", "blank_1", "CD20", "Autofluorescence")
    sdata = factory(channels=names)
    assert list(score(sdata).var_names) == ["CD3", "CD20"]
    assert "DAPI, HH3, blank_1, Autofluorescence" in caplog.text
    assert list(score(sdata, channels="all", overwrite=True).var_names) == list(names)
    assert list(score(sdata, channels=["CD20", "DAPI"], overwrite=True).var_names) == ["CD20", "DAPI"]
    assert list(score(sdata, channels="HH3", overwrite=True).var_names) == ["HH3"]
    assert list(score(sdata, exclude="CD.*", overwrite=True).var_names) == [
        n for n in names if not n.startswith("CD")
    ]


def test_the_order_of_channels_is_kept_with_their_scores(sdata, score):
    whole = score(sdata, tile=32)
    picked = score(sdata, channels=["CD20", "CD3"], overwrite=True)
    np.testing.assert_allclose(picked.X, whole[:, ["CD20", "CD3"]].X, atol=1e-6)
    np.testing.assert_allclose(
        picked.layers["integrated_expression"], whole[:, ["CD20", "CD3"]].layers["integrated_expression"]
    )


def test_pixel_size_from_argument_transformation_and_attrs(factory, model, score):
    named = score(factory(mpp=0.5)).X
    plain = factory(mpp=None)
    np.testing.assert_array_equal(score(plain, mpp=0.5).X, named)
    plain.attrs["nimbus_sd"] = {"mpp": 0.5}
    np.testing.assert_array_equal(score(plain, overwrite=True).X, named)
    _, expected = oracle(plain, model, plain["nimbus"], factor=2.0)
    np.testing.assert_allclose(named, expected[..., 0], atol=1e-5)
    # the argument wins
    with pytest.warns(
        NimbusWarning, match=r"mpp=1, but by sdata\.attrs\['nimbus_sd'\] image 'fov0_image' has 0\.5"
    ):
        assert np.abs(score(plain, mpp=1.0, overwrite=True).X - named).max() > 1e-3


def test_the_table_feeds_scanpy(sdata, score):
    import scanpy as sc

    table = score(sdata)
    assert np.isfinite(table.X).all()
    sc.pp.neighbors(table, use_rep="X", n_neighbors=4, method="gauss")
    assert table.obsp["connectivities"].nnz > 0
