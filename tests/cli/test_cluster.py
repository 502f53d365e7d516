"""``nimbus-sd cluster``: columns in one store or over a cohort, merged by a file."""

import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from sklearn.metrics import adjusted_rand_score

import nimbus_sd as nb
from nimbus_sd.cli._cluster_markers import described

SMALL_MAP = ("--method", "flowsom", "--n-nodes", 16, "--n-metaclusters", 4)


def table(store):
    return sd.read_zarr(store)["nimbus"]


def test_flowsom_is_that_of_the_function(facts, scored):
    adata = table(scored / "s0.zarr")
    nb.tl.flowsom(adata, n_nodes=16, n_metaclusters=4, seed=3, channels=["CD3", "CD20"], linkage="average")
    options = ("--seed", 3, "--channels", "CD3,CD20", "--linkage", "average")
    found = facts("cluster", scored / "s0.zarr", *SMALL_MAP, *options)
    written = table(scored / "s0.zarr")
    assert written.obs["metacluster"].tolist() == adata.obs["metacluster"].tolist()
    assert written.obs["som_node"].tolist() == adata.obs["som_node"].tolist()
    counts = adata.obs["metacluster"].value_counts(sort=False)
    assert {r["cluster"]: r["n_cells"] for r in found["clusters"]} == counts.to_dict()


def test_phenograph_and_leiden_write_their_columns(nimbus, facts, scored):
    store = scored / "s0.zarr"
    adata = table(store)
    nb.tl.phenograph(adata, use_rep="X", k=10, min_cells=5)
    found = facts("cluster", store, "--method", "phenograph", "--k", 10, "--min-cells", 5)
    assert found["key"] == "phenograph"
    assert table(store).obs["phenograph"].tolist() == adata.obs["phenograph"].tolist()
    code, out, err = nimbus("cluster", store, "--resolution", 0.5, "--plot", scored / "clusters.png")
    assert code == 0, err
    assert out.splitlines()[0].split() == ["leiden", "cells", "highest", "markers", "(mean", "score)"]
    assert (scored / "clusters.png").stat().st_size > 1000
    leiden = table(store).obs["leiden"]
    sizes = leiden.value_counts(sort=False)
    assert sizes.is_monotonic_decreasing
    assert sizes.index.tolist() == [str(i) for i in range(len(sizes))]
    truth = sd.read_zarr(store)["truth"].obs["cell_type"].reindex(leiden.index).astype(str)
    assert adjusted_rand_score(truth, leiden.astype(str)) > 0.2


def test_a_cohort_is_clustered_together(facts, scored):
    stores = [scored / "s0.zarr", scored / "s1.zarr"]
    whole = nb.tl.concat_tables([sd.read_zarr(s) for s in stores])
    nb.tl.flowsom(whole, n_nodes=16, n_metaclusters=4)
    found = facts("cluster", *stores, *SMALL_MAP)
    assert found["n_cells"] == whole.n_obs
    tables = [table(s) for s in stores]
    joint = [c for t in tables for c in t.obs["metacluster"]]
    assert joint == whole.obs["metacluster"].tolist()
    for each in tables:
        assert each.obs["metacluster"].cat.categories.tolist() == ["0", "1", "2", "3"]
        np.testing.assert_array_equal(each.uns["flowsom"]["codes"], whole.uns["flowsom"]["codes"])
    (scored / "names.csv").write_text("cluster,name\n0,big\n1,rest\n2,rest\n3,rest\n")
    call = ("cluster", *stores, "--method", "keep", "--key-added", "metacluster")
    assert facts(*call, "--mapping", scored / "names.csv")["n_clusters"] == 2
    for store, before in zip(stores, tables, strict=True):
        after = table(store)
        assert (after.obs["metacluster"] == "big").tolist() == (before.obs["metacluster"] == "0").tolist()
        nb.tl.undo_clusters(after, "metacluster")
        assert after.obs["metacluster"].tolist() == before.obs["metacluster"].tolist()


