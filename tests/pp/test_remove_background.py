"""``nb.pp.remove_background``: by probabilities and by density, on any chunks, and what is refused."""

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, Translation, get_transformation

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.testing import CountedArray
from nimbus_sd.testing import strategies as own

SHAPE = (40, 33)


def image_of(pixels, channels, system="fov0", **options):
    return Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=list(channels), transformations={system: Identity()}, **options
    )


def ions(dtype="uint8", chunks=None, seed=0, **options):
    """Scattered counts, and cells of many, in two channels."""
    rng = np.random.default_rng(seed)
    rate = np.full((2, *SHAPE), 0.05)
    rate[0, 10:20, 5:15] = 0.8
    rate[1, 0:6, 24:33] = 0.6
    pixels = rng.poisson(rate).astype(dtype)
    data = pixels if chunks is None else da.from_array(pixels, chunks=chunks)
    return sd.SpatialData.init_from_elements({"fov0": image_of(data, ("CD3", "CD8"), **options)}), pixels


def by_neighbours(pixels, radius, min_count):
    """Distance to the k-th nearest other count, count by count; away from the border exact."""
    out = np.zeros_like(pixels)
    for plane, target in zip(pixels, out, strict=True):
        places = np.repeat(np.argwhere(plane > 0), plane[plane > 0].astype(int), axis=0)
        for y, x in np.argwhere(plane > 0):
            distance = np.sort(np.sqrt(((places - [y, x]) ** 2).sum(1)))[1:]
            target[y, x] = plane[y, x] if (distance <= radius).sum() >= min_count else 0
    return out


def run(sdata, made="fov0_foreground", **options):
    nb.pp.remove_background(sdata, progress=False, **options)
    return sdata[made]


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
@pytest.mark.parametrize(("radius", "min_count"), [(3, 4), (2.5, 1), (5, 12)])
def test_density_is_the_distance_to_the_nearest_counts(dtype, radius, min_count):
    sdata, pixels = ions(dtype)
    found = run(sdata, radius=radius, min_count=min_count)
    assert found.dtype == dtype
    r = int(radius)
    inner = (slice(None), slice(r, -r), slice(r, -r))
    expected = by_neighbours(pixels, radius, min_count)
    np.testing.assert_array_equal(found.data.compute()[inner], expected[inner])
    assert (expected > 0).sum() < (pixels > 0).sum()


@settings(max_examples=12)
@given(st.data())
def test_chunks_do_not_show(data):
    radius = data.draw(st.sampled_from([1, 4.2, 9]))
    whole, _ = ions()
    chunks = data.draw(own.chunks((2, *SHAPE)))
    sdata, _ = ions(chunks=chunks)
    options = {"radius": radius, "min_count": data.draw(st.sampled_from([None, 5]))}
    np.testing.assert_array_equal(run(sdata, **options).data, run(whole, **options).data)
    assert sdata["fov0_foreground"].data.chunks == chunks


def test_noise_goes_and_signal_stays():
    sdata, pixels = ions()
    found = run(sdata).data.compute()
    cell = np.zeros((2, *SHAPE), dtype=bool)
    cell[0, 10:20, 5:15] = cell[1, 0:6, 24:33] = True
    assert found[cell].sum() > 0.9 * pixels[cell].sum()
    # the filter looks 5 px around, so farther off no cell helps a count to stay
    far = np.stack([ndimage.distance_transform_edt(~c) > 5 for c in cell])
    assert 200 < far[0].sum() < (~cell[0]).sum()
    assert pixels[far].sum() > 50
    assert found[far].sum() < 0.2 * pixels[far].sum()
    told = sdata.attrs["nimbus_sd"]["derived"]["fov0_foreground"]
    assert set(told["min_count"]) == {"CD3", "CD8"}
    assert min(told["min_count"].values()) >= 3


def test_a_border_is_no_reason_to_go():
    # evenly spread: the corner has a quarter of the disc, and stays as the middle does
    sdata = sd.SpatialData.init_from_elements({"fov0": image_of(np.ones((1, 20, 20), np.uint8), ["CD3"])})
    for min_count, kept in ((60, True), (81, False)):
        found = run(sdata, min_count=min_count, overwrite=True)
        assert found.data.compute().all() == kept
        assert found.data.compute().any() == kept


