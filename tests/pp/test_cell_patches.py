"""Patches of SpatialData objects: equal to naive slicing of the image around the right places, and lazy."""

import pickle
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import dask.array as da
import dask.dataframe as dd
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
import torch
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale, Translation
from torch.utils.data import DataLoader

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.testing import CountedArray, random_image, random_labels

SHAPE = (60, 44)
NAMES = ["DAPI", "a", "b"]
RAW = {"raw": True, "progress": False, "channels": "all"}
FITTED = Normalization(("a", "b"), (900.0, 500.0), 0.999, "dataset", ())


def image_element(image, transformation=None, **options):
    to = {"global": transformation or Identity()}
    return Image2DModel.parse(image, dims=("c", "y", "x"), c_coords=NAMES, transformations=to, **options)


def labels_element(labels, transformation=None, **options):
    return Labels2DModel.parse(
        labels, dims=("y", "x"), transformations={"global": transformation or Identity()}, **options
    )


def points_element(xy, index=None, transformation=None):
    frame = pd.DataFrame(np.asarray(xy, float), columns=["x", "y"], index=index)
    return PointsModel.parse(frame, transformations={"global": transformation or Identity()})


def circles(xy, index=None):
    frame = gpd.GeoDataFrame(
        {"radius": np.full(len(xy), 3.0)}, geometry=[shapely.Point(p) for p in xy], index=index
    )
    return ShapesModel.parse(frame, transformations={"global": Identity()})


def squares(xy):
    frame = gpd.GeoDataFrame(geometry=[shapely.box(x - 2, y - 2, x + 2, y + 2) for x, y in xy])
    return ShapesModel.parse(frame, transformations={"global": Identity()})


def places(n, shape=SHAPE, seed=0):
    """(x, y) in px coordinates, corners of the image among them."""
    xy = np.random.default_rng(seed).random((n, 2)) * shape[::-1]
    xy[:3] = [[0.0, 0.0], [shape[1] - 0.01, shape[0] - 0.01], [0.5, shape[0] - 0.5]]
    return xy


def centroids(labels):
    ids = np.unique(labels[labels > 0])
    return ids, np.array([np.argwhere(labels == i).mean(axis=0)[::-1] + 0.5 for i in ids])


def check(patches, image, region, ids, xy):
    """All patches against slices of the padded image around px (x, y)."""
    n, c, size, _ = patches.shape
    assert (n, c) == (len(ids), len(image))
    before = size // 2
    wide = np.pad(image, [(0, 0), (before, before), (before, before)], mode="reflect")
    place = dict(zip(np.asarray(ids).tolist(), np.floor(np.asarray(xy)).astype(int).tolist(), strict=True))
    seen = []
    for item in patches:
        x, y = place[item["instance_id"]]
        np.testing.assert_array_equal(item["patch"], wide[:, y : y + size, x : x + size])
        near = min(x, y) < before or x - before + size > image.shape[2] or y - before + size > image.shape[1]
        assert (item["region"], item["border"]) == (region, near)
        seen.append(item["instance_id"])
    assert sorted(seen) == sorted(place)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "float32", "float64", "bool"])
@pytest.mark.parametrize("size", [1, 8, 33])
def test_centroids_of_labels(dtype, size):
    image, labels = random_image((3, *SHAPE), dtype=dtype), random_labels(SHAPE)
    sdata = SpatialData.init_from_elements({"image": image_element(image), "cells": labels_element(labels)})
    patches = nb.pp.cell_patches(sdata, size=size, **RAW)
    assert next(iter(patches))["patch"].dtype == torch.from_numpy(np.empty(1, dtype)).dtype
    check(patches, image, "cells", *centroids(labels))


@pytest.mark.parametrize("ids", [(1, 5, 255, 256, 70_000, 4_000_000_000)])
def test_awkward_label_ids(ids):
    image, labels = random_image((3, *SHAPE)), random_labels(SHAPE, n=6, ids=ids)
    sdata = SpatialData.init_from_elements({"image": image_element(image), "cells": labels_element(labels)})
    check(nb.pp.cell_patches(sdata, size=8, **RAW), image, "cells", *centroids(labels))


