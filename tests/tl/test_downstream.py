"""What users do next runs on the table as it is: neighbours, Leiden, squidpy's statistics."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import nimbus_sd as nb

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing squidpy
    import scanpy as sc
    import squidpy as sq


@pytest.fixture(scope="module")
def table():
    sdata = nb.datasets.simulated_tissue(n_fovs=2, shape=(224, 224), seed=3)
    channels = ["CD45", "CD3", "CD20", "PanCK", "VIM"]
    there = [name for name in channels if name in sdata["fov0_image"].coords["c"].to_numpy()]
    nb.tl.predict(sdata, channels=there, progress=False)
    adata = sdata["nimbus"]
    nb.tl.flowsom(adata, n_nodes=16, n_metaclusters=4)
    return adata


@pytest.mark.filterwarnings("ignore")  # theirs; that they run is what counts here
def test_scanpy_and_squidpy_run_on_scores_and_metaclusters(table):
    adata = table.copy()
    sc.pp.neighbors(adata, use_rep="X", n_neighbors=8)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2)
    sq.gr.spatial_neighbors_delaunay(adata, library_key="region")
    for key in ("metacluster", "leiden"):
        k = adata.obs[key].nunique()
        sq.gr.nhood_enrichment(adata, cluster_key=key, n_perms=20, seed=0, show_progress_bar=False)
        assert adata.uns[f"{key}_nhood_enrichment"]["zscore"].shape == (k, k)
    sq.gr.co_occurrence(adata, cluster_key="metacluster", interval=5, show_progress_bar=False)
    assert np.isfinite(adata.uns["metacluster_co_occurrence"]["occ"]).any()
    one = adata[adata.obs.region == adata.obs.region.iloc[0]].copy()
    sq.gr.ripley(one, cluster_key="metacluster", mode="L", n_simulations=5)
    assert "metacluster_ripley_L" in one.uns


@pytest.mark.filterwarnings("ignore")
def test_they_run_after_clusters_were_merged_and_named(table):
    adata = table.copy()
    nb.tl.merge_clusters(adata, {"3": "2"})
    nb.tl.name_clusters(adata, {"0": "immune / other"})
    sq.gr.spatial_neighbors_knn(adata, library_key="region")
    sq.gr.nhood_enrichment(adata, cluster_key="metacluster", n_perms=20, seed=0, show_progress_bar=False)
    assert adata.uns["metacluster_nhood_enrichment"]["zscore"].shape == (3, 3)
