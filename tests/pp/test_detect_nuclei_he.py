"""``nb.pp.detect_nuclei(stain="haematoxylin")``: nuclei of H&E, the same whatever the blocks."""

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.color import rgb2hed
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale, get_transformation

import nimbus_sd as nb
from nimbus_sd._core.errors import InputError
from nimbus_sd._core.stain import combine
from nimbus_sd._sdata.elements import ElementImage, get_image
from nimbus_sd._sdata.haematoxylin import HaematoxylinImage
from nimbus_sd.arrays import Interval
from nimbus_sd.engine import nuclei as engine
from nimbus_sd.testing import CountedArray

SHAPE = (170, 150)


def tissue(seed=0):
    """Nuclei of haematoxylin on a loose grid in a mottled pink; and their centres (y, x)."""
    rng = np.random.default_rng(seed)
    y, x = (np.arange(12, n - 10, 20) for n in SHAPE)
    grid = np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)
    centers = grid + rng.uniform(-3, 3, grid.shape)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    blue = np.full(SHAPE, 0.004)
    for a, b in centers:
        blue += rng.uniform(0.03, 0.07) * np.exp(-(((rows - a) ** 2 + (columns - b) ** 2) / 40))
    pink = 0.02 + 0.3 * np.abs(ndimage.gaussian_filter(rng.normal(size=SHAPE), 6))
    light = combine(np.stack([blue, pink, np.zeros(SHAPE)], -1)).astype(float) + rng.normal(0, 2, (*SHAPE, 3))
    return np.clip(light, 0, 255).astype(np.uint8).transpose(2, 0, 1), centers


def make(pixels, *, chunks=None, scale_factors=None, name="he", mpp=0.5):
    to = {"slide": Scale([2.0, 2.0], axes=("x", "y")), "microns": Scale([mpp, mpp], axes=("x", "y"))}
    image = Image2DModel.parse(
        pixels, dims="cyx", chunks=chunks, scale_factors=scale_factors, transformations=to
    )
    return sd.SpatialData(images={name: image})


def find(sdata, **options):
    nb.pp.detect_nuclei(sdata, **{"stain": "haematoxylin", "progress": False} | options)


def frame(sdata, name="nuclei"):
    return sdata[name].compute().to_numpy()


def test_every_nucleus_is_found_once():
    pixels, truth = tissue()
    sdata = make(pixels)
    find(sdata)
    found = frame(sdata)[:, 1::-1] - 0.5
    assert len(found) == len(truth)
    distance, index = cKDTree(found).query(truth)
    assert distance.max() < 1.5
    assert len(set(index)) == len(truth)
    ours, theirs = (get_transformation(sdata[n], get_all=True) for n in ("nuclei", "he"))
    assert ours == theirs
    facts = sdata.attrs["nimbus_sd"]["derived"]["nuclei"]
    assert facts["channels"] == ["haematoxylin"]


def test_it_is_what_the_unmixed_image_gives():
    pixels, _ = tissue()
    sdata = make(pixels)
    unmixed = np.maximum(rgb2hed(np.moveaxis(pixels, 0, -1))[..., 0], 0).astype(np.float32)
    other = make(unmixed[None], name="unmixed")
    find(sdata)
    find(other, stain=None, channel="0")
    np.testing.assert_allclose(frame(sdata), frame(other), atol=1e-3)


@pytest.mark.parametrize("chunks", [(3, 170, 150), (1, 31, 47), (3, 5, 150), (2, 64, 64)])
@pytest.mark.parametrize("side", [20, 1024])
def test_blocks_do_not_show(chunks, side, monkeypatch):
    pixels, _ = tissue()
    expected = make(pixels)
    find(expected)
    monkeypatch.setattr("nimbus_sd.engine.embedding.margins._SIDE", side)
    sdata = make(pixels, chunks=chunks, scale_factors=[2] if side == 20 else None)
    pieces = engine.block_grid(HaematoxylinImage(ElementImage("he", get_image(sdata, "he"), ("r", "g", "b"))))
    assert (len(pieces[0]) > 2) == (side == 20 and chunks[1] < 170)
    find(sdata, n_threads=1)
    np.testing.assert_array_equal(frame(sdata), frame(expected))


def test_reading_a_block_is_reading_the_whole():
    pixels, _ = tissue()
    image = HaematoxylinImage(ElementImage("he", da.from_array(pixels, chunks=(3, 40, 50)), ("r", "g", "b")))
    whole = image.read([0], Interval(0, 170), Interval(0, 150))
    part = image.read([0], Interval(33, 90), Interval(7, 8))
    assert whole.dtype == image.dtype == np.float32
    np.testing.assert_array_equal(part, whole[:, 33:90, 7:8])
    assert image.chunks == ((1,), (40, 40, 40, 40, 10), (50, 50, 50))
    assert (image.channels, image.shape, image.name) == (("haematoxylin",), SHAPE, "he")


def test_pixels_are_read_twice():
    pixels, _ = tissue()
    sdata = make(pixels)
    counted = CountedArray(pixels, chunks=(3, 60, 50))
    sdata["he"].data = counted.dask
    find(sdata)
    assert set(counted.reads.values()) == {2}  # for the scale, and for the nuclei


def test_only_he_images_are_taken():
    pixels, truth = tissue()
    sdata = make(pixels)
    to = get_transformation(sdata["he"], get_all=True)
    sdata["if"] = Image2DModel.parse(
        pixels.astype(np.uint16), dims="cyx", c_coords=["DAPI", "CD3", "CD8"], transformations=to
    )
    find(sdata)
    assert len(frame(sdata)) == len(truth)
    assert sorted(sdata.images) == ["he", "if"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stain": "eosin"}, "stain='eosin'; valid: 'haematoxylin' for H&E, or None"),
        ({"channel": "red"}, "leave channel= out"),
        ({"image": "if"}, r"image 'if' has 3 channels of uint16; an H&E has 3 \(red, green, blue\) of uint8"),
        ({"stain": None, "image": "he"}, "looks nuclear.*or pass stain='haematoxylin' for an H&E"),
        ({"mpp": -1.0}, "mpp=-1.0 must be a positive number"),
    ],
)
def test_errors_change_nothing(unchanged, options, said):
    pixels, _ = tissue()
    sdata = make(pixels)
    sdata["if"] = Image2DModel.parse(pixels.astype(np.uint16), dims="cyx")
    with unchanged(sdata), pytest.raises(InputError, match=said):
        find(sdata, **options)


def test_an_object_without_he_is_named(unchanged):
    pixels, _ = tissue()
    sdata = make(pixels.astype(np.uint16), name="if")
    with unchanged(sdata), pytest.raises(InputError, match=r"no image has 3 channels.*images: 'if'"):
        find(sdata)


def test_simulated_sections():
    sdata = nb.datasets.simulated_sections(shape=(256, 256), seed=3)
    find(sdata)
    labels = sdata["p0s0_labels"].to_numpy()
    cells = ndimage.center_of_mass(labels > 0, labels, np.unique(labels)[1:])
    found = frame(sdata)[:, 1::-1] - 0.5
    hits = len(set(cKDTree(found).query(cells, distance_upper_bound=8)[1].tolist()) - {len(found)})
    assert hits / len(found) > 0.75
    assert hits / len(cells) > 0.6
