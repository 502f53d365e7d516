"""Score maps: spooled on the model's grid by any process, seen at full resolution, stored whole or not."""

import gc
import multiprocessing
import os
import resource
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import cloudpickle
import dask
import numpy as np
import pytest
import spatialdata as sd
import zarr
from distributed import Client
from spatialdata import SpatialData
from spatialdata._io.format import SpatialDataContainerFormatV01
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, Scale, Translation, get_transformation
from xarray import DataTree

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.elements import finest
from nimbus_sd._sdata.maps import MapSink, keep_alive, map_element
from nimbus_sd._sdata.persist import persist_map
from nimbus_sd._sdata.resolve import resolve_pairs, resolve_sample
from nimbus_sd.arrays import plan_tiles

CHANNELS = ("CD3", "CD8", "CD20")
SHAPE = (70, 52)


def probabilities(plan, k=3, seed=0):
    """Something for every model px, float32."""
    return np.random.default_rng(seed).random((k, plan.y.model_size, plan.x.model_size), dtype=np.float32)


def core_of(values, tile):
    y, x = (part.slice for part in tile.core)
    return values[:, y, x]


def fill(sink, plan, values):
    """All tiles in random order, the markers in two groups."""
    for i in np.random.default_rng(1).permutation(len(plan)):
        core = core_of(values, plan[int(i)])
        sink.write(plan[int(i)], [2], core[2:])
        sink.write(plan[int(i)], range(2), core[:2])


def oracle(values, shape, factor):
    """Each px takes the model px that its centre lies in; one by one."""
    out = np.empty((len(values), *shape), values.dtype)
    for y in range(shape[0]):
        for x in range(shape[1]):
            j, i = (
                min(int((n + 0.5) / factor + 1e-9), m - 1)
                for n, m in zip((y, x), values.shape[1:], strict=True)
            )
            out[:, y, x] = values[:, j, i]
    return out


def sample_of(sdata, labels="fov0_labels"):
    image = labels.replace("labels", "image")
    return resolve_sample(sdata, resolve_pairs(sdata, image={labels: image})[0])


def map_of(sdata, folder, *, factor=2.0, dtype="float16", seed=0, labels="fov0_labels"):
    """An element as a run makes it, and what it should hold."""
    sample = sample_of(sdata, labels)
    plan = plan_tiles(sample.sample.labels.shape, factor=factor, tile=16, halo=0)
    values = probabilities(plan, seed=seed)
    sink = MapSink.create(folder / "map", plan, len(CHANNELS), dtype)
    fill(sink, plan, values)
    kept = np.rint(values * 255).astype("uint8") if dtype == "uint8" else values.astype(dtype)
    expected = oracle(kept, sample.sample.labels.shape, factor)
    return map_element(sink, plan, sample, CHANNELS), expected


@pytest.fixture
def stored(factory, tmp_path):
    """An object in a store."""
    factory().write(tmp_path / "s.zarr")
    return sd.read_zarr(tmp_path / "s.zarr")


def pixels(element):
    return finest(element).data.compute()


def leftovers(path):
    return [p for p in path.rglob(".*") if "nimbus-tmp" in p.name]


