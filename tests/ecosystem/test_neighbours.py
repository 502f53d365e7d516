"""Beside sopa and harpy in one environment, on objects that each of them segmented and wrote."""

import numpy as np
import pandas as pd
import pytest

pytestmark = [pytest.mark.ecosystem("neighbours"), pytest.mark.filterwarnings("ignore")]
SCORING = {"mpp": 0.5, "device": "cpu", "precision": "float32", "progress": False}
CHANNELS = ("DAPI", "CD3", "CD20")


def nuclei(plane):
    """Stand-in for a network that segments: what is bright and connected is a cell."""
    from scipy import ndimage

    return ndimage.label(plane > 0.25 * plane.max())[0].astype(np.uint32)


def blurred_points(n=50, side=300, seed=0):
    """uint16 ``(3, side, side)``: DAPI, and for each nucleus one of two markers."""
    from scipy import ndimage

    image = np.zeros((3, side, side), np.float32)
    for i, (y, x) in enumerate(np.random.default_rng(seed).integers(12, side - 12, (n, 2))):
        image[[0, 1 + i % 2], y, x] = 1
    image = np.stack([ndimage.gaussian_filter(plane, 4) for plane in image])
    return (image / image.max() * 60000).astype(np.uint16)


@pytest.fixture(scope="module")
def harpy_store(tmp_path_factory):
    """Harpy reads, segments in chunks, and averages intensities; the store is its own."""
    import harpy as hp

    store = tmp_path_factory.mktemp("harpy") / "sample.zarr"
    sdata = hp.io.create_sdata(
        blurred_points(),
        output_path=store,
        image_name="image",
        dims=["c", "y", "x"],
        chunks=128,
        c_coords=list(CHANNELS),
    )
    sdata = hp.im.segment(
        sdata,
        "image",
        model=lambda x, **_: nuclei(x[0, :, :, 0])[None, :, :, None],
        output_labels_name="cells",
        output_shapes_name="boundaries",
        depth=30,
        chunks=150,
    )
    hp.tb.allocate_intensity(
        sdata, image_name="image", labels_name="cells", output_table_name="intensities", mode="mean"
    )
    return store


@pytest.fixture(scope="module")
def sopa_store(tmp_path_factory):
    """Sopa's toy dataset, segmented patch by patch and aggregated by sopa."""
    import sopa

    store = tmp_path_factory.mktemp("sopa") / "sample.zarr"
    sdata = sopa.io.toy_dataset(length=512, include_he_image=False)
    sopa.make_image_patches(sdata, patch_width=300, patch_overlap=40)
    sopa.segmentation.custom_staining_based(
        sdata, lambda image: nuclei(image[0]), "DAPI", image_key="image", clip_limit=0, gaussian_sigma=0
    )
    sopa.aggregate(sdata, aggregate_genes=False, min_intensity_ratio=0)
    sdata.write(store)
    return store


@pytest.fixture
def harpys(harpy_store):
    import spatialdata as sd

    return sd.read_zarr(harpy_store)


def with_labels(sdata, *, shapes="custom_boundaries", labels="cell_labels", table="table"):
    """Draw shapes as labels, and let sopa's table annotate these; row order and X stay."""
    import spatialdata as sd
    from spatialdata.models import Labels2DModel, TableModel

    height, width = sdata["image"].shape[-2:]
    drawn = sd.rasterize(
        sdata[shapes],
        ["x", "y"],
        min_coordinate=[0, 0],
        max_coordinate=[width, height],
        target_coordinate_system="global",
        target_unit_to_pixels=1,
        return_regions_as_labels=True,
    )
    ids = {cell: label for label, cell in drawn.attrs["label_index_to_category"].items()}
    sdata[labels] = Labels2DModel.parse(drawn.data, dims=("y", "x"))
    adata = sdata[table].copy()
    adata.obs["label"] = adata.obs["cell_id"].map(ids).astype(np.int64)
    adata.obs["region"] = pd.Categorical([labels] * adata.n_obs)
    del adata.uns["spatialdata_attrs"]
    del sdata[table]
    sdata[table] = TableModel.parse(adata, region=labels, region_key="region", instance_key="label")
    return sdata


@pytest.fixture
def sopas(sopa_store):
    import spatialdata as sd

    return with_labels(sd.read_zarr(sopa_store))


@pytest.mark.parametrize("neighbour", ["sopa", "harpy"])
@pytest.mark.parametrize("first", ["nimbus_sd", "neighbour"])
def test_either_may_be_imported_first(program, neighbour, first):
    use = {"sopa": "sopa.io.toy_dataset", "harpy": "harpy.im.segment"}[neighbour]
    lines = ["import nimbus_sd as nb; nb.tl.predict; nb.pp.gate; nb.pl.image", f"import {neighbour}; {use}"]
    before = "" if first == "nimbus_sd" else lines.pop()
    code = f"""
import warnings
warnings.simplefilter("ignore")
{before}
import dask
config, filters = dict(dask.config.config), list(warnings.filters)
{lines[0]}
if {bool(before)}:  # ours changes nothing that the neighbour has set
    assert dask.config.config == config
{lines[-1]}
from nimbus_sd.models import load
print(load("nimbus-sd-s").card.name)
"""
    assert program(code).splitlines()[-1] == "nimbus-sd-s"


