"""`nb.tl.predict_subtypes`: what it writes, what makes no difference to it, and what it refuses."""

import json
import warnings

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import torch
from scipy import ndimage
from shapely import Point
from spatialdata.models import Image2DModel, PointsModel, ShapesModel
from spatialdata.transformations import Identity, Scale, get_transformation, set_transformation
from torch import nn
from torch.nn import functional as F

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning, WeightsError
from nimbus_sd.engine.subtyping.predictor import SubtypePredictor
from nimbus_sd.models.subtyper import SubtypeCard, SubtypeModel, save_subtyper
from nimbus_sd.testing import tiny_embedding_model, tiny_subtype_model, tiny_unet_model

PATCH, MPP = 32, 0.325
NATIVE = 21  # px of 0.5 µm that are as wide


def he_pixels(shape, seed):
    """Blotches of colour."""
    noise = np.random.default_rng(seed).normal(size=(3, *shape))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2))
    return np.clip(170 + 250 * smooth, 0, 255).astype(np.uint8)


def add_he(sdata, name="he", *, of="fov0", seed=0, names=("r", "g", "b"), chunks=(3, 64, 64), **options):
    """An H&E of 0.5 µm px over a field of 1 µm px."""
    y, x = sdata[f"{of}_labels"].shape
    half = Scale([0.5, 0.5], axes=("x", "y"))
    sdata[name] = Image2DModel.parse(
        options.pop("pixels", he_pixels((2 * y, 2 * x), seed)),
        dims=("c", "y", "x"),
        c_coords=list(names),
        transformations={of: half, "microns": half},
        chunks=chunks,
        **options,
    )
    return sdata


@pytest.fixture
def section(factory):
    """Fluorescence, labels, and the H&E on another grid."""
    return add_he(factory(1))


@pytest.fixture
def tiny():
    return tiny_subtype_model(patch=PATCH, mpp=MPP, hierarchy={"CD3e": "CD45", "CD4": "CD3e", "CD8a": "CD3e"})


@pytest.fixture
def predict(tiny):
    """Run ``nb.tl.predict_subtypes`` on the CPU and return the table."""

    def run(sdata, **options):
        options = {"model": tiny, "device": "cpu", "progress": False} | options
        nb.tl.predict_subtypes(sdata, **options)
        return sdata[options.get("table", "subtypes")]

    return run


def by_hand(sdata, model, labels="fov0_labels", image="he"):
    """Probabilities, one padded and resampled patch at a time."""
    ids, planes = sdata[labels].to_numpy(), sdata[image].to_numpy().astype(np.float32) / 255
    padded = torch.from_numpy(np.pad(planes, [(0, 0), (NATIVE, NATIVE), (NATIVE, NATIVE)], mode="reflect"))
    out = []
    for i in np.unique(ids[ids > 0]):
        middle = (np.argwhere(ids == i).mean(axis=0) + 0.5) * 2 - 0.5  # px of the H&E are half as wide
        y, x = np.floor(middle + 0.5).astype(int) + NATIVE - NATIVE // 2
        patch = padded[None, :, y : y + NATIVE, x : x + NATIVE]
        patch = F.interpolate(patch, size=(PATCH, PATCH), mode="bilinear", antialias=True)
        with torch.inference_mode():
            out.append(torch.sigmoid(model.net(patch))[0].numpy())
    return np.stack(out)


def test_the_table_holds_what_its_contract_says(section, tiny, predict):
    table = predict(section, image="he")
    expected = by_hand(section, tiny)
    np.testing.assert_allclose(table.X, expected, atol=1e-5)
    assert expected.std(axis=0).min() > 1e-3
    assert table.X.dtype == table.layers["positive"].dtype == np.float32
    assert list(table.var_names) == ["CD45", "CD3e", "CD4", "CD8a"]
    assert table.var["threshold"].tolist() == [0.5] * 4
    ids = section["fov0_labels"].to_numpy()
    found, area = np.unique(ids[ids > 0], return_counts=True)
    assert table.obs["instance_id"].tolist() == found.tolist()
    assert table.obs["instance_id"].dtype == np.int64
    assert table.obs["area_px"].tolist() == area.tolist()
    assert 0 < table.obs["border"].sum() < len(table)
    assert table.obs_names[0] == f"fov0_labels_{found[0]}"
    y, x = np.argwhere(ids == found[3]).mean(axis=0) + 0.5
    np.testing.assert_allclose(table.obsm["spatial"][3], [x, y])
    record = table.uns["nimbus_subtypes"]
    assert record["images"] == {"fov0_labels": "he"}
    assert record["mpp"] == {"fov0_labels": 0.5}
    assert (record["model"], record["patch"], record["model_mpp"]) == ("tiny", PATCH, MPP)
    assert record["markers"].tolist() == list(table.var_names)


