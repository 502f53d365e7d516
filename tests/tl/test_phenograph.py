"""nb.tl.phenograph, subcluster, rediscovery: slots, slow oracles, bad input that changes nothing."""

from __future__ import annotations

import random
import sys

import anndata as ad
import igraph
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from scipy import sparse

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, MissingExtraError, NimbusWarning
from nimbus_sd.arrays.neighbour_graph import jaccard_graph
from nimbus_sd.tl import _neighbour_graph
from nimbus_sd.tl._neighbour_graph import GraphSettings, communities, completed, nearest

SIZES = (200, 120, 90, 20)


def make(sizes=SIZES, *, seed=0, d=16):
    """Blobs far apart, rows shuffled; ``obs["type"]`` is the blob."""
    rng = np.random.default_rng(seed)
    kind = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = 4 * rng.normal(size=(len(sizes), d))
    obs = pd.DataFrame(
        {"type": pd.Categorical.from_codes(kind, [f"t{i}" for i in range(len(sizes))])},
        index=[f"c{i}" for i in range(len(kind))],
    )
    out = ad.AnnData(rng.random((len(kind), 3), dtype=np.float32), obs=obs)
    out.obsm["X_nextchannel"] = (centres[kind] + rng.normal(size=(len(kind), d))).astype(np.float32)
    return out


@pytest.fixture
def adata():
    return make()


def slow_nearest(values, k):
    distance = ((values[:, None].astype(float) - values) ** 2).sum(2)
    np.fill_diagonal(distance, np.inf)
    return np.argsort(distance, axis=1)[:, :k]


