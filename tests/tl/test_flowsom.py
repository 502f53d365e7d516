"""nb.tl.flowsom and nb.tl.assign_som: planted types, seeds, blocks, memory, bad input."""

from __future__ import annotations

import sys
import tracemalloc

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from flowsom.models.batch import BatchSOMEstimator
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, MissingExtraError, NimbusWarning
from nimbus_sd.tl import _cluster_rows

MARKERS = ["CD3", "CD8", "CD20", "CD68", "PanCK"]
TYPES = np.array([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]])
SMALL = {"n_nodes": 16, "n_metaclusters": 5}


def make(n=600, *, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    kind = rng.choice(5, n, p=[0.35, 0.25, 0.2, 0.12, 0.08])
    values = np.abs(TYPES[kind] - rng.beta(1, 9, (n, 5))).astype(dtype)
    obs = pd.DataFrame({"kind": kind}, index=[f"c{seed}_{i}" for i in range(n)])
    return ad.AnnData(values, obs=obs, var=pd.DataFrame(index=MARKERS))


@pytest.fixture
def adata():
    return make()


def same(one, other):
    """Whether two maps and what they say of cells are equal."""
    assert one.obs.som_node.tolist() == other.obs.som_node.tolist()
    assert one.obs.metacluster.tolist() == other.obs.metacluster.tolist()
    np.testing.assert_array_equal(one.uns["flowsom"]["codes"], other.uns["flowsom"]["codes"])
    np.testing.assert_array_equal(one.uns["flowsom"]["linkage"], other.uns["flowsom"]["linkage"])


@pytest.mark.parametrize("method", ["hierarchical", "consensus"])
@pytest.mark.parametrize("linkage", ["average", "ward", "complete"])
def test_planted_types_are_found(adata, method, linkage):
    nb.tl.flowsom(adata, **SMALL, method=method, linkage=linkage)
    assert adjusted_rand_score(adata.obs.kind, adata.obs.metacluster) > 0.95


def test_slots_are_what_the_docstring_says(adata):
    nb.tl.flowsom(adata, **SMALL)
    node, meta, found = adata.obs.som_node, adata.obs.metacluster, adata.uns["flowsom"]
    assert node.dtype == np.int32
    assert meta.cat.categories.tolist() == ["0", "1", "2", "3", "4"]
    assert (np.diff(meta.value_counts(sort=False)) <= 0).all()
    assert found["markers"].tolist() == MARKERS
    assert found["codes"].dtype == np.float32
    assert found["codes"].shape == (16, 5)
    assert found["node_size"].tolist() == np.bincount(node, minlength=16).tolist()
    np.testing.assert_array_equal(node, cdist(adata.X, found["codes"]).argmin(1))
    assert meta.tolist() == found["node_metacluster"][node].tolist()
    for i in range(16):
        if found["node_size"][i]:
            np.testing.assert_allclose(found["node_mean"][i], adata.X[node == i].mean(0), rtol=1e-5)
        else:
            assert np.isnan(found["node_mean"][i]).all()
    used = found["linkage_nodes"]
    assert found["linkage"].shape == (len(used) - 1, 4)
    assert set(used) == set(node)
    means = found["node_mean"][used]
    np.testing.assert_allclose(found["z_mean"], means.mean(0))
    np.testing.assert_allclose(found["z_std"], means.std(0))
    assert found["mean_distance"] == pytest.approx(cdist(adata.X, found["codes"]).min(1).mean())


def test_the_map_is_the_estimators(adata):
    nb.tl.flowsom(adata, **SMALL, seed=3)
    expected = BatchSOMEstimator(xdim=4, ydim=4, seed=3).fit(adata.X)
    np.testing.assert_array_equal(adata.uns["flowsom"]["codes"], expected.codes.astype(np.float32))
    np.testing.assert_array_equal(adata.obs.som_node, expected.labels_)


@pytest.mark.parametrize("n_train", [None, 200])
@pytest.mark.parametrize("method", ["hierarchical", "consensus"])
def test_the_seed_decides_everything_and_the_global_one_is_left_alone(adata, n_train, method):
    other, third = adata.copy(), adata.copy()
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    nb.tl.flowsom(adata, **SMALL, n_train=n_train, method=method, seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.random.seed(99)  # noqa: NPY002
    nb.tl.flowsom(other, **SMALL, n_train=n_train, method=method, seed=1)
    same(adata, other)
    nb.tl.flowsom(third, **SMALL, n_train=n_train, method=method, seed=2)
    assert not np.array_equal(adata.uns["flowsom"]["codes"], third.uns["flowsom"]["codes"])


def test_the_answer_does_not_depend_on_threads(adata):
    import numba

    other, threads = adata.copy(), numba.get_num_threads()
    nb.tl.flowsom(adata, **SMALL)
    numba.set_num_threads(1)
    try:
        nb.tl.flowsom(other, **SMALL)
    finally:
        numba.set_num_threads(threads)
    same(adata, other)


def test_layers_channels_sparse_and_other_types_give_the_same(adata):
    nb.tl.flowsom(adata, **SMALL, channels=["PanCK", "CD20", "CD3"])
    inside = ad.AnnData(np.zeros((600, 5), np.float32), obs=adata.obs[["kind"]], var=adata.var)
    for kind in (sparse.csr_matrix(adata.X), np.asfortranarray(adata.X), adata.X.astype(np.float64)):
        other = inside.copy()
        other.layers["values"] = kind
        nb.tl.flowsom(other, **SMALL, channels=("PanCK", "CD20", "CD3"), layer="values")
        same(adata, other)
        assert other.uns["flowsom"]["layer"] == "values"
    chosen = adata[:, ["PanCK", "CD20", "CD3"]].copy()
    nb.tl.flowsom(chosen, **SMALL)
    same(adata, chosen)


def test_blocks_of_rows_do_not_show(adata, monkeypatch):
    other = adata.copy()
    nb.tl.flowsom(adata, **SMALL)
    monkeypatch.setattr(_cluster_rows, "block_rows", lambda n: 7)
    monkeypatch.setattr(_cluster_rows, "_CHECKED_ROWS", 7)
    nb.tl.flowsom(other, **SMALL)
    same(adata, other)


def test_a_table_of_which_a_part_is_trained_on_takes_less_than_itself_again():
    rng = np.random.default_rng(0)
    adata = ad.AnnData(
        rng.random((400_000, 16), dtype=np.float32),
        obs=pd.DataFrame(index=pd.RangeIndex(400_000).astype(str)),
    )
    nb.tl.flowsom(make(), **SMALL)  # compiled and imported before it counts
    tracemalloc.start()
    try:
        nb.tl.flowsom(adata, n_nodes=36, n_metaclusters=5, n_train=5_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < adata.X.nbytes
    assert adata.uns["flowsom"]["n_train"] == 5_000
    assert adata.uns["flowsom"]["node_size"].sum() == 400_000


def test_empty_nodes_go_with_their_nearest():
    values = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0)
    values += np.random.default_rng(0).normal(0, 1e-3, values.shape).astype(np.float32)
    adata = ad.AnnData(values, obs=pd.DataFrame(index=[f"c{i}" for i in range(60)]))
    nb.tl.flowsom(adata, n_nodes=36, n_metaclusters=3)
    found = adata.uns["flowsom"]
    used = np.flatnonzero(found["node_size"])
    assert len(used) < 36
    nearest = used[cdist(found["codes"], found["codes"][used]).argmin(1)]
    assert found["node_metacluster"].tolist() == found["node_metacluster"][nearest].tolist()


def test_new_cells_are_assigned_as_the_trained_ones_were(adata):
    new = make(300, seed=5)
    wider = new[:, ::-1].copy()
    nb.tl.flowsom(adata, **SMALL)
    again = adata[::3].copy()
    nb.tl.assign_som(again, adata)
    assert again.obs.som_node.tolist() == adata.obs.som_node[::3].tolist()
    assert again.obs.metacluster.tolist() == adata.obs.metacluster[::3].tolist()
    nb.tl.assign_som(new, adata)
    assert adjusted_rand_score(new.obs.kind, new.obs.metacluster) > 0.9
    nb.tl.assign_som(wider, adata.uns["flowsom"])  # markers go by name
    same(new, wider)
    assert new.uns["flowsom"]["node_size"].sum() == 300
    assert adata.uns["flowsom"]["node_size"].sum() == 600


def test_edits_reach_new_cells_and_all_metaclusters_are_categories(adata):
    nb.tl.flowsom(adata, **SMALL)
    nb.tl.merge_clusters(adata, {"4": "3"})
    nb.tl.name_clusters(adata, {"0": "T", "3": "rest"})
    new = adata[adata.obs.metacluster == "T"].copy()
    nb.tl.assign_som(new, adata)
    assert set(new.obs.metacluster) == {"T"}
    assert new.obs.metacluster.cat.categories.tolist() == ["T", "1", "2", "rest"]
    nb.tl.assign_som(new, adata.uns["flowsom"])
    assert new.obs.metacluster.cat.categories.tolist() == ["1", "2", "T", "rest"]
    with pytest.raises(InputError, match="no edits"):
        nb.tl.undo_clusters(new)
    nb.tl.undo_clusters(adata, steps=2)
    nb.tl.assign_som(new, adata)
    assert new.obs.metacluster.cat.categories.tolist() == ["0", "1", "2", "3", "4"]


def test_other_values_are_warned_of(adata):
    nb.tl.flowsom(adata, **SMALL)
    new = make(100, seed=1)
    new.X *= 40
    with pytest.warns(NimbusWarning, match="from their nodes on average"):
        nb.tl.assign_som(new, adata)


def test_the_map_is_written_and_read(adata, tmp_path):
    nb.tl.flowsom(adata, **SMALL, method="consensus")
    nb.tl.merge_clusters(adata, {"4": "3"})
    sdata = sd.SpatialData(tables={"nimbus": make()})
    sdata.write(tmp_path / "data.zarr")
    sdata.tables["nimbus"] = adata
    nb.io.write_table(sdata)
    read = sd.read_zarr(tmp_path / "data.zarr")["nimbus"]
    same(adata, read)
    new, twin = make(50, seed=2), make(50, seed=2)
    nb.tl.assign_som(new, adata)
    nb.tl.assign_som(twin, read)
    same(new, twin)
    nb.tl.undo_clusters(read)
    assert read.obs.metacluster.cat.categories.tolist() == ["0", "1", "2", "3", "4"]
    assert set(read.uns["flowsom"]["node_metacluster"]) == set("01234")


def test_training_again_forgets_the_edits(adata):
    nb.tl.flowsom(adata, **SMALL)
    columns = set(adata.obs)
    nb.tl.merge_clusters(adata, {"4": "3"})
    adata.uns["metacluster_colors"] = ["#000000"] * 4
    nb.tl.flowsom(adata, **SMALL)
    assert set(adata.obs) == columns
    assert set(adata.uns) == {"flowsom"}


def spoiled(**changes):
    def spoil(adata):
        for name, (rows, value) in changes.items():
            adata.X[rows, MARKERS.index(name)] = value

    return spoil


@pytest.mark.parametrize(
    ("spoil", "options", "error", "match"),
    [
        (spoiled(CD8=(3, np.nan)), {}, InputError, r"X holds NaN.*CD8 \(1 cells\).*channels="),
        (spoiled(CD8=(slice(None), np.nan)), {}, InputError, r"CD8 \(600 cells\)"),
        (spoiled(CD3=(5, np.inf)), {}, InputError, r"infinite values: CD3"),
        (spoiled(CD8=(slice(None), 0.5)), {}, InputError, r"same value.*CD8; leave out.*\['CD3', 'CD20'"),
        (spoiled(), {"n_nodes": 625}, InputError, "600 cells are fewer than n_nodes=625"),
        (spoiled(), {"n_nodes": 211}, InputError, r"n_nodes=211 makes no grid.*209, 210"),
        (spoiled(), {"n_nodes": 2}, InputError, "n_nodes=2; valid: at least 4"),
        (spoiled(), {"n_metaclusters": 17}, InputError, "n_metaclusters=17; valid: 1 to n_nodes=16"),
        (spoiled(), {"n_metaclusters": 0}, InputError, "n_metaclusters=0"),
        (spoiled(), {"n_train": 10}, InputError, "n_train=10; valid: n_nodes=16 to the table's 600"),
        (spoiled(), {"n_train": 601}, InputError, "n_train=601"),
        (spoiled(), {"seed": -1}, InputError, "seed=-1"),
        (spoiled(), {"method": "kmeans"}, InputError, "method='kmeans'; valid: 'hierarchical'"),
        (spoiled(), {"linkage": "single"}, InputError, "linkage='single'"),
        (spoiled(), {"layer": "raw"}, ElementNotFoundError, "no layer 'raw'; valid: 'X'"),
        (spoiled(), {"channels": ["CD4"]}, ElementNotFoundError, "no channel CD4; valid: CD3, CD8"),
        (spoiled(), {"channels": ["CD3", "CD3"]}, InputError, "names CD3 twice"),
        (spoiled(), {"channels": []}, InputError, "no channels"),
        (spoiled(), {"key_added": "a/b"}, InputError, "'a/b' can't be the name"),
        (spoiled(), {"key_added": "som_node"}, InputError, "'som_node' can't be the name"),
    ],
)
def test_bad_input_changes_nothing(adata, spoil, options, error, match):
    spoil(adata)
    obs, uns = adata.obs.copy(), dict(adata.uns)
    with pytest.raises(error, match=match):
        nb.tl.flowsom(adata, **SMALL | options)
    pd.testing.assert_frame_equal(adata.obs, obs)
    assert dict(adata.uns) == uns


def test_too_few_distinct_cells_change_nothing():
    values = np.tile(np.eye(3, dtype=np.float32), (40, 1))
    adata = ad.AnnData(values, obs=pd.DataFrame(index=[f"c{i}" for i in range(120)]))
    with pytest.raises(InputError, match=r"cells fall on [23] distinct nodes of 16.*n_metaclusters=5"):
        nb.tl.flowsom(adata, **SMALL)
    assert not len(adata.obs.columns)
    assert not adata.uns


def test_the_column_that_ties_cells_to_labels_is_not_overwritten(adata):
    adata.uns["spatialdata_attrs"] = {"region": "a", "region_key": "region", "instance_key": "instance_id"}
    with pytest.raises(InputError, match="'region' can't be the name"):
        nb.tl.flowsom(adata, **SMALL, key_added="region")


def test_no_map_or_other_markers_are_errors(adata):
    with pytest.raises(InputError, match="no map there"):
        nb.tl.assign_som(adata, make())
    nb.tl.flowsom(adata, **SMALL)
    with pytest.raises(ElementNotFoundError, match="no channel CD8"):
        nb.tl.assign_som(make()[:, ["CD3", "CD20"]].copy(), adata)
    new = make()
    new.X[0, 0] = np.nan
    with pytest.raises(InputError, match="CD3"):
        nb.tl.assign_som(new, adata)
    assert "som_node" not in new.obs


def test_without_the_package_its_install_line_is_told(adata, monkeypatch):
    for name in [m for m in sys.modules if m.split(".")[0] == "flowsom"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flowsom", None)
    with pytest.raises(MissingExtraError, match=r"nimbus-sd\[flowsom\]"):
        nb.tl.flowsom(adata, **SMALL)
    assert "metacluster" not in adata.obs
