"""``nb.pl.subtypes``: what lies where, in which colour, and how much is read for it."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Translation, set_transformation

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.pl._registered import Grid
from nimbus_sd.pl._view import make_window
from nimbus_sd.testing import CountedArray

SIDE, PITCH = 96, 24  # px of the fluorescence; 16 square cells
MARKERS = ["CD45", "CD3e", "CD4"]
RED, GREEN, GREY = (255, 42, 42), (34, 197, 34), (160, 160, 160)


def squares():
    labels = np.zeros((SIDE, SIDE), np.uint32)
    for k in range(16):
        y, x = divmod(k, 4)
        labels[y * PITCH + 4 : y * PITCH + 20, x * PITCH + 4 : x * PITCH + 20] = 100 + k
    return labels


def answers():
    """CD45: the upper half; CD3e: the left column, the right one undefined; CD4: none."""
    k = np.arange(16)
    return np.stack([k < 8, np.where(k % 4 == 3, np.nan, k % 4 == 0), 0 * k], axis=1).astype(np.float32)


def annotating(region, ids, values):
    order = np.random.default_rng(0).permutation(len(ids))  # rows must not be taken by position
    obs = pd.DataFrame(
        {"region": pd.Categorical([region] * len(ids)), "instance_id": ids[order]},
        index=[f"{region}_{i}" for i in ids[order]],
    )
    table = ad.AnnData(np.nan_to_num(values[order]), obs=obs, var=pd.DataFrame(index=MARKERS))
    table.layers["positive"] = values[order]
    return TableModel.parse(table, region=region, region_key="region", instance_key="instance_id")


@pytest.fixture
def section():
    """The H&E has px of half the size and lies turned by a quarter; centres as labels and as points."""
    labels = squares()
    plain = {"section": Identity(), "microns": Scale([0.5, 0.5], axes=("x", "y"))}
    # (x, y) of the section is (SIDE - y / 2, x / 2) of the H&E
    quarter = np.array([[0, -0.5, SIDE], [0.5, 0, 0], [0, 0, 1.0]])
    slide = {
        "section": Affine(quarter, ("x", "y"), ("x", "y")),
        "microns": Affine(np.diag([0.5, 0.5, 1]) @ quarter, ("x", "y"), ("x", "y")),
    }
    he = np.full((3, 2 * SIDE, 2 * SIDE), 230, np.uint8)
    he[1] = 200
    light = np.stack([labels > 0, labels < 108, (labels - 100) % 4 == 0, 0 * labels]) * (labels > 0)
    where = np.argwhere(labels > 0)
    middle = np.array([where[labels[labels > 0] == i].mean(axis=0)[::-1] + 0.5 for i in range(100, 116)])
    points = pd.DataFrame({"x": middle[:, 0], "y": middle[:, 1]}, index=np.arange(100, 116))
    return SpatialData(
        images={
            "he": Image2DModel.parse(he, dims="cyx", c_coords=["r", "g", "b"], transformations=slide),
            "if": Image2DModel.parse(
                (light * 1000).astype(np.uint16),
                dims="cyx",
                c_coords=["DAPI", "CD45", "CD3", "CD4"],
                transformations=dict(plain),
            ),
        },
        labels={"cells": Labels2DModel.parse(labels, dims="yx", transformations=dict(plain))},
        points={"nuclei": PointsModel.parse(points, transformations=dict(plain))},
        tables={
            "subtypes": annotating("cells", np.arange(100, 116), answers()),
            "dots": annotating("nuclei", np.arange(100, 116), answers()),
        },
    )


def draw(sdata, *args, **options):
    return nb.pl.subtypes(sdata, *args, **{"return_fig": True} | options)


def titles(fig, where="left"):
    return [ax.get_title(loc=where) for ax in fig.axes]


def seen(ax, x, y):
    """Colour of the topmost overlay at px (x, y) of the H&E, and its opacity."""
    overlay = ax.images[-1]
    left, right, bottom, top = overlay.get_extent()
    pixels = np.asarray(overlay.get_array())
    i = int((y - top) / (bottom - top) * pixels.shape[0])
    j = int((x - left) / (right - left) * pixels.shape[1])
    return tuple(pixels[i, j, :3].tolist()), int(pixels[i, j, 3])


def on_he(k):
    """Middle of the k-th cell in px (x, y) of the H&E."""
    y, x = divmod(k, 4)
    return 2 * (y * PITCH + 12), 2 * (SIDE - (x * PITCH + 12))


def test_every_marker_has_a_panel_with_outlines(section):
    fig = draw(section)
    assert isinstance(fig, Figure)
    assert titles(fig) == ["H&E", *MARKERS]
    assert titles(fig, "right")[1:] == [
        "8 of 16 positive",
        "4 of 12 positive, 4 undefined",
        "0 of 16 positive",
    ]
    for marker, values in zip(fig.axes[1:], answers().T, strict=True):
        assert marker.get_xlim() == (0, 2 * SIDE)
        assert marker.get_ylim() == (2 * SIDE, 0)
        for k, value in enumerate(values):
            x, y = on_he(k)
            assert seen(marker, x, y)[1] == 0  # nothing inside
            edge, opacity = seen(marker, x, y - 15.3)
            assert edge == (GREY if np.isnan(value) else RED if value else GREEN)
            assert opacity == 255
    words = [t.get_text() for t in fig.legends[0].get_texts()]
    assert words == ["positive", "negative", "undefined"]
    np.testing.assert_allclose(np.asarray(fig.axes[1].images[0].get_array())[0, 0] * 255, [230, 200, 230])


def edge(ax, k, colour):
    """Px of the k-th cell in a colour, and all of the cell's, on the overlay of an axes."""
    overlay = ax.images[-1]
    pixels = np.asarray(overlay.get_array())
    scale = pixels.shape[0] // (2 * SIDE)
    x, y = (int(v * scale) for v in on_he(k))
    half = 16 * scale
    part = pixels[y - half : y + half, x - half : x + half]
    return int((part == (*colour, 255)).all(axis=-1).sum()), part