@pytest.mark.parametrize("index", [None, [7, *range(50, 68), 4_000_000_000], np.arange(20, dtype="uint32")])
@pytest.mark.parametrize("make", [points_element, circles])
def test_points_and_circles(make, index):
    image, xy = random_image((3, *SHAPE)), places(20)
    sdata = SpatialData.init_from_elements({"image": image_element(image), "nuclei": make(xy, index)})
    check(
        nb.pp.cell_patches(sdata, size=16, **RAW), image, "nuclei", range(20) if index is None else index, xy
    )


def test_patches_as_large_as_the_image():
    image, xy = random_image((3, *SHAPE)), places(20)
    sdata = SpatialData.init_from_elements({"image": image_element(image), "p": points_element(xy)})
    check(nb.pp.cell_patches(sdata, size=min(SHAPE), **RAW), image, "p", range(20), xy)


def test_polygons():
    image, xy = random_image((3, *SHAPE)), places(20)
    sdata = SpatialData.init_from_elements({"image": image_element(image), "outlines": squares(xy)})
    # a centroid is computed from corners and may be off in its last digit
    check(nb.pp.cell_patches(sdata, size=16, **RAW), image, "outlines", range(20), xy + 1e-9)


@pytest.mark.parametrize(
    ("to_image", "to_points", "expected"),
    [
        (Scale([2, 2], ("x", "y")), Identity(), lambda xy: xy / 2),
        (Identity(), Scale([0.5, 0.25], ("x", "y")), lambda xy: xy * [0.5, 0.25]),
        (Translation([-6, 3], ("x", "y")), Translation([1, 3], ("x", "y")), lambda xy: xy + np.array([7, 0])),
        (
            Affine([[0, 1, 0], [-1, 0, 60], [0, 0, 1]], ("x", "y"), ("x", "y")),
            Identity(),
            lambda xy: np.stack([60 - xy[:, 1], xy[:, 0]], axis=1),
        ),
    ],
    ids=["coarser image", "scaled points", "translated", "turned"],
)
def test_other_transformations(to_image, to_points, expected):
    image = random_image((3, *SHAPE))
    xy = np.random.default_rng(0).random((30, 2)) * [30, 25] + [1, 20]
    inside = expected(xy)
    assert (inside > 0).all()
    assert (inside < SHAPE[::-1]).all()
    sdata = SpatialData.init_from_elements(
        {"image": image_element(image, to_image), "nuclei": points_element(xy, None, to_points)}
    )
    check(nb.pp.cell_patches(sdata, size=9, **RAW), image, "nuclei", range(30), inside)


