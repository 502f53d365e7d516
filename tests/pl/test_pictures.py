"""nb.pl.overlay, spatial_map, cell_gallery, normalization: right cells and colours, no pixel besides."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.pl import _view
from nimbus_sd.pl._colours import group_colours
from nimbus_sd.pl._gallery_cells import group_margin
from nimbus_sd.pl._overlay import blend
from nimbus_sd.pl._style import MISSING, NEGATIVE, POSITIVE

FIRST = 4_000_000_000
PITCH, COLUMNS = 16, 8


@pytest.fixture
def placed(field):
    """The field with centroids and a column of types."""
    table = field.sdata["nimbus"]
    k = ((table.obs["instance_id"] - FIRST) // 3).to_numpy()
    y, x = np.divmod(k, COLUMNS)
    table.obsm["spatial"] = np.stack([x, y], 1) * float(PITCH) + 8
    table.obs["area_px"] = 144
    table.obs["kind"] = pd.Categorical(np.where(k % 2, "odd", "even"))
    table.obs["sure"] = k / 100
    field.k = k
    return field


def _bytes(colour: str) -> np.ndarray:
    return (np.array(to_rgb(colour)) * 255).astype(np.uint8)


class TestSpatialMap:
    def test_every_cell_has_its_colour(self, placed):
        axes = nb.pl.spatial_map(placed.sdata, "kind", show=False)
        drawn = axes[0].images[0].get_array()
        zoom = drawn.shape[0] // placed.labels.shape[0]
        colours = group_colours(placed.sdata["nimbus"], "kind")
        for i in (0, 1, 7, 8, 47):
            y, x = (np.array(divmod(i, COLUMNS)) * PITCH + 8) * zoom
            np.testing.assert_array_equal(drawn[y, x, :3], _bytes(colours["odd" if i % 2 else "even"]))
        assert drawn[0, 0, 3] == 0
        assert not placed.image_reads  # labels are enough

    def test_missing_rows_and_groups_are_grey(self, placed):
        table = placed.sdata["nimbus"]
        table.obs.loc[table.obs["instance_id"] == FIRST, "kind"] = np.nan
        placed.sdata["nimbus"] = table[table.obs["instance_id"] != FIRST + 3].copy()
        fig = nb.pl.spatial_map(placed.sdata, "kind", return_fig=True)
        drawn = fig.axes[0].images[0].get_array()
        zoom = drawn.shape[0] // placed.labels.shape[0]
        for x in (8, 24):
            np.testing.assert_array_equal(drawn[8 * zoom, x * zoom, :3], _bytes(MISSING))
        assert [t.get_text() for t in fig.legends[0].get_texts()] == ["even", "odd", "no group"]

    def test_dots_of_a_table_alone(self, placed):
        table = placed.sdata["nimbus"]
        (ax,) = nb.pl.spatial_map(table, "kind", show=False)
        dots = ax.collections[0]
        np.testing.assert_allclose(dots.get_offsets(), table.obsm["spatial"])
        colours = group_colours(table, "kind")
        wanted = [to_rgb(colours[g]) for g in table.obs["kind"]]
        np.testing.assert_allclose(dots.get_facecolor()[:, :3], wanted, atol=1 / 200)
        assert ax.yaxis_inverted()
        assert not ax.lines  # no unit is known

    def test_highlight_crop_and_axes(self, placed):
        fig = nb.pl.spatial_map(placed.sdata, "kind", highlight="odd", crop=(0, 32, 0, 64), return_fig=True)
        assert [t.get_text() for t in fig.legends[0].get_texts()] == ["odd", "other cells"]
        assert fig.axes[0].get_xlim() == (0, 64)
        own = Figure().add_subplot()
        assert nb.pl.spatial_map(placed.sdata, "kind", ax=own) is own
        assert len(own.images) == 1

    def test_many_samples_are_limited(self, placed):
        table = placed.sdata["nimbus"].copy()
        table.obs["region"] = pd.Categorical([f"s{i % 14:02d}" for i in range(table.n_obs)])
        with pytest.warns(NimbusWarning, match="first 12 of 14"):
            axes = nb.pl.spatial_map(table, "kind", show=False)
        assert len(axes) == 12

    def test_errors(self, placed):
        table = placed.sdata["nimbus"].copy()
        with pytest.raises(ElementNotFoundError, match="annotates 'fov_labels'"):
            nb.pl.spatial_map(placed.sdata, "kind", samples="x")
        with pytest.raises(ElementNotFoundError, match="no such group"):
            nb.pl.spatial_map(placed.sdata, "kind", highlight="x")
        with pytest.raises(ElementNotFoundError, match="columns that group cells"):
            nb.pl.spatial_map(placed.sdata, "nope")
        del table.obsm["spatial"]
        with pytest.raises(InputError, match="no obsm"):
            nb.pl.spatial_map(table, "kind")


class TestOverlay:
    def test_colours_add_up(self):
        light = np.array([[[1.0, 0.5, 1.0]], [[0.0, 0.5, 1.0]]])
        np.testing.assert_allclose(blend(light, ["red", "blue"]), [[[1, 0, 0], [0.5, 0, 0.5], [1, 0, 1]]])

    def test_pixels_are_scaled_and_outlines_drawn(self, placed):
        ax = nb.pl.overlay(placed.sdata, ["CD3"], colors=["red"], gamma=1, show=False)
        pixels, borders = (image.get_array() for image in ax.images)
        np.testing.assert_allclose(pixels[..., 0], (placed.labels > 0) * 0.5, atol=1e-6)
        assert pixels[..., 1:].max() == 0
        assert (borders[..., 3] > 0).any()
        plain = nb.pl.overlay(placed.sdata, ["CD3"], outlines=False, table=None, show=False)
        assert len(plain.images) == 1

    def test_outlines_by_group_and_only_the_crop_is_read(self, placed):
        fig = nb.pl.overlay(
            placed.sdata, ["CD3", "CD8"], groupby="kind", crop=(0, 32, 0, 32), return_fig=True
        )
        texts = [[t.get_text() for t in legend.get_texts()] for legend in fig.legends]
        assert texts == [["CD3", "CD8"], ["even", "odd"]]
        assert {c[1:] for c in placed.image_reads} == {(0, 0)}
        colours = {tuple(c[:3]) for c in fig.axes[0].images[1].get_array().reshape(-1, 4) if c[3]}
        assert len(colours) == 2

    def test_small_cells_have_no_outline(self, placed, monkeypatch):
        monkeypatch.setattr(_view, "MAX_SIDE", 40)
        assert len(nb.pl.overlay(placed.sdata, "CD3", show=False).images) == 1

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ({"markers": list("abcdefgh")}, InputError, "at most 7"),
            ({"markers": "CD3", "colors": ["red", "blue"]}, InputError, "pass 1 colours"),
            ({"markers": "CD3", "colors": ["nocolour"]}, InputError, "matplotlib knows"),
            ({"markers": "CD3", "groupby": "x"}, ElementNotFoundError, "no column 'x'"),
            ({"markers": "CD3", "groupby": "kind", "table": "t"}, ElementNotFoundError, "no table 't'"),
            ({"markers": "CD3", "gamma": 0}, InputError, "gamma"),
        ],
    )
    def test_errors(self, placed, arguments, error, match):
        with pytest.raises(error, match=match):
            nb.pl.overlay(placed.sdata, **arguments)


def _texts(ax) -> list[str]:
    return [t.get_text() for t in ax.texts]


class TestGallery:
    def test_rows_hold_the_scores_picked(self, placed):
        table = placed.sdata["nimbus"]
        table.X[:, 0] = placed.k / 47
        ax = nb.pl.cell_gallery(placed.sdata, ["CD3", "CD8"], pick="most_certain", n=4, show=False)
        assert [t.get_text() for t in ax.get_yticklabels()] == ["CD3", "CD8"]
        assert _texts(ax) == ["1.00", "0.98", "0.02", "0.00", "0.80", "0.80", "0.20", "0.20"]
        least = nb.pl.cell_gallery(placed.sdata, "CD3", pick="least_certain", n=2, show=False)
        assert _texts(least) == [f"{23 / 47:.2f}", f"{24 / 47:.2f}"] or _texts(least) == [
            f"{24 / 47:.2f}",
            f"{23 / 47:.2f}",
        ]

    def test_the_cell_in_the_middle_is_outlined(self, placed):
        table = placed.sdata["nimbus"]
        table.X[:, 0] = (placed.k == 9) * 0.9
        ax = nb.pl.cell_gallery(placed.sdata, "CD3", pick="high", n=2, size=24, show=False)
        canvas = ax.images[0].get_array()
        side = 24 * 4
        first, second = canvas[:side, :side], canvas[:side, side + 4 : 2 * side + 4]
        for crop, colour in ((first, POSITIVE), (second, NEGATIVE)):
            y, x = np.nonzero(np.isclose(crop, to_rgb(colour), atol=1e-3).all(2))
            # 12 px of the cell, four times as large, around the middle
            assert (y.min(), y.max(), x.min(), x.max()) == (24, 71, 24, 71)

    def test_only_the_crops_are_read(self, placed):
        table = placed.sdata["nimbus"]
        table.X[:, 0] = (placed.k == 9) * 0.9  # its crop, px 12 to 36, lies in four chunks
        nb.pl.cell_gallery(placed.sdata, "CD3", pick="high", n=1, size=24, show=False)
        assert {c[1:] for c in placed.image_reads} == {(0, 0), (0, 1), (1, 0), (1, 1)}
        assert {c[0] for c in placed.image_reads} == {1}  # CD3 alone

    def test_crops_at_the_border_are_filled_up(self, placed):
        table = placed.sdata["nimbus"]
        table.X[:, 0] = (placed.k == 0) * 0.9
        ax = nb.pl.cell_gallery(placed.sdata, "CD3", pick="high", n=1, size=32, show=False)
        canvas = ax.images[0].get_array()
        assert canvas.shape[0] >= 96
        assert not canvas[:20, :96].any()

    def test_groups_and_their_certainty(self, placed):
        ax = nb.pl.cell_gallery(
            placed.sdata,
            ["CD3", "CD20"],
            groupby="kind",
            certainty="sure",
            pick="most_certain",
            n=2,
            show=False,
        )
        assert [t.get_text() for t in ax.get_yticklabels()] == ["even", "odd"]
        assert _texts(ax) == ["0.46", "0.44", "0.47", "0.45"]
        assert [t.get_text() for t in ax.get_legend().get_texts()] == ["CD3", "CD20"]
        one = nb.pl.cell_gallery(placed.sdata, groupby="kind", group="odd", n=3, show=False)
        assert [t.get_text() for t in one.get_yticklabels()] == ["odd"]
        assert len(one.texts) == 3

    def test_random_cells_follow_the_seed(self, placed):
        placed.sdata["nimbus"].X[:, 0] = placed.k / 47
        shown = [_texts(nb.pl.cell_gallery(placed.sdata, "CD3", n=5, seed=s, show=False)) for s in (0, 0, 1)]
        assert shown[0] == shown[1] != shown[2]

    def test_margin_equals_the_slow_one(self):
        rng = np.random.default_rng(0)
        x, codes = rng.random((30, 3)), rng.integers(-1, 3, 30)
        found = group_margin(x, codes, 3)
        for i, row in enumerate(x):
            if codes[i] < 0:
                assert np.isnan(found[i])
                continue
            gap = [np.linalg.norm(row - x[codes == k].mean(0)) for k in range(3)]
            wanted = min(g for k, g in enumerate(gap) if k != codes[i]) - gap[codes[i]]
            assert found[i] == pytest.approx(wanted)

    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ({"pick": "best"}, InputError, "valid: random"),
            ({"pick": "high", "groupby": "kind"}, InputError, "for groups"),
            ({"n": 0}, InputError, "1 to 30"),
            ({"size": 2}, InputError, "8 to 1024"),
            ({"group": "odd"}, InputError, "needs groupby"),
            ({"groupby": "kind", "group": "x"}, ElementNotFoundError, "valid: even, odd"),
            ({"groupby": "kind", "certainty": "kind"}, ElementNotFoundError, "column of numbers"),
            ({"markers": "CD99"}, ElementNotFoundError, "valid: CD3, CD8, CD20"),
        ],
    )
    def test_errors(self, placed, arguments, error, match):
        with pytest.raises(error, match=match):
            nb.pl.cell_gallery(placed.sdata, **arguments)

    def test_wrong_or_no_coordinates(self, placed):
        table = placed.sdata["nimbus"]
        table.obsm["spatial"] = table.obsm["spatial"] + 1e4
        with pytest.raises(InputError, match="coordinate system 'fov'"):
            nb.pl.cell_gallery(placed.sdata, "CD3")
        table.obsm["spatial"][:] = np.nan
        with pytest.raises(InputError, match="coordinate system 'fov'"):
            nb.pl.cell_gallery(placed.sdata, "CD3")
        del table.obsm["spatial"]
        with pytest.raises(InputError, match=r"no obsm\['spatial'\]"):
            nb.pl.cell_gallery(placed.sdata, "CD3")


class TestNormalization:
    def test_figures_equal_those_of_the_pixels(self, field):
        fitted = Normalization(
            ("CD3", "CD8", "CD20"), (25.0, 50.0, 400.0), 0.9999, "dataset", ("x",),
            n_pixels=(10, 10, 10), n_saturated=(0, 3, 0), maximum=(1.0,) * 3, flags=("", "saturated", ""),
        )  # fmt: skip
        axes = nb.pl.normalization(field.sdata, fitted, image="fov_image", show=False)
        names = [t.get_text() for t in axes["scale"].get_yticklabels()]
        assert names == ["CD3", "CD8 (saturated)", "CD20"]
        pixels = np.asarray(field.sdata["fov_image"].data)[1:]

        def widths(name):
            return [p.get_width() for p in axes[name].patches]

        scale = np.array(fitted.scale)[:, None, None]
        # two of the image's twelve chunks are looked at
        sampled = [np.mean(p == 0) for p in pixels]
        assert widths("zero")[0] == pytest.approx(sampled[0], abs=0.02)
        assert widths("clipped")[2] == 0
        assert widths("saturated") == [0, 3, 0]
        assert (pixels / scale > 1)[0].mean() == pytest.approx(widths("clipped")[0], abs=0.02)
        chunks = {c[1:] for c in field.image_reads}
        assert len(chunks) <= 12

    def test_from_the_table_and_saved(self, field, tmp_path):
        table = field.sdata["nimbus"]
        table.var["qc"] = ["", "debris", ""]
        axes = nb.pl.normalization(field.sdata, image="fov_image", show=False)
        assert axes["scale"].get_yticklabels()[1].get_text() == "CD8 (debris)"
        nb.pl.normalization(field.sdata, image="fov_image", markers="CD3", save=tmp_path / "n.png")
        del table.var["scale"]
        with pytest.raises(InputError, match="no scale for"):
            nb.pl.normalization(field.sdata, image="fov_image")