def test_answers_differ_without_colour(section):
    """Positive outlines are thick, negative ones thin, undefined ones broken."""
    ax = draw(section, "CD3e", if_image="if", channels={"CD3e": "CD3"}).axes[1]
    positive, negative, undefined = edge(ax, 0, RED)[0], edge(ax, 1, GREEN)[0], edge(ax, 3, GREY)[0]
    assert positive > 1.7 * negative
    assert 0.2 * negative < undefined < negative
    assert (edge(ax, 3, GREY)[1][0, :, 3] == 0).any()
    faces = draw(section, "CD3e").legends[0].get_patches()
    assert faces[0].get_linewidth() > 1.5 * faces[1].get_linewidth()


def test_a_white_rim_over_he_alone(section):
    over_he, over_light = (
        draw(section, "CD3e", **options).axes[1]
        for options in ({}, {"if_image": "if", "channels": {"CD3e": "CD3"}})
    )
    for k in (0, 1, 3):
        x, y = on_he(k)
        assert seen(over_he, x, y - 16.3) == ((255, 255, 255), 235)
        assert seen(over_light, x, y - 16.3)[1] == 0
    gaps = edge(over_he, 3, GREY)[1][0]
    assert (gaps[..., 3] > 0).all()  # white where over fluorescence there is nothing


def test_cells_of_a_few_px_are_filled(section):
    fig = draw(section, "CD3e", figsize=(0.5, 0.4))
    for k, colour, opacity in ((0, RED, 255), (1, GREEN, 190), (3, GREY, 130)):
        assert seen(fig.axes[1], *on_he(k)) == (colour, opacity)
    assert seen(fig.axes[1], 2, 2)[1] == 0


def test_markers_without_any_label_are_left_out(section):
    section["subtypes"].layers["positive"][:, 2] = np.nan
    assert titles(draw(section)) == ["H&E", "CD45", "CD3e"]
    assert titles(draw(section, ["CD4", "CD45"])) == ["H&E", "CD4", "CD45"]
    section["subtypes"].layers["positive"][:] = np.nan
    assert titles(draw(section)) == ["H&E", *MARKERS]


def test_fluorescence_of_another_section_is_refused(section):
    section["other"] = Image2DModel.parse(
        section["if"].to_numpy(),
        dims="cyx",
        c_coords=["DAPI", "CD45", "CD3", "CD4"],
        transformations={"elsewhere": Identity()},
    )
    with pytest.raises(
        InputError,
        match=r"if_image='other' does not overlap the H&E 'he'.*'section', 'microns'; 'other': 'elsewhere'",
    ):
        draw(section, "CD45", if_image="other")
    set_transformation(section["other"], Translation([5000, 0], axes=("x", "y")), "section")
    with pytest.raises(InputError, match="does not overlap"):
        draw(section, "CD45", if_image="other")
    # cells and H&E meet in another system than the H&E and the fluorescence do
    section["mine"] = section["if"]
    set_transformation(section["mine"], {"microns": Scale([0.5, 0.5], axes=("x", "y"))}, set_all=True)
    assert titles(draw(section, "CD45", if_image="mine")) == ["H&E", "CD45"]