@pytest.mark.parametrize("factor", [2, 3])
def test_labels_on_a_coarser_grid_are_cut_at_the_images_resolution(factor):
    image, labels = random_image((3, *SHAPE)), random_labels(tuple(n // factor for n in SHAPE), n=6)
    coarse = Scale([factor, factor], ("x", "y"))
    sdata = SpatialData.init_from_elements(
        {"image": image_element(image), "cells": labels_element(labels, coarse)}
    )
    ids, xy = centroids(labels)
    check(nb.pp.cell_patches(sdata, size=8, **RAW), image, "cells", ids, xy * factor)


def test_multiscale_elements_use_full_resolution():
    image, labels = random_image((3, *SHAPE)), random_labels(SHAPE)
    sdata = SpatialData.init_from_elements(
        {
            "image": image_element(image, scale_factors=[2]),
            "cells": labels_element(labels, scale_factors=[2]),
        }
    )
    check(nb.pp.cell_patches(sdata, size=8, **RAW), image, "cells", *centroids(labels))


def test_without_centers_labels_come_before_points_and_points_before_shapes():
    elements = {"image": image_element(random_image((3, *SHAPE))), "outlines": squares(places(4))}
    for name, element in (
        ("outlines", None),
        ("nuclei", points_element(places(5))),
        ("cells", labels_element(random_labels(SHAPE))),
    ):
        if element is not None:
            elements[name] = element
        patches = nb.pp.cell_patches(SpatialData.init_from_elements(elements), size=8, **RAW)
        assert patches.centers["region"].unique().tolist() == [name]
    named = nb.pp.cell_patches(SpatialData.init_from_elements(elements), size=8, centers="nuclei", **RAW)
    assert len(named) == 5


def test_several_samples_by_overlap_by_dict_and_by_name(factory):
    sdata = factory(3)
    whole = nb.pp.cell_patches(sdata, size=8, **RAW)
    regions = [f"fov{i}_labels" for i in range(3)]
    assert whole.centers["region"].cat.categories.tolist() == regions
    pairs = {f"fov{i}_labels": f"fov{i}_image" for i in (2, 0)}
    for options in ({"centers": pairs}, {"image": pairs}, {"centers": list(pairs)}):
        some = nb.pp.cell_patches(sdata, size=8, **RAW, **options)
        assert some.centers["region"].cat.categories.tolist() == list(pairs)
    one = nb.pp.cell_patches(sdata, size=8, image="fov1_image", **RAW)
    for item in one:
        assert item["region"] == "fov1_labels"
    image = sdata["fov1_image"].to_numpy()
    check(one, image, "fov1_labels", *centroids(sdata["fov1_labels"].to_numpy()))


def test_several_objects(factory):
    patches = nb.pp.cell_patches({"p1": factory(2), "p2": factory(1)}, size=8, **RAW)
    assert patches.centers["region"].cat.categories.tolist() == [
        "p1/fov0_labels",
        "p1/fov1_labels",
        "p2/fov0_labels",
    ]
    assert Counter(i["region"] for i in patches) == Counter(patches.centers["region"])


def test_channels_come_in_the_order_that_is_asked_for():
    image, labels = random_image((3, *SHAPE)), random_labels(SHAPE)
    sdata = SpatialData.init_from_elements({"image": image_element(image), "cells": labels_element(labels)})
    options = {"size": 8, "raw": True, "progress": False}
    assert nb.pp.cell_patches(sdata, **options).markers == ("a", "b")
    patches = nb.pp.cell_patches(sdata, channels=["b", "DAPI"], **options)
    assert patches.markers == ("b", "DAPI")
    check(patches, image[[2, 0]], "cells", *centroids(labels))


def test_images_with_other_orders_of_channels_agree_by_name(factory):
    sdata = factory(2)
    turned = sdata["fov1_image"].to_numpy()[::-1]
    sdata["fov1_image"] = Image2DModel.parse(
        turned.copy(),
        dims=("c", "y", "x"),
        c_coords=list(sdata["fov1_image"].coords["c"].values[::-1]),
        transformations={"fov1": Identity()},
    )
    patches = nb.pp.cell_patches(
        sdata, size=8, image="fov1_image", **RAW | {"channels": ["CD3", "CD8", "CD20"]}
    )
    check(patches, turned[::-1], "fov1_labels", *centroids(sdata["fov1_labels"].to_numpy()))


def test_normalised_patches_use_the_scales_of_the_whole_dataset(factory):
    sdata = factory(2)
    patches = nb.pp.cell_patches(sdata, size=8, quantile=0.9, progress=False)
    assert patches.normalization == nb.pp.normalization(sdata, quantile=0.9, progress=False)
    raw = {(i["region"], i["instance_id"]): i["patch"] for i in nb.pp.cell_patches(sdata, size=8, **RAW)}
    scale = patches.normalization.scale_of(patches.markers)[:, None, None]
    for item in patches:
        x = raw[item["region"], item["instance_id"]].numpy() / scale
        np.testing.assert_allclose(item["patch"], np.sqrt(np.clip(x, 0, 1)), rtol=1e-6)


def test_the_frame_of_centers(sdata):
    patches = nb.pp.cell_patches(sdata, size=8, **RAW)
    frame = patches.centers
    ids, xy = centroids(sdata["fov0_labels"].to_numpy())
    assert frame["instance_id"].tolist() == ids.tolist()
    np.testing.assert_allclose(frame[["x", "y"]] + 0.5, xy)
    flags = {i["instance_id"]: i["border"] for i in patches}
    assert frame["border"].tolist() == [flags[i] for i in ids.tolist()]
    assert "raw patches (3, 8, 8)" in repr(patches)


@pytest.mark.parametrize("chunks", [(1, 20, 22), (3, 60, 44), (2, 60, 11)])
@pytest.mark.parametrize("options", [{"raw": True}, {"normalization": FITTED}])
def test_no_pixel_is_read_before_iterating_and_each_chunk_once_per_pass(chunks, options):
    image = CountedArray(random_image((3, *SHAPE)), chunks)
    segmentation = CountedArray(random_labels(SHAPE), (20, 44))
    sdata = SpatialData.init_from_elements(
        {"image": image_element(image.dask), "cells": labels_element(segmentation.dask)}
    )
    image.reads.clear()
    segmentation.reads.clear()
    patches = nb.pp.cell_patches(sdata, size=8, progress=False, **options)
    assert len(patches) == len(patches.centers)
    assert not image.reads
    assert set(segmentation.reads.values()) == {1}
    for epoch in (1, 2):
        for _ in patches.batches():
            pass
        assert set(image.reads.values()) == {epoch}
    of_markers = {k for k in image.reads if k[0] == 0}
    assert len(of_markers) == len(image.chunks[1]) * len(image.chunks[2]) or chunks[0] == 1
    assert set(segmentation.reads.values()) == {1}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_data_loader_with_workers_over_a_store_on_disk(tmp_path, factory):
    factory(3, shape=(64, 64)).write(tmp_path / "a.zarr")
    patches = nb.pp.cell_patches(sd.read_zarr(tmp_path / "a.zarr"), size=8, **RAW)
    expected = {(i["region"], i["instance_id"]): i["patch"] for i in patches}
    loader = DataLoader(patches.batches(16), batch_size=None, num_workers=2, multiprocessing_context="fork")
    found = Counter()
    for batch in loader:
        for region, i, patch in zip(
            batch["region"], batch["instance_id"].tolist(), batch["patch"], strict=True
        ):
            assert torch.equal(patch, expected[region, i])
            found[region, i] += 1
    assert found == Counter(dict.fromkeys(expected, 1))
    # what workers that are started anew get
    sent = pickle.loads(pickle.dumps(patches))  # noqa: S301
    assert sorted((i["region"], i["instance_id"]) for i in sent) == sorted(expected)


def test_the_cache_gives_the_same_patches_without_the_image(tmp_path, factory):
    factory(2).write(tmp_path / "a.zarr")
    sdata = sd.read_zarr(tmp_path / "a.zarr")
    options = RAW | {"size": 8, "cache": tmp_path / "deep" / "patches.zarr"}
    first, again = (nb.pp.cell_patches(sdata, **options) for _ in range(2))
    plain = nb.pp.cell_patches(sdata, **options | {"cache": None})
    expected = {(i["region"], i["instance_id"]): (i["patch"], i["border"]) for i in plain}
    for patches in (first, again):
        found = {(i["region"], i["instance_id"]): (i["patch"], i["border"]) for i in patches}
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k][0], v[0]) and found[k][1] == v[1] for k, v in expected.items())
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "deep").rglob("*")}
    normalised = nb.pp.cell_patches(
        sdata,
        **options
        | {"raw": False, "normalization": Normalization(first.markers, (9.0,) * 3, 0.9, "dataset", ())},
    )
    assert next(iter(normalised))["patch"].max() <= 1
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "deep").rglob("*")} == before
    assert not list((tmp_path / "deep").glob(".*"))


