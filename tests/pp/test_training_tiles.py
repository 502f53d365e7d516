"""Training tiles: what prediction feeds, written lazily, resumed, refused where they don't fit."""

import doctest
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, TableModel

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd._sdata import tile_store
from nimbus_sd._sdata.samples import resolve_samples
from nimbus_sd.arrays import AxisMap, plan_tiles
from nimbus_sd.arrays.rescale import scale_factor
from nimbus_sd.engine.block import prepare, read_tile_labels
from nimbus_sd.engine.training import cut, split
from nimbus_sd.engine.training.array_source import ArraySource
from nimbus_sd.engine.training.cut import cut_places
from nimbus_sd.engine.training.sources import SplitSource, check_disjoint, check_tile
from nimbus_sd.engine.training.split import check_split, split_fields
from nimbus_sd.models import reach
from nimbus_sd.testing import CountedArray, random_image, random_labels

MARKERS = ["CD3", "CD8"]


def tissue(n=3, shape=(150, 130), **options):
    return nb.datasets.simulated_tissue(n_fovs=n, shape=shape, channels=MARKERS, **options)


@pytest.fixture(scope="module")
def simulated():
    """Three fields, 0.5 µm px: 75 x 65 model px, padded to 80 x 80."""
    return tissue()


@pytest.fixture
def write(tmp_path):
    def run(sdata, path=None, **options):
        options = {"labels_layer": "X", "tile": 48, "progress": False, "dtype": "float32"} | options
        return nb.pp.training_tiles(sdata, path or tmp_path / "tiles.zarr", **options)

    return run


def whole_image(sdata, region, marker, scale):
    """What prediction feeds for the whole padded image: marker plane and mask."""
    found = resolve_samples(sdata, image=None, labels=region, channels=[marker])
    sample = found.samples[0].sample
    plan = plan_tiles(sample.labels.shape, factor=scale_factor(sample.mpp, 1.0), tile=1024)
    labels = read_tile_labels(sample.labels, plan, plan[0])
    group = (sample.image.channels.index(marker),)
    import torch

    made = prepare(
        sample,
        plan,
        plan[0],
        group,
        labels,
        scale=np.array([scale]),
        transform="identity",
        dtype=torch.float32,
        intensity=False,
    )
    return made.batch[0, 0].numpy(), made.batch[0, 1].numpy()


