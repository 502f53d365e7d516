"""`nb.tl.embed`: what it writes, what makes no difference to it, and what it refuses."""

import json
import warnings
from dataclasses import replace

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import torch
from shapely import Point
from spatialdata.models import Image2DModel, PointsModel, ShapesModel
from spatialdata.transformations import get_transformation

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd.models.embedding import save_embedding
from nimbus_sd.testing import tiny_embedding_model

MARKERS = ("CD3", "CD8", "CD20")
SCALE = {"CD3": 700.0, "CD8": 500.0, "CD20": 900.0}


@pytest.fixture
def tiny():
    return tiny_embedding_model(MARKERS, scale=SCALE)


@pytest.fixture
def embed(tiny):
    """Run ``nb.tl.embed`` on the CPU and return the table."""

    def run(sdata, **options):
        options = {"model": tiny, "device": "cpu", "progress": False} | options
        nb.tl.embed(sdata, **options)
        return sdata[options.get("table", "embedding")]

    return run


def by_hand(sdata, model, image="fov0_image", labels="fov0_labels"):
    """Embeddings and activations, one padded patch at a time."""
    array, ids = sdata[image], sdata[labels].to_numpy()
    planes = array.sel(c=list(model.markers)).to_numpy().astype(np.float64)
    size = model.card.crop
    padded = np.pad(planes, [(0, 0), (size, size), (size, size)], mode="reflect")
    scale = np.array([model.card.scale[m] for m in model.markers])[:, None, None]
    out = []
    for i in np.unique(ids[ids > 0]):
        middle = np.argwhere(ids == i).mean(axis=0)
        y, x = np.floor(middle + 0.5).astype(int) + size - size // 2
        patch = np.sqrt(np.clip(padded[:, y : y + size, x : x + size] / scale, 0, 1))
        with torch.inference_mode():
            found = model.net.activations(torch.from_numpy(patch).float()[None])
            out.append((model.net.mix(found)[0].numpy(), found.abs().mean(-1)[0].numpy()))
    return np.stack([e for e, _ in out]), np.stack([a for _, a in out])


def test_the_table_holds_what_its_contract_says(sdata, tiny, embed):
    table = embed(sdata)
    embedding, activation = by_hand(sdata, tiny)
    np.testing.assert_allclose(table.obsm["X_nextchannel"], embedding, atol=1e-5)
    np.testing.assert_allclose(table.X, activation, atol=1e-5)
    assert table.X.dtype == table.obsm["X_nextchannel"].dtype == np.float32
    assert (table.X >= 0).all()
    assert list(table.var_names) == list(MARKERS)
    assert table.var["scale"].to_dict() == SCALE
    ids = sdata["fov0_labels"].to_numpy()
    expected, area = np.unique(ids[ids > 0], return_counts=True)
    assert table.obs["instance_id"].tolist() == expected.tolist()
    assert table.obs["instance_id"].dtype == np.int64
    assert table.obs["area_px"].tolist() == area.tolist()
    assert table.obs["border"].dtype == bool
    assert 0 < table.obs["border"].sum() < len(table)
    assert table.obs_names[0] == f"fov0_labels_{expected[0]}"
    y, x = np.argwhere(ids == expected[3]).mean(axis=0) + 0.5
    np.testing.assert_allclose(table.obsm["spatial"][3], [x, y])
    record = table.uns["nimbus_embedding"]
    assert record["images"] == {"fov0_labels": "fov0_image"}
    assert record["markers"].tolist() == list(MARKERS)
    assert json.loads(record["architecture"])["kind"] == "next_channel"


def test_a_permuted_image_gives_the_same_result(sdata, embed):
    expected = embed(sdata)
    array = sdata["fov0_image"]
    other = array.sel(c=["CD20", "CD3", "CD8"])
    extra = np.concatenate([array.to_numpy()[:1] * 3, other.to_numpy()])
    sdata["fov0_image"] = Image2DModel.parse(
        extra,
        dims=("c", "y", "x"),
        c_coords=["DAPI", "CD20", "CD3", "CD8"],
        transformations=get_transformation(array, get_all=True),
    )
    found = embed(sdata, table="permuted")
    np.testing.assert_allclose(found.X, expected.X, atol=1e-6)
    np.testing.assert_allclose(found.obsm["X_nextchannel"], expected.obsm["X_nextchannel"], atol=1e-6)


def test_missing_markers_are_named(sdata, embed, unchanged):
    model = tiny_embedding_model((*MARKERS, "CD45", "FOXP3"))
    with unchanged(sdata), pytest.raises(InputError, match=r"5 markers.*no channel \['CD45', 'FOXP3'\]"):
        embed(sdata, model=model)