def test_a_stale_or_foreign_cache_is_refused_and_left_alone(tmp_path, factory):
    factory(1).write(tmp_path / "a.zarr")
    sdata = sd.read_zarr(tmp_path / "a.zarr")
    cache = tmp_path / "patches.zarr"
    nb.pp.cell_patches(sdata, size=8, cache=cache, **RAW)
    for options, word in (
        ({"size": 10}, "size"),
        ({"channels": ["CD3"]}, "markers"),
    ):
        with pytest.raises(
            InputError, match=f"patches of other cells, channels or pixels .different: {word}"
        ):
            nb.pp.cell_patches(sdata, **{"size": 8, "cache": cache} | RAW | options)
    files = (tmp_path / "a.zarr" / "images" / "fov0_image").rglob("*")
    pixels = next(p for p in files if p.is_file() and p.name != "zarr.json")
    pixels.write_bytes(pixels.read_bytes())
    with pytest.raises(InputError, match="different: images_hash"):
        nb.pp.cell_patches(sd.read_zarr(tmp_path / "a.zarr"), size=8, cache=cache, **RAW)
    with pytest.raises(InputError, match="something else"):
        nb.pp.cell_patches(sdata, size=8, cache=tmp_path / "a.zarr", **RAW)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(InputError, match="no store of cell patches"):
        nb.pp.cell_patches(sdata, size=8, cache=tmp_path / "notes", **RAW)
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