@pytest.mark.parametrize("mpp", [0.5, 0.37, 1.0])
def test_tiles_are_what_prediction_feeds(write, mpp):
    sdata = tissue(n=1, shape=(200, 170), mpp=mpp)
    store = write(sdata, split=(1, 0, 0))
    s = store.settings
    truth = sdata["truth"]
    assert len(store) == 2 * s.places[0] >= 8
    places = cut_places((200, 170), factor=s.factors[0], tile=48)
    for i in range(len(store)):
        tile = store.tile(i)
        check_tile(tile)
        k = MARKERS.index(tile.marker)
        image, mask = whole_image(sdata, tile.field, tile.marker, s.scale[k])
        y, x = (o.slice for o in places[i // 2].outer)
        np.testing.assert_array_equal(tile.image, image[y, x])
        np.testing.assert_array_equal(tile.mask, mask[y, x])
        ids = store.instance_ids(i)
        known = ids > 0
        rows = truth.obs_names.get_indexer([f"{tile.field}_{j}" for j in ids[known]])
        np.testing.assert_array_equal(tile.target[known], truth.X[rows, k])
        assert np.isnan(tile.target[~known]).all()
        assert set(np.unique(tile.labels)) - {0} == set(range(1, len(tile.target) + 1))


def test_labels_are_the_nearest_pixels_and_padding_is_unknown(write):
    sdata = tissue(n=1, shape=(70, 66), mpp=1.0)
    store = write(sdata, split=(1, 0, 0), tile=80)
    assert len(store) == 2
    tile, ids = store.tile(0), np.append(0, store.instance_ids(0))
    assert tile.labels.shape == (80, 80)
    np.testing.assert_array_equal(ids[tile.labels[:70, :66]], sdata["fov0_labels"].values)
    beyond = tile.labels[70:].ravel().tolist() + tile.labels[:, 66:].ravel().tolist()
    assert set(beyond) == {len(tile.target)}
    assert np.isnan(tile.target[-1])


def test_half_precision_keeps_eleven_bits(write, simulated, tmp_path):
    exact, half = write(simulated), write(simulated, tmp_path / "half.zarr", dtype="float16")
    for i in range(0, len(exact), 5):
        np.testing.assert_allclose(half.tile(i).image, exact.tile(i).image, rtol=2**-10, atol=1e-6)


@given(
    st.integers(1, 400),
    st.sampled_from([0.5, 1.0, 1.54, 2.0, 3.0]),
    st.sampled_from([(32, 0), (48, 16), (96, 32)]),
)
def test_places_cover_the_padded_image_and_share_the_overlap(size, factor, sides):
    tile, overlap = sides
    places = cut_places((size, 7), factor=factor, tile=tile, overlap=overlap)
    rows = sorted({p.outer[0].start for p in places})
    model = max(AxisMap(size, factor).model_size, tile)
    assert rows[0] == 0
    assert rows[-1] + tile == model
    assert all(a + tile - b >= overlap for a, b in pairwise(rows))
    assert all(r % 16 == 0 for r in rows)
    assert all(p.read[0].stop <= size and p.outer_shape == (tile, tile) for p in places)


def counted_object(chunks=(1, 64, 64), shape=(128, 128)):
    labels = random_labels(shape, n=30)
    image = CountedArray(random_image((3, *shape)), chunks)
    segmentation = CountedArray(labels, chunks[1:])
    ids = np.unique(labels)[1:]
    table = ad.AnnData(
        np.tile(np.array([[1.0, 0, np.nan]], np.float32), (len(ids), 1)),
        obs=pd.DataFrame(
            {"region": pd.Categorical(["cells"] * len(ids)), "instance_id": ids.astype(np.int64)},
            index=[f"cells_{i}" for i in ids],
        ),
        var=pd.DataFrame(index=["CD3", "CD8", "CD20"]),
    )
    table = TableModel.parse(table, region="cells", region_key="region", instance_key="instance_id")
    sdata = SpatialData.init_from_elements(
        {
            "image": Image2DModel.parse(image.dask, dims=("c", "y", "x"), c_coords=["CD3", "CD8", "CD20"]),
            "cells": Labels2DModel.parse(segmentation.dask, dims=("y", "x")),
            "annotated": table,
        }
    )
    image.reads.clear()
    segmentation.reads.clear()
    return sdata, image, segmentation


def test_each_chunk_of_a_labelled_marker_is_read_for_the_scale_and_for_its_tile(write):
    sdata, image, segmentation = counted_object()
    store = write(sdata, mpp=1.0, tile=128, split=(1, 0, 0))
    assert store.settings.markers == ("CD3", "CD8")
    assert set(image.reads.values()) == set(segmentation.reads.values()) == {2}
    assert {c for c, _, _ in image.reads} == {0, 1}
    image.reads.clear()
    store.tile(0)
    assert not image.reads


def test_without_labelled_cells_no_image_is_read(write):
    sdata, image, segmentation = counted_object()
    sdata["cells"].data = (sdata["cells"].data[:, :] * (np.arange(128) < 40)).astype("uint32")
    fitted = nb.pp.Normalization(("CD3", "CD8"), (900.0, 900.0), 0.9999, "dataset", ())
    _drop_far_rows(sdata)
    with pytest.warns(NimbusWarning, match="rows have no labelled pixel"):
        write(sdata, mpp=1.0, tile=64, overlap=0, split=(1, 0, 0), normalization=fitted)
    assert {x for _, _, x in image.reads} == {0}
    assert segmentation.reads


def _drop_far_rows(sdata):
    """Keep all cells that are left and one that is gone, so that the segmentation counts as the same."""
    left = set(np.unique(sdata["cells"].values))
    table = sdata["annotated"]
    keep = table.obs["instance_id"].isin(left).to_numpy()
    keep[np.flatnonzero(~keep)[0]] = True
    del sdata["annotated"]
    sdata["annotated"] = table[keep].copy()


class StopHereError(RuntimeError):
    pass


def content(path):
    return {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_an_interrupted_store_continues_and_ends_as_an_uninterrupted_one(
    write, simulated, tmp_path, monkeypatch
):
    whole, broken = tmp_path / "a" / "tiles.zarr", tmp_path / "b" / "tiles.zarr"
    write(simulated, whole)
    original, seen = tile_store._cut, []

    def stop_at_six(plan, index, first):
        seen.append(index)
        if len(seen) == 6:
            raise StopHereError
        return original(plan, index, first)

    monkeypatch.setattr(tile_store, "_cut", stop_at_six)
    with pytest.raises(StopHereError):
        write(simulated, broken, n_threads=0)
    with pytest.raises(InputError, match=r"tiles\.zarr was interrupted: 5 of 12 tiles.*continues there"):
        type(write(simulated, whole)).open(broken)
    seen.clear()
    monkeypatch.setattr(tile_store, "_cut", lambda *a: seen.append(a[1]) or original(*a))
    write(simulated, broken)
    assert sorted(seen) == list(range(5, 12))
    assert content(whole) == content(broken)
    seen.clear()
    write(simulated, broken)
    assert not seen


def test_a_place_that_was_half_written_is_written_again(write, simulated):
    store = write(simulated)
    before = content(store.path)
    group = zarr.open_group(store.path, mode="r+")
    # a run that died after the pixels of a place and before its mark
    group["images"][3] = 7
    group["labels"][3] = 0
    group["defined"][3] = -1
    group.attrs["complete"] = False
    assert content(store.path) != before
    assert content(write(simulated).path) == before


def test_settings_that_were_edited_are_noticed(write, simulated):
    store = write(simulated)
    attrs = zarr.open_group(store.path, mode="r+").attrs
    attrs["settings"] = {**attrs["settings"], "mpp": 0.5}
    with pytest.raises(InputError, match="settings were changed after it was written"):
        type(store).open(store.path)
    with pytest.raises(InputError, match="settings were changed"):
        write(simulated)
    assert write(simulated, overwrite=True).settings.mpp == 1.0


def test_tiles_are_read_from_threads_and_other_processes(write, simulated):
    store = write(simulated)
    alone = [store.tile(i).image.sum() for i in range(len(store))]
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301 - our own
    with ThreadPoolExecutor(8) as pool:
        order = list(range(len(store))) * 4
        found = list(pool.map(lambda i: copy.tile(i).image.sum(), order))
    assert found == alone * 4


def test_there_is_no_store(write, tmp_path):
    with pytest.raises(InputError, match=r"no training tiles at .*nowhere; write one with nb\.pp"):
        nb.pp.TileStore.open(tmp_path / "nowhere")


def test_images_with_several_labels_stay_in_one_split(write, simulated):
    other = SpatialData.init_from_elements({k: v for _, k, v in simulated.gen_elements()})
    other["again"] = other["fov1_labels"].copy()
    table = simulated["truth"].copy()
    second = table[table.obs["region"] == "fov1_labels"].copy()
    second.obs["region"] = "again"
    second.obs_names = "again_" + second.obs_names
    both = ad.concat([table, second])
    both.obs["region"] = pd.Categorical(both.obs["region"])
    both.uns.pop("spatialdata_attrs", None)
    del other["truth"]
    regions = list(both.obs["region"].cat.categories)
    other["truth"] = TableModel.parse(both, region=regions, region_key="region", instance_key="instance_id")
    splits = {field: split for (_, field), split in write(other).splits.items()}
    assert splits["again"] == splits["fov1_labels"]


@pytest.mark.parametrize("module", [cut, split, reach], ids=lambda m: m.__name__)
def test_examples_of_inner_modules_run(module):
    assert doctest.testmod(module) == doctest.TestResults(0, doctest.testmod(module).attempted)
    assert doctest.testmod(module).attempted > 0


def test_a_store_of_other_settings_or_data_is_named_and_refused(write, simulated, tmp_path):
    store = write(simulated)
    before = content(store.path)
    with pytest.raises(InputError, match=r"tiles\.zarr.*other settings.*tile: 48 / 64.*overwrite=True"):
        write(simulated, tile=64)
    with pytest.raises(InputError, match="targets_sha256"):
        write(tissue(seed=1))
    assert content(store.path) == before
    assert write(simulated, tile=64, overwrite=True).settings.tile == 64


def test_what_is_no_tile_store_is_never_touched(write, simulated, tmp_path):
    foreign = tmp_path / "foreign.zarr"
    zarr.create_group(foreign, zarr_format=3).attrs["mine"] = 1
    text = tmp_path / "folder"
    text.mkdir()
    (text / "thesis.txt").write_text("all of it")
    (tmp_path / "file").write_text("x")
    for path in (foreign, text, tmp_path / "file"):
        for overwrite in (False, True):
            with pytest.raises(InputError, match="pass another path"):
                write(simulated, path, overwrite=overwrite)
    assert (text / "thesis.txt").read_text() == "all of it"
    assert zarr.open_group(foreign, mode="r").attrs["mine"] == 1


def test_a_table_of_another_segmentation_is_refused(write, simulated, tmp_path, unchanged):
    with unchanged(simulated):
        other = SpatialData.init_from_elements({k: v for _, k, v in simulated.gen_elements()})
    table = simulated["truth"].copy()
    table.obs["instance_id"] += 100_000
    del other["truth"]
    other["truth"] = table
    with pytest.raises(InputError, match=r"'truth', labels 'fov0_labels': 0 of .* another segmentation"):
        write(other)
    table = simulated["truth"].copy()
    table.obs["area_px"] = 3
    del other["truth"]
    other["truth"] = table
    with pytest.raises(InputError, match=r"100% of the cells .* area_px"):
        write(other)
    assert not (tmp_path / "tiles.zarr").exists()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"labels_layer": "silver"}, ElementNotFoundError, r"no table has a layer 'silver'.*silver_labels"),
        ({"table": "truth", "labels_layer": "gold"}, ElementNotFoundError, "no layer 'gold'; valid: 'X'"),
        ({"channels": ["CD4"]}, ElementNotFoundError, "CD4"),
        ({"extra": ["DAPI"]}, InputError, "extra= names .'DAPI'."),
        ({"tile": 50}, InputError, "multiple of 16"),
        ({"overlap": 48}, InputError, "overlap=48"),
        ({"dtype": "int8"}, InputError, "float16, float32"),
        ({"split": {"fov0_labels": "train"}}, InputError, "leaves out .'fov1_labels', 'fov2_labels'"),
        ({"split": (0.5, 0.1, 0.1)}, InputError, "sum to 1"),
    ],
)
def test_bad_requests_write_nothing(write, simulated, tmp_path, options, error, said):
    with pytest.raises(error, match=said):
        write(simulated, **options)
    assert list(tmp_path.iterdir()) == []


