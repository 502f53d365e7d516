"""What runs where there is no torch: readers, tables, intensities, gates, clusters, plots, rooms."""

import numpy as np
import pandas as pd
import pytest

pytestmark = [pytest.mark.ecosystem("torchless"), pytest.mark.filterwarnings("ignore")]
CHANNELS = ["HH3", "CD3", "CD8", "CD20"]
# members that train, predict or make training data; nothing else may need torch
NEED_TORCH = {
    "pp": {"CellPatches", "cell_patches", "TileStore", "training_tiles"},
    "tl": {
        "channel_attribution", "embed", "estimate", "finetune", "predict", "predict_subtypes", "train",
        "train_embedding", "train_subtyper",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tissue():
    """Simulated fields with a table of made-up scores, as a prediction elsewhere would leave it."""
    import nimbus_sd as nb

    sdata = nb.datasets.simulated_tissue(n_fovs=2, shape=(192, 192), channels=CHANNELS)
    nb.pp.integrated_expression(sdata, progress=False, channels=CHANNELS[1:])
    table = sdata["integrated_expression"].copy()
    table.layers["integrated_expression"] = table.X.copy()
    table.X = (table.X / (table.X.max(0) + 1e-6)).astype(np.float32)
    sdata["nimbus"] = table
    return sdata


@pytest.mark.parametrize("room", ["io", "datasets", "pp", "pl", "tl", "app"])
def test_only_members_that_compute_with_torch_need_it(program, room):
    code = f"""
import warnings
warnings.simplefilter("ignore")
import nimbus_sd
room = nimbus_sd.{room}
for name in dir(room):
    try:
        getattr(room, name)
    except ModuleNotFoundError as error:
        print(name, error.name)
"""
    found = [line.split() for line in program(code).splitlines()]
    assert {module for _, module in found} <= {"torch"}
    assert {name for name, _ in found} == NEED_TORCH.get(room, set())


@pytest.mark.parametrize("neighbour", ["harpy", "spatialdata_plot", "squidpy", "scanpy"])
@pytest.mark.parametrize("first", ["nimbus_sd", "neighbour"])
def test_either_may_be_imported_first(program, neighbour, first):
    lines = [f"import {neighbour}", "import nimbus_sd as nb; nb.pp.gate, nb.io.read_fovs, nb.pl.image"]
    code = "\n".join(
        ["import warnings", "warnings.simplefilter('ignore')", *lines[:: 1 if first != "nimbus_sd" else -1]]
    )
    program(code)


def test_the_command_line_says_what_it_offers(program):
    assert "predict" in program(
        "from nimbus_sd.cli import main; import sys; sys.argv[1:] = ['--help']; main()"
    )


def test_tables_survive_the_disk(tissue, tmp_path):
    import spatialdata as sd

    import nimbus_sd as nb

    tissue.write(tmp_path / "tissue.zarr")
    sdata = sd.read_zarr(tmp_path / "tissue.zarr")
    sdata["nimbus"].obs["mine"] = np.arange(sdata["nimbus"].n_obs)
    nb.io.write_table(sdata, "nimbus")
    again = sd.read_zarr(tmp_path / "tissue.zarr")["nimbus"]
    np.testing.assert_array_equal(again.X, tissue["nimbus"].X)
    pd.testing.assert_series_equal(again.obs["mine"], sdata["nimbus"].obs["mine"])


def test_files_of_fields_are_read(tmp_path):
    import tifffile

    import nimbus_sd as nb

    rng = np.random.default_rng(0)
    planes = {c: rng.integers(0, 900, (40, 30)).astype(np.uint16) for c in CHANNELS}
    labels = np.repeat(np.arange(1, 5), 10)[:, None].repeat(30, 1).astype(np.uint32)
    (tmp_path / "images" / "fov0").mkdir(parents=True)
    (tmp_path / "labels").mkdir()
    for name, plane in planes.items():
        tifffile.imwrite(tmp_path / "images" / "fov0" / f"{name}.tiff", plane)
    tifffile.imwrite(tmp_path / "labels" / "fov0_whole_cell.tiff", labels)
    sdata = nb.io.read_fovs(tmp_path / "images", labels=tmp_path / "labels", mpp=0.5)
    nb.pp.integrated_expression(sdata, progress=False, channels=["CD3"])
    expected = [planes["CD3"][labels == i].mean() for i in range(1, 5)]
    np.testing.assert_allclose(sdata["integrated_expression"].X[:, 0], expected, rtol=1e-6)


def test_means_per_cell_are_the_pixels_means(tissue):
    found = tissue["integrated_expression"]
    name = found.obs["region"].iloc[0]
    labels = np.asarray(tissue[name].data)
    plane = np.asarray(tissue[name.replace("labels", "image")].sel(c="CD3").data)
    rows = found[(found.obs["region"] == name).to_numpy()]
    expected = [plane[labels == i].mean() for i in rows.obs["instance_id"]]
    np.testing.assert_allclose(rows[:, "CD3"].X[:, 0], expected, rtol=1e-5)


def test_normalisation_is_fitted(tissue):
    import nimbus_sd as nb

    fitted = nb.pp.normalization(tissue, channels=["CD3"], quantile=1.0, progress=False)
    images = [np.asarray(tissue[name].sel(c="CD3").data) for name in tissue.images]
    assert fitted.scale_of(["CD3"])[0] == pytest.approx(max(i.max() for i in images), rel=0.01)


def test_scores_are_clustered_named_and_drawn(tissue, tmp_path):
    import matplotlib as mpl

    mpl.use("Agg")
    import scanpy as sc
    import squidpy as sq

    import nimbus_sd as nb

    table = tissue["nimbus"]
    nb.tl.flowsom(table, n_nodes=36, n_metaclusters=4)
    assert table.obs["metacluster"].nunique() <= 4
    nb.tl.phenograph(table, k=15, use_rep=None)
    sc.pp.neighbors(table, n_neighbors=10, use_rep="X")
    sc.tl.leiden(table, flavor="igraph", n_iterations=2, directed=False)
    sq.gr.spatial_neighbors(table, coord_type="generic", library_key="region")
    sq.gr.nhood_enrichment(table, cluster_key="metacluster", show_progress_bar=False)
    nb.pl.marker_heatmap(table, "metacluster", save=tmp_path / "heatmap.png", show=False)
    nb.pl.score_distribution(table, save=tmp_path / "scores.png", show=False)
    assert (tmp_path / "heatmap.png").stat().st_size > 5000
    assert (tmp_path / "scores.png").stat().st_size > 5000


def test_a_layer_that_is_not_there_is_told_with_those_that_are(tissue):
    import nimbus_sd as nb

    # newer anndata lists X among the layers, as None
    with pytest.raises(KeyError, match=r"no layer 'gone'; layers: 'integrated_expression'"):
        nb.pl.score_distribution(tissue["nimbus"], expression_layer="gone", show=False)
    with pytest.raises(KeyError, match=r"no layer 'gone'; layers: integrated_expression;"):
        nb.tl.spillover(tissue["nimbus"], exclusive=[("CD3", "CD20")], expression_layer="gone")


def test_what_needs_torch_says_so(tissue):
    import nimbus_sd as nb

    with pytest.raises(ModuleNotFoundError, match="torch"):
        nb.tl.predict(tissue)