def test_one_marker_changes_only_its_own_activation(sdata, embed):
    before = embed(sdata).X.copy()
    array = sdata["fov0_image"]
    pixels = array.to_numpy().copy()
    pixels[1] = pixels[1][::-1]
    sdata["fov0_image"] = array.copy(data=da.asarray(pixels))
    after = embed(sdata, overwrite=True).X
    np.testing.assert_allclose(after[:, [0, 2]], before[:, [0, 2]], atol=1e-6)
    assert np.abs(after[:, 1] - before[:, 1]).max() > 1e-3


def test_several_fields_go_into_one_table(factory, tiny, embed):
    sdata = factory(3)
    table = embed(sdata)
    assert list(table.obs["region"].cat.categories) == ["fov0_labels", "fov1_labels", "fov2_labels"]
    rows = (table.obs["region"] == "fov1_labels").to_numpy()
    expected, _ = by_hand(sdata, tiny, "fov1_image", "fov1_labels")
    np.testing.assert_allclose(table.obsm["X_nextchannel"][rows], expected, atol=1e-5)


def centers_of(sdata, labels="fov0_labels"):
    ids = sdata[labels].to_numpy()
    found = np.unique(ids[ids > 0])
    return found, np.array([np.argwhere(ids == i).mean(axis=0)[::-1] + 0.5 for i in found])


@pytest.mark.filterwarnings("ignore:The index of the dataframe is not monotonic")
def test_points_and_shapes_give_what_labels_give(sdata, embed):
    expected = embed(sdata)
    ids, xy = centers_of(sdata)
    order = np.random.default_rng(0).permutation(len(ids))
    transformations = get_transformation(sdata["fov0_labels"], get_all=True)
    frame = pd.DataFrame({"x": xy[order, 0], "y": xy[order, 1]}, index=ids[order])
    sdata["nuclei"] = PointsModel.parse(frame, transformations=dict(transformations))
    circles = gpd.GeoDataFrame(
        {"geometry": [Point(*p) for p in xy[order]], "radius": np.ones(len(ids))}, index=ids[order]
    )
    sdata["circles"] = ShapesModel.parse(circles, transformations=dict(transformations))
    for name in ("nuclei", "circles"):
        found = embed(sdata, centers=name, table=f"of_{name}")
        assert "area_px" not in found.obs
        assert set(found.obs["region"]) == {name}
        # rows are in the element's order
        at = np.argsort(sdata[name].index.compute() if name == "nuclei" else sdata[name].index)
        assert found.obs["instance_id"].iloc[at].tolist() == ids.tolist()
        np.testing.assert_allclose(found.X[at], expected.X, atol=1e-6)
        np.testing.assert_allclose(found.obsm["spatial"][at], expected.obsm["spatial"], atol=1e-9)


def test_settings_make_no_difference(factory, embed):
    sdata = factory(2, shape=(90, 110), chunks=(1, 32, 48))
    expected = embed(sdata)
    for i, options in enumerate(
        [
            {"batch_size": 1},
            {"n_threads": 0, "batch_size": 5},
            {"device": ["cpu", "cpu"]},
            {"memory": "1 MiB"},
            {"client": False},
        ]
    ):
        found = embed(sdata, table=f"other{i}", **options)
        np.testing.assert_array_equal(found.obs["instance_id"], expected.obs["instance_id"])
        np.testing.assert_allclose(found.X, expected.X, atol=1e-5)
        np.testing.assert_allclose(found.obsm["X_nextchannel"], expected.obsm["X_nextchannel"], atol=1e-5)


def test_workers_of_a_cluster_embed_too(factory, embed, tmp_path):
    from distributed import Client, LocalCluster

    factory(2).write(tmp_path / "a.zarr")
    sdata = sd.read_zarr(tmp_path / "a.zarr")
    expected = embed(sdata)
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with warnings.catch_warnings(), LocalCluster(**options) as made, Client(made) as client:
        warnings.simplefilter("ignore")
        client.wait_for_workers(2, timeout=60)
        found = embed(sdata, table="there", client=client)
    np.testing.assert_allclose(found.X, expected.X, atol=1e-5)
    assert found.uns["nimbus_embedding"]["device"] == "2 workers (cpu)"


def test_a_bare_network_gets_its_scales_from_the_images(sdata, tiny, embed):
    table = embed(sdata, model=tiny.net)
    fitted = nb.pp.normalization(sdata, channels=list(MARKERS), quantile=0.9999, progress=False)
    np.testing.assert_allclose(table.var["scale"], fitted.scale_of(MARKERS))
    assert json.loads(table.uns["nimbus_embedding"]["normalization"])["quantile"] == 0.9999
    given = embed(sdata, model=tiny.net, normalization=fitted, table="given")
    np.testing.assert_array_equal(given.X, table.X)