def test_undefined_cells_and_markers(write, simulated):
    other = SpatialData.init_from_elements({k: v for _, k, v in simulated.gen_elements()})
    table = simulated["truth"].copy()
    silver = np.array(table.X)
    silver[:, 0] = np.nan
    silver[::2, 1] = np.nan
    table.layers["silver"] = silver
    del other["truth"]
    other["truth"] = table
    store = write(other, labels_layer="silver")
    assert {store.tile(i).marker for i in range(len(store))} == {"CD8"}
    assert any(np.isnan(store.tile(i).target).any() for i in range(len(store)))
    table.layers["silver"][:] = np.nan
    with pytest.raises(InputError, match="labels none of the images' channels"):
        write(other, labels_layer="silver", overwrite=True)
    table.layers["silver"][:] = 2
    with pytest.raises(InputError, match=r"holds \[2.0\] for 'CD3'; valid"):
        write(other, labels_layer="silver", overwrite=True)


def test_extra_planes_are_normalised_alike(write, simulated, tmp_path):
    store = write(simulated, channels=["CD3"], extra=["CD8"])
    alone = write(simulated, tmp_path / "cd8.zarr", channels=["CD8"])
    assert store.tile(0).extra.shape == (1, 48, 48)
    np.testing.assert_array_equal(store.tile(3).extra[0], alone.tile(3).image)


