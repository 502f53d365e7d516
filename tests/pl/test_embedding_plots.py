"""nb.pl.marker_umap, rediscovery, attribution; galleries of points and shapes; heat maps of activations."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from scipy.stats import spearmanr
from spatialdata.models import PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Translation, set_transformation

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.pl import _marker_umap
from nimbus_sd.pl._binned_map import binned_groups, binned_means
from nimbus_sd.pl._colours import group_colours
from nimbus_sd.pl._gallery_cells import pick_nearest_to_mean
from nimbus_sd.pl._style import MISSING

FIRST, PITCH, COLUMNS = 4_000_000_000, 16, 8


@pytest.fixture
def cells():
    """60 cells, activations above 1, a map, two clusters and cells of none."""
    rng = np.random.default_rng(2)
    code = rng.integers(0, 3, 60)
    obs = pd.DataFrame(
        {"phenograph": pd.Categorical(np.array(["0", "1", "-1"])[code], ["0", "1", "-1"])},
        index=[f"c{i}" for i in range(60)],
    )
    out = ad.AnnData(
        (rng.random((60, 4)) + 2 * code[:, None]).astype(np.float32),
        obs=obs,
        var=pd.DataFrame(index=["CD3", "CD8", "CD20", "SMA"]),
    )
    out.obsm["X_umap"] = rng.normal(size=(60, 2))
    out.uns["nimbus_embedding"] = {"crop": 16}
    return out


class TestMarkerUmap:
    def test_every_cell_is_a_dot_of_its_value_within_the_panels_limits(self, cells):
        axes = nb.pl.marker_umap(cells, ["CD3", "SMA"], quantiles=(0.1, 0.9), show=False)
        for ax, marker in zip(axes, ["CD3", "SMA"], strict=True):
            dots = ax.collections[-1]
            told = pd.Series(dots.get_array(), index=map(tuple, np.asarray(dots.get_offsets())))
            wanted = pd.Series(cells[:, marker].X[:, 0].astype(float), index=map(tuple, cells.obsm["X_umap"]))
            pd.testing.assert_series_equal(told.sort_index(), wanted.sort_index(), check_dtype=False)
            assert dots.get_clim() == pytest.approx(tuple(np.quantile(wanted, [0.1, 0.9])))
            assert ax.get_title(loc="left") == marker
        first, again, other = (
            np.asarray(nb.pl.marker_umap(cells, "CD3", seed=s, show=False)[0].collections[-1].get_offsets())
            for s in (0, 0, 1)
        )
        assert (first == again).all()
        assert (first != other).any()

    def test_groups_have_their_colours_and_none_is_grey(self, cells):
        fig = nb.pl.marker_umap(cells, [], groupby="phenograph", return_fig=True)
        dots = fig.axes[0].collections[-1]
        colours = group_colours(cells, "phenograph")
        assert colours["-1"] == MISSING
        at = {tuple(p): name for p, name in zip(cells.obsm["X_umap"], cells.obs["phenograph"], strict=True)}
        for point, face in zip(np.asarray(dots.get_offsets()), dots.get_facecolors(), strict=True):
            assert to_hex(face) == to_hex(colours[at[tuple(point)]])
        assert [t.get_text() for t in fig.legends[0].get_texts()] == ["phenograph:", "0", "1", "-1"]

    def test_many_groups_are_named_on_the_map(self, cells):
        cells.obs["many"] = pd.Categorical([f"g{i // 2}" for i in range(60)])
        fig = nb.pl.marker_umap(cells, [], groupby="many", return_fig=True)
        assert {t.get_text() for t in fig.axes[0].texts} == {f"g{i}" for i in range(30)}
        assert not fig.legends

    def test_too_many_dots_become_means_of_fields(self, cells, monkeypatch):
        monkeypatch.setattr(_marker_umap, "_SCATTERED", 10)
        monkeypatch.setattr(_marker_umap, "_FIELDS", 5)
        cells.X[3, 0] = np.nan
        axes = nb.pl.marker_umap(cells, ["CD3"], groupby="phenograph", show=False)
        image = axes[1].images[0]
        left, right, bottom, top = image.get_extent()
        x, y = cells.obsm["X_umap"].T
        edges = np.linspace(bottom, top, 6), np.linspace(left, right, 6)
        known = np.isfinite(cells.X[:, 0])
        total = np.histogram2d(y[known], x[known], edges, weights=cells.X[known, 0])[0]
        count = np.histogram2d(y[known], x[known], edges)[0]
        found = image.get_array()
        assert (np.ma.getmaskarray(found) == (count == 0)).all()
        np.testing.assert_allclose(found[count > 0], (total[count > 0] / count[count > 0]), rtol=1e-6)
        assert axes[0].images[0].get_array().shape == (5, 5, 4)

    def test_fields_equal_loops(self):
        rng = np.random.default_rng(0)
        points, codes = rng.random((200, 2)), rng.integers(-1, 3, 200)
        value = rng.random(200)
        low, high = np.zeros(2), np.ones(2)
        groups = binned_groups(points, codes, low, high, 6, n_groups=3)
        means = binned_means(points, value, low, high, 6)
        for (row, column), group in np.ndenumerate(groups):
            mine = (points[:, 0] * 6).astype(int) == column
            mine &= (points[:, 1] * 6).astype(int) == row
            if not mine.any():
                assert group == -2
                assert np.isnan(means[row, column])
                continue
            counts = [(codes[mine] == g).sum() for g in (0, 1, 2, -1)]
            assert group == (0, 1, 2, -1)[int(np.argmax(counts))]
            assert means[row, column] == pytest.approx(value[mine].mean())

    def test_constant_and_missing_values_and_coordinates(self, cells):
        cells.X[:, 0] = 1
        cells.X[:5, 1] = np.nan
        cells.X[:, 2] = np.nan
        cells.obsm["X_umap"][:2] = np.nan
        axes = nb.pl.marker_umap(cells, n_columns=3, show=False)  # a row that is not full
        assert [sum(len(c.get_offsets()) for c in ax.collections) for ax in axes] == [58] * 4
        assert len(axes[1].collections[0].get_offsets()) == 3

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ({"basis": "tsne"}, ElementNotFoundError, r"no 'X_tsne' \(entries: 'X_umap'\)"),
            ({"markers": "CD99"}, ElementNotFoundError, "valid: CD3"),
            ({"markers": []}, InputError, "nothing to draw"),
            ({"groupby": "kind"}, ElementNotFoundError, "phenograph"),
            ({"layer": "x"}, ElementNotFoundError, "no layer 'x'"),
            ({"quantiles": (0.9, 0.1)}, InputError, "lower first"),
            ({"n_columns": 0}, InputError, "at least 1"),
            ({"save": "nowhere/a.png"}, InputError, "does not exist"),
        ],
    )
    def test_errors(self, cells, arguments, error, match):
        with pytest.raises(error, match=match):
            nb.pl.marker_umap(cells, **arguments)

    def test_without_a_map_it_says_how_to_make_one(self, cells):
        del cells.obsm["X_umap"]
        cells.obsm["X_nextchannel"] = np.zeros((60, 2))
        with pytest.raises(ElementNotFoundError, match=r"use_rep='X_nextchannel'\); sc\.tl\.umap\(adata\)"):
            nb.pl.marker_umap(cells)


class TestRediscovery:
    @pytest.fixture
    def found(self, cells):
        cells.obs["type"] = pd.Categorical(np.where(np.arange(60) % 3, "T", "B"))
        return nb.tl.rediscovery(cells, "type", mapping={"0": "T", "1": "new"})

    def test_fields_are_percent_and_the_diagonal_is_framed(self, cells, found):
        ax = nb.pl.rediscovery(found, show=False)
        drawn = ax.collections[0].get_array()
        np.testing.assert_allclose(drawn, 100 * found)
        assert [t.get_text() for t in ax.get_xticklabels()] == ["B", "T", "new", "unknown"]
        assert [t.get_text() for t in ax.get_yticklabels()] == ["B  (20)", "T  (40)"]
        assert [p.get_xy() for p in ax.patches] == [(0, 0), (1, 1)]
        assert ax.get_title(loc="left") == f"mean rediscovery rate {100 * found.attrs['balanced']:.1f} %"
        assert len(ax.texts) == 8
        assert ax.texts[0].get_text() == "0"

    def test_a_table_gives_the_same(self, cells, found):
        one, other = (nb.pl.rediscovery(d, annotate=False, show=False) for d in (found, cells))
        np.testing.assert_array_equal(one.collections[0].get_array(), other.collections[0].get_array())
        assert not one.texts
        assert one.get_title(loc="left") == other.get_title(loc="left")

    def test_errors(self, cells, found):
        with pytest.raises(InputError, match="rows sum to 1"):
            nb.pl.rediscovery(found * 2)
        with pytest.raises(InputError, match="rows sum to 1"):
            nb.pl.rediscovery({"a": 1})
        del cells.uns["rediscovery"]
        with pytest.raises(ElementNotFoundError, match=r"nb\.tl\.rediscovery"):
            nb.pl.rediscovery(cells)


class TestAttribution:
    @pytest.fixture
    def attributed(self, cells):
        rng = np.random.default_rng(0)
        cells.layers["occlusion"] = rng.random(cells.shape).astype(np.float32)
        cells.layers["gradient_x_input"] = 3 * cells.X
        return cells

    def test_shares_of_means_in_one_order_and_their_agreement(self, attributed):
        axes = nb.pl.attribution(attributed, show=False)
        assert set(axes) == {
            *("activation", "occlusion", "gradient_x_input"),
            *("occlusion_agreement", "gradient_x_input_agreement"),
        }
        rows = [t.get_text() for t in axes["occlusion"].get_yticklabels()]
        columns = [t.get_text() for t in axes["gradient_x_input"].get_xticklabels()]
        wanted = {}
        for name, layer in (("activation", None), ("occlusion", "occlusion")):
            means = attributed.to_df(layer).groupby(attributed.obs["phenograph"], observed=True).mean()
            wanted[name] = means.div(means.sum(axis=1), axis=0).loc[rows, columns]
            np.testing.assert_allclose(axes[name].collections[0].get_array(), 100 * wanted[name], rtol=1e-5)
        bars = [b.get_width() for b in axes["occlusion_agreement"].patches]
        rho = [
            spearmanr(a, b)[0]
            for a, b in zip(wanted["activation"].to_numpy(), wanted["occlusion"].to_numpy(), strict=True)
        ]
        np.testing.assert_allclose(bars, rho, atol=1e-9)
        # a multiple of the activation agrees wholly
        np.testing.assert_allclose([b.get_width() for b in axes["gradient_x_input_agreement"].patches], 1)

    def test_one_layer_markers_and_the_tables_record(self, attributed):
        attributed.uns["channel_attribution"] = {"occlusion": {"spearman_cells": 0.25}}
        axes = nb.pl.attribution(
            attributed, markers=["SMA", "CD3"], layers="occlusion", cluster_markers=False, show=False
        )
        assert [t.get_text() for t in axes["occlusion"].get_xticklabels()] == ["SMA", "CD3"]
        assert axes["occlusion"].get_title(loc="left") == "occlusion (agreement within cells 0.25)"
        assert "gradient_x_input" not in axes

    def test_errors(self, attributed):
        with pytest.raises(ElementNotFoundError, match=r"no layers \['shap'\]"):
            nb.pl.attribution(attributed, layers="shap")
        with pytest.raises(InputError, match="gamma"):
            nb.pl.attribution(attributed, gamma=0)
        attributed.layers["occlusion"][0, 0] = -1
        with pytest.raises(InputError, match="negative"):
            nb.pl.attribution(attributed)
        del attributed.layers["occlusion"], attributed.layers["gradient_x_input"]
        with pytest.raises(ElementNotFoundError, match="channel_attribution"):
            nb.pl.attribution(attributed)


class TestHeatmap:
    def test_activations_are_not_called_scores_nor_cut_at_1(self, cells):
        axes = nb.pl.marker_heatmap(cells, "phenograph", show=False)
        assert axes["colorbar"].get_ylabel() == "mean activation"
        means = cells.to_df().groupby(cells.obs["phenograph"], observed=True).mean().to_numpy()
        assert axes["heatmap"].collections[0].get_clim() == pytest.approx((0, means.max()))
        del cells.uns["nimbus_embedding"]
        assert nb.pl.marker_heatmap(cells, "phenograph", show=False)["colorbar"].get_ylabel() == "mean value"


def without_labels(field, kind: str) -> ad.AnnData:
    """The field's cells as points or shapes, and a table of them."""
    table = field.sdata["nimbus"]
    k = ((table.obs["instance_id"] - FIRST) // 3).to_numpy()
    y, x = np.divmod(k, COLUMNS)
    at = np.stack([x, y], 1) * float(PITCH) + 8
    index = table.obs["instance_id"].to_numpy()
    fov = {"fov": Identity()}
    if kind == "points":
        frame = pd.DataFrame(at, columns=["x", "y"], index=index)
        field.sdata["nuclei"] = PointsModel.parse(frame.sort_index(), transformations=fov)
    else:
        field.sdata["nuclei"] = ShapesModel.parse(
            at, geometry=0, radius=4.0, index=index, transformations=fov
        )
    out = table.copy()
    del out.uns["spatialdata_attrs"]
    out.obs["region"] = pd.Categorical(["nuclei"] * out.n_obs)
    out.obsm["spatial"] = at
    out.obs["kind"] = pd.Categorical(np.where(k % 2, "odd", "even"))
    out.obsm["X_nextchannel"] = np.stack([k % 2 * 100.0, k], 1)
    out.uns["nimbus_embedding"] = {"crop": 12, "images": {"nuclei": "fov_image"}}
    field.sdata["embedding"] = TableModel.parse(
        out, region="nuclei", region_key="region", instance_key="instance_id"
    )
    return field.sdata["embedding"]


class TestGallery:
    @pytest.mark.parametrize("kind", ["points", "shapes"])
    def test_crops_of_cells_without_labels(self, field, kind):
        table = without_labels(field, kind)
        ax = nb.pl.cell_gallery(
            field.sdata, ["CD8"], groupby="kind", group="odd", table="embedding", pick="representative",
            n=1, gamma=1.0, show=False,
        )  # fmt: skip
        # odd cells 1, 3 to 47 have the mean 24: nearest are 23 and 25, and the table's order decides
        k = ((table.obs["instance_id"] - FIRST) // 3).to_numpy()
        first = next(int(i) for i in k if i in (23, 25))
        y, x = (n * PITCH + 8 for n in divmod(first, COLUMNS))
        rows, columns = np.mgrid[y - 12 : y + 12, x - 12 : x + 12]  # twice the crop
        inside = (rows >= 0) & (rows < 96) & (columns >= 0) & (columns < 128)
        wanted = np.where(inside, np.clip(rows / 50.0, 0, 1), 0)
        canvas = np.asarray(ax.images[0].get_array())[: 24 * 4, : 24 * 4]
        shown = canvas[::4, ::4] @ np.ones(3) / sum(to_rgb("#FF00FF"))
        np.testing.assert_allclose(shown, wanted, atol=1e-5)
        assert {c[1:] for c in field.image_reads} <= {(a, b) for a in range(3) for b in range(4)}
        assert {c[0] for c in field.image_reads} == {2}
        assert not field.label_reads

    @pytest.mark.parametrize("kind", ["points", "shapes", "labels"])
    def test_positions_are_in_the_system_that_the_table_records(self, field, kind):
        name = "fov_labels" if kind == "labels" else "nuclei"
        table = without_labels(field, "points" if kind == "labels" else kind)
        if kind == "labels":
            at, table = table.obsm["spatial"], field.sdata["nimbus"]
            table.obsm["spatial"] = at
            table.obs["kind"] = pd.Categorical(["one"] * table.n_obs)
        arguments = {"groupby": "kind", "table": "nimbus" if kind == "labels" else "embedding", "n": 3}
        wanted = nb.pl.cell_gallery(field.sdata, ["CD8"], **arguments, show=False).images[0].get_array()
        moved = Translation([40.0, -25.0], axes=("x", "y"))
        for element in ("fov_image", name):
            set_transformation(field.sdata[element], moved, "aligned")
        table.obsm["spatial"] = table.obsm["spatial"] + [40.0, -25.0]
        record = {"coordinate_systems": {name: "aligned"}}
        key = "nimbus" if kind == "labels" else "nimbus_embedding"
        table.uns[key] = table.uns.get(key, {}) | record
        found = nb.pl.cell_gallery(field.sdata, ["CD8"], **arguments, show=False).images[0].get_array()
        np.testing.assert_array_equal(found, wanted)

    def test_representative_of_labels_and_by_scores(self, field):
        table = without_labels(field, "points")
        for arguments in ({"use_rep": "X"}, {"use_rep": "X_nextchannel"}, {}):
            ax = nb.pl.cell_gallery(
                field.sdata, groupby="kind", table="embedding", pick="representative", n=2, show=False,
                **arguments,
            )  # fmt: skip
            assert [t.get_text() for t in ax.texts] == [""] * 4
        with pytest.raises(ElementNotFoundError, match="valid: 'X', 'spatial', 'X_next"):
            nb.pl.cell_gallery(
                field.sdata, groupby="kind", table="embedding", pick="representative", use_rep="X_pca"
            )
        with pytest.raises(InputError, match="valid: random"):
            nb.pl.cell_gallery(field.sdata, "CD3", table="embedding", pick="representative")
        table.obsm["spatial"][:] = 1e5
        with pytest.raises(InputError, match="coordinate system 'fov'"):
            nb.pl.cell_gallery(field.sdata, "CD3", table="embedding")

    def test_activations_are_neither_positive_nor_uncertain(self, field):
        without_labels(field, "points")
        ax = nb.pl.cell_gallery(field.sdata, ["CD3", "CD8"], table="embedding", pick="high", n=3, show=False)
        assert {to_rgb(t.get_color()) for t in ax.texts} == {(1.0, 1.0, 1.0)}
        assert ax.get_legend() is None
        with pytest.raises(InputError, match="valid: random, high, low"):
            nb.pl.cell_gallery(field.sdata, "CD3", table="embedding", pick="least_certain")

    def test_a_map_of_cells_without_labels_has_dots(self, field):
        table = without_labels(field, "shapes")
        ax = nb.pl.spatial_map(field.sdata, "kind", table="embedding", show=False)[0]
        np.testing.assert_allclose(ax.collections[0].get_offsets(), table.obsm["spatial"])
        assert not field.image_reads
        with pytest.raises(InputError, match="'nuclei' are points or shapes"):
            nb.pl.spatial_map(field.sdata, "kind", table="embedding", crop=(0, 9, 0, 9))

    def test_labels_keep_their_outlines(self, field):
        table = field.sdata["nimbus"]
        table.obsm["spatial"] = without_labels(field, "points").obsm["spatial"]
        table.obs["all"] = pd.Categorical(["one"] * table.n_obs)
        ax = nb.pl.cell_gallery(
            field.sdata, ["CD3"], groupby="all", pick="representative", n=1, size=24, show=False
        )
        y, x = np.nonzero((np.asarray(ax.images[0].get_array())[:96, :96] == 1).all(2))
        assert (y.min(), y.max(), x.min(), x.max()) == (24, 71, 24, 71)

    def test_nearest_to_the_mean_equals_the_slow_way(self):
        rng = np.random.default_rng(1)
        values, rows = rng.random((40, 3)), rng.choice(40, 15, replace=False)
        mean = [sum(values[r, d] for r in rows) / 15 for d in range(3)]
        wanted = sorted(rows.tolist(), key=lambda r: sum((values[r, d] - mean[d]) ** 2 for d in range(3)))
        assert pick_nearest_to_mean(values, rows, n=6).tolist() == wanted[:6]
        values[rows[0]] = np.nan
        assert pick_nearest_to_mean(values, rows, n=15)[-1] == rows[0]