def test_building_reads_nothing_and_finding_the_bound_once(factory):
    sdata, pixels = ions()
    counted = CountedArray(pixels, chunks=(1, 20, 20))
    sdata["fov0"].data = counted.dask
    run(sdata, min_count=4)
    assert not counted.reads
    run(sdata, overwrite=True)
    assert set(counted.reads.values()) == {1}
    sdata["fov0_foreground"].data.compute()
    assert set(counted.reads.values()) == {2}


def test_channels_are_chosen_and_have_their_own_counts():
    sdata, pixels = ions()
    found = run(sdata, channels="CD8", min_count=5).data.compute()
    np.testing.assert_array_equal(found[0], pixels[0])
    other, _ = ions()
    both = run(other, min_count={"CD3": 2, "CD8": 5}).data.compute()
    np.testing.assert_array_equal(found[1], both[1])
    third, _ = ions()
    np.testing.assert_array_equal(both[0], run(third, min_count=2).data[0])


def with_probabilities(values, channels, sdata=None):
    sdata = ions()[0] if sdata is None else sdata
    sdata["prob"] = image_of(values, channels)
    return sdata


@pytest.mark.parametrize(("of", "sign"), [("background", 1), ("foreground", -1)])
@pytest.mark.parametrize("chunks", [None, (2, 7, 33)])
def test_probabilities_by_name_in_any_order(rng, of, sign, chunks):
    sdata, pixels = ions(chunks=chunks)
    p = rng.random((2, *SHAPE)).astype(np.float32)
    with_probabilities(p, ("CD8", "CD3"), sdata)
    found = run(sdata, probability="prob", probability_of=of, threshold=0.3)
    assert found.dtype == np.uint8
    above = p[::-1] > np.float32(0.3)
    np.testing.assert_array_equal(found.data, pixels * (~above if sign > 0 else above))
    assert found.data.chunks == sdata["fov0"].data.chunks


@pytest.mark.parametrize(("dtype", "full"), [("uint8", 255), ("uint16", 65535), ("float64", 1)])
def test_one_class_for_all_channels(rng, dtype, full):
    p = (rng.random((3, *SHAPE)) * full).astype(dtype)
    sdata = with_probabilities(p, ("tissue", "background", "debris"))
    pixels = sdata["fov0"].data.compute()
    found = run(sdata, probability="prob", probability_channel="background", channels=["CD3"])
    np.testing.assert_array_equal(found.data[0], pixels[0] * (p[1] / full <= 0.5))
    np.testing.assert_array_equal(found.data[1], pixels[1])
    single = with_probabilities(p[1:2], ["0"])
    both = run(single, probability={"fov0": "prob"})
    np.testing.assert_array_equal(both.data[0], found.data[0])
    np.testing.assert_array_equal(both.data[1], pixels[1] * (p[1] / full <= 0.5))


def test_several_images(rng):
    sdata, _ = ions()
    sdata["fov1"] = image_of(ions(seed=1)[1], ("CD3", "CD8"), "fov1")
    for i in range(2):
        sdata[f"p{i}"] = image_of(rng.random((1, *SHAPE)), ["bg"], f"fov{i}")
    run(sdata, probability={"fov0": "p0", "fov1": "p1"})
    for i in range(2):
        expected = np.where(sdata[f"p{i}"].data <= 0.5, sdata[f"fov{i}"].data, 0)
        np.testing.assert_array_equal(sdata[f"fov{i}_foreground"].data, expected)
    run(sdata, probability="p1", name="again_{image}", image="fov1", made="again_fov1")
    facts = sdata.attrs["nimbus_sd"]["derived"]
    assert facts["fov1_foreground"]["probability"] == "p1"