def test_it_is_a_source_with_disjoint_splits_that_exports(write, simulated, tmp_path):
    store = write(simulated, extra=["CD8"])
    assert isinstance(store, SplitSource)
    parts = [store.split(n) for n in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(store)
    for a, b in pairwise(parts):
        check_disjoint(a, b)
    exported = store.export(tmp_path / "npy", dtype="float32")
    shutil.rmtree(store.path)
    opened = ArraySource.open(tmp_path / "npy")
    assert len(exported) == len(opened) == len(store)
    assert opened.preprocessing == store.preprocessing
    assert len(opened.split("validation")) == len(parts[1])


def test_export_gives_the_same_tiles(write, simulated, tmp_path):
    store = write(simulated)
    exported = store.export(tmp_path / "npy", dtype="float32")
    for i in range(len(store)):
        a, b = store.tile(i), exported.tile(i)
        for name in ("image", "mask", "labels", "target"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert (a.dataset, a.marker, a.field) == (b.dataset, b.marker, b.field)


@given(st.integers(1, 60), st.integers(0, 5))
def test_fields_are_split_as_asked_and_images_stay_together(n, seed):
    owners = {f"{i}_{j}": f"image{i}" for i in range(n) for j in range(2)}
    found = split_fields(owners, seed=seed)
    assert found == split_fields(dict(reversed(owners.items())), seed=seed)
    assert check_split(found, owners) == found
    count = {s: list(found.values()).count(s) // 2 for s in ("train", "validation", "test")}
    assert count["train"] >= 1
    if n >= 3:
        assert count["validation"] == count["test"] == max(round(n / 10), 1)
    assert set(split_fields(owners, shares=(1, 0, 0)).values()) == {"train"}


def test_one_image_in_two_splits_is_refused():
    owners = {"a": "image", "b": "image"}
    with pytest.raises(InputError, match=r"\{'image': \['train', 'validation'\]\}"):
        check_split({"a": "train", "b": "validation"}, owners)
    with pytest.raises(InputError, match="valid: train, validation, test"):
        check_split({"a": "train", "b": "val"}, owners)