def test_a_cache_that_failed_leaves_nothing_and_one_in_memory_is_refused(tmp_path, factory):
    with pytest.raises(InputError, match="'fov0_image' lies in memory"):
        nb.pp.cell_patches(factory(1), size=8, cache=tmp_path / "patches.zarr", **RAW)
    sdata = factory(1, dtype="float32")
    image = sdata["fov0_image"].to_numpy().copy()
    image[1, 30, 30] = np.nan
    sdata["fov0_image"].data = image
    sdata.write(tmp_path / "a.zarr")
    with pytest.raises(InputError, match="channel 'CD8': 1 NaN"):
        nb.pp.cell_patches(sd.read_zarr(tmp_path / "a.zarr"), size=8, cache=tmp_path / "patches.zarr", **RAW)
    assert not (tmp_path / "patches.zarr").exists()


def test_several_writers_of_one_cache_all_get_it_whole(tmp_path, factory):
    factory(2).write(tmp_path / "a.zarr")
    n, place = 4, tmp_path / "caches"
    start = threading.Barrier(n)

    def write(i):
        objects = sd.read_zarr(tmp_path / "a.zarr")
        start.wait()
        return nb.pp.cell_patches(objects, size=8, cache=place / "patches.zarr", **RAW)

    with ThreadPoolExecutor(n) as pool:
        results = list(pool.map(write, range(n)))
    plain = nb.pp.cell_patches(sd.read_zarr(tmp_path / "a.zarr"), size=8, **RAW)
    expected = {(i["region"], i["instance_id"]): i["patch"] for i in plain}
    for patches in results:
        found = {(i["region"], i["instance_id"]): i["patch"] for i in patches}
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k], v) for k, v in expected.items())
    assert [p.name for p in place.iterdir()] == ["patches.zarr"]


@pytest.mark.parametrize("lost", ["patches", "row", "patches/c/0", "sample/c/0"])
def test_a_cache_with_a_part_missing_is_refused(tmp_path, factory, lost):
    factory(1).write(tmp_path / "a.zarr")
    sdata, cache = sd.read_zarr(tmp_path / "a.zarr"), tmp_path / "patches.zarr"
    nb.pp.cell_patches(sdata, size=8, cache=cache, **RAW)
    victim = cache / lost
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    with pytest.raises(InputError, match=rf"is incomplete: .*'{lost.split('/')[0]}'.*remove it"):
        nb.pp.cell_patches(sdata, size=8, cache=cache, **RAW)


def test_a_cache_of_empty_pixels_is_whole(tmp_path, factory):
    sdata = factory(1)
    sdata["fov0_image"].data = da.zeros_like(sdata["fov0_image"].data)
    sdata.write(tmp_path / "a.zarr")
    for _ in range(2):
        found = nb.pp.cell_patches(
            sd.read_zarr(tmp_path / "a.zarr"), size=8, cache=tmp_path / "patches.zarr", **RAW
        )
        assert not any(i["patch"].any() for i in found)