class TestSpool:
    @pytest.mark.parametrize("dtype", ["float16", "uint8"])
    @pytest.mark.parametrize("factor", [2.0, 1.54, 0.5, 1.0])
    def test_tiles_in_any_order_make_the_map(self, sdata, tmp_path, factor, dtype):
        element, expected = map_of(sdata, tmp_path, factor=factor, dtype=dtype)
        values = pixels(element)
        assert values.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(values, expected)

    def test_processes_write_at_once(self, sdata, tmp_path):
        plan = plan_tiles(SHAPE, factor=1.0, tile=16, halo=0)
        values = probabilities(plan)
        sink = MapSink.create(tmp_path / "map", plan, len(CHANNELS), "float16")
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=spawn) as pool:
            done = [pool.submit(sink.write, tile, range(3), core_of(values, tile)) for tile in plan]
            for future in done:
                future.result()
        element = map_element(sink, plan, sample_of(sdata), CHANNELS)
        np.testing.assert_array_equal(pixels(element), oracle(values.astype("float16"), SHAPE, 1.0))

    @pytest.mark.parametrize("tile", [16, 1024, 1040, 1072, 2048, 2064, 2096, 4096])
    def test_no_chunk_is_shared_by_two_tiles(self, tmp_path, tile):
        plan = plan_tiles((5000, 4000), factor=1.0, tile=tile)
        sink = MapSink.create(tmp_path / "map", plan, 2, "uint8")
        k, y, x = zarr.open_array(sink.path, mode="r").chunks
        assert (k, y) == (1, x)
        assert tile % y == 0
        assert min(tile, 512) <= y <= 1024

    def test_markers_need_not_be_neighbours(self, tmp_path):
        plan = plan_tiles((16, 16), factor=1.0, tile=32)
        sink = MapSink.create(tmp_path / "map", plan, 4, "float16")
        values = probabilities(plan, 2)
        sink.write(plan[0], [3, 1], values)
        kept = zarr.open_array(sink.path, mode="r")[:]
        np.testing.assert_array_equal(kept[[3, 1]], values.astype("float16"))
        assert not kept[[0, 2]].any()

    def test_tiles_never_written_are_0(self, sdata, tmp_path):
        plan = plan_tiles(SHAPE, factor=1.0, tile=32, halo=0)
        sink = MapSink.create(tmp_path / "map", plan, len(CHANNELS), "float16")
        sink.write(plan[3], range(3), np.ones_like(core_of(probabilities(plan), plan[3])))
        values = pixels(map_element(sink, plan, sample_of(sdata), CHANNELS))
        y, x = (part.slice for part in plan[3].owned)
        assert (values[:, y, x] == 1).all()
        assert values.sum(dtype=float) == values[:, y, x].size

    def test_a_resumed_run_goes_on_with_the_array(self, tmp_path):
        plan = plan_tiles(SHAPE, factor=1.0, tile=32, halo=0)
        values = probabilities(plan)
        for tile in (plan[0], plan[1]):
            sink = MapSink.create(tmp_path / "map", plan, len(CHANNELS), "float16")
            sink.write(tile, range(3), core_of(values, tile))
        kept = zarr.open_array(sink.path, mode="r")
        for tile in (plan[0], plan[1]):
            np.testing.assert_array_equal(core_of(kept, tile), core_of(values, tile).astype("float16"))

    @pytest.mark.parametrize(
        ("tile", "dtype", "k"), [(16, "float16", 3), (32, "uint8", 3), (32, "float16", 2)]
    )
    def test_another_array_is_replaced(self, tmp_path, tile, dtype, k):
        first = plan_tiles(SHAPE, factor=1.0, tile=32, halo=0)
        sink = MapSink.create(tmp_path / "map", first, 3, "float16")
        sink.write(first[0], range(3), core_of(probabilities(first), first[0]))
        plan = plan_tiles(SHAPE, factor=1.0, tile=tile, halo=0)
        again = MapSink.create(tmp_path / "map", plan, k, dtype)
        assert not zarr.open_array(again.path, mode="r")[:].any()
        ones = np.ones_like(core_of(probabilities(plan, k), plan[0]))
        again.write(plan[0], range(k), ones)
        kept = zarr.open_array(again.path, mode="r")
        assert kept.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(core_of(kept, plan[0]), ones * (255 if dtype == "uint8" else 1))

    def test_what_a_crash_left_of_an_array_is_replaced(self, tmp_path):
        plan = plan_tiles(SHAPE, factor=1.0, tile=32, halo=0)
        (tmp_path / "map").mkdir()
        MapSink.create(tmp_path / "map", plan, 3, "uint8")
        (tmp_path / "map" / "zarr.json").write_text("{")
        sink = MapSink.create(tmp_path / "map", plan, 3, "uint8")
        assert zarr.open_array(sink.path, mode="r").shape == probabilities(plan).shape

    def test_other_dtypes_are_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"'int4'; valid: 'float16', 'uint8'"):
            MapSink.create(tmp_path / "map", plan_tiles(SHAPE, factor=1.0, tile=16), 1, "int4")