def test_a_folder_is_a_model(sdata, tiny, embed, tmp_path):
    expected = embed(sdata)
    saved = save_embedding(tiny, tmp_path / "model")
    found = embed(sdata, model=tmp_path / "model", table="again")
    np.testing.assert_array_equal(found.X, expected.X)
    record = found.uns["nimbus_embedding"]
    assert record["weights_sha256"] == saved.card.sha256
    assert record["weights"] == expected.uns["nimbus_embedding"]["weights"]


@pytest.mark.parametrize("kind", ["next_channel", "cim"])
def test_both_architectures_embed(sdata, embed, kind):
    model = tiny_embedding_model(MARKERS, kind=kind, crop=12, scale=SCALE)
    embedding, activation = by_hand(sdata, model)
    table = embed(sdata, model=model)
    np.testing.assert_allclose(table.obsm["X_nextchannel"], embedding, atol=1e-5)
    np.testing.assert_allclose(table.X, activation, atol=1e-5)


def test_what_is_written_can_be_read(factory, embed, tmp_path):
    factory(2).write(tmp_path / "a.zarr")
    sdata = sd.read_zarr(tmp_path / "a.zarr")
    table = embed(sdata, write=True)
    again = sd.read_zarr(tmp_path / "a.zarr")["embedding"]
    np.testing.assert_array_equal(again.X, table.X)
    np.testing.assert_array_equal(again.obsm["X_nextchannel"], table.obsm["X_nextchannel"])
    pd.testing.assert_frame_equal(again.obs, table.obs)
    assert again.uns["nimbus_embedding"]["images"] == table.uns["nimbus_embedding"]["images"]
    assert not list(tmp_path.glob(".*runs"))


@pytest.mark.filterwarnings("ignore:The table is annotating")  # labels in the other store
def test_a_cohort_shares_its_scales(factory, tiny, embed, tmp_path):
    objects = {"one": factory(1, shape=(64, 70)), "two": factory(1)}
    nb.tl.embed(objects, model=tiny.net, device="cpu", progress=False, write=tmp_path / "results")
    first, second = (o["embedding"] for o in objects.values())
    pd.testing.assert_frame_equal(first.var, second.var)
    for name, each in objects.items():
        stored = sd.read_zarr(tmp_path / "results" / f"{name}.zarr")["embedding"]
        np.testing.assert_array_equal(stored.X, each["embedding"].X)
        assert stored.n_obs == len(centers_of(each)[0])


@pytest.fixture
def interrupted(embed, monkeypatch):
    """Run ``nb.tl.embed`` on a store until two blocks are done."""
    from nimbus_sd.engine.embedding.embedder import Embedder

    class Stop(BaseException):
        pass

    score = Embedder.score

    def stopping(self, job, blocks):
        for i, scored in enumerate(score(self, job, blocks)):
            if i == 2:
                raise Stop
            yield scored

    def run(path):
        with monkeypatch.context() as patch:
            patch.setattr(Embedder, "score", stopping)
            with pytest.raises(Stop):
                embed(sd.read_zarr(path))
        (journal,) = path.parent.glob(f".{path.name}.nimbus-runs/*/blocks")
        return journal

    return run


def test_an_interrupted_run_goes_on(factory, embed, interrupted, tmp_path, monkeypatch):
    from nimbus_sd.engine.embedding.embedder import Embedder

    factory(3).write(tmp_path / "a.zarr")
    expected = embed(sd.read_zarr(tmp_path / "a.zarr"))
    interrupted(tmp_path / "a.zarr")
    asked, score = [], Embedder.score

    def counting(self, job, blocks):
        return score(self, job, (asked.append(b) or b for b in blocks))

    monkeypatch.setattr(Embedder, "score", counting)
    found = embed(sd.read_zarr(tmp_path / "a.zarr"))
    assert len(asked) == 1
    np.testing.assert_array_equal(found.X, expected.X)
    assert not list(tmp_path.glob(".a.zarr.nimbus-runs"))


def test_channels_that_are_named_anew_start_a_new_run(factory, embed, interrupted, tmp_path):
    path = tmp_path / "a.zarr"
    factory(3).write(path)
    journal = interrupted(path)
    before = journal.read_bytes()
    sdata = sd.read_zarr(path)
    for i in range(3):
        sdata.set_channel_names(f"fov{i}_image", ["CD8", "CD3", "CD20"], write=True)
    found = embed(sd.read_zarr(path))
    expected = embed(sd.read_zarr(path), resume=False)
    np.testing.assert_array_equal(found.X, expected.X)
    assert journal.read_bytes() == before


def test_another_pixel_size_is_warned_of(sdata, tiny, embed):
    model = replace(tiny, card=replace(tiny.card, mpp=0.5))
    with pytest.warns(NimbusWarning, match=r"1 µm per px and model 'tiny' was trained at 0\.5"):
        embed(sdata, model=model)
    with pytest.warns(NimbusWarning, match=r"mpp=0\.52, but the scale of image") as seen:
        embed(sdata, model=model, mpp=0.52, table="near")
    assert len(seen) == 1, "near enough to the model's"