@pytest.mark.parametrize("write", [True, False])
def test_stores_scales_and_transformations(tmp_path, write):
    sdata, _ = ions(scale_factors=[2])
    sdata.write(tmp_path / "a.zarr")
    sdata = sd.read_zarr(tmp_path / "a.zarr")
    made = run(sdata, min_count=4, write=write)
    if not write:
        sdata.write_element("fov0_foreground")
    again = sd.read_zarr(tmp_path / "a.zarr")["fov0_foreground"]
    assert list(again.children) == ["scale0", "scale1"]
    for scale in again.children:
        np.testing.assert_array_equal(again[scale].ds["image"], made[scale].ds["image"])
    assert again["scale0"].ds["image"].dtype == np.uint8
    assert get_transformation(again, get_all=True) == get_transformation(sdata["fov0"], get_all=True)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"radius": 0}, InputError, "radius=0 must be 1 to 100 px"),
        ({"radius": np.nan}, InputError, "radius=nan"),
        ({"min_count": 0}, InputError, "min_count= has 0 for 'CD3'"),
        ({"min_count": 2.5}, InputError, "min_count= has 2.5"),
        ({"min_count": {"CD3": 4}}, InputError, r"min_count= has nothing for \['CD8'\]"),
        ({"channels": "CD4"}, ElementNotFoundError, r"no channel \['CD4'\]"),
        ({"probability_of": "cells"}, InputError, "probability_of='cells'; valid: 'background'"),
        ({"threshold": 1.0}, InputError, r"threshold=1\.0 must be in \[0, 1\)"),
        ({"probability": "none"}, ElementNotFoundError, "no image 'none'"),
        ({"probability_channel": "bg"}, InputError, "without probability="),
        (
            {"probability": {"fov0": "prob"}},
            InputError,
            r"'prob' has no probabilities for \['CD3', 'CD8'\]; it has: a, b",
        ),
        (
            {"probability": "prob", "image": "fov0", "probability_channel": "c"},
            InputError,
            "no channel 'c'; valid: a, b",
        ),
        ({"probability": "prob"}, InputError, "'prob'.*which image.*Candidates: 'fov0', 'classes'"),
        ({"probability": {"fov0": "prob"}, "image": "small"}, InputError, r"lacks \['small'\]"),
        ({"probability": "small"}, InputError, "'small': of which image.*none"),
        ({"probability": {"fov0": "small"}}, InputError, "not on the same pixel grid"),
        ({"probability": {"fov0": "moved"}}, InputError, "not on the same pixel grid"),
        ({"probability": {"fov0": "classes"}}, InputError, "'classes' has dtype int32, which can't hold"),
        ({"probability": {"fov0": "prob"}, "image": ["fov0", "small"]}, InputError, r"lacks \['small'\]"),
        ({"image": "fov0", "name": "prob"}, InputError, "'prob' exists"),
        ({"image": "fov0", "write": True}, InputError, "needs an object with a zarr store"),
    ],
)
def test_errors_change_nothing(unchanged, options, error, said):
    sdata = with_probabilities(np.zeros((2, *SHAPE), np.float32), ("a", "b"))
    sdata["small"] = image_of(np.zeros((1, 9, 9)), ["a"])
    sdata["classes"] = image_of(np.zeros((1, *SHAPE), np.int32), ["a"])
    sdata["moved"] = Image2DModel.parse(
        np.zeros((1, *SHAPE)), dims=("c", "y", "x"), transformations={"fov0": Translation([1], axes=("x",))}
    )
    options = ({} if "probability" in options else {"image": "fov0"}) | options
    with unchanged(sdata), pytest.raises(error, match=said):
        run(sdata, **options)


@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (0.5, "not whole numbers"), (-1, "negative")])
def test_pixels_that_are_no_counts(unchanged, value, said):
    sdata, pixels = ions("float32")
    pixels = pixels.copy()
    pixels[1, 30, 30] = value
    sdata["fov0"].data = da.from_array(pixels)
    with unchanged(sdata), pytest.raises(InputError, match=f"image 'fov0', channel 'CD8': .*{said}"):
        run(sdata)
    run(sdata, min_count=4)
    with pytest.raises(InputError, match=f"image 'fov0': .*{said}"):
        sdata["fov0_foreground"].data.compute()


def test_values_that_are_no_probabilities():
    sdata = with_probabilities(np.full((1, *SHAPE), 1.5), ["0"])
    run(sdata, probability="prob")
    with pytest.raises(InputError, match=r"image 'prob', channel '0': holds values outside \[0, 1\]"):
        sdata["fov0_foreground"].data.compute()
