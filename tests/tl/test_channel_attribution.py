"""`nb.tl.channel_attribution`: joined to the right rows and columns, refused for other models."""

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
import torch
from scipy.stats import spearmanr

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.engine.embedding.attribution import gradient_x_input, occlusion_by_passes
from nimbus_sd.testing import tiny_embedding_model

MARKERS = ("CD20", "CD3", "CD8")
SCALE = {"CD3": 700.0, "CD8": 500.0, "CD20": 900.0}


@pytest.fixture(params=["next_channel", "cim"])
def tiny(request):
    return tiny_embedding_model(MARKERS, kind=request.param, scale=SCALE)


@pytest.fixture
def embedded(factory, tiny):
    sdata = factory(2)
    nb.tl.embed(sdata, model=tiny, device="cpu", progress=False)
    return sdata


def attribute(sdata, model, **options):
    nb.tl.channel_attribution(sdata, model=model, device="cpu", progress=False, **options)
    return sdata[options.get("table", "embedding")]


def by_hand(sdata, model, region, instance):
    """Occlusion and gradient times input of one cell."""
    ids = sdata[region].to_numpy()
    planes = sdata[region.replace("labels", "image")].sel(c=list(model.markers)).to_numpy()
    size = model.card.crop
    padded = np.pad(planes.astype(np.float64), [(0, 0), (size, size), (size, size)], mode="reflect")
    y, x = np.floor(np.argwhere(ids == instance).mean(axis=0) + 0.5).astype(int) + size - size // 2
    scale = np.array([model.card.scale[m] for m in model.markers])[:, None, None]
    patch = np.sqrt(np.clip(padded[:, y : y + size, x : x + size] / scale, 0, 1))
    patch = torch.from_numpy(patch).float()[None]
    with torch.no_grad():
        occluded = occlusion_by_passes(model.net, patch)[0].numpy()
    return occluded, gradient_x_input(model.net, patch)[0].numpy()


def check_rows(sdata, table, model):
    columns = [model.markers.index(v) for v in table.var_names]
    for i in range(table.n_obs):
        occluded, gradient = by_hand(
            sdata, model, str(table.obs["region"].iloc[i]), table.obs["instance_id"].iloc[i]
        )
        np.testing.assert_allclose(table.layers["occlusion"][i], occluded[columns], atol=1e-5)
        np.testing.assert_allclose(
            table.layers["gradient_x_input"][i], gradient[columns], atol=1e-5, rtol=1e-3
        )


def test_layers_and_agreement(embedded, tiny):
    table = attribute(embedded, tiny)
    check_rows(embedded, table, tiny)
    assert table.layers["occlusion"].dtype == np.float32
    record = table.uns["channel_attribution"]
    assert record["markers"].tolist() == list(MARKERS)
    for name in ("occlusion", "gradient_x_input"):
        values = table.layers[name]
        expected = [spearmanr(values[:, i], table.X[:, i]).statistic for i in range(3)]
        np.testing.assert_allclose(record[name]["spearman_per_marker"], expected)
        assert record[name]["spearman_markers"] == pytest.approx(np.mean(expected))
        rows = [spearmanr(v, x).statistic for v, x in zip(values, table.X, strict=True)]
        assert record[name]["spearman_cells"] == pytest.approx(np.mean(rows))


def test_rows_and_columns_of_an_edited_table_are_found(embedded, tiny):
    rng = np.random.default_rng(0)
    rows = rng.permutation(embedded["embedding"].n_obs)[:9]
    embedded["embedding"] = embedded["embedding"][rows, ["CD8", "CD20"]].copy()
    table = attribute(embedded, tiny)
    check_rows(embedded, table, tiny)


def test_one_method_and_the_other_later(embedded, tiny):
    table = attribute(embedded, tiny, method="occlusion")
    assert list(table.layers) == ["occlusion"]
    with pytest.raises(InputError, match=r"layers \['occlusion'\] already.*overwrite=True"):
        attribute(embedded, tiny)
    before = table.layers["occlusion"].copy()
    attribute(embedded, tiny, method=["gradient_x_input"])
    assert table.uns["channel_attribution"]["methods"].tolist() == ["occlusion", "gradient_x_input"]
    assert {"occlusion", "gradient_x_input"} <= table.uns["channel_attribution"].keys()
    attribute(embedded, tiny, overwrite=True)
    np.testing.assert_array_equal(table.layers["occlusion"], before)


def test_it_is_written_and_read(embedded, tiny, tmp_path):
    embedded.write(tmp_path / "a.zarr")
    sdata = sd.read_zarr(tmp_path / "a.zarr")
    table = attribute(sdata, tiny, write=True)
    again = sd.read_zarr(tmp_path / "a.zarr")["embedding"]
    np.testing.assert_array_equal(again.layers["occlusion"], table.layers["occlusion"])
    record = again.uns["channel_attribution"]
    assert record["methods"].tolist() == ["occlusion", "gradient_x_input"]
    np.testing.assert_array_equal(again.obsm["X_nextchannel"], table.obsm["X_nextchannel"])
    # a table that was read is as good as one just made
    attribute(sd.read_zarr(tmp_path / "a.zarr"), tiny, overwrite=True)


def test_fitted_scales_are_used_again(factory, tiny):
    sdata = factory(1)
    nb.tl.embed(sdata, model=tiny.net, device="cpu", progress=False)
    scale = dict(zip(MARKERS, sdata["embedding"].var["scale"], strict=True))
    table = attribute(sdata, tiny.net)
    bare = tiny_embedding_model(MARKERS, scale=scale, crop=tiny.net.config.size)
    check_rows(sdata, table, type(tiny)(tiny.net, bare.card))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"table": "cells"}, ElementNotFoundError, "no table 'cells'"),
        ({"method": "saliency"}, InputError, "method='saliency'"),
        ({"method": ()}, InputError, r"method=\(\)"),
        ({"write": True}, InputError, "zarr store"),
        ({"batch_size": -2}, InputError, "batch_size=-2"),
    ],
)
def test_bad_arguments_change_nothing(embedded, tiny, unchanged, options, error, match):
    with unchanged(embedded), pytest.raises(error, match=match):
        attribute(embedded, tiny, **options)


def test_another_model_is_refused(embedded, tiny, unchanged):
    other = tiny_embedding_model(MARKERS, seed=5, scale=SCALE)
    with unchanged(embedded), pytest.raises(InputError, match=r"made by model 'tiny'.*other weights"):
        attribute(embedded, other)


def test_another_table_is_refused(sdata, tiny, score, unchanged):
    score(sdata)
    with unchanged(sdata), pytest.raises(InputError, match=r"not written by nb\.tl\.embed"):
        attribute(sdata, tiny, table="nimbus")


def test_cells_that_are_gone_are_named(embedded, tiny, unchanged):
    labels = embedded["fov0_labels"]
    gone = int(embedded["embedding"].obs["instance_id"].iloc[0])
    labels.data = np.where(labels.to_numpy() == gone, 0, labels.to_numpy())
    with unchanged(embedded), pytest.raises(InputError, match=rf"1 of \d+ cells.*the first: {gone}"):
        attribute(embedded, tiny)


def test_bad_pixels_change_nothing(embedded, tiny, unchanged):
    array = embedded["fov1_image"]
    pixels = array.to_numpy().astype(np.float32)
    pixels[2, 20, 20] = -1
    embedded["fov1_image"] = array.copy(data=da.asarray(pixels))
    with unchanged(embedded), pytest.raises(InputError, match=r"image 'fov1_image', channel 'CD20'"):
        attribute(embedded, tiny)