def test_cells_can_be_filled(section):
    fig = draw(section, "CD45", fill=0.4)
    assert seen(fig.axes[1], *on_he(0)) == (RED, 102)
    assert seen(fig.axes[1], *on_he(15)) == (GREEN, 102)
    assert seen(fig.axes[1], 2, 2)[1] == 0


def test_fluorescence_lies_under_the_cells(section):
    fig = draw(section, ["CD45", "CD3e"], if_image="if", channels={"CD3e": "CD3"}, gamma=1)
    assert titles(fig) == ["H&E", "CD45", "CD3e"]
    for ax, lit in zip(fig.axes[1:], (range(8), (0, 4, 8, 12)), strict=True):
        below = np.asarray(ax.images[0].get_array())
        assert below.shape == (2 * SIDE, 2 * SIDE, 3)
        for k in range(16):
            x, y = on_he(k)
            red, _, blue = below[int(y), int(x)]
            assert (red > 0.9) == (k in lit)
            assert blue > 0.9
        assert below[2, 2].max() == 0
    words = [t.get_text() for t in fig.legends[0].get_texts()]
    assert words[-2:] == ["marker", "DAPI"]


def test_points_are_circles(section):
    fig = draw(section, table="dots", fill=0.5)
    for ax, values in zip(fig.axes[1:], answers().T, strict=True):
        (circles,) = [c for c in ax.collections if isinstance(c, EllipseCollection)]
        places = {
            tuple(np.round(p).astype(int)): c
            for p, c in zip(circles.get_offsets(), circles.get_edgecolors(), strict=True)
        }
        for k, value in enumerate(values):
            colour = GREY if np.isnan(value) else RED if value else GREEN
            np.testing.assert_allclose(places[on_he(k)][:3] * 255, colour, atol=0.5)
        assert circles.get_facecolors()[0][3] == 0.5
    crop = draw(
        section, "CD45", table="dots", crop=(0, 96, 96, 192)
    )  # the lower right quarter of the section
    assert titles(crop, "right")[1] == "0 of 4 positive"


def test_a_crop_counts_what_is_in_view(section):
    fig = draw(section, "CD45", crop=(0, 192, 0, 96))
    assert fig.axes[1].get_xlim() == (0, 96)
    assert titles(fig, "right")[1] == "8 of 8 positive"


def test_only_the_crop_is_read(section):
    pixels = section["he"].to_numpy()
    counted = CountedArray(pixels, chunks=(3, 32, 32))
    section["he"].data = counted.dask
    draw(section, "CD45", crop=(40, 60, 100, 120))
    assert set(counted.reads) == {(0, 1, 3)}


def test_cells_that_the_table_lacks_are_not_drawn(section):
    section["subtypes"] = section["subtypes"][section["subtypes"].obs["instance_id"] != 100].copy()
    fig = draw(section, "CD45")
    x, y = on_he(0)
    assert seen(fig.axes[1], x, y - 15.3)[1] == 0
    assert titles(fig, "right")[1] == "7 of 15 positive"


def test_what_predict_subtypes_wrote_is_drawn_on_its_he(section):
    from nimbus_sd.testing import tiny_subtype_model

    section["other"] = section["he"]
    nb.tl.predict_subtypes(
        section,
        model=tiny_subtype_model(patch=16),
        image="he",
        centers="cells",
        overwrite=True,
        progress=False,
    )
    fig = draw(section)
    assert titles(fig) == ["H&E", "CD45", "CD3e", "CD4", "CD8a"]
    with pytest.raises(InputError, match=r"which H&E.*'he', 'other'"):
        draw(section, table="dots")
    assert titles(draw(section, "CD45", table="dots", image="other")) == ["H&E", "CD45"]


def test_simulated_sections_and_gated_tables():
    sdata = nb.datasets.simulated_sections(shape=(128, 160))
    sdata["truth"].layers["gated"] = sdata["truth"].X
    fig = draw(sdata, table="truth", layer="gated", if_image="p0s0_if", n_columns=3)
    assert titles(fig)[:5] == ["H&E", "CD45", "CD3e", "CD4", "CD8a"]
    assert [t.get_text() for t in fig.legends[0].get_texts()][-1] == "Hoechst"