class TestElement:
    def test_is_lazy_with_one_task_per_chunk(self, factory, tmp_path):
        sdata = factory(shape=(2100, 1100), n_cells=5)
        plan = plan_tiles((2100, 1100), factor=2.0, tile=256)
        computed = []

        def count(graph, keys, **options):
            computed.append(keys)
            return dask.get(graph, keys, **options)

        with dask.config.set(scheduler=count):
            sink = MapSink.create(tmp_path / "map", plan, 3, "uint8")
            element = map_element(sink, plan, sample_of(sdata), CHANNELS)
        assert not computed
        data = finest(element).data
        assert data.chunks == ((1, 1, 1), (1024, 1024, 52), (1024, 76))
        levels = [next(iter(level.data_vars.values())) for level in element.children.values()]
        assert [level.shape[1:] for level in levels] == [(2100, 1100), (1050, 550), (525, 275)]
        for level in levels:
            assert level.dtype == np.uint8
            (graph,) = dask.optimize(level.data)
            assert len(dict(graph.dask)) == level.data.npartitions + 1  # and what they read from

    @pytest.mark.parametrize(
        ("shape", "sides"), [((2, 2), [2, 1]), ((1024, 40), [1024, 512]), ((3, 5000), [3, 1]), ((1, 9), [1])]
    )
    def test_levels_by_size(self, factory, tmp_path, shape, sides):
        sdata = factory(shape=shape, n_cells=1)
        plan = plan_tiles(shape, factor=1.0, tile=1024)
        sink = MapSink.create(tmp_path / "map", plan, 3, "float16")
        element = map_element(sink, plan, sample_of(sdata), CHANNELS)
        levels = list(element.children.values()) if isinstance(element, DataTree) else [element]
        assert [level.sizes["y"] for level in levels] == sides

    @pytest.mark.parametrize("dtype", ["float16", "uint8"])
    @pytest.mark.parametrize("factor", [2.0, 1.54, 0.5])
    def test_levels_are_means(self, factory, tmp_path, factor, dtype):
        shape = (5003, 11)
        sdata = factory(shape=shape, n_cells=1)
        plan = plan_tiles(shape, factor=factor, tile=512, halo=0)
        sink = MapSink.create(tmp_path / "map", plan, 3, dtype)
        fill(sink, plan, probabilities(plan))
        element = map_element(sink, plan, sample_of(sdata), CHANNELS)
        assert list(element.children) == ["scale0", "scale1", "scale2", "scale3"]
        whole = pixels(element).astype(float)
        for i in range(1, 4):
            n, (y, x) = 2**i, (side >> i for side in shape)
            level = next(iter(element[f"scale{i}"].data_vars.values())).data.compute()
            means = whole[:, : y * n, : x * n].reshape(3, y, n, x, n).mean((2, 4))
            assert level.dtype == np.dtype(dtype)
            np.testing.assert_allclose(level, means, atol=0.501 if dtype == "uint8" else 1e-3)

    def test_is_what_the_parser_makes(self, sdata, tmp_path):
        element, expected = map_of(sdata, tmp_path)
        to = {"fov0": Identity()}
        parsed = Image2DModel.parse(
            expected, dims=("c", "y", "x"), c_coords=CHANNELS, transformations=to, scale_factors=[2]
        )
        Image2DModel().validate(element)
        for scale in ("scale0", "scale1"):
            found, wanted = (next(iter(e[scale].data_vars.values())) for e in (element, parsed))
            assert (found.name, found.dims, found.dtype) == (wanted.name, wanted.dims, wanted.dtype)
            for axis in ("c", "y", "x"):
                np.testing.assert_array_equal(found.coords[axis], wanted.coords[axis])
            matrices = [
                get_transformation(v, "fov0").to_affine_matrix(*[("x", "y")] * 2) for v in (found, wanted)
            ]
            np.testing.assert_allclose(*matrices)

    def test_lies_where_the_image_does(self, sdata, tmp_path, place):
        for name in ("fov0_image", "fov0_labels"):
            steps = (Scale([0.5, 0.5], axes=("x", "y")), Translation([7, 3], axes=("x", "y")))
            place(sdata, name, *steps, system="slide")
        element, _ = map_of(sdata, tmp_path)
        matrices = [
            get_transformation(e, "slide").to_affine_matrix(("x", "y"), ("x", "y"))
            for e in (element, sdata["fov0_image"])
        ]
        np.testing.assert_allclose(*matrices)
        assert finest(element).coords["c"].values.tolist() == list(CHANNELS)

    def test_parts_are_read_as_asked(self, sdata, tmp_path):
        element, expected = map_of(sdata, tmp_path, factor=1.54)
        data = finest(element).data
        for key in (
            np.s_[1:3, 13:61:4, 50:3:-1],
            np.s_[2],
            np.s_[1, 5],
            np.s_[[2, 0], :, 7],
            np.s_[..., None],
        ):
            np.testing.assert_array_equal(data[key].compute(), expected[key])
        assert finest(element).data[:, 5:5].compute().shape == (3, 0, SHAPE[1])

    def test_folder_stays_until_the_last_array_is_gone(self, factory, tmp_path):
        sdata, folder = factory(2), tmp_path / "spool"
        kept = []
        for i in range(2):
            (folder / str(i)).mkdir(parents=True)
            element, expected = map_of(sdata, folder / str(i), seed=i, labels=f"fov{i}_labels")
            keep_alive(element, folder)
            kept.append((finest(element).data, expected))
            del element
        for _ in range(2):
            gc.collect()
            data, expected = kept.pop()
            np.testing.assert_array_equal(data.compute(), expected)
            del data
        gc.collect()
        assert not folder.exists()

    def test_folder_outlives_copies_in_other_processes(self, sdata, tmp_path):
        (tmp_path / "spool").mkdir()
        element, expected = map_of(sdata, tmp_path / "spool")
        keep_alive(element, tmp_path / "spool")
        copy = cloudpickle.loads(cloudpickle.dumps(finest(element).data))
        del copy
        gc.collect()
        np.testing.assert_array_equal(pixels(element), expected)