class TestPhenograph:
    @pytest.mark.parametrize("method", ["leiden", "louvain"])
    def test_blobs_become_clusters_largest_first_and_the_small_one_none(self, adata, method):
        nb.tl.phenograph(adata, method=method, resolution=0.1)
        expected = adata.obs["type"].cat.rename_categories(["0", "1", "2", "-1"])
        assert adata.obs["phenograph"].tolist() == expected.tolist()
        assert adata.obs["phenograph"].cat.categories.tolist() == ["0", "1", "2", "-1"]
        told = adata.uns["phenograph"]["phenograph"]
        assert (told["n_clusters"], told["n_unknown"], told["method"]) == (3, 20, method)
        assert 0.4 < told["modularity"] < 1

    def test_the_graph_is_that_of_the_sets_of_neighbours(self, adata):
        nb.tl.phenograph(adata, k=5)
        sets = [set(row) for row in slow_nearest(adata.obsm["X_nextchannel"], 5).tolist()]
        wanted = np.zeros((adata.n_obs, adata.n_obs))
        for i, mine in enumerate(sets):
            for j in mine:
                share = len(mine & sets[j]) / len(mine | sets[j]) / 2
                wanted[i, j] += share
                wanted[j, i] += share
        found = adata.obsp["phenograph_connectivities"]
        assert sparse.issparse(found)
        np.testing.assert_allclose(found.toarray(), wanted, atol=1e-12)

    def test_same_seed_same_clusters_and_python_keeps_its_random_numbers(self, adata):
        state = random.getstate()
        nb.tl.phenograph(adata, resolution=3, min_cells=1)
        assert random.getstate() == state
        nb.tl.phenograph(adata, resolution=3, min_cells=1, key_added="again")
        assert adata.obs["again"].tolist() == adata.obs["phenograph"].tolist()
        assert set(adata.uns["phenograph"]) == {"phenograph", "again"}
        sizes = adata.obs["again"].value_counts(sort=False).tolist()
        assert sizes == sorted(sizes, reverse=True)

    def test_cosine_ignores_length(self, adata):
        other = adata.copy()
        other.obsm["X_nextchannel"] *= np.random.default_rng(0).uniform(0.5, 20, (adata.n_obs, 1))
        for table in (adata, other):
            nb.tl.phenograph(table, metric="cosine", resolution=0.1)
        assert adata.obs["phenograph"].tolist() == other.obs["phenograph"].tolist()

    def test_x_dense_or_sparse_and_equal_cells(self):
        adata = make((60, 60))
        adata.X = np.repeat(np.eye(3, dtype=np.float32)[:2], 60, axis=0)  # 60 cells in one place
        nb.tl.phenograph(adata, use_rep=None, resolution=0.01)
        other = adata.copy()
        other.X = sparse.csr_matrix(other.X)
        nb.tl.phenograph(other, use_rep="X", resolution=0.01)
        assert other.obs["phenograph"].tolist() == adata.obs["phenograph"].tolist()
        assert (pd.crosstab(adata.obs["phenograph"], np.repeat([0, 1], 60)) > 0).sum(1).max() == 1

    def test_approximate_search_finds_most_and_never_the_cell_itself(self, monkeypatch):
        values = make((300, 300), d=8).obsm["X_nextchannel"]
        settings = GraphSettings(8, "leiden", 1.0, "euclidean", 1, 0)
        exact = nearest(values, settings)
        np.testing.assert_array_equal(np.sort(exact), np.sort(slow_nearest(values, 8)))
        monkeypatch.setattr(_neighbour_graph, "_EXACT_CELLS", 100)
        found = nearest(values, settings, n_jobs=1)
        assert found.shape == (600, 8)
        assert not (found == np.arange(600)[:, None]).any()
        assert all(len(set(row)) == 8 for row in found.tolist())
        assert np.mean([len(set(a) & set(b)) / 8 for a, b in zip(found, exact, strict=True)]) > 0.95
        np.testing.assert_array_equal(found, nearest(values, settings, n_jobs=1))

    def test_neighbours_that_a_search_did_not_find_are_looked_up(self, adata):
        values = adata.obsm["X_nextchannel"]
        whole = slow_nearest(values, 4)
        holed = whole.copy()
        holed[7, 2:] = holed[300, 0] = -1
        np.testing.assert_array_equal(completed(holed, values), whole)
        assert completed(whole, values) is whole

    @pytest.mark.parametrize("method", ["leiden", "louvain"])
    def test_communities_are_those_of_a_list_of_edges(self, adata, method):
        graph = jaccard_graph(slow_nearest(adata.obsm["X_nextchannel"], 8))
        labels, modularity = communities(graph, GraphSettings(8, method, 1.0, "euclidean", 1, 3))
        edges = [(i, j) for i, j in zip(*graph.nonzero(), strict=True) if i < j]
        weights = [float(graph[i, j]) for i, j in edges]
        net = igraph.Graph(n=adata.n_obs, edges=edges)
        igraph.set_random_number_generator(random.Random(3))  # noqa: S311
        found = (
            net.community_leiden(objective_function="modularity", weights=weights, n_iterations=10)
            if method == "leiden"
            else net.community_multilevel(weights=weights)
        )
        igraph.set_random_number_generator(random)
        assert labels.tolist() == found.membership
        assert modularity == pytest.approx(net.modularity(found.membership, weights=weights))
        nothing = communities(sparse.csr_matrix((5, 5)), GraphSettings(8, method, 1.0, "euclidean", 1, 3))
        assert (nothing[0].tolist(), nothing[1]) == ([0, 1, 2, 3, 4], 0.0)

    def test_nothing_large_enough_is_said(self, adata):
        with pytest.warns(NimbusWarning, match="min_cells=1000"):
            nb.tl.phenograph(adata, min_cells=1000)
        assert adata.obs["phenograph"].cat.categories.tolist() == ["-1"]

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ({"use_rep": "X_pca"}, ElementNotFoundError, "valid: 'X', 'X_nextchannel'"),
            ({"k": 0}, InputError, "k=0"),
            ({"k": 2.5}, InputError, "k=2.5"),
            ({"k": 430}, InputError, "430 cells are too few"),
            ({"method": "infomap"}, InputError, "'leiden', 'louvain'"),
            ({"metric": "l1"}, InputError, "'cosine'"),
            ({"resolution": 0}, InputError, "above 0"),
            ({"resolution": float("nan")}, InputError, "above 0"),
            ({"min_cells": 0}, InputError, "min_cells=0"),
            ({"seed": -1}, InputError, "seed=-1"),
            ({"n_jobs": 0}, InputError, "n_jobs=0"),
            ({"key_added": "a/b"}, InputError, "a/b"),
        ],
    )
    def test_bad_input_changes_nothing(self, adata, arguments, error, match):
        with pytest.raises(error, match=match):
            nb.tl.phenograph(adata, **arguments)
        assert list(adata.obs) == ["type"]
        assert not adata.uns
        assert not adata.obsp

    def test_values_that_are_not_finite(self, adata):
        adata.obsm["X_nextchannel"][:3, 0] = np.nan
        with pytest.raises(InputError, match="in 3 of 430 cells"):
            nb.tl.phenograph(adata)
        with pytest.raises(InputError, match="expected an AnnData"):
            nb.tl.phenograph(adata.X)


