"""nb.pl.positive_fraction, coexpression, som, and their kernels: what is drawn, against slow oracles."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from scipy.stats import gaussian_kde

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.pl._coexpression import pairwise
from nimbus_sd.pl._colours import group_colours, palette
from nimbus_sd.pl._density import mirrored_density, silverman
from nimbus_sd.pl._style import MISSING
from nimbus_sd.pl._tree_layout import equal_angle, spanning_tree, tree_layout


def _holes(n: int = 90, k: int = 5) -> np.ndarray:
    rng = np.random.default_rng(4)
    x = rng.random((n, k))
    x[:, 1] = np.clip(x[:, 0] + rng.normal(0, 0.1, n), 0, 1)
    x[rng.random((n, k)) < 0.1] = np.nan
    return x


class TestPositiveFraction:
    def test_bars_are_shares_and_dots_are_groups(self, adata):
        adata.obs["half"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 2, "b", "a"))
        adata.X[0, 0] = np.nan
        ax = nb.pl.positive_fraction(
            adata, groupby="half", threshold={"CD3": 0.5, "CD8": 0.1, "CD20": 0.5}, show=False
        )
        assert [t.get_text() for t in ax.get_yticklabels()] == ["CD8", "CD3", "CD20"]
        x = adata.X[:, 0]
        wanted = np.nansum(x > 0.5) / np.isfinite(x).sum()
        assert [p.get_width() for p in ax.patches] == pytest.approx([1.0, wanted, 0.0])
        dots = {line.get_label(): line.get_xdata() for line in ax.lines}
        for name in "ab":
            rows = (adata.obs["half"] == name).to_numpy() & np.isfinite(x)
            assert dots[name][1] == pytest.approx((x[rows] > 0.5).mean())
        assert [t.get_text() for t in ax.texts] == ["100%", f"{wanted:.1%}", "0.0%"]

    def test_order_given_many_groups_and_no_values(self, adata):
        adata.X[:, 1] = np.nan
        adata.obs["many"] = pd.Categorical([str(i % 9) for i in range(adata.n_obs)])
        ax = nb.pl.positive_fraction(adata, ["CD20", "CD8", "CD3"], groupby="many", sort=False, show=False)
        assert [t.get_text() for t in ax.get_yticklabels()] == ["CD20", "CD8", "CD3"]
        assert ax.texts[1].get_text() == "no values"
        assert len(ax.lines) == 9
        assert ax.get_legend() is None

    def test_errors(self, adata):
        with pytest.raises(InputError, match="no entry for"):
            nb.pl.positive_fraction(adata, threshold={"CD3": 0.5})
        with pytest.raises(ElementNotFoundError, match="columns that group cells"):
            nb.pl.positive_fraction(adata, groupby="x")


class TestCoexpression:
    @pytest.mark.parametrize("measure", ["share", "jaccard", "lift", "correlation"])
    def test_matrix_equals_the_slow_one(self, measure):
        x, cut = _holes(), np.array([0.5, 0.4, 0.9, 0.5, 2.0])
        found = pairwise(x, cut, measure)
        for i in range(5):
            for j in range(5):
                a, b = x[:, i], x[:, j]
                known = np.isfinite(a) & np.isfinite(b)
                p, q = a[known] > cut[i], b[known] > cut[j]
                if measure == "correlation":
                    wanted = np.corrcoef(a[known], b[known])[0, 1]
                elif not p.any() or (measure != "share" and not q.any()):
                    wanted = np.nan
                elif measure == "share":
                    wanted = q[p].mean()
                elif measure == "jaccard":
                    wanted = (p & q).sum() / (p | q).sum()
                else:
                    wanted = np.log2(
                        ((p & q).sum() + 0.5) * (p.size + 0.5) / ((p.sum() + 0.5) * (q.sum() + 0.5))
                    )
                wanted = np.nan if i == j else wanted
                assert found[i, j] == pytest.approx(wanted, nan_ok=True), (i, j)

    def test_constant_markers_have_no_correlation(self):
        x = np.stack([np.arange(5.0), np.full(5, 0.3)], 1)
        assert np.isnan(pairwise(x, np.array([0.5, 0.5]), "correlation")).all()

    def test_fields_are_those_of_their_names(self, adata):
        ax = nb.pl.coexpression(adata, show=False, annotate=True)
        names = [t.get_text() for t in ax.get_yticklabels()]
        assert sorted(names) == ["CD20", "CD3", "CD8"]
        assert names == [t.get_text() for t in ax.get_xticklabels()]
        drawn = np.ma.filled(ax.collections[0].get_array(), np.nan).reshape(3, 3)
        i, j = names.index("CD3"), names.index("CD8")
        x = adata.X > 0.5
        assert drawn[i, j] == pytest.approx(x[x[:, 0], 1].mean())
        assert np.isnan(np.diag(drawn)).all()
        assert len(ax.texts) == np.isfinite(drawn).sum()
        ordered = nb.pl.coexpression(adata, ["CD8", "CD20"], cluster_markers=False, show=False)
        assert [t.get_text() for t in ordered.get_yticklabels()] == ["CD8", "CD20"]

    def test_errors(self, adata):
        with pytest.raises(InputError, match="valid: share, jaccard"):
            nb.pl.coexpression(adata, measure="x")
        with pytest.raises(InputError, match="at least two"):
            nb.pl.coexpression(adata, "CD3")


class TestDensity:
    def test_equals_mirrored_kernels(self):
        x = np.random.default_rng(0).beta(0.5, 2, 300)
        at, density = mirrored_density(x, bandwidth=0.05)
        kde = gaussian_kde(
            np.concatenate([x, -x, 2 - x]), bw_method=lambda k: 0.05 / np.std([*x, *-x, *(2 - x)], ddof=1)
        )
        np.testing.assert_allclose(density, 3 * kde(at), rtol=0.02, atol=0.01)
        assert density.mean() == pytest.approx(1)

    def test_degenerate(self):
        assert mirrored_density(np.array([np.nan]))[1].sum() == 0
        assert mirrored_density(np.full(4, 0.5))[1].mean() == pytest.approx(1)
        assert silverman(np.zeros(4)) == 1 / 256

    def test_curves_in_the_plot(self, adata):
        axes = nb.pl.score_distribution(adata, "CD3", kind="kde", bins=10, threshold=None, show=False)
        (line,) = axes[0, 0].lines
        np.testing.assert_allclose(line.get_ydata(), mirrored_density(adata.X[:, 0].astype(float))[1] / 10)
        with pytest.raises(InputError, match="valid: hist, kde"):
            nb.pl.score_distribution(adata, kind="box")


def _crossings(place: np.ndarray, edges: np.ndarray) -> int:
    def side(a, b, c):
        return np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

    count = 0
    for i, (a, b) in enumerate(edges):
        for c, d in edges[:i]:
            if len({a, b, c, d}) == 4:
                p, q, r, s = place[[a, b, c, d]]
                count += side(p, q, r) * side(p, q, s) < 0 and side(r, s, p) * side(r, s, q) < 0
    return count


class TestTree:
    def test_layouts_of_random_trees(self):
        points = np.random.default_rng(1).random((60, 4))
        edges = spanning_tree(points)
        assert len(edges) == 59
        outward = equal_angle(60, edges)
        np.testing.assert_allclose(np.linalg.norm(outward[edges[:, 0]] - outward[edges[:, 1]], axis=1), 1)
        assert _crossings(outward, edges) == 0
        place = tree_layout(60, edges)
        length = np.linalg.norm(place[edges[:, 0]] - place[edges[:, 1]], axis=1)
        assert length.min() > 0.5
        assert length.max() < 1.5
        assert _crossings(place, edges) <= 2

    def test_spanning_tree_is_the_shortest(self):
        points = np.random.default_rng(2).random((12, 3))
        gap = np.linalg.norm(points[:, None] - points, axis=2)
        joined, total = {0}, 0.0  # Prim's
        while len(joined) < 12:
            a, b = min(((i, j) for i in joined for j in range(12) if j not in joined), key=lambda e: gap[e])
            joined.add(b)
            total += gap[a, b]
        edges = spanning_tree(points)
        assert gap[edges[:, 0], edges[:, 1]].sum() == pytest.approx(total)

    def test_few_and_equal_points(self):
        assert spanning_tree(np.zeros((1, 2))).shape == (0, 2)
        assert len(spanning_tree(np.zeros((4, 2)))) == 3
        assert np.isfinite(tree_layout(1, np.empty((0, 2), int))).all()


@pytest.fixture
def mapped() -> ad.AnnData:
    """A map of 3 x 4 nodes as nb.tl.flowsom leaves it; two nodes have no cells."""
    rng = np.random.default_rng(0)
    out = ad.AnnData(rng.random((40, 2)).astype(np.float32), var=pd.DataFrame(index=["CD3", "CD8"]))
    group = np.array([str(i % 3) for i in range(12)], dtype=object)
    size = np.arange(12.0)
    size[5] = 0
    codes = rng.random((12, 2))
    mean = np.where(size[:, None] > 0, codes, np.nan)
    out.obs["metacluster"] = pd.Categorical(rng.choice(["0", "1", "2"], 40))
    out.uns["flowsom"] = {
        "codes": codes,
        "grid": np.array([3, 4]),
        "node_size": size,
        "node_mean": mean,
        "node_metacluster": group,
        "markers": np.array(["CD3", "CD8"], dtype=object),
        "key_metacluster": "metacluster",
    }
    return out


def _nodes(ax, gid: str = "nodes"):
    return next(c for c in ax.collections if c.get_gid() == gid)


class TestSom:
    def test_grid_has_every_node_in_its_place(self, mapped):
        axes = nb.pl.som(mapped, ["metacluster", "CD8"], layout="grid", show=False)
        assert len(axes) == 2
        filled = np.flatnonzero(mapped.uns["flowsom"]["node_size"] > 0)
        wanted = np.stack([filled // 4, filled % 4], 1)
        np.testing.assert_allclose(_nodes(axes[0]).get_offsets(), wanted)
        assert len(_nodes(axes[0], "empty").get_offsets()) == 2
        colours = group_colours(mapped, "metacluster")
        faces = [to_hex(c) for c in _nodes(axes[0]).get_facecolor()]
        assert faces == [colours[str(i % 3)] for i in filled]
        np.testing.assert_allclose(_nodes(axes[1]).get_array(), mapped.uns["flowsom"]["codes"][filled, 1])
        area = _nodes(axes[0]).get_sizes()
        assert area[-1] == area.max()

    def test_tree_joins_the_nodes_with_cells(self, mapped):
        (ax,) = nb.pl.som(mapped, show=False)
        assert not _nodes(ax).get_clip_on(), "a large node at the edge would be cut off"
        lines = next(c for c in ax.collections if hasattr(c, "get_segments"))
        assert len(lines.get_segments()) == 9
        assert len(_nodes(ax).get_offsets()) == 10
        assert [t.get_text() for t in ax.figure.legends[0].get_texts()] == ["0", "1", "2"]

    def test_after_flowsom_and_renames(self, tmp_path):
        pytest.importorskip("flowsom")
        rng = np.random.default_rng(0)
        table = ad.AnnData(
            (np.repeat(np.eye(3), 40, axis=0) + rng.normal(0, 0.1, (120, 3))).astype(np.float32)
        )
        nb.tl.flowsom(table, n_nodes=16, n_metaclusters=3)
        nb.tl.name_clusters(table, {"0": "tumour"})
        before = dict(table.uns["flowsom"])
        nb.pl.som(table, ["metacluster", "1"], save=tmp_path / "s.png")
        (ax,) = nb.pl.som(table, show=False)
        assert "tumour" in [t.get_text() for t in ax.figure.legends[0].get_texts()]
        assert all(before[k] is v for k, v in table.uns["flowsom"].items())

    def test_errors(self, mapped, adata):
        with pytest.raises(ElementNotFoundError, match=r"nb\.tl\.flowsom"):
            nb.pl.som(adata)
        with pytest.raises(ElementNotFoundError, match="valid: metacluster, CD3, CD8"):
            nb.pl.som(mapped, "CD4")
        with pytest.raises(InputError, match="'tree', 'grid'"):
            nb.pl.som(mapped, layout="star")


class TestColours:
    def test_first_28_differ_and_are_apart(self):
        colours = palette(28)
        assert len(set(colours)) == 28
        rgb = np.array([to_rgb(c) for c in colours])
        gap = np.linalg.norm(rgb[:, None] - rgb, axis=2) + np.eye(28)
        assert gap.min() > 0.1

    def test_subsets_keep_theirs_and_stored_ones_go_first(self):
        table = ad.AnnData(np.zeros((4, 1), np.float32))
        table.obs["t"] = pd.Categorical(["a", "b", "c", "unassigned"])
        assert group_colours(table, "t")["unassigned"] == MISSING
        table.obs["n"] = pd.Categorical(["0", "3", "7", "unassigned"])
        every = group_colours(table, "n")
        assert group_colours(table[1:3], "n") == {name: every[name] for name in ("3", "7")}
        table.uns["t_colors"] = ["#000001", "#000002", "#000003", "#000004"]
        assert group_colours(table, "t")["b"] == "#000002"

    def test_heatmap_and_map_agree(self, field, adata):
        axes = nb.pl.marker_heatmap(adata, show=False)
        rows = [t.get_text() for t in axes["heatmap"].get_yticklabels()]
        colours = group_colours(adata, "leiden")
        assert [to_hex(p.get_facecolor()) for p in axes["sizes"].patches] == [colours[r] for r in rows]