def test_clusters_are_replaced_only_when_told(nimbus, scored):
    call = ("cluster", scored / "s0.zarr", *SMALL_MAP)
    assert nimbus(*call)[0] == 0
    code, _, err = nimbus(*call)
    assert (code, "pass --overwrite to replace it" in err) == (1, True)
    assert nimbus(*call, "--overwrite")[0] == 0


def test_a_dry_run_writes_nothing(facts, scored, unchanged):
    unchanged(scored)
    found = facts("cluster", scored / "s0.zarr", scored / "s1.zarr", "--k", 5, "--dry-run")
    assert (found["dry_run"], found["options"], found["key"]) == (True, {"k": 5}, "leiden")


def test_a_missing_package_is_said_first(nimbus, monkeypatch):
    for method, module, extra in (("flowsom", "flowsom", "flowsom"), ("leiden", "igraph", "leiden")):
        monkeypatch.setitem(sys.modules, module, None)
        code, _, err = nimbus("cluster", "nothing.zarr", "--method", method)
        assert (code, f"nimbus-sd[{extra}]" in err) == (1, True)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--method", "magic"), "valid: leiden, flowsom, phenograph, keep"),
        (("--n-nodes", 9), "--n-nodes is for --method flowsom, not leiden"),
        (("--channels", "CD99"), "no channel CD99"),
        (("--layer", "moon"), "no layer 'moon'"),
        (("--use-rep", "X_moon"), "no obsm 'X_moon'"),
        (("--key-added", "region"), "can't be the name of a new column"),
        (("--method", "keep"), "give --mapping"),
        (("--method", "keep", "--mapping", "names.csv"), "no column 'metacluster'"),
        (("--mapping", "nothing.csv"), "there is no such file"),
        (("--table", "cells"), "has no table 'cells'"),
    ],
)
def test_bad_calls_write_nothing(nimbus, scored, monkeypatch, unchanged, options, said, more):
    (scored / "names.csv").write_text("cluster,name\n0,big\n")
    monkeypatch.chdir(scored)
    unchanged(scored)
    code, out, err = nimbus("cluster", "s0.zarr", *options, *more)
    assert (code, out) == (1, "")
    assert said in err


def named_clusters(score, **more):
    """Four clusters of two cells over CD3, CD20, VIM."""
    obs = pd.DataFrame({"c": pd.Categorical(list("aabbccdd"))}, index=[f"cell{i}" for i in range(8)])
    var = pd.DataFrame(more, index=["CD3", "CD20", "VIM"])
    return ad.AnnData(np.repeat(np.array(score, dtype=np.float32), 2, axis=0), obs=obs, var=var)


SCORES = [[0.9, 0.0, 0.7], [0.02, 0.07, 0.1], [0.0, 0.04, 0.9], [0.45, 0.02, 0.0]]


def test_a_cluster_is_not_named_after_markers_that_it_lacks():
    rows, lines = described(named_clusters(SCORES), "c", None)
    assert [r["highest"] for r in rows] == [["CD3", "VIM"], [], ["VIM"], []]
    assert rows[0]["means"] == pytest.approx([0.9, 0.7])
    assert lines[0].split()[2:] == ["highest", "markers", "(mean", "score)"]
    assert [line.split(None, 2)[2] for line in lines[1:]] == [
        "CD3 0.9, VIM 0.7", "none above 0.5", "VIM 0.9", "none above 0.5",
    ]  # fmt: skip


def test_a_markers_own_threshold_counts_and_other_values_have_none():
    rows, lines = described(named_clusters(SCORES, threshold=[0.4, 0.05, np.nan]), "c", None)
    assert [r["highest"] for r in rows] == [["CD3", "VIM"], ["CD20"], ["VIM"], ["CD3"]]
    high = named_clusters([[s * 100 for s in row] for row in SCORES])
    rows, lines = described(high, "c", None)
    assert rows[1]["highest"] == ["CD20"], "the highest against all cells, whatever it is"
    assert lines[2].endswith("CD20 7")
    alike, lines = described(named_clusters([[0.9, 0.1, 0.2]] * 4), "c", None)
    assert [r["highest"] for r in alike] == [["CD3"]] * 4, "high in all cells is high as well"