def test_the_he_is_found_beside_the_fluorescence(section, predict):
    expected = predict(section, image="he")
    found = predict(section, table="found")
    np.testing.assert_array_equal(found.X, expected.X)
    named = predict(section, image={"fov0_labels": "he"}, table="named")
    np.testing.assert_array_equal(named.X, expected.X)
    other = predict(section, centers={"fov0_labels": "he"}, table="other")
    np.testing.assert_array_equal(other.X, expected.X)


def test_cells_that_contradict_the_hierarchy_are_undefined(section, predict):
    x = predict(section).X
    cuts = np.array([*np.median(x[:, [0, 1]], axis=0).tolist(), 0.5, float(np.median(x[:, 3]))])
    limits = {"CD45": cuts[0], "CD3e": cuts[1], "CD8a": cuts[3]}
    raw = predict(section, hierarchy=False, thresholds=limits, overwrite=True)
    np.testing.assert_array_equal(raw.layers["positive"], x > cuts)
    assert raw.var["threshold"].tolist() == cuts.tolist()
    assert raw.uns["nimbus_subtypes"]["n_inconsistent"] == 0
    with pytest.warns(NimbusWarning) as caught:
        table = predict(section, thresholds=limits, overwrite=True)
    np.testing.assert_array_equal(table.X, x)
    bad, by_rule = np.zeros(len(x), bool), {}
    for child, above in [
        ("CD3e", "CD45"),
        ("CD4", "CD3e"),
        ("CD4", "CD45"),
        ("CD8a", "CD3e"),
        ("CD8a", "CD45"),
    ]:
        positive = dict(zip(table.var_names, (x > cuts).T, strict=True))
        broken = positive[child] & ~positive[above]
        by_rule[f"{child} without {above}"] = int(broken.sum())
        bad |= broken
    assert len(bad) / 2 < bad.sum() < len(bad)
    (told,) = [str(w.message) for w in caught if issubclass(w.category, NimbusWarning)]
    assert told.startswith(f"{bad.sum()} of {len(bad)} cells contradict the hierarchy of markers (")
    worst = max(by_rule, key=by_rule.get)
    assert f"({worst} {by_rule[worst]}, " in told
    assert "learnt too little" in told
    assert np.isnan(table.layers["positive"][bad]).all()
    np.testing.assert_array_equal(table.layers["positive"][~bad], (x > cuts)[~bad])
    record = table.uns["nimbus_subtypes"]
    assert record["n_inconsistent"] == bad.sum()
    assert dict(zip(record["rules"].tolist(), record["n_removed"].tolist(), strict=True)) == by_rule
    assert json.loads(record["hierarchy"]) == {"CD3e": "CD45", "CD4": "CD3e", "CD8a": "CD3e"}
    few = limits | {"CD45": np.quantile(x[:, 0], 0.2)}
    predict(section, thresholds=few | dict.fromkeys(["CD3e", "CD8a"], 0), overwrite=True)  # few: no warning
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NimbusWarning)
        small = predict(section, thresholds=limits, hierarchy={"CD4": "CD45"}, overwrite=True)
    broken = (x[:, 2] > 0.5) & (x[:, 0] <= cuts[0])
    np.testing.assert_array_equal(
        np.isnan(small.layers["positive"]), broken[:, None] & [True, False, True, False]
    )


def test_a_threshold_itself_is_not_positive(section, predict):
    x = predict(section).X
    edge = float(x[0, 0])
    table = predict(section, thresholds=edge, hierarchy=False, overwrite=True)
    np.testing.assert_array_equal(table.layers["positive"], x > edge)
    assert table.layers["positive"][0, 0] == 0


