"""nb.pl.image: right cells outlined, right colours, right rectangle, and only that read."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from scipy import ndimage
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import Identity, Scale

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.pl import _view
from nimbus_sd.pl._style import NEGATIVE, POSITIVE, enlarge, nice_length, outline

N_CELLS = 48


def _outlined(ax, colour: str) -> int:
    """Number of cells whose outline has this colour."""
    rgba = ax.images[1].get_array()
    wanted = (np.array(to_rgba(colour))[:3] * 255).round()
    mask = (rgba[..., :3] == wanted).all(-1) & (rgba[..., 3] > 0)
    return ndimage.label(mask, structure=np.ones((3, 3)))[1]


def _axes(fig: Figure, n: int) -> np.ndarray:
    return np.array(fig.axes[:n]).reshape(-1, 2)


class TestContent:
    def test_outlines_follow_the_scores(self, field):
        axes = _axes(nb.pl.image(field.sdata, ["CD3", "CD8", "CD20"], return_fig=True), 6)
        positive = [_outlined(row[0], POSITIVE) for row in axes]
        negative = [_outlined(row[0], NEGATIVE) for row in axes]
        assert positive == [24, 24, 0]
        assert negative == [24, 24, N_CELLS]

    def test_scores_fill_their_own_cells(self, field):
        fig = nb.pl.image(field.sdata, "CD8", return_fig=True)
        assert "score of the cell" in [ax.get_xlabel() for ax in fig.axes]
        axes = _axes(fig, 2)
        filled = axes[0, 1].images[1]
        values = np.ma.filled(filled.get_array(), np.nan)
        labels = enlarge(field.labels, side=values.shape[1])
        assert np.isnan(values[labels == 0]).all()
        k = (labels[labels > 0].astype(np.int64) - 4_000_000_000) // 3
        np.testing.assert_allclose(values[labels > 0], np.where(k < 24, 0.8, 0.2), atol=1e-6)
        assert filled.get_clim() == (0, 1)

    def test_threshold_per_marker(self, field):
        fig = nb.pl.image(field.sdata, ["CD3", "CD8"], threshold={"CD3": 0.95, "CD8": 0.1}, return_fig=True)
        axes = _axes(fig, 4)
        assert [_outlined(row[0], POSITIVE) for row in axes] == [0, N_CELLS]
        assert axes[1, 1].get_title(loc="right") == "48 of 48 cells > 0.1"

    def test_intensity_is_divided_by_the_scale(self, field):
        axes = _axes(nb.pl.image(field.sdata, ["CD3"], return_fig=True), 2)
        np.testing.assert_allclose(axes[0, 0].images[0].get_array(), (field.labels > 0) * 0.5, atol=1e-6)
        given = Normalization(("CD3",), (50.0,), 0.9999, "dataset", ("x",))
        axes = _axes(nb.pl.image(field.sdata, ["CD3"], normalization=given, return_fig=True), 2)
        assert axes[0, 0].images[0].get_array().max() == pytest.approx(1)

    def test_cells_without_a_row_are_neither(self, field):
        table = field.sdata["nimbus"]
        field.sdata["nimbus"] = table[table.obs["instance_id"] != 4_000_000_000].copy()
        fig = nb.pl.image(field.sdata, "CD3", return_fig=True)
        axes = _axes(fig, 2)
        assert _outlined(axes[0, 0], POSITIVE) == 23
        assert _outlined(axes[0, 0], NEGATIVE) == 24
        assert axes[0, 1].get_title(loc="right") == "23 of 47 cells > 0.5"
        assert [t.get_text() for t in fig.legends[0].get_texts()] == ["positive", "negative", "no score"]

    def test_maps_take_the_right_column(self, field):
        axes = _axes(nb.pl.image(field.sdata, ["CD20", "CD3"], maps="probs", return_fig=True), 4)
        assert [float(row[1].images[0].get_array().mean()) for row in axes] == [0.75, 0.25]

    def test_without_a_table_outlines_are_plain(self, field):
        axes = nb.pl.image(field.sdata, "CD3", table=None, scores=False, show=False)
        assert axes.shape == (1, 1)
        assert _outlined(axes[0, 0], NEGATIVE) == N_CELLS

    def test_scale_bar_in_um_or_px(self, field):
        def bar(sdata):
            axes = nb.pl.image(sdata, "CD3", show=False)
            line = next(line for line in axes[0, 0].lines if line.get_gid() == "scale_bar")
            return axes[0, 0].texts[0].get_text(), np.ptp(line.get_xdata())

        text, share = bar(field.sdata)
        assert text == "10 µm"
        assert share == pytest.approx(20 / 128)
        image, labels = field.sdata["fov_image"], field.sdata["fov_labels"]
        for element in (image, labels):
            element.attrs["transform"].pop("microns")
        assert bar(field.sdata)[0] == "20 px"


class TestRectangle:
    def test_crop_shows_and_counts_only_its_cells(self, field):
        axes = _axes(nb.pl.image(field.sdata, "CD3", crop=(16, 48, 32, 64), return_fig=True), 2)
        assert axes[0, 0].get_xlim() == (32, 64)
        assert axes[0, 0].get_ylim() == (48, 16)
        assert [tuple(i.get_extent()) for i in axes[0, 0].images] == [(32, 64, 48, 16)] * 2
        assert axes[0, 1].get_title(loc="right") == "2 of 4 cells > 0.5"
        np.testing.assert_allclose(
            axes[0, 0].images[0].get_array(), (field.labels[16:48, 32:64] > 0) * 0.5, atol=1e-6
        )

    def test_only_the_crops_chunks_are_read_and_once(self, field):
        nb.pl.image(field.sdata, ["CD3", "CD20"], crop=(0, 32, 32, 96), return_fig=True)
        assert sorted(field.image_reads) == [(1, 0, 1), (1, 0, 2), (3, 0, 1), (3, 0, 2)]
        assert sorted(field.label_reads) == [(0, 1), (0, 2)]

    def test_large_images_are_shrunk_piece_by_piece(self, field, monkeypatch):
        monkeypatch.setattr(_view, "MAX_SIDE", 40)
        monkeypatch.setattr(_view, "_PIECE_PX", 32 * 32)
        axes = nb.pl.image(field.sdata, ["CD8"], quantile=1.0, gamma=1, show=False)
        pixels = axes[0, 0].images[0].get_array()
        assert pixels.shape == (24, 32)
        oracle = np.arange(96).reshape(24, 4).mean(1) / np.arange(96).reshape(24, 4).mean(1).max()
        np.testing.assert_allclose(pixels, np.repeat(oracle[:, None], 32, 1), rtol=1e-5)
        assert tuple(axes[0, 0].images[0].get_extent()) == (0, 128, 96, 0)
        assert len(field.image_reads) == len(set(field.image_reads)) == 12
        assert axes[0, 1].get_title(loc="right") == "24 of 48 cells > 0.5"

    @pytest.mark.parametrize("shape", [(97, 61), (64, 130), (33, 33)])
    @pytest.mark.parametrize("step", [1, 2, 8])
    def test_mean_equals_the_obvious_loop(self, shape, step):
        plane = np.random.default_rng(1).random((2, *shape), dtype=np.float32)
        out = _view._mean(plane, step)
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                block = plane[:, y * step : (y + 1) * step, x * step : (x + 1) * step]
                np.testing.assert_allclose(out[:, y, x], block.mean((1, 2)), rtol=1e-5)

    def test_multiscale_reads_the_level_that_fits(self, field, monkeypatch):
        monkeypatch.setattr(_view, "MAX_SIDE", 40)
        t = {"fov": Identity()}
        image = Image2DModel.parse(
            np.asarray(field.sdata["fov_image"]), dims=("c", "y", "x"),
            c_coords=["DNA", "CD3", "CD8", "CD20"], scale_factors=[2, 2], transformations=t,
        )  # fmt: skip
        labels = Labels2DModel.parse(
            field.labels, dims=("y", "x"), scale_factors=[2], transformations=dict(t)
        )
        sdata = SpatialData(images={"fov_image": image}, labels={"fov_labels": labels})
        sdata["nimbus"] = field.sdata["nimbus"]
        shapes = []
        read = _view.el.ElementImage.read

        def noted(self, channels, y, x):
            shapes.append(self.shape)
            return read(self, channels, y, x)

        monkeypatch.setattr(_view.el.ElementImage, "read", noted)
        axes = nb.pl.image(sdata, ["CD3"], crop=(0, 96, 1, 127), show=False)
        assert set(shapes) == {(24, 32)}
        assert tuple(axes[0, 0].images[0].get_extent()) == (0, 128, 96, 0)
        assert axes[0, 0].get_xlim() == (1, 127)
        assert axes[0, 1].get_title(loc="right") == "24 of 48 cells > 0.5"

    def test_labels_on_a_coarser_grid(self, field):
        coarse = Labels2DModel.parse(
            field.labels[::2, ::2], dims=("y", "x"), transformations={"fov": Scale([2, 2], axes=("x", "y"))}
        )
        sdata = SpatialData(images={"fov_image": field.sdata["fov_image"]}, labels={"fov_labels": coarse})
        sdata["nimbus"] = field.sdata["nimbus"]
        axes = nb.pl.image(sdata, "CD3", show=False)
        assert axes[0, 0].get_xlim() == (0, 128)
        assert _outlined(axes[0, 0], POSITIVE) == 24


class TestHanding:
    def test_save_writes_and_shows_nothing(self, field, tmp_path):
        assert nb.pl.image(field.sdata, "CD3", save=tmp_path / "a.png", show=False) is not None
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")

    def test_default_shows_and_returns_nothing(self, field):
        assert nb.pl.image(field.sdata, "CD3") is None

    def test_given_axes_are_drawn_on(self, field):
        fig = Figure()
        ax = fig.add_subplot()
        assert nb.pl.image(field.sdata, "CD3", scores=False, ax=ax) is ax
        assert _outlined(ax, POSITIVE) == 24


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ({"markers": "CD99"}, ElementNotFoundError, "CD99.*valid: DNA, CD3"),
            ({"markers": "DNA"}, ElementNotFoundError, "table 'nimbus' has no marker.*valid: CD3, CD8"),
            ({"markers": []}, InputError, "at least one"),
            ({"table": "other"}, ElementNotFoundError, "tables: 'nimbus'"),
            ({"table": None}, InputError, "no scores to draw"),
            ({"layer": "nope"}, ElementNotFoundError, "layers: 'integrated_expression'"),
            ({"labels": "nope"}, ElementNotFoundError, "fov_labels"),
            ({"labels": ["fov_labels"]}, InputError, "one field"),
            ({"maps": "nope"}, ElementNotFoundError, "maps: 'probs'"),
            ({"crop": (0, 97, 0, 10)}, InputError, "96 x 128 px"),
            ({"crop": (5, 5, 0, 10)}, InputError, "y0, y1, x0, x1"),
            ({"crop": (0, 10)}, InputError, "four integers"),
            ({"threshold": {"CD8": 0.5}}, InputError, "no entry for.*CD3"),
            ({"quantile": 2.0}, InputError, "quantile"),
            ({"gamma": 0}, InputError, "gamma"),
            ({"markers": [f"m{i}" for i in range(13)]}, InputError, "at most 12"),
            ({"ax": Figure().add_subplot()}, InputError, "one panel"),
            ({"save": "/nowhere/at/all.png"}, InputError, "does not exist"),
        ],
    )
    def test_message_says_what_is_valid(self, field, arguments, error, match):
        with pytest.raises(error, match=match):
            nb.pl.image(field.sdata, **({"markers": "CD3", "return_fig": True} | arguments))
        assert not field.image_reads

    def test_several_fields_are_listed(self, field):
        field.sdata["b_labels"] = Labels2DModel.parse(
            field.labels, dims=("y", "x"), transformations={"b": Identity()}
        )
        with pytest.raises(InputError, match="'fov_labels', 'b_labels'"):
            nb.pl.image(field.sdata, "CD3")


class TestPieces:
    def test_outline_is_the_inner_border(self):
        labels = np.zeros((9, 9), int)
        labels[1:8, 1:8] = 5
        assert outline(labels).sum() == 24
        assert outline(labels, width=2).sum() == 24 + 16
        assert not outline(labels)[0].any()

    @pytest.mark.parametrize(("limit", "length"), [(9.9, 5), (10, 10), (0.3, 0.2), (4999, 2000), (1.0, 1)])
    def test_nice_length(self, limit, length):
        assert nice_length(limit) == pytest.approx(length)
