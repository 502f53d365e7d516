"""The README's snippet as a user runs it: TIFFs, scores, Leiden, neighbourhoods."""

import warnings

import numpy as np
import tifffile
from sklearn.metrics import adjusted_rand_score

import nimbus_sd as nb


def test_from_tiffs_to_neighbourhoods(tmp_path, monkeypatch):
    tissue = nb.datasets.simulated_tissue(n_fovs=2, shape=(320, 320))
    monkeypatch.chdir(tmp_path)
    for fov in ("fov0", "fov1"):
        image = tissue[f"{fov}_image"]
        (tmp_path / "image_data" / fov).mkdir(parents=True)
        for name, plane in zip(image.coords["c"].values, np.asarray(image.data), strict=True):
            tifffile.imwrite(tmp_path / "image_data" / fov / f"{name}.tiff", plane)
        (tmp_path / "segmentation").mkdir(exist_ok=True)
        tifffile.imwrite(f"segmentation/{fov}_whole_cell.tiff", np.asarray(tissue[f"{fov}_labels"].data))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what scanpy and squidpy say of themselves
        import scanpy as sc
        import squidpy as sq

        sdata = nb.io.read_fovs("image_data", labels="segmentation", mpp=0.5)
        nb.tl.predict(sdata, progress=False)
        adata = sdata["nimbus"]
        sc.pp.neighbors(adata, use_rep="X")
        sc.tl.leiden(adata, flavor="igraph")
        sq.gr.spatial_neighbors_knn(adata, library_key="region")
        sq.gr.nhood_enrichment(adata, cluster_key="leiden", show_progress_bar=False)

    types = tissue["truth"].obs["cell_type"].reindex(adata.obs_names).astype(str)
    known = (types != "").to_numpy()
    assert adjusted_rand_score(types[known], adata.obs["leiden"][known]) > 0.25
    zscore = adata.uns["leiden_nhood_enrichment"]["zscore"]
    assert zscore.shape == (adata.obs["leiden"].nunique(),) * 2
    crossing = adata.obsp["spatial_connectivities"].tocoo()
    region = adata.obs["region"].to_numpy()
    assert (region[crossing.row] == region[crossing.col]).all()


def test_an_empty_channel_scores_near_zero():
    sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(160, 160), channels=["CD3", "CD20"])
    image = sdata["fov0_image"]
    image.data = image.data.copy()
    image[1] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nb.tl.predict(sdata, progress=False)
    table = sdata["nimbus"]
    assert table.var["qc"]["CD20"] == "empty"
    assert table[:, "CD20"].X.max() < 0.1