def test_empty_labels_get_no_rows(factory, embed):
    sdata = factory(2)
    sdata["fov1_labels"].data = np.zeros_like(sdata["fov1_labels"].data)
    with pytest.warns(NimbusWarning, match="no cell in labels 'fov1_labels'"):
        table = embed(sdata)
    assert set(table.obs["region"]) == {"fov0_labels"}


def with_pixels(sdata, change):
    array = sdata["fov0_image"]
    sdata["fov0_image"] = array.copy(data=da.asarray(change(array.to_numpy().astype(np.float32))))
    return sdata


def broken(pixels):
    pixels[1, 30, 30] = np.nan
    return pixels


def test_bad_pixels_are_named_and_nothing_changes(sdata, embed, unchanged):
    with_pixels(sdata, broken)
    with unchanged(sdata), pytest.raises(InputError, match=r"image 'fov0_image', channel 'CD8': 1 NaN"):
        embed(sdata)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"centers": "nuclei"}, ElementNotFoundError, "'nuclei'"),
        ({"image": "slide"}, ElementNotFoundError, "'slide'"),
        ({"key_added": "spatial"}, InputError, "key_added='spatial'"),
        ({"key_added": ""}, InputError, "key_added=''"),
        ({"table": "fov0_labels"}, InputError, "another element"),
        ({"write": True}, InputError, "zarr store"),
        ({"batch_size": 0}, InputError, "batch_size=0"),
        ({"precision": "half"}, InputError, "precision='half'"),
        ({"device": "cuda:99"}, InputError, "not on this machine|device"),
        ({"normalization": {"CD3": 1.0}}, InputError, "normalization is a dict"),
        ({"mpp": -1}, InputError, "mpp=-1"),
        ({"client": "here"}, InputError, "client='here'"),
        ({"model": 3}, InputError, "model= is a int"),
    ],
)
def test_bad_arguments_change_nothing(sdata, embed, unchanged, options, error, match):
    with unchanged(sdata), pytest.raises(error, match=match):
        embed(sdata, **options)


def test_a_table_is_not_overwritten_unasked(sdata, embed, unchanged):
    embed(sdata)
    with unchanged(sdata), pytest.raises(InputError, match=r"'embedding' exists.*overwrite=True"):
        embed(sdata)


def test_patches_larger_than_the_image_are_refused(factory, embed, unchanged):
    sdata = factory(1, shape=(20, 60))
    model = tiny_embedding_model(MARKERS, crop=40)
    with unchanged(sdata), pytest.raises(InputError, match=r"image 'fov0_image' is 20 x 60 px.*40 px"):
        embed(sdata, model=model)


def test_an_object_without_centers_is_refused(sdata, embed):
    del sdata["fov0_labels"]
    with pytest.raises(InputError, match="no labels, points or shapes"):
        embed(sdata)


def test_a_normalization_without_a_marker_is_refused(sdata, embed, unchanged):
    fitted = nb.pp.normalization(sdata, channels=["CD3"], progress=False)
    with unchanged(sdata), pytest.raises(InputError, match=r"no scale for \['CD8', 'CD20'\]"):
        embed(sdata, normalization=fitted)


def test_a_card_without_a_scale_is_refused(sdata, tiny, embed, unchanged):
    model = replace(tiny, card=replace(tiny.card, scale={"CD3": 1.0}))
    with unchanged(sdata), pytest.raises(InputError, match=r"no scale for \['CD8', 'CD20'\]"):
        embed(sdata, model=model)


def test_a_stored_table_annotates_stored_centres(tmp_path, sdata, embed):
    sdata.write(tmp_path / "a.zarr")
    stored = sd.read_zarr(tmp_path / "a.zarr")
    x, y = np.random.default_rng(0).uniform(20, 45, (2, 30))
    stored["nuclei"] = PointsModel.parse(
        np.stack([x, y], 1), transformations={"fov0": get_transformation(stored["fov0_image"], "fov0")}
    )
    with pytest.raises(InputError, match=r"write_element\('nuclei'\)"):
        embed(stored, centers="nuclei", write=True)
    assert "embedding" not in stored.tables
    stored.write_element("nuclei")
    embed(stored, centers="nuclei", write=True)
    assert sd.read_zarr(tmp_path / "a.zarr")["embedding"].n_obs == 30


def test_labels_win_over_points_and_it_is_said(sdata, embed, caplog):
    sdata["nuclei"] = PointsModel.parse(
        np.full((3, 2), 30.0), transformations={"fov0": get_transformation(sdata["fov0_image"], "fov0")}
    )
    table = embed(sdata)
    assert set(table.obs["region"]) == {"fov0_labels"}
    assert "others are there too: 'nuclei'" in caplog.text
