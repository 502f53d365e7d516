"""Names and options that can't work are refused before anything is read or written."""

import numpy as np
import pytest
import spatialdata as sd
from spatialdata.transformations import Scale

import nimbus_sd as nb
from nimbus_sd._core.errors import InputError, WeightsError
from nimbus_sd._sdata.align import is_identity, overhang
from nimbus_sd.arrays import plan_tiles
from nimbus_sd.engine.block import to_model_pixels
from nimbus_sd.testing import random_image


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"table": "a/b", "maps": "m"}, r"table='a/b' is not a valid element name"),
        ({"table": "__x"}, "not a valid element name"),
        ({"table": "q", "maps": "q"}, r"maps='q' is the table's name too"),
        ({"table": "FOV0_LABELS"}, r"'fov0_labels' is the name of another element, in labels"),
        ({"maps": "a b"}, r"maps='a b' is not a valid element name"),
        ({"score_std": True}, "score_std needs at least two views"),
        ({"tile": 0}, "tile=0 must be a positive multiple"),
        ({"tile": 64.0}, "tile=64.0 must be a whole number"),
        ({"batch_size": 1.5}, "batch_size=1.5 must be a whole number"),
        ({"mpp": "0.5"}, "mpp='0.5' must be a positive number"),
        ({"exclude": "("}, "is not a regular expression"),
        ({"normalization": {"CD3": 3.0}}, "normalization is a dict"),
        ({"labels": "fov0_labels", "image": {"x": "fov0_image"}}, r"image= names labels \['x'\]"),
    ],
)
def test_refused(sdata, score, unchanged, options, said):
    with unchanged(sdata), pytest.raises(InputError, match=said):
        score(sdata, **options)


def test_a_fitted_normalization_excludes_how_to_fit_it(sdata, score, unchanged):
    fitted = nb.pp.normalization(sdata, progress=False)
    with unchanged(sdata), pytest.raises(InputError, match="leave quantile= and rule= out"):
        score(sdata, normalization=fitted, quantile=0.9)


def test_names_that_differ_in_case_only(sdata, score, unchanged):
    score(sdata)
    with unchanged(sdata), pytest.raises(InputError, match="'nimbus' is the name of another element"):
        score(sdata, table="Nimbus", overwrite=True)


def test_what_is_only_on_disk_counts_when_writing(factory, score, unchanged, tmp_path):
    factory().write(tmp_path / "s.zarr")
    sdata = sd.read_zarr(tmp_path / "s.zarr")
    score(sdata, write=True)
    del sdata["nimbus"]
    with unchanged(sdata), pytest.raises(InputError, match="table 'nimbus' exists"):
        score(sdata, write=True)
    score(sdata, write=True, overwrite=True)
    assert "nimbus" in sd.read_zarr(tmp_path / "s.zarr").tables


@pytest.mark.parametrize("value", [0.5, {"mpp": "0.5 um"}, {"mpp": -1}])
def test_damaged_attrs(factory, score, value):
    sdata = factory()
    sdata.attrs["nimbus_sd"] = value
    for name in ("fov0_image", "fov0_labels"):
        sd.transformations.remove_transformation(sdata[name], "microns") if "microns" in (
            sd.transformations.get_transformation(sdata[name], get_all=True)
        ) else None
    with pytest.raises(InputError, match=r"mpp"):
        score(sdata)


def test_a_small_difference_of_scale_is_no_identity():
    matrix = np.diag([1.0009, 1.0009, 1.0])
    assert is_identity(np.diag([1.0 + 1e-7, 1.0, 1.0]), (8000, 8000))
    assert not is_identity(matrix, (8000, 8000))
    assert overhang(matrix, (8000, 8000), (8000, 8000)) == pytest.approx(7.2, abs=0.1)


def test_a_scale_of_a_thousandth_moves_cells(factory, score, place):
    sdata = factory()
    place(sdata, "fov0_image", Scale([1.04, 1.04], axes=("x", "y")))
    place(sdata, "fov0_labels", Scale([1.0, 1.0], axes=("x", "y")))
    table = score(sdata, mpp=1.0)
    same = score(factory(), mpp=1.0)
    assert np.abs(table.X - same.X).max() > 1e-3


@pytest.mark.parametrize(
    ("pixels", "scale"),
    [
        (np.full((20, 20), 1e300), 1.0),
        (np.full((20, 20), 1e-45, np.float32), 1e-45),
        (np.full((20, 20), 7, np.uint16), 1e-60),
        (random_image((1, 20, 20), dtype="float16")[0], 3.0),
    ],
)
def test_normalised_pixels_stay_in_the_unit_interval(pixels, scale):
    plan = plan_tiles((20, 20), factor=1.0, tile=32)
    out = to_model_pixels(pixels, plan, plan[0], scale=scale, transform="sqrt")
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert out.min() >= 0
    assert out.max() <= 1


def test_nan_weights_are_named(sdata, unchanged):
    from nimbus_sd.testing import tiny_unet_model

    broken = tiny_unet_model()
    next(broken.net.parameters()).data.fill_(float("nan"))
    with unchanged(sdata), pytest.raises(WeightsError, match="NaN or infinite"):
        nb.tl.predict(sdata, model=broken, progress=False)