class TestSubcluster:
    def test_one_cluster_is_split_in_its_place_and_others_stay(self, adata):
        adata.obs["coarse"] = pd.Categorical(
            np.where(adata.obs["type"].isin(["t1", "t2"]), "T", adata.obs["type"].astype(str)),
            categories=["t0", "T", "t3"],
        )
        nb.tl.subcluster(adata, "coarse", "T", resolution=0.1)
        expected = adata.obs["type"].astype(str).replace({"t1": "T,0", "t2": "T,1"})
        assert adata.obs["coarse_sub"].tolist() == expected.tolist()
        assert adata.obs["coarse_sub"].cat.categories.tolist() == ["t0", "T,0", "T,1", "t3"]
        nb.tl.name_clusters(adata, {"T,0": "CD4"}, "coarse_sub")
        nb.tl.merge_clusters(adata, {"T,1": "CD4"}, "coarse_sub")
        assert adata.obs["coarse_sub"].cat.categories.tolist() == ["t0", "CD4", "t3"]
        nb.tl.undo_clusters(adata, "coarse_sub", steps=2)
        assert adata.obs["coarse_sub"].tolist() == expected.tolist()

    def test_several_again_and_small_parts(self, adata):
        adata.obs["all"] = np.where(adata.obs["type"].isin(["t0", "t3"]), "a", "b")
        adata.obs.loc[adata.obs_names[:4], "all"] = None
        nb.tl.subcluster(adata, "all", ["a", "b"], resolution=0.05, key_added="deep")
        assert adata.obs["deep"].cat.categories.tolist() == ["a,0", "a,-1", "b,0", "b,1"]
        assert adata.obs["deep"].isna().tolist() == adata.obs["all"].isna().tolist()
        nb.tl.subcluster(adata, "deep", "b,1", min_cells=1, key_added="deep")
        assert {"b,1,0", "b,0"} <= set(adata.obs["deep"].cat.categories)
        assert set(adata.uns["subcluster"]) == {"deep"}

    def test_a_cluster_without_a_large_part_stays_whole(self, adata):
        with pytest.warns(NimbusWarning, match="min_cells=1000"):
            nb.tl.subcluster(adata, "type", "t1", min_cells=1000)
        assert adata.obs["type_sub"].tolist() == adata.obs["type"].tolist()

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            (("type", "t9"), ElementNotFoundError, "valid: t0, t1, t2, t3"),
            (("kind", "t0"), ElementNotFoundError, "'kind'"),
            (("type", []), InputError, "at least one"),
            (("type", ["t0", "t0"]), InputError, "each once"),
        ],
    )
    def test_bad_input_changes_nothing(self, adata, arguments, error, match):
        with pytest.raises(error, match=match):
            nb.tl.subcluster(adata, *arguments)
        with pytest.raises(InputError, match="cluster 't3' of obs"):
            nb.tl.subcluster(adata, "type", ["t0", "t3"], k=30)
        assert list(adata.obs) == ["type"]
        assert not adata.uns

    def test_names_that_are_taken(self, adata):
        adata.obs["type"] = adata.obs["type"].cat.rename_categories({"t1": "t0,0"})
        with pytest.raises(InputError, match="t0,0 already"):
            nb.tl.subcluster(adata, "type", "t0", resolution=0.1)