def persist(sdata):
    """Write the map that is in the object; the object reads it from the store from then on."""
    stored = persist_map(sdata, "score", sdata.images["score"])
    del sdata.images["score"]
    sdata.images["score"] = stored


def files_of(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class TestPersist:
    @pytest.mark.parametrize("dtype", ["float16", "uint8"])
    def test_twice(self, stored, tmp_path, dtype):
        for seed in (0, 1):
            spool = tmp_path / f"spool{seed}"
            spool.mkdir()
            element, expected = map_of(stored, spool, dtype=dtype, seed=seed)
            keep_alive(element, spool)
            stored.images.pop("score", None)
            stored["score"] = element
            del element
            persist(stored)
            gc.collect()
            assert not spool.exists()
            again = sd.read_zarr(tmp_path / "s.zarr")
            for found in (stored["score"], again["score"]):
                np.testing.assert_array_equal(pixels(found), expected)
                assert list(found.children) == ["scale0", "scale1"]
                assert {next(iter(s.data_vars.values())).dtype for s in found.children.values()} == {
                    np.dtype(dtype)
                }
                assert finest(found).coords["c"].values.tolist() == list(CHANNELS)
        assert not leftovers(tmp_path / "s.zarr")

    def test_an_active_cluster_is_left_out(self, stored, tmp_path):
        """Its workers may not see the spool."""
        stored["score"], expected = map_of(stored, tmp_path)
        with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
            persist(stored)
            assert not client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter)
        np.testing.assert_array_equal(pixels(stored["score"]), expected)

    def test_once_more_what_lies_there_already(self, stored, tmp_path):
        stored["score"], expected = map_of(stored, tmp_path)
        for _ in range(2):
            persist(stored)
        np.testing.assert_array_equal(pixels(stored["score"]), expected)

    def test_stores_of_the_older_format_stay_so(self, factory, tmp_path):
        path = tmp_path / "old.zarr"
        factory().write(path, sdata_formats=SpatialDataContainerFormatV01())
        with pytest.warns(UserWarning, match="not stored in the most current format"):
            sdata = sd.read_zarr(path)
        sdata["score"], expected = map_of(sdata, tmp_path)
        persist(sdata)
        assert zarr.open_group(path / "images" / "score", mode="r").metadata.zarr_format == 2
        with pytest.warns(UserWarning, match="not stored in the most current format"):
            again = sd.read_zarr(path)
        np.testing.assert_array_equal(pixels(again["score"]), expected)

    def test_leftovers_go_and_those_of_others_stay(self, stored, tmp_path):
        images = tmp_path / "s.zarr" / "images"
        mine, other = (images / f".{name}.{'a' * 32}.nimbus-tmp" for name in ("score", "score.b"))
        for left in (mine, other):
            left.mkdir()
        stored["score"], _ = map_of(stored, tmp_path)
        persist(stored)
        assert leftovers(tmp_path / "s.zarr") == [other]

    def test_full_disk_leaves_the_old_map(self, stored, tmp_path):
        stored["score"], expected = map_of(stored, tmp_path)
        persist(stored)
        (tmp_path / "new").mkdir()
        del stored.images["score"]
        stored["score"], _ = map_of(stored, tmp_path / "new", seed=1)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                persist(stored)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        np.testing.assert_array_equal(pixels(sd.read_zarr(tmp_path / "s.zarr")["score"]), expected)
        assert not leftovers(tmp_path / "s.zarr")

    def test_metadata_that_can_not_be_written_bring_the_old_map_back(self, stored, tmp_path, monkeypatch):
        stored["score"], expected = map_of(stored, tmp_path)
        persist(stored)
        (tmp_path / "new").mkdir()
        del stored.images["score"]
        stored["score"], new = map_of(stored, tmp_path / "new", seed=1)

        def full(self):
            raise OSError(28, os.strerror(28))

        with monkeypatch.context() as patch:
            patch.setattr(SpatialData, "write_consolidated_metadata", full)
            with pytest.raises(OSError, match="No space"):
                persist(stored)
        np.testing.assert_array_equal(pixels(sd.read_zarr(tmp_path / "s.zarr")["score"]), expected)
        assert not leftovers(tmp_path / "s.zarr")
        persist(stored)  # the new one is still in the object
        np.testing.assert_array_equal(pixels(sd.read_zarr(tmp_path / "s.zarr")["score"]), new)

    @pytest.mark.parametrize(("moment", "new"), [("put_in_place", False), ("_take_back", True)])
    def test_killed(self, stored, tmp_path, moment, new):
        """Just before and just after the two trade places; a map of another dtype replaces the old."""
        stored["score"], old = map_of(stored, tmp_path)
        persist(stored)
        code = KILLED.format(store=str(tmp_path / "s.zarr"), moment=moment)
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False)
        assert done.returncode == -9
        found = pixels(sd.read_zarr(tmp_path / "s.zarr")["score"])
        np.testing.assert_array_equal(found, np.rint(old * 100).astype("uint8") if new else old)
        again = sd.read_zarr(tmp_path / "s.zarr")
        persist(again)
        assert not leftovers(tmp_path / "s.zarr")

    def test_needs_a_store_and_a_name_of_its_own(self, sdata, stored, tmp_path):
        sdata["score"], _ = map_of(sdata, tmp_path)
        with pytest.raises(InputError, match=r"not backed by a zarr store, so image 'score'.*sdata\.write"):
            persist(sdata)
        with pytest.raises(InputError, match=r"'fov0_labels' is an element of labels already"):
            persist_map(stored, "fov0_labels", sdata["score"])

    @pytest.mark.parametrize("consolidated", [True, False])
    def test_the_store_says_that_it_is_a_map_and_keeps_its_other_attributes(
        self, factory, tmp_path, consolidated
    ):
        whole = factory()
        whole.attrs |= {"nimbus_sd": {"mpp": 1.0, "maps": ["older"]}, "mine": [1, 2]}
        whole.write(tmp_path / "s.zarr", consolidate_metadata=consolidated)
        sdata = sd.read_zarr(tmp_path / "s.zarr")
        before = dict(sdata.attrs)
        element, _ = map_of(sdata, tmp_path)
        persist_map(sdata, "score", element)
        assert "score" not in sdata
        assert sdata.attrs == before
        again = sd.read_zarr(tmp_path / "s.zarr")
        assert again.attrs["nimbus_sd"] == {"mpp": 1.0, "maps": ["older", "score"]}
        assert again.attrs["mine"] == [1, 2]
        assert again.has_consolidated_metadata() == consolidated
        assert [pair.image for pair in resolve_pairs(again)] == ["fov0_image"]

    def test_a_new_map_that_fails_leaves_the_store_byte_for_byte(self, stored, tmp_path, monkeypatch):
        stored["score"], _ = map_of(stored, tmp_path)
        before = files_of(tmp_path / "s.zarr")
        real = SpatialData.write_consolidated_metadata

        def late(self):
            real(self)
            raise KeyboardInterrupt

        monkeypatch.setattr(SpatialData, "write_consolidated_metadata", late)
        with pytest.raises(KeyboardInterrupt):
            persist(stored)
        assert files_of(tmp_path / "s.zarr") == before


KILLED = """
import os, signal
import numpy as np
import spatialdata as sd
from spatialdata.models import Image2DModel
from nimbus_sd._sdata import persist, swap
from nimbus_sd._sdata.elements import finest

sdata = sd.read_zarr({store!r})
values = np.rint(finest(sdata["score"]).data.compute() * np.float16(100)).astype("uint8")
del sdata.images["score"]
sdata["score"] = Image2DModel.parse(values, dims=("c", "y", "x"), scale_factors=[2], c_coords=list("abc"))
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if {moment!r} == "put_in_place":
    swap.put_in_place = die
else:
    sd.SpatialData.write_consolidated_metadata = die
persist.persist_map(sdata, "score", sdata["score"])
"""
