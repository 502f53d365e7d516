"""pl.registration: what is drawn is what the frame says, and the H&E lies where it should."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from spatialdata import SpatialData
from spatialdata.transformations import Identity, Scale

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata.levels import element_of_levels
from nimbus_sd.testing import CountedArray


@pytest.fixture(scope="module")
def section():
    """An H&E that is turned and has other pixels, 2 x 3 blocks and one more that is bad."""
    sdata = nb.datasets.simulated_sections(shape=(256, 384), registration_error=0.0, rotation=5.0, he_mpp=0.4)
    frame = nb.pp.registration_qc(sdata, he="p0s0_he", image="p0s0_if", block_um=42, progress=False)
    frame.loc[1, ["dy", "dx", "shift", "ok"]] = [-3.0, 4.0, 5.0, False]
    frame.loc[4, ["correlation", "peak", "dy", "dx", "shift"]] = np.nan
    frame.loc[4, "judged"] = False
    return sdata, frame


def parts(ax):
    faces, bad = ax.collections[:2]
    (shifts,) = [c for c in ax.collections if c.get_gid() == "shifts"]
    return faces, bad, shifts


def test_blocks_frames_and_arrows(section):
    _, frame = section
    fig = nb.pl.registration(frame, return_fig=True)
    faces, bad, shifts = parts(fig.axes[0])
    assert len(faces.get_paths()) == len(frame)
    colours = faces.get_facecolors()
    assert (colours[:, 3] == frame["judged"]).all()
    top = max(0.5, frame["correlation"].max())
    np.testing.assert_allclose(colours[0, :3], mpl.colormaps["viridis"](frame["correlation"][0] / top)[:3])
    (path,) = bad.get_paths()  # one block is not ok
    box = path.get_extents()
    assert (box.x0, box.x1, box.y0, box.y1) == tuple(frame.loc[1, ["x0", "x1", "y0", "y1"]])
    assert bad.get_facecolors()[0].tolist() == list(to_rgba("#D55E00"))
    assert frame["judged"].sum() == shifts.N
    # right and up on the picture, whose rows go down, and no longer than a block
    assert shifts.U[1] > 0 > shifts.V[1]
    assert shifts.V[1] / shifts.U[1] == pytest.approx(-3 / 4)
    side = (frame["x1"] - frame["x0"]).median()
    assert np.hypot(shifts.U[1], shifts.V[1]) == pytest.approx(0.5 * side * 5 / 3.5)
    assert np.hypot(shifts.U[0], shifts.V[0]) < 0.05 * side  # what is well within looks so
    assert fig.axes[0].get_ylim() == (256, 0)


def test_a_displaced_block_looks_bad(section):
    _, frame = section
    off = frame.assign(correlation=0.1, peak=0.95, dy=9.0, dx=9.0, shift=12.7, ok=False)
    for value, colour in (("correlation", 0.2), ("peak", 1.0)):
        fig = nb.pl.registration(off, value=value, return_fig=True)
        found = parts(fig.axes[0])[0].get_facecolors()
        np.testing.assert_allclose(found[0, :3], mpl.colormaps["viridis"](colour)[:3])
    fig = nb.pl.registration(off, return_fig=True)
    shifts = parts(fig.axes[0])[2]
    side = (off["x1"] - off["x0"]).median()
    np.testing.assert_allclose(np.hypot(shifts.U, shifts.V).max(), 0.95 * side, rtol=0.01)
    assert "half a block long = 3.5 µm. Orange" in fig.axes[0].get_xlabel()
    wide = parts(nb.pl.registration(off, tolerance_um=50, return_fig=True).axes[0])[2]
    np.testing.assert_allclose(np.hypot(wide.U, wide.V), 0.5 * side * np.hypot(9, 9) / 50, rtol=0.01)


def test_blocks_of_which_none_can_be_judged(section):
    _, frame = section
    gone = frame.assign(correlation=np.nan, peak=np.nan, dy=np.nan, dx=np.nan, shift=np.nan, judged=False)
    fig = nb.pl.registration(gone, return_fig=True)
    assert (fig.axes[0].collections[0].get_facecolors()[:, 3] == 0).all()


def test_one_bad_block_is_framed_whole(section):
    """Orange on all four sides of the picture, though the axes' own frame lies there."""
    sdata, frame = section
    one = frame[:1].assign(y0=0, y1=256, x0=0, x1=384, ok=False, dx=0.1, dy=0.1, shift=0.14)
    fig = nb.pl.registration(one, sdata, return_fig=True)
    FigureCanvasAgg(fig).draw()
    pixels = np.asarray(fig.canvas.buffer_rgba())[::-1, :, :3]  # the first row lies at the bottom
    orange = np.abs(pixels - np.array(to_rgba("#D55E00")[:3]) * 255).max(axis=-1) < 3
    (left, top), (right, bottom) = fig.axes[0].transData.transform([(0, 0), (384, 256)]).astype(int)
    middle = (top + bottom) // 2, (left + right) // 2
    for side in (orange[middle[0], left : left + 8], orange[middle[0], right - 8 : right + 1]):
        assert 2 <= side.sum() <= 6
    for side in (orange[bottom : bottom + 8, middle[1]], orange[top - 8 : top + 1, middle[1]]):
        assert 2 <= side.sum() <= 6