def labelled(n=300, seed=3):
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, n)
    cluster = np.where(rng.random(n) < 0.6, kind * 2 + rng.integers(0, 2, n), rng.integers(0, 9, n))
    obs = pd.DataFrame(
        {
            "type": pd.Categorical(np.array(["B", "T", "tumour", "rare"])[kind]),
            "phenograph": pd.Categorical([str(c) if c < 8 else "-1" for c in cluster]),
        },
        index=[f"c{i}" for i in range(n)],
    )
    obs.loc[obs.index[rng.random(n) < 0.2], "type"] = np.nan
    return ad.AnnData(np.zeros((n, 1), np.float32), obs=obs)


def slow_rediscovery(obs, ignore=("-1",)):
    known = obs[obs["type"].notna()]
    types = sorted(set(known["type"]))
    name = {}
    for cluster in set(obs["phenograph"]):
        mine = [t for t, c in zip(known["type"], known["phenograph"], strict=True) if c == cluster]
        total = known["type"].tolist()
        best = sorted(types, key=lambda t: (-mine.count(t), total.count(t), t))[0] if mine else "unknown"
        name[cluster] = "unknown" if cluster in ignore else best
    rows = {}
    for t in types:
        found = [name[c] for k, c in zip(known["type"], known["phenograph"], strict=True) if k == t]
        rows[t] = {column: found.count(column) / len(found) for column in [*types, "unknown"]}
    return pd.DataFrame(rows).T, obs["phenograph"].astype(str).map(name)


class TestRediscovery:
    @pytest.mark.parametrize("seed", range(4))
    def test_equals_loops(self, seed):
        adata = labelled(seed=seed)
        frame = nb.tl.rediscovery(adata, "type")
        wanted, assigned = slow_rediscovery(adata.obs)
        pd.testing.assert_frame_equal(frame, wanted[frame.columns], check_names=False)
        assert adata.obs["phenograph_phenotype"].tolist() == assigned.tolist()
        np.testing.assert_allclose(frame.sum(axis=1), 1)
        rates = [wanted.loc[t, t] for t in wanted.index]
        assert frame.attrs["balanced"] == pytest.approx(np.mean(rates))
        right = (adata.obs["type"].astype(str) == assigned)[adata.obs["type"].notna()]
        assert frame.attrs["accuracy"] == pytest.approx(right.mean())
        assert sum(frame.attrs["cells"].values()) == adata.obs["type"].notna().sum()

    def test_a_type_nobody_found_has_a_column_of_zeros(self):
        adata = labelled()
        adata.obs["phenograph"] = pd.Categorical(np.where(adata.obs["type"] == "B", "0", "1"))
        frame = nb.tl.rediscovery(adata, "type", ignore=())
        assert frame.columns.tolist() == ["B", "T", "rare", "tumour", "unknown"]
        lost = [t for t in frame.index if not frame[t].any()]
        assert len(lost) == 2
        assert frame.attrs["balanced"] == pytest.approx(2 / 4)

    def test_small_parts_of_a_split_cluster_are_none(self):
        adata = labelled()
        clusters = adata.obs["phenograph"].astype(str).to_numpy(dtype=object)
        clusters[clusters == "0"] = np.resize(["0,-1", "0,1", "0,1,-1"], (clusters == "0").sum())
        adata.obs["phenograph"] = pd.Categorical(clusters)
        frame = nb.tl.rediscovery(adata, "type")
        wanted, assigned = slow_rediscovery(adata.obs, ignore=("-1", "0,-1", "0,1,-1"))
        pd.testing.assert_frame_equal(frame, wanted[frame.columns], check_names=False)
        assert adata.obs["phenograph_phenotype"].tolist() == assigned.tolist()
        nb.tl.rediscovery(adata, "type", ignore=())
        assert not (adata.obs["phenograph_phenotype"][clusters == "0,-1"] == "unknown").any()
        nb.tl.rediscovery(adata, "type", mapping={"T": ["0,-1"]})
        assert set(adata.obs["phenograph_phenotype"][clusters == "0,-1"]) == {"T"}

    def test_given_mapping(self, tmp_path):
        adata = labelled()
        frame = nb.tl.rediscovery(adata, "type", mapping={"T": ["0", "1", "2"], "new": ["-1"]})
        assert frame.columns.tolist() == ["B", "T", "rare", "tumour", "new", "unknown"]
        found = adata.obs["phenograph_phenotype"].astype(str)
        assert set(found[adata.obs["phenograph"] == "-1"]) == {"new"}  # named, so it is none no longer
        assert set(found[adata.obs["phenograph"] == "7"]) == {"unknown"}
        path = tmp_path / "names.csv"
        path.write_text("cluster,name\n0,T\n1,T\n2,T\n-1,new\n")
        again = nb.tl.rediscovery(adata, "type", mapping=path, key_added="other")
        np.testing.assert_array_equal(again, frame)

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ({"reference_key": "kind"}, ElementNotFoundError, "'kind'"),
            ({"cluster_key": "leiden"}, ElementNotFoundError, "'leiden'"),
            ({"mapping": {"99": "T"}}, ElementNotFoundError, "names 99"),
            ({"mapping": {"0": " "}}, InputError, "empty name"),
            ({"mapping": {}}, ElementNotFoundError, "no cluster"),
            ({"unknown": "T"}, InputError, "a type 'T'"),
            ({"key_added": "type"}, InputError, "overwrite"),
        ],
    )
    def test_bad_input_changes_nothing(self, arguments, error, match):
        adata = labelled()
        before = adata.obs.copy()
        with pytest.raises(error, match=match):
            nb.tl.rediscovery(adata, **{"reference_key": "type"} | arguments)
        pd.testing.assert_frame_equal(adata.obs, before)
        assert not adata.uns

    def test_no_cell_in_common(self):
        adata = labelled()
        adata.obs["type"] = pd.Categorical([None] * adata.n_obs, categories=["T"])
        with pytest.raises(InputError, match="no cell has both"):
            nb.tl.rediscovery(adata, "type")