def test_one_marker_goes_onto_given_axes(section, tmp_path):
    fig = Figure()
    ax = fig.add_subplot()
    assert nb.pl.subtypes(section, "CD45", show_he=False, ax=ax) is ax
    assert ax.get_title(loc="left") == "CD45"
    assert len(fig.axes) == 1
    axes = nb.pl.subtypes(section, save=tmp_path / "a.png")
    assert axes.shape == (4,)
    assert (tmp_path / "a.png").stat().st_size > 1000


def levelled(pixels, dims, to, parse):
    return parse(pixels, dims=dims, transformations=to, scale_factors=[2, 2])


def test_levels_show_what_full_resolution_shows():
    """A grid at twice the scale, seen coarsely: by levels, and without."""
    rng = np.random.default_rng(0)
    smooth = rng.uniform(0, 1000, (1, 8, 8)).repeat(64, 1).repeat(64, 2)
    ids = rng.integers(1, 9, (8, 8), dtype=np.uint32).repeat(64, 0).repeat(64, 1)
    near, far = {"s": Identity()}, {"s": Scale([0.5, 0.5], axes=("x", "y"))}
    for factors in (None, [2, 2]):
        sdata = SpatialData(
            images={
                "he": Image2DModel.parse(
                    np.zeros((3, 1024, 1024), np.uint8), dims="cyx", transformations=dict(far)
                ),
                "if": Image2DModel.parse(
                    smooth.astype(np.uint16), dims="cyx", transformations=dict(near), scale_factors=factors
                ),
            },
            labels={
                "cells": Labels2DModel.parse(
                    ids, dims="yx", transformations=dict(near), scale_factors=factors
                )
            },
        )
        grid = Grid.of(sdata, "he", "s")
        window = make_window((1024, 1024), None, where="he")
        window = type(window)(window.y, window.x, 8)
        seen_light, seen_ids = (
            grid.read_image(sdata, "if", [0], window),
            grid.read_labels(sdata, "cells", window),
        )
        assert seen_light.pixels.shape[1:] == seen_ids.pixels.shape == (128, 128)
        middle = slice(8, None, 16)  # of each square
        np.testing.assert_allclose(seen_light.pixels[0, middle, middle], smooth[0, ::64, ::64], atol=1)
        np.testing.assert_array_equal(seen_ids.pixels[middle, middle], ids[::64, ::64])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"table": "nimbus"}, ElementNotFoundError, "no table 'nimbus'"),
        ({"layer": "gated"}, ElementNotFoundError, "no layer 'gated'"),
        ({"markers": ["CD19"]}, ElementNotFoundError, r"no marker \['CD19'\]; valid: CD45, CD3e, CD4"),
        ({"centers": "nuclei"}, ElementNotFoundError, "has no cell of 'nuclei'; valid: 'cells'"),
        ({"image": "if"}, InputError, "4 channels of uint16; an H&E has 3"),
        ({"if_image": "slide"}, ElementNotFoundError, "'slide'"),
        ({"if_image": "if"}, ElementNotFoundError, r"no channel \['CD3e'\]"),
        ({"if_image": "if", "channels": {"CD20": "CD3"}}, InputError, r"\['CD20'\], which are not drawn"),
        ({"crop": (0, 10, 0, 999)}, InputError, "does not lie within image 'he'"),
        ({"fill": 2}, InputError, "fill=2 must lie from 0"),
        ({"positive_color": "rot"}, InputError, "'rot' is no colour"),
        ({"n_columns": 0}, InputError, "n_columns=0"),
        ({"ax": Figure().add_subplot()}, InputError, "ax= takes one panel"),
        ({"gamma": 0}, InputError, "gamma=0"),
    ],
)
def test_bad_arguments(section, options, error, match):
    with pytest.raises(error, match=match):
        draw(section, **options)


def test_probabilities_are_no_answers(section):
    section["subtypes"].layers["raw"] = section["subtypes"].layers["positive"] * 0.5
    with pytest.raises(InputError, match="other values than 1, 0 and NaN"):
        draw(section, layer="raw")


def test_several_sections_ask_which():
    sdata = nb.datasets.simulated_sections(n_patients=2, shape=(64, 64))
    sdata["truth"].layers["positive"] = sdata["truth"].X
    with pytest.raises(InputError, match=r"choose one with centers=\. Valid: 'p0s0_labels', 'p1s0_labels'"):
        draw(sdata, table="truth")
    assert titles(draw(sdata, table="truth", centers="p1s0_labels"))[0] == "H&E"