@pytest.mark.filterwarnings("ignore:The index of the dataframe is not monotonic")
def test_points_and_shapes_give_what_labels_give(section, predict):
    expected = predict(section)
    array = section["fov0_labels"].to_numpy()
    ids = np.unique(array[array > 0])
    xy = np.array([np.argwhere(array == i).mean(axis=0)[::-1] + 0.5 for i in ids])
    order = np.random.default_rng(0).permutation(len(ids))
    to = get_transformation(section["fov0_labels"], get_all=True)
    frame = pd.DataFrame({"x": xy[order, 0], "y": xy[order, 1]}, index=ids[order])
    section["cells"] = PointsModel.parse(frame, transformations=dict(to))
    circles = gpd.GeoDataFrame({"geometry": [Point(*p) for p in xy[order]], "radius": 1.0}, index=ids[order])
    section["circles"] = ShapesModel.parse(circles, transformations=dict(to))
    for name in ("cells", "circles"):
        found = predict(section, centers=name, table=f"of_{name}")
        assert "area_px" not in found.obs
        at = np.argsort(found.obs["instance_id"].to_numpy())
        assert found.obs["instance_id"].iloc[at].tolist() == ids.tolist()
        np.testing.assert_allclose(found.X[at], expected.X, atol=1e-6)


def test_sections_of_one_object_and_of_a_cohort(factory, tiny, predict):
    sdata = add_he(add_he(factory(2), "he0"), "he1", of="fov1", seed=1, names=("0", "1", "2"))
    table = predict(sdata)
    assert list(table.obs["region"].cat.categories) == ["fov0_labels", "fov1_labels"]
    rows = (table.obs["region"] == "fov1_labels").to_numpy()
    np.testing.assert_allclose(table.X[rows], by_hand(sdata, tiny, "fov1_labels", "he1"), atol=1e-5)
    one, other = add_he(factory(1)), add_he(factory(1), seed=2)
    nb.tl.predict_subtypes({"a": one, "b": other}, image="he", model=tiny, device="cpu", progress=False)
    np.testing.assert_allclose(other["subtypes"].X, by_hand(other, tiny), atol=1e-5)
    assert np.abs(other["subtypes"].X - one["subtypes"].X).max() > 0.01


def test_settings_make_no_difference(factory, predict):
    sdata = add_he(factory(1, shape=(90, 110)), chunks=(1, 32, 48), scale_factors=[2])
    expected = predict(sdata)
    for i, options in enumerate(
        [
            {"batch_size": 1},
            {"n_threads": 0, "batch_size": 5},
            {"device": ["cpu", "cpu"]},
            {"memory": "1 MiB"},
        ]
    ):
        found = predict(sdata, table=f"other{i}", **options)
        np.testing.assert_allclose(found.X, expected.X, atol=1e-5)


def test_workers_of_a_cluster_predict_too(section, predict, tmp_path):
    from distributed import Client, LocalCluster

    section.write(tmp_path / "a.zarr")
    sdata = sd.read_zarr(tmp_path / "a.zarr")
    expected = predict(sdata)
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with warnings.catch_warnings(), LocalCluster(**options) as made, Client(made) as client:
        warnings.simplefilter("ignore")
        client.wait_for_workers(2, timeout=60)
        found = predict(sdata, table="there", client=client)
    np.testing.assert_allclose(found.X, expected.X, atol=1e-5)
    assert found.uns["nimbus_subtypes"]["device"] == "2 workers (cpu)"


