"""Several objects in one call: one normalisation, a table in each, written, resumed and put together."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import spatialdata as sd
from spatialdata.models import Labels2DModel

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd._sdata.cohort import as_cohort
from nimbus_sd._sdata.resolve import resolve_pairs
from nimbus_sd.engine.journal import Journal


@pytest.fixture
def stores(factory, tmp_path):
    """Three stores with two fields each, and an object that holds all six fields."""
    whole = factory(6)
    paths = []
    for i in range(3):
        own = {}
        for j in range(2):
            own[f"fov{j}_image"] = whole[f"fov{2 * i + j}_image"]
            own[f"fov{j}_labels"] = whole[f"fov{2 * i + j}_labels"]
        path = tmp_path / f"slide{i}.zarr"
        sd.SpatialData.init_from_elements(own).write(path)
        paths.append(path)
    return paths, whole


def run(objects, model, **options):
    options = {"model": model, "precision": "float32", "device": "cpu", "progress": False} | options
    nb.tl.predict(objects, **options)


def test_a_cohort_is_scored_as_one_object_that_holds_it_all(stores, model):
    paths, whole = stores
    objects = [sd.read_zarr(p) for p in paths]
    run(objects, model)
    run(whole, model)
    expected = whole["nimbus"]
    rows = [
        expected[expected.obs["region"].isin([f"fov{2 * i}_labels", f"fov{2 * i + 1}_labels"])]
        for i in range(3)
    ]
    for each, part in zip(objects, rows, strict=True):
        np.testing.assert_array_equal(each["nimbus"].X, part.X)
        np.testing.assert_array_equal(each["nimbus"].obs["instance_id"], part.obs["instance_id"])
        np.testing.assert_array_equal(each["nimbus"].var["scale"], expected.var["scale"])
        assert set(each["nimbus"].obs["region"]) == {"fov0_labels", "fov1_labels"}
        assert list(each["nimbus"].uns["nimbus"]["mpp"]) == ["fov0_labels", "fov1_labels"]


def test_one_normalisation_is_that_of_all_images(stores, model):
    paths, _ = stores
    objects = [sd.read_zarr(p) for p in paths]
    run(objects, model, channels=["CD3"])
    alone = sd.read_zarr(paths[0])
    run(alone, model, channels=["CD3"])
    fitted = nb.pp.normalization(objects, channels=["CD3"], progress=False)
    assert objects[0]["nimbus"].var["scale"].item() == fitted.scale_of(["CD3"])[0]
    assert alone["nimbus"].var["scale"].item() != fitted.scale_of(["CD3"])[0]


def test_tables_and_maps_in_every_store(stores, model):
    paths, _ = stores
    objects = {p.stem.upper(): sd.read_zarr(p) for p in paths}
    run(objects, model, maps="p", write=True)
    for name, path in zip(objects, paths, strict=True):
        stored = sd.read_zarr(path)
        np.testing.assert_array_equal(stored["nimbus"].X, objects[name]["nimbus"].X)
        assert {"p_fov0_labels", "p_fov1_labels"} <= set(stored.images)
    assert not list(paths[0].parent.glob(".*"))


def test_results_in_a_folder_leave_the_stores_as_they_are(stores, model, tmp_path, unchanged):
    paths, _ = stores
    files = {p: sorted(q for q in p.rglob("*")) for p in paths}
    objects = [sd.read_zarr(p) for p in paths]
    out = tmp_path / "new" / "results"
    run(objects, model, maps="p", write=out)
    assert {p: sorted(q for q in p.rglob("*")) for p in paths} == files
    assert sorted(p.name for p in out.iterdir()) == ["slide0.zarr", "slide1.zarr", "slide2.zarr"]
    for path, sdata in zip(paths, objects, strict=True):
        with pytest.warns(UserWarning, match="annotat"):
            stored = sd.read_zarr(out / path.name)
        np.testing.assert_array_equal(stored["nimbus"].X, sdata["nimbus"].X)
        assert set(stored.images) == {"p_fov0_labels", "p_fov1_labels"}
        ours, theirs = (nb._sdata.elements.finest(s["p_fov0_labels"]).values for s in (sdata, stored))
        np.testing.assert_array_equal(ours, theirs)
        # the table fits the object that it was made for
        fresh = sd.read_zarr(path)
        fresh["nimbus"] = stored["nimbus"]

    # a second run of the same name needs overwrite=, and one object goes by its store's name
    with pytest.raises(InputError, match="overwrite=True"), unchanged(objects[0]):
        run(objects, model, write=out)
    (alone,) = (sd.read_zarr(p) for p in paths[:1])
    run(alone, model, write=out, table="alone")
    with pytest.warns(UserWarning, match="annotat"):
        assert set(sd.read_zarr(out / "slide0.zarr").tables) == {"nimbus", "alone"}


def test_a_cohort_goes_on_where_it_was_stopped(stores, model, tmp_path, monkeypatch):
    paths, _ = stores
    expected = [sd.read_zarr(p) for p in paths]
    run(expected, model, tile=16)
    objects = [sd.read_zarr(p) for p in paths]
    add, done = Journal.add, []

    def stop_in_the_second(self, scored):
        add(self, scored)
        done.append(scored.block)
        if scored.block.sample == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(objects, model, tile=16, write=tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".slide0.zarr.nimbus-runs"]
    first = set(done)
    done.clear()
    monkeypatch.setattr(Journal, "add", lambda self, scored: (done.append(scored.block), add(self, scored)))
    run(objects, model, tile=16, write=tmp_path / "out")
    assert not first & set(done)
    assert first
    for one, other in zip(objects, expected, strict=True):
        np.testing.assert_array_equal(one["nimbus"].X, other["nimbus"].X)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"slide{i}.zarr" for i in range(3)]


def test_every_store_is_locked(stores, model):
    from nimbus_sd.engine.run_folder import run_folder

    paths, _ = stores
    home = paths[2].parent / f".{paths[2].name}.nimbus-runs"
    with (
        run_folder([home], "other", resume=True),
        pytest.raises(InputError, match=r"slide2.*another run works on this store: process"),
    ):
        run([sd.read_zarr(p) for p in paths], model)


def test_an_object_without_cells_gets_no_table(stores, model):
    paths, _ = stores
    objects = {f"s{i}": sd.read_zarr(p) for i, p in enumerate(paths)}
    for name in ("fov0_labels", "fov1_labels"):
        old = objects["s1"][name]
        empty = Labels2DModel.parse(
            np.zeros(old.shape, "uint32"),
            dims=("y", "x"),
            transformations=sd.transformations.get_transformation(old, get_all=True),
        )
        del objects["s1"][name]
        objects["s1"][name] = empty
    with pytest.warns(NimbusWarning, match="no labelled pixel in 's1': no table"):
        run(objects, model)
    assert ["nimbus" in o.tables for o in objects.values()] == [True, False, True]
    with pytest.warns(NimbusWarning, match="no table 'nimbus' in s1"):
        assert set(nb.tl.concat_tables(objects).obs["sample"]) == {"s0", "s2"}


def test_bad_cohorts(stores, model, factory, unchanged):
    paths, _ = stores
    objects = [sd.read_zarr(p) for p in paths]
    with pytest.raises(InputError, match="comes twice"):
        run([objects[0], objects[0]], model)
    with pytest.raises(InputError, match="comes twice"):
        run([objects[0], sd.read_zarr(paths[0])], model)
    with pytest.raises(InputError, match="str given"):
        run("slide0.zarr", model)
    with pytest.raises(InputError, match="str among the objects"):
        run(["slide0.zarr"], model)
    with pytest.raises(InputError, match="no object"):
        run([], model)
    with pytest.raises(InputError, match="can't name an object"):
        run({"a/b": objects[0]}, model)
    other = factory(channels=("CD3", "CD8", "PD1"))
    with unchanged(objects[0]), pytest.raises(InputError, match=r"slide0/fov0_image.*object1/fov0_image"):
        run([objects[0], other], model)
    with unchanged(objects[0]), pytest.raises(InputError, match=r"object1/fov0_image.*pixel size"):
        run([objects[0], factory(mpp=None)], model)
    with pytest.raises(InputError, match="is a SpatialData store"):
        run(objects, model, write=paths[0])
    with pytest.raises(InputError, match="object's own store"):
        run(objects, model, write=paths[0].parent)
    run(objects[0], model)
    with unchanged(objects[0]), pytest.raises(InputError, match="exists; pass overwrite=True"):
        run(objects, model)
    assert "nimbus" not in objects[1].tables
    with pytest.raises(InputError, match="a layer goes where its table is"):
        run(objects[0], model, into="nimbus", write=paths[0].parent / "out")


def test_names_of_stores(factory, tmp_path):
    paths = [tmp_path / a / b / "data.zarr" for a in ("x", "y") for b in ("1", "2")]
    paths += [tmp_path / "x.ome.zarr", tmp_path / "y.zarr"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        factory(shape=(20, 20), n_cells=2).write(path)
    objects = [sd.read_zarr(p) for p in paths] + [factory(shape=(20, 20), n_cells=2)]
    assert list(as_cohort(objects)) == ["x-1-data", "x-2-data", "y-1-data", "y-2-data", "x", "y", "object6"]
    assert resolve_pairs(objects[0])


def test_concatenated(stores, model):
    paths, _ = stores
    objects = [sd.read_zarr(p) for p in paths]
    run(objects, model)
    whole = nb.tl.concat_tables(objects)
    assert whole.n_obs == sum(o["nimbus"].n_obs for o in objects)
    assert whole.obs_names.is_unique
    np.testing.assert_array_equal(whole.X, np.concatenate([o["nimbus"].X for o in objects]))
    np.testing.assert_array_equal(
        whole[whole.obs["sample"] == "slide1"].obsm["spatial"], objects[1]["nimbus"].obsm["spatial"]
    )
    assert {"scale", "qc"} <= set(whole.var)
    assert "spatialdata_attrs" not in whole.uns
    assert whole.uns["nimbus"]["model"] == objects[0]["nimbus"].uns["nimbus"]["model"]
    assert objects[0]["nimbus"].obs_names[0] == "fov0_labels_" + str(
        objects[0]["nimbus"].obs["instance_id"].iloc[0]
    )
    for each in objects:  # as nb.pp.gate leaves them
        own = each["nimbus"]
        own.obsm["gated_uncertain"] = own.to_df() > 0.5
    frame = nb.tl.concat_tables(objects).obsm["gated_uncertain"]
    assert frame.index.equals(whole.obs_names)
    np.testing.assert_array_equal(frame, whole.X > 0.5)
    objects[0]["nimbus"] = objects[0]["nimbus"][:, ["CD3", "CD8"]].copy()
    with pytest.warns(NimbusWarning, match="not in every table, left out: CD20"):
        assert list(nb.tl.concat_tables(objects).var_names) == ["CD3", "CD8"]
    with pytest.raises(ElementNotFoundError, match="no table 'other'"):
        nb.tl.concat_tables(objects, table="other")
    assert isinstance(whole, ad.AnnData)
