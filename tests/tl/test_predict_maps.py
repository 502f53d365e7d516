"""Score maps, and what ``write=True`` leaves on disk."""

import numpy as np
import pytest
import spatialdata as sd
from spatialdata.transformations import get_transformation

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.elements import finest
from nimbus_sd.testing.oracle import whole_image_probabilities


def test_maps_hold_the_probabilities_whose_mean_is_the_score(sdata, model, score):
    table = score(sdata, maps="score", tile=16)
    element = finest(sdata["score"])
    image, labels = (np.asarray(sdata[f"fov0_{kind}"].data) for kind in ("image", "labels"))
    assert element.dtype == np.float16
    assert element.shape == image.shape
    assert element.coords["c"].values.tolist() == list(table.var_names)
    values = element.data.compute().astype(np.float64)
    expected = whole_image_probabilities(image, labels, model.net, scale=table.var["scale"])[:, 0]
    inside = labels > 0
    np.testing.assert_allclose(values[:, inside], expected[:, inside], atol=6e-4)
    for row, i in enumerate(table.obs["instance_id"]):
        np.testing.assert_allclose(values[:, labels == i].mean(1), table.X[row], atol=6e-4)
    matrices = [
        get_transformation(sdata[name], "fov0").to_affine_matrix(("x", "y"), ("x", "y"))
        for name in ("score", "fov0_image")
    ]
    np.testing.assert_allclose(*matrices)


def test_maps_of_channels_that_come_in_groups(sdata, score, monkeypatch):
    score(sdata, maps="whole")
    monkeypatch.setattr("nimbus_sd.engine.groups._GROUP_BYTES", 1)
    sdata["fov0_image"].data = sdata["fov0_image"].data.rechunk((1, 70, 52))
    score(sdata, maps="parts", overwrite=True)
    whole, parts = (finest(sdata[name]).data.compute() for name in ("whole", "parts"))
    np.testing.assert_allclose(parts, whole, atol=1e-3)
    assert np.abs(np.diff(whole.astype(float), axis=0)).max() > 0.1


def test_maps_are_no_candidates_for_the_next_run(sdata, score):
    first = score(sdata, maps="score").X
    np.testing.assert_array_equal(score(sdata, overwrite=True).X, first)
    assert sdata.attrs["nimbus_sd"]["maps"] == ["score"]


def test_several_samples_get_a_map_each(factory, score):
    sdata = factory(2)
    score(sdata, maps="score")
    assert {"score_fov0_labels", "score_fov1_labels"} <= set(sdata.images)


def test_existing_elements_are_kept_unless_told(sdata, score, unchanged):
    score(sdata, maps="score")
    for maps, said in (("score", "image 'score' exists; pass overwrite=True"), ("fov0_labels", "in labels")):
        with unchanged(sdata), pytest.raises(InputError, match=rf"{said}.*maps="):
            score(sdata, table="second", maps=maps)
    with unchanged(sdata), pytest.raises(InputError, match="fov0_labels"):
        score(sdata, overwrite=True, maps="fov0_labels")
    old = sdata["score"]
    score(sdata, overwrite=True, maps="score", channels=["CD8"])
    assert sdata["score"] is not old
    assert finest(sdata["score"]).shape[0] == 1


def test_write_persists_table_and_maps(factory, score, tmp_path):
    factory(2).write(tmp_path / "s.zarr")
    sdata = sd.read_zarr(tmp_path / "s.zarr")
    score(sdata, write=True, maps="score")
    again = sd.read_zarr(tmp_path / "s.zarr")
    np.testing.assert_array_equal(again["nimbus"].X, sdata["nimbus"].X)
    np.testing.assert_array_equal(
        finest(again["score_fov1_labels"]).data.compute(), finest(sdata["score_fov1_labels"]).data.compute()
    )
    # pairs from disk leave the maps out as well, and all is replaced when asked
    first = sdata["nimbus"].X
    score(again, write=True, maps="score", overwrite=True)
    third = sd.read_zarr(tmp_path / "s.zarr")
    np.testing.assert_array_equal(third["nimbus"].X, first)
    assert finest(third["score_fov0_labels"]).data.compute().max() > 0


def test_without_write_the_disk_stays_as_it_was(factory, score, tmp_path):
    factory().write(tmp_path / "s.zarr")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    sdata = sd.read_zarr(tmp_path / "s.zarr")
    score(sdata)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    assert "nimbus" not in sd.read_zarr(tmp_path / "s.zarr")


def test_write_needs_a_store(sdata, score, unchanged):
    with unchanged(sdata), pytest.raises(InputError, match=r"write=True needs.*sdata\.write"):
        score(sdata, write=True)


def test_temporary_files_go_when_a_run_fails(sdata, score, monkeypatch, tmp_path, unchanged):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sdata["fov0_image"].data = sdata["fov0_image"].data.astype("float32") * np.nan
    fitted = score_scale()
    with unchanged(sdata), pytest.raises(InputError, match="NaN"):
        score(sdata, maps="score", normalization=fitted)
    assert not list(tmp_path.iterdir())


def score_scale():
    from nimbus_sd.engine.normalization import Normalization

    return Normalization(("CD3", "CD8", "CD20"), (1.0, 1.0, 1.0), 0.999, "dataset", ())


def test_maps_are_multiscale_and_whole_numbers_if_asked(sdata, score):
    score(sdata, maps="half")
    score(sdata, maps="bytes", maps_dtype="uint8", overwrite=True)
    assert list(sdata["bytes"].children) == ["scale0", "scale1"]
    levels = [next(iter(sdata["bytes"][s].to_dataset().data_vars.values())) for s in ("scale0", "scale1")]
    assert [x.dtype for x in levels] == [np.uint8] * 2
    assert levels[1].shape[1] == levels[0].shape[1] // 2
    half, whole = finest(sdata["half"]).data.compute(), finest(sdata["bytes"]).data.compute()
    np.testing.assert_allclose(whole / 255, half, atol=1 / 255)
    with pytest.raises(InputError, match=r"maps_dtype='int4'; valid: 'float16', 'uint8'"):
        score(sdata, maps="other", maps_dtype="int4", overwrite=True)


@pytest.mark.parametrize("mpp", [0.5, 0.65, 2.0])
def test_maps_return_to_the_images_resolution(factory, score, mpp):
    sdata = factory(mpp=None)
    table = score(sdata, maps="score", mpp=mpp, tile=16)
    values, labels = finest(sdata["score"]).data.compute(), np.asarray(sdata["fov0_labels"].data)
    for row, i in enumerate(table.obs["instance_id"]):
        np.testing.assert_allclose(values[:, labels == i].astype(float).mean(1), table.X[row], atol=6e-4)