def test_everything_written_survives_the_disk(adata, tmp_path):
    nb.tl.phenograph(adata, resolution=0.1)
    nb.tl.subcluster(adata, "phenograph", ["0", "1"], min_cells=5)
    frame = nb.tl.rediscovery(adata, "type")
    sd.SpatialData(tables={"embedding": adata}).write(tmp_path / "t.zarr")
    back = sd.read_zarr(tmp_path / "t.zarr")["embedding"]
    pd.testing.assert_frame_equal(back.obs, adata.obs)
    assert back.uns["phenograph"]["phenograph"]["use_rep"] == "X_nextchannel"
    assert (back.obsp["phenograph_connectivities"] != adata.obsp["phenograph_connectivities"]).nnz == 0
    counts = back.uns["rediscovery"]["counts"]
    np.testing.assert_allclose(counts / counts.sum(1, keepdims=True), frame)
    assert list(back.uns["rediscovery"]["assigned"]) == list(frame.columns)


@pytest.mark.parametrize("function", ["phenograph", "subcluster"])
def test_a_missing_igraph_is_named_before_the_search(adata, function, monkeypatch):
    adata.obs["types"] = pd.Categorical(["a"] * adata.n_obs)
    before = adata.copy()
    monkeypatch.setitem(sys.modules, "igraph", None)
    monkeypatch.setattr(_neighbour_graph, "nearest", None)
    call = {
        "phenograph": lambda: nb.tl.phenograph(adata, use_rep="X"),
        "subcluster": lambda: nb.tl.subcluster(adata, "types", "a", use_rep="X"),
    }[function]
    with pytest.raises(MissingExtraError, match=r"nimbus-sd\[leiden\]"):
        call()
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert not adata.uns