class Smooth(nn.Module):
    """The mean colour around the middle, as sharp as 1.3 µm can be."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.tensor([[9.0, -6, 2], [-4, 8, 3]]))

    def forward(self, x):
        at = torch.linspace(-1, 1, x.shape[-1], device=x.device) * x.shape[-1] * MPP / 2
        weight = torch.exp(-(at**2) / 8)
        weight = weight[:, None] * weight / weight.sum() ** 2
        return ((x * weight).sum((-1, -2)) - 150 / 255) @ self.mix.T


def test_the_same_tissue_at_other_pixel_sizes(predict):
    card = SubtypeCard("smooth", {"markers": ["a", "b"]}, mpp=MPP, patch=PATCH)
    model = SubtypeModel(Smooth(), card)
    fine = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(3, 400, 360)), (0, 10, 10))
    fine = np.clip(150 + 1400 * fine, 0, 255)
    xy = np.random.default_rng(1).uniform(12, 75, (60, 2))  # µm
    tables = []
    for step, mpp in ((1, 0.25), (2, 0.5)):
        pixels = fine.reshape(3, 400 // step, step, 360 // step, step).mean((2, 4))
        to = {"microns": Scale([mpp, mpp], axes=("x", "y"))}
        image = Image2DModel.parse(pixels.round().astype(np.uint8), dims="cyx", transformations=to)
        cells = PointsModel.parse(xy, transformations={"microns": Identity()})
        sdata = sd.SpatialData(images={"he": image}, points={"cells": cells})
        tables.append(predict(sdata, model=model))
    first, second = (t.X for t in tables)
    assert first.std(axis=0).min() > 0.1
    # centres are rounded to px: up to 0.25 µm apart
    assert np.abs(first - second).max() < 0.1
    assert np.abs(first - second).mean() < 0.02
    with pytest.warns(NimbusWarning, match="mpp=0.25, but the scale of image 'he' to 'microns' says 0.5 µm"):
        twice = predict(sdata, model=model, mpp=0.25, table="twice")  # patches of twice as much tissue
    assert np.abs(first - twice.X).mean() > 0.05
    assert [t.uns["nimbus_subtypes"]["mpp"] for t in tables] == [{"cells": 0.25}, {"cells": 0.5}]


def test_nuclei_are_found_first_where_there_are_no_cells(predict):
    rng = np.random.default_rng(0)
    stain = np.zeros((160, 160))
    stain[rng.integers(16, 144, 30), rng.integers(16, 144, 30)] = 1
    stain = ndimage.gaussian_filter(stain, 3.5)
    rgb = np.clip(240 - np.stack([stain * 9000, stain * 10000, stain * 3000]), 5, 255).astype(np.uint8)
    to = {"microns": Scale([0.5, 0.5], axes=("x", "y"))}
    sdata = sd.SpatialData(images={"he": Image2DModel.parse(rgb, dims="cyx", transformations=to)})
    with pytest.raises(InputError, match=r"no labels, points or shapes.*nb\.pp\.detect_nuclei"):
        predict(sdata)
    nb.pp.detect_nuclei(sdata, image="he", stain="haematoxylin", progress=False)
    table = predict(sdata)
    assert table.n_obs == len(sdata["nuclei"]) > 15
    assert set(table.obs["region"]) == {"nuclei"}


def test_a_folder_is_a_model_and_what_is_written_can_be_read(section, tiny, predict, tmp_path):
    section.write(tmp_path / "a.zarr")
    sdata = sd.read_zarr(tmp_path / "a.zarr")
    saved = save_subtyper(tiny, tmp_path / "model")
    limits = {"CD45": 0.55, "CD3e": 0.45}
    table = predict(sdata, model=tmp_path / "model", write=True, thresholds=limits)
    again = sd.read_zarr(tmp_path / "a.zarr")["subtypes"]
    np.testing.assert_array_equal(again.X, table.X)
    np.testing.assert_array_equal(again.layers["positive"], table.layers["positive"])
    pd.testing.assert_frame_equal(again.obs, table.obs)
    record = again.uns["nimbus_subtypes"]
    assert record["weights_sha256"] == saved.card.sha256
    assert record["n_removed"].tolist() == table.uns["nimbus_subtypes"]["n_removed"].tolist()
    assert not list(tmp_path.glob(".*runs"))
    predict(sdata, hierarchy=False, overwrite=True)
    nb.io.write_table(sdata, "subtypes", overwrite=True)
    assert sd.read_zarr(tmp_path / "a.zarr")["subtypes"].uns["nimbus_subtypes"]["hierarchy"] == "{}"


def test_an_interrupted_run_goes_on(factory, predict, tmp_path, monkeypatch):
    sdata = factory(3)
    for i in range(3):
        add_he(sdata, f"he{i}", of=f"fov{i}", seed=i)
    path = tmp_path / "a.zarr"
    sdata.write(path)
    expected = predict(sd.read_zarr(path))
    score, asked = SubtypePredictor.score, []

    class Stop(BaseException):
        pass

    def stopping(self, job, blocks):
        for i, scored in enumerate(score(self, job, blocks)):
            if i == 2:
                raise Stop
            yield scored

    def counting(self, job, blocks):
        return score(self, job, (asked.append(b) or b for b in blocks))

    monkeypatch.setattr(SubtypePredictor, "score", stopping)
    with pytest.raises(Stop):
        predict(sd.read_zarr(path))
    monkeypatch.setattr(SubtypePredictor, "score", counting)
    # thresholds are no part of what is computed
    found = predict(sd.read_zarr(path), thresholds=0.3)
    assert len(asked) == 1
    np.testing.assert_array_equal(found.X, expected.X)
    assert not list(tmp_path.glob(".a.zarr.nimbus-runs"))


def test_another_pixel_size_is_another_run(section, predict, tmp_path):
    section.write(tmp_path / "a.zarr")
    sdata = sd.read_zarr(tmp_path / "a.zarr")
    first = predict(sdata)
    with pytest.warns(NimbusWarning, match="mpp=0.4, but the scale"):
        second = predict(sdata, mpp=0.4, overwrite=True)
    assert np.abs(first.X - second.X).max() > 1e-3
    assert second.uns["nimbus_subtypes"]["mpp"] == {"fov0_labels": 0.4}


def test_empty_labels_get_no_rows(factory, predict):
    sdata = add_he(add_he(factory(2), "he0"), "he1", of="fov1")
    sdata["fov1_labels"].data = np.zeros_like(sdata["fov1_labels"].data)
    with pytest.warns(NimbusWarning, match="no cell in labels 'fov1_labels'"):
        table = predict(sdata)
    assert set(table.obs["region"]) == {"fov0_labels"}


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"image": "fov0_image"}, InputError, r"'fov0_image' has 3 channels of uint16.*convert it to 0–255"),
        ({"image": "slide"}, ElementNotFoundError, "'slide'"),
        ({"centers": "nuclei"}, ElementNotFoundError, "'nuclei'"),
        ({"table": "fov0_labels"}, InputError, "another element"),
        ({"thresholds": {"CD19": 0.5}}, InputError, r"\['CD19'\].*valid: CD45, CD3e, CD4, CD8a"),
        ({"thresholds": {"CD45": 1.5}}, InputError, "threshold 1.5 of 'CD45' must be a probability"),
        ({"thresholds": float("nan")}, InputError, "threshold nan"),
        ({"hierarchy": {"CD19": "CD45"}}, InputError, "tree names CD19"),
        ({"hierarchy": {"CD4": "CD8a", "CD8a": "CD4"}}, InputError, "circle"),
        ({"hierarchy": "CD45"}, InputError, "tree='CD45'"),
        ({"write": True}, InputError, "zarr store"),
        ({"batch_size": 0}, InputError, "batch_size=0"),
        ({"precision": "half"}, InputError, "precision='half'"),
        ({"mpp": -1}, InputError, "mpp=-1"),
        ({"client": "here"}, InputError, "client='here'"),
        ({"model": 3}, InputError, "nb.tl.train_subtyper"),
        ({"mpp": 500}, InputError, "mpp=500; µm per px of an H&E lie .* is that in nm. Pass mpp=0.5"),
        ({"mpp": 0.0005}, InputError, "mpp=0.0005; .* is that in mm. Pass mpp=0.5"),
        ({"mpp": 0.00001}, InputError, "between 0.05 and 5; pass it in µm"),
    ],
)
def test_bad_arguments_change_nothing(section, predict, unchanged, options, error, match):
    with unchanged(section), pytest.raises(error, match=match):
        predict(section, **options)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: tiny_embedding_model(("a",)), r"model= is an embedding model, for nb\.tl\.embed"),
        (tiny_unet_model, r"model= is a model of marker positivity, for nb\.tl\.predict"),
        (lambda: "nets", r"no sub-typing model at nets"),
    ],
)
def test_models_of_other_kinds_are_refused(section, predict, unchanged, make, match):
    with unchanged(section), pytest.raises(WeightsError, match=rf"{match}.*nb\.tl\.train_subtyper makes one"):
        predict(section, model=make())


def test_a_folder_of_another_kind_is_refused(section, predict, unchanged, tiny, tmp_path):
    nb.models.save_embedding(tiny_embedding_model(("a",)), tmp_path / "m")
    with pytest.raises(WeightsError, match=r"m holds an embedding model, for nb\.tl\.embed;"):
        predict(section, model=tmp_path / "m")
    save_subtyper(tiny, tmp_path / "s")
    for model in (tmp_path / "s", str(tmp_path / "s"), tiny):
        with (
            unchanged(section),
            pytest.raises(WeightsError, match=r"a sub-typing model, for nb\.tl\.predict_"),
        ):
            nb.tl.predict(section, model=model)


def test_a_patch_larger_than_the_he_is_refused(section, predict, unchanged):
    set_transformation(section["he"], {"fov0": Scale([0.5, 0.5], axes=("x", "y"))}, set_all=True)
    with (
        unchanged(section),
        pytest.raises(InputError, match="image 'he' is 140 x 104 px, too small for patches of 173 px"),
    ):
        predict(section, mpp=0.06)
    set_transformation(section["he"], Scale([325, 325], axes=("x", "y")), "microns")
    with pytest.raises(InputError, match=r"image 'he' says that a px is 325 µm wide.*Pass mpp=0\.325"):
        predict(section)
    set_transformation(section["he"], Scale([0.5, 0.3], axes=("x", "y")), "microns")
    assert len(predict(section, mpp=0.5)), "mpp= is there for wrong scales"


def test_a_table_is_not_overwritten_unasked(section, predict, unchanged):
    predict(section)
    with unchanged(section), pytest.raises(InputError, match=r"'subtypes' exists.*overwrite=True"):
        predict(section)


@pytest.mark.parametrize(
    ("pixels", "names", "match"),
    [
        (he_pixels((140, 104), 0).astype(np.uint16), "rgb", "convert it to 0–255"),
        (np.full((4, 140, 104), 200, np.uint8), "rgba", r"drop the fourth channel \(alpha\)"),
        (np.full((1, 140, 104), 200, np.uint8), "g", "write it as RGB"),
    ],
)
def test_what_is_no_he_is_refused(factory, predict, unchanged, pixels, names, match):
    sdata = add_he(factory(1), pixels=pixels, names=names, chunks=None)
    with unchanged(sdata), pytest.raises(InputError, match=match):
        predict(sdata, image="he")


def test_the_pixel_size_must_be_known(section, predict, unchanged):
    set_transformation(section["he"], {"fov0": Scale([0.5, 0.5], axes=("x", "y"))}, set_all=True)
    with unchanged(section), pytest.raises(InputError, match=r"image 'he': how large is a px\? Pass mpp="):
        predict(section)
    expected = predict(section, mpp=0.5)
    section.attrs["nimbus_sd"] = {"mpp": 1.0}  # of the labels, whose px are twice as wide
    np.testing.assert_array_equal(predict(section, overwrite=True).X, expected.X)


def test_centres_outside_the_he_are_named(section, predict, unchanged):
    section["cells"] = PointsModel.parse(
        np.array([[20.0, 20.0], [20.0, 69.0], [20.0, 80.0]]), transformations={"fov0": Identity()}
    )
    with unchanged(section), pytest.raises(InputError, match=r"1 of 3 centres of 'cells' lie outside.*id 2"):
        predict(section, centers="cells")


def test_cells_that_are_not_registered_to_the_he_are_refused(section, predict, unchanged):
    set_transformation(section["he"], {"slide": Scale([0.5, 0.5], axes=("x", "y"))}, set_all=True)
    with unchanged(section), pytest.raises(InputError, match="don't overlap in a shared coordinate system"):
        predict(section, image="he", mpp=0.5)


def test_two_he_of_one_section_are_listed(section, predict, unchanged):
    add_he(section, "he_rescan")
    with unchanged(section), pytest.raises(InputError, match="'he', 'he_rescan'"):
        predict(section)