class TestHarpy:
    def test_its_labels_are_scored(self, harpys):
        import nimbus_sd as nb

        nb.tl.predict(harpys, channels=["CD3", "CD20"], **SCORING)
        found = harpys["nimbus"]
        ids = np.unique(np.asarray(harpys["cells"].data))
        assert found.obs["instance_id"].tolist() == ids[ids > 0].tolist()
        assert len(ids) > 30
        assert ((found.X >= 0) & (found.X <= 1)).all()
        assert found.X.std() > 0.05

    def test_means_are_harpys_means(self, harpys):
        import nimbus_sd as nb

        nb.pp.integrated_expression(harpys, progress=False)
        ours = harpys["integrated_expression"]
        ours = pd.DataFrame(ours.X, ours.obs["instance_id"].to_numpy(), ours.var_names)
        theirs = harpys["intensities"]
        theirs = pd.DataFrame(theirs.X, theirs.obs["cell_ID"].to_numpy(), theirs.var_names)
        pd.testing.assert_frame_equal(
            ours.sort_index(),
            theirs.sort_index()[ours.columns],
            check_dtype=False,
            check_names=False,
            rtol=1e-5,
        )

    def test_scores_go_into_its_table(self, harpys):
        import nimbus_sd as nb

        before = harpys["intensities"].copy()
        nb.tl.predict(harpys, into="intensities", channels="all", write=True, **SCORING)
        again = type(harpys).read(harpys.path)["intensities"]
        np.testing.assert_array_equal(again.X, before.X)
        pd.testing.assert_frame_equal(again.obs, before.obs)
        assert again.layers["nimbus"].shape == again.shape
        assert np.isfinite(again.layers["nimbus"]).all()
        # by cell, not by position
        nb.tl.predict(harpys, channels="all", table="fresh", **SCORING)
        fresh = harpys["fresh"]
        fresh = pd.DataFrame(fresh.X, fresh.obs["instance_id"].to_numpy(), fresh.var_names)
        np.testing.assert_allclose(
            again.layers["nimbus"], fresh.loc[again.obs["cell_ID"].to_numpy(), again.var_names], atol=1e-6
        )

    def test_it_clusters_our_scores(self, harpys, tmp_path):
        import harpy as hp

        import nimbus_sd as nb

        nb.tl.predict(harpys, channels="all", **SCORING)
        harpys.write(tmp_path / "scored.zarr")
        sdata = type(harpys).read(tmp_path / "scored.zarr")
        hp.tb.kmeans(
            sdata,
            labels_name="cells",
            table_name="nimbus",
            output_table_name="nimbus_kmeans",
            n_clusters=2,
            calculate_umap=False,
            rank_genes=False,
        )
        assert sdata["nimbus_kmeans"].obs["kmeans"].nunique() == 2


class TestSopa:
    def test_shapes_alone_are_refused_with_the_way_out(self, sopa_store):
        import spatialdata as sd

        import nimbus_sd as nb
        from nimbus_sd._core.errors import InputError

        with pytest.raises(InputError, match=r"no labels.*'custom_boundaries'.*spatialdata\.rasterize"):
            nb.tl.predict(sd.read_zarr(sopa_store), **SCORING)

    def test_its_shapes_drawn_as_labels_are_scored(self, sopas):
        import nimbus_sd as nb

        nb.tl.predict(sopas, channels="all", **SCORING)
        found = sopas["nimbus"]
        assert found.n_obs == len(sopas["custom_boundaries"])
        assert ((found.X >= 0) & (found.X <= 1)).all()

    def test_means_are_sopas_means(self, sopas):
        import nimbus_sd as nb

        nb.pp.integrated_expression(sopas, progress=False)
        ours, theirs = sopas["integrated_expression"], sopas["table"]
        ours = pd.DataFrame(ours.X, ours.obs["instance_id"].to_numpy(), ours.var_names)
        theirs = pd.DataFrame(theirs.X, theirs.obs["label"].to_numpy(), theirs.var_names)
        ours = ours.loc[theirs.index, theirs.columns]
        for name in ours:
            # pixels on an outline count here and there differently
            assert np.corrcoef(ours[name], theirs[name])[0, 1] > 0.99, name

    def test_scores_go_into_its_table(self, sopas, tmp_path):
        import nimbus_sd as nb

        before = sopas["table"].copy()
        nb.tl.predict(sopas, into="table", channels="all", **SCORING)
        sopas.write(tmp_path / "scored.zarr")
        again = type(sopas).read(tmp_path / "scored.zarr")["table"]
        np.testing.assert_array_equal(again.X, before.X)
        assert again.obs_names.tolist() == before.obs_names.tolist()
        assert np.isfinite(again.layers["nimbus"]).all()

    def test_it_goes_on_with_an_object_that_holds_our_table(self, sopas):
        import sopa

        import nimbus_sd as nb

        nb.tl.predict(sopas, channels="all", **SCORING)
        sopa.aggregate(
            sopas,
            aggregate_genes=False,
            shapes_key="custom_boundaries",
            key_added="again",
            min_intensity_ratio=0,
        )
        np.testing.assert_allclose(sopas["again"].X, sopas["table"].X)
        assert "nimbus" in sopas.tables


def test_one_object_may_have_gone_through_both(sopas, tmp_path):
    import harpy as hp

    import nimbus_sd as nb

    sopas.write(tmp_path / "both.zarr")
    sdata = type(sopas).read(tmp_path / "both.zarr")
    sdata = hp.tb.allocate_intensity(
        sdata, image_name="image", labels_name="cell_labels", output_table_name="harpys"
    )
    nb.tl.predict(sdata, labels="cell_labels", into="harpys", channels="all", **SCORING)
    nb.tl.predict(sdata, labels="cell_labels", into="table", channels="all", **SCORING)
    theirs = pd.DataFrame(sdata["harpys"].layers["nimbus"], sdata["harpys"].obs["cell_ID"].to_numpy())
    np.testing.assert_allclose(
        sdata["table"].layers["nimbus"], theirs.loc[sdata["table"].obs["label"].to_numpy()], atol=1e-6
    )