def test_the_he_keeps_its_colours_within_blocks(section):
    sdata, frame = section
    fig = nb.pl.registration(frame, sdata, return_fig=True)
    faces, bad, _ = parts(fig.axes[0])
    first = frame.iloc[0]
    middle = (first[["x0", "x1"]].mean(), first[["y0", "y1"]].mean())
    assert not faces.get_paths()[0].contains_point(middle)
    assert not bad.get_paths()[0].contains_point(
        (frame.loc[1, ["x0", "x1"]].mean(), frame.loc[1, ["y0", "y1"]].mean())
    )
    rgb = np.asarray(fig.axes[0].images[0].get_array())
    assert np.ptp(rgb, axis=-1).max() > 0.2


def test_the_he_lies_on_the_grid_of_the_fluorescence(section):
    sdata, frame = section
    fig = nb.pl.registration(frame, sdata, return_fig=True)
    ax = fig.axes[0]
    (picture,) = ax.images
    he = sdata["p0s0_he"]
    left, right, bottom, top = picture.get_extent()
    assert (left, right, bottom, top) == (0, he.sizes["x"], he.sizes["y"], 0)
    from nimbus_sd._sdata.elements import affine

    matrix = np.linalg.inv(affine(sdata, "images", "p0s0_if", "p0s0")) @ affine(
        sdata, "images", "p0s0_he", "p0s0"
    )
    corner = ax.transData.inverted().transform(picture.get_transform().transform([(right, bottom)]))[0]
    np.testing.assert_allclose(corner, (matrix @ [right, bottom, 1])[:2])
    assert any(line.get_gid() == "scale_bar" for line in ax.lines)


def test_axes_saving_and_many_blocks(section, tmp_path):
    sdata, frame = section
    fig, ax = plt.subplots()
    assert nb.pl.registration(frame, ax=ax) is ax
    plt.close(fig)
    nb.pl.registration(frame, sdata, save=tmp_path / "r.png")
    assert (tmp_path / "r.png").stat().st_size > 5000
    n = 70
    y, x = (part.ravel() * 100 for part in np.mgrid[:n, :n])
    many = pd.DataFrame({"he": "a", "image": "b", "y0": y, "y1": y + 100, "x0": x, "x1": x + 100})
    many = many.assign(correlation=0.5, peak=0.5, dy=1.0, dx=0.0, shift=1.0, judged=True, ok=True)
    fig = nb.pl.registration(many, return_fig=True)
    assert parts(fig.axes[0])[2].N < 1000


def test_bad_input(section):
    sdata, frame = section
    with pytest.raises(InputError, match=r"pass a frame of nb\.pp.registration_qc"):
        nb.pl.registration(frame.drop(columns="peak"))
    with pytest.raises(InputError, match="pass a frame"):
        nb.pl.registration(sdata)
    two = pd.concat([frame, frame.assign(he="other")])
    with pytest.raises(InputError, match=r"choose one with he=\. Valid: 'p0s0_he', 'other'"):
        nb.pl.registration(two)
    assert nb.pl.registration(two, he="p0s0_he", return_fig=True)
    with pytest.raises(ElementNotFoundError, match="no H&E 'x'"):
        nb.pl.registration(frame, he="x")
    with pytest.raises(ElementNotFoundError, match="valid: correlation, peak"):
        nb.pl.registration(frame, value="dy")
    with pytest.raises(InputError, match="tolerance_um=0 must be a positive"):
        nb.pl.registration(frame, tolerance_um=0)
    with pytest.raises(InputError, match="does not exist"):
        nb.pl.registration(frame, save="/nowhere/at/all.png")


def test_of_a_pyramid_only_what_is_shown_is_read():
    shape = (3200, 1700)
    full = CountedArray(np.zeros((3, *shape), np.uint8), chunks=(3, 512, 512))
    half = CountedArray(np.full((3, 1600, 850), 200, np.uint8), chunks=(3, 512, 512))
    quarter = CountedArray(np.full((3, 800, 425), 100, np.uint8), chunks=(3, 512, 512))
    to = {"s": Identity(), "microns": Scale([0.5, 0.5], axes=("x", "y"))}
    levels = [each.dask for each in (full, half, quarter)]
    image = element_of_levels([np.ones((1, *shape), np.uint16)], channels=["DAPI"], transformations=to)
    sdata = SpatialData(images={"he": element_of_levels(levels, transformations=to), "if": image})
    for each in (full, half, quarter):
        each.reads.clear()
    frame = pd.DataFrame({"he": ["he"], "image": "if", "y0": 0, "y1": 3200, "x0": 0, "x1": 1700})
    frame = frame.assign(correlation=0.5, peak=0.5, dy=1.0, dx=0.0, shift=1.0, judged=True, ok=True)
    fig = nb.pl.registration(frame, sdata, return_fig=True)
    (picture,) = fig.axes[0].images
    np.testing.assert_allclose(picture.get_array(), 100 / 255)
    assert len(quarter.reads) == 2
    assert not full.reads
    assert not half.reads
    assert picture.get_extent() == [0, 1700, 3200, 0]
