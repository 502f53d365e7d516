"""nb.pl.marker_heatmap: means, order of leaves, sizes, limits."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.cluster.hierarchy import leaves_list, linkage

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.pl._marker_heatmap import _short


def _frame(axes: dict) -> pd.DataFrame:
    ax = axes["heatmap"]
    rows = [t.get_text() for t in ax.get_yticklabels()]
    columns = [t.get_text() for t in ax.get_xticklabels()]
    values = np.ma.filled(ax.collections[0].get_array(), np.nan)
    return pd.DataFrame(values.reshape(len(rows), len(columns)), index=rows, columns=columns)


def _random(n: int = 200, k: int = 7, groups: int = 5) -> ad.AnnData:
    rng = np.random.default_rng(5)
    code = rng.integers(0, groups, n)
    centres = rng.random((groups, k))
    out = ad.AnnData(np.clip(centres[code] + rng.normal(0, 0.05, (n, k)), 0, 1).astype(np.float32))
    out.obs["leiden"] = pd.Categorical([f"c{i}" for i in code])
    out.var_names = [f"m{i}" for i in range(k)]
    return out


def test_means_order_and_sizes(adata):
    axes = nb.pl.marker_heatmap(adata, show=False)
    frame = _frame(axes)
    assert sorted(frame.index) == ["0", "1", "2"]
    oracle = adata.to_df().groupby(adata.obs["leiden"], observed=True).mean()
    np.testing.assert_allclose(frame, oracle.loc[frame.index, frame.columns], rtol=1e-5)
    bars = [round(p.get_width()) for p in axes["sizes"].patches]
    assert bars == adata.obs["leiden"].value_counts()[frame.index].tolist()
    assert axes["heatmap"].collections[0].get_clim() == (0, 1)
    assert axes["colorbar"].get_ylabel() == "mean score"


@pytest.mark.parametrize("method", ["average", "ward"])
def test_leaves_are_those_of_scipy_and_the_tree_meets_them(method):
    table = _random()
    axes = nb.pl.marker_heatmap(table, method=method, show=False)
    means = table.to_df().groupby(table.obs["leiden"], observed=True).mean()
    frame = _frame(axes)
    rows = leaves_list(linkage(means.to_numpy(np.float64), method, optimal_ordering=True))
    columns = leaves_list(linkage(means.to_numpy(np.float64).T, method, optimal_ordering=True))
    assert frame.index.tolist() == means.index[rows].tolist()
    assert frame.columns.tolist() == means.columns[columns].tolist()
    ends = [p for line in axes["dendrogram"].collections[0].get_segments() for p in line if p[0] == 0]
    assert sorted(float(y) for _, y in ends) == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert axes["dendrogram"].get_ylim() == axes["heatmap"].get_ylim() == (5, 0)
    assert len(axes["dendrogram"].collections[0].get_segments()) == 4


def test_markers_keep_their_order_when_asked():
    axes = nb.pl.marker_heatmap(_random(), markers=["m5", "m0", "m3"], cluster_markers=False, show=False)
    assert _frame(axes).columns.tolist() == ["m5", "m0", "m3"]


def test_standardize():
    marker = nb.pl.marker_heatmap(_random(), standardize="marker", show=False)
    np.testing.assert_allclose(_frame(marker).min(), 0)
    np.testing.assert_allclose(_frame(marker).max(), 1)
    z = nb.pl.marker_heatmap(_random(), standardize="zscore", show=False)
    np.testing.assert_allclose(_frame(z).mean(), 0, atol=1e-9)
    np.testing.assert_allclose(_frame(z).std(ddof=0), 1)
    low, high = z["heatmap"].collections[0].get_clim()
    assert low == -high < 0
    assert z["colorbar"].get_ylabel() == "mean score (z per marker)"


def test_missing_groups_values_and_sparse_layers(adata):
    adata.obs.loc[adata.obs_names[:5], "leiden"] = np.nan
    adata.layers["nimbus"] = adata.X.copy()
    adata.layers["nimbus"][:, 2] = np.nan
    axes = nb.pl.marker_heatmap(adata, layer="nimbus", show=False)
    assert _frame(axes)["CD20"].isna().all()
    assert sum(round(p.get_width()) for p in axes["sizes"].patches) == adata.n_obs - 5
    adata.layers["s"] = sparse.csr_matrix(adata.X)
    dense = _frame(nb.pl.marker_heatmap(adata, show=False))
    pd.testing.assert_frame_equal(_frame(nb.pl.marker_heatmap(adata, layer="s", show=False)), dense)


def test_one_cluster_and_one_marker(adata):
    adata.obs["one"] = "all"
    axes = nb.pl.marker_heatmap(adata, "one", markers="CD3", annotate=True, show=False)
    assert _frame(axes).shape == (1, 1)
    assert not axes["dendrogram"].collections
    assert [t.get_text() for t in axes["heatmap"].texts] == [".50"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.25, ".25"), (-0.25, "-.25"), (10.0, "10.0"), (1.0, "1.00"), (1570.2, "1570")]
)
def test_annotated_values(value, text):
    assert _short(value) == text


def test_save_and_default(adata, tmp_path):
    nb.pl.marker_heatmap(adata, save=tmp_path / "h.svg")
    assert "<svg" in (tmp_path / "h.svg").read_text()
    assert nb.pl.marker_heatmap(adata) is None


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"groupby": "cluster"}, ElementNotFoundError, "columns that group cells: region, leiden"),
        ({"groupby": "size"}, InputError, r"pandas\.cut"),
        ({"markers": ["A"]}, ElementNotFoundError, "valid: CD3"),
        ({"layer": "A"}, ElementNotFoundError, "integrated_expression"),
        ({"standardize": "var"}, InputError, "'marker', 'zscore'"),
        ({"method": "median"}, InputError, "'average'"),
    ],
)
def test_errors(adata, arguments, error, match):
    adata.obs["size"] = np.linspace(0, 1, adata.n_obs)
    with pytest.raises(error, match=match):
        nb.pl.marker_heatmap(adata, **arguments)


def test_missing_leiden_says_how_to_make_it(adata):
    del adata.obs["leiden"]
    with pytest.raises(ElementNotFoundError, match=r"sc\.tl\.leiden"):
        nb.pl.marker_heatmap(adata)