class TestBadInput:
    image = image_element(random_image((3, *SHAPE)))

    def fails(self, elements, match, error=InputError, **options):
        sdata = SpatialData.init_from_elements({"image": self.image} | elements)
        with pytest.raises(error, match=match):
            nb.pp.cell_patches(sdata, **{"size": 8} | RAW | options)

    def test_nothing_to_centre_on(self):
        self.fails({}, "no labels, points or shapes")

    def test_unknown_names(self):
        cells = {"cells": labels_element(random_labels(SHAPE))}
        self.fails(
            cells, "no labels, points or shapes 'nuclei'.*'cells'", ElementNotFoundError, centers="nuclei"
        )
        self.fails(cells, "no image 'x'.*'image'", ElementNotFoundError, image="x")
        self.fails(cells, "no channel", ElementNotFoundError, channels=["CD99"])

    def test_two_candidates(self):
        two = {"p": points_element(places(5)), "q": points_element(places(6))}
        self.fails(two, "which centres.*'p', 'q'; pass centers=")
        self.fails(two, "which centres.*'p', 'q'", image="image")

    def test_two_images(self):
        more = {"cells": labels_element(random_labels(SHAPE)), "he": self.image}
        self.fails(more, "labels 'cells': several images overlap: 'image', 'he'; pass image=")

    def test_no_overlap(self):
        far = {"p": points_element(places(5) + 1000)}
        self.fails(far, "points 'p': no image overlaps in a shared coordinate system")
        self.fails(far, "points 'p' and image 'image' don't overlap", image="image")

    def test_centres_outside(self):
        xy = places(9)
        xy[4] = [SHAPE[1] + 0.2, 5]
        self.fails({"p": points_element(xy)}, "1 of 9 centres of 'p' lie outside image 'image'.*id 4")

    def test_patches_larger_than_the_image(self):
        for size in (45, 88):
            said = f"'image' is 60 x 44 px, too small for patches of {size} px; they can have at most 44"
            self.fails({"p": points_element(places(9))}, said, size=size)

    def test_broken_positions(self):
        xy = places(9)
        xy[2, 1] = np.nan
        self.fails({"p": points_element(xy)}, "1 of 9 positions are missing or not finite")

    @pytest.mark.parametrize("make", [points_element, circles])
    def test_ids_that_are_no_unique_whole_numbers(self, make):
        self.fails({"p": make(places(4), [1, 2, 2, 3])}, r"index holds \[2\] more than once")
        self.fails({"p": make(places(4), list("abcd"))}, "ids must be whole numbers; reset it")
        self.fails({"p": make(places(4), [0.5, 1, 2, 3])}, "ids must be whole numbers; reset it")

    @pytest.mark.filterwarnings("ignore:The index of the dataframe:UserWarning")
    def test_partitions_that_number_their_rows_alike(self):
        frame = pd.DataFrame(places(6), columns=["x", "y"])
        twice = dd.concat(
            [dd.from_pandas(frame[:3], npartitions=1), dd.from_pandas(frame[:3], npartitions=1)]
        )
        self.fails({"p": PointsModel.parse(twice)}, "more than once")

    def test_empty_labels(self):
        self.fails({"cells": labels_element(np.zeros(SHAPE, "uint16"))}, "labels 'cells': no cell in them")

    def test_arguments_that_contradict(self):
        cells = {"cells": labels_element(random_labels(SHAPE))}
        self.fails(cells, "leave image= out", centers={"cells": "image"}, image="image")
        self.fails(cells, "name the same elements", centers=["cells"], image={"other": "image"})
        self.fails(cells, "name the same elements", image={})
        self.fails(cells, "at least one element, and each once", centers=["cells", "cells"])
        self.fails(cells, "leave normalization= out", normalization=FITTED)
        self.fails(cells, "transform='log'", transform="log")
        self.fails(cells, "mpp=-1 must be", mpp=-1)
        self.fails(cells, "no scale for", raw=False, normalization=FITTED)

    def test_a_coordinate_system_that_is_not_shared(self):
        cells = {"cells": labels_element(random_labels(SHAPE))}
        self.fails(cells, "no image overlaps in coordinate system 'x'", coordinate_system="x")
        self.fails(cells, "don't overlap", coordinate_system="x", image="image")

    def test_bad_pixels_while_iterating(self):
        image = random_image((3, *SHAPE), dtype="float32")
        image[1, 20, 20] = -1
        sdata = SpatialData.init_from_elements(
            {"image": image_element(image), "cells": labels_element(random_labels(SHAPE))}
        )
        with pytest.raises(InputError, match="image 'image', channel 'a': 1 negative"):
            list(nb.pp.cell_patches(sdata, size=8, **RAW))


def test_a_centre_on_the_very_edge_survives_rounding():
    image = random_image((3, *SHAPE))
    third = Scale([1 / 3, 1 / 3], ("x", "y"))
    xy = np.array([[0.0, 0.0], [43.999999999, 59.999999999]]) * 3
    sdata = SpatialData.init_from_elements(
        {"image": image_element(image), "p": points_element(xy - 1e-8, None, third)}
    )
    assert len(list(nb.pp.cell_patches(sdata, size=8, **RAW))) == 2


def test_nothing_in_the_object_changes(sdata, unchanged):
    with unchanged(sdata):
        list(nb.pp.cell_patches(sdata, size=8, progress=False))
