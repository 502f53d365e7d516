"""Bad input: the error says what, where and what would be valid, and nothing is written."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Image3DModel, Labels2DModel, Labels3DModel
from spatialdata.transformations import Identity, Scale, Translation, set_transformation

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, WeightsError
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.testing import random_labels

SHAPE = (70, 52)


def no_labels(sdata):
    del sdata["fov0_labels"]


def no_image(sdata):
    del sdata["fov0_image"]


def two_images(sdata):
    sdata["second"] = Image2DModel.parse(
        np.zeros((1, *SHAPE), np.uint8), dims=("c", "y", "x"), transformations={"fov0": Identity()}
    )


def image_in_3d(sdata):
    del sdata["fov0_image"]
    sdata["stack"] = Image3DModel.parse(
        np.zeros((1, 2, *SHAPE), np.uint8), dims=("c", "z", "y", "x"), transformations={"fov0": Identity()}
    )


def labels_in_3d(sdata):
    del sdata["fov0_labels"]
    sdata["stack"] = Labels3DModel.parse(
        np.ones((2, *SHAPE), np.uint8), dims=("z", "y", "x"), transformations={"fov0": Identity()}
    )


def other_shape(sdata):
    sdata["fov0_labels"] = Labels2DModel.parse(
        np.ones((70, 50), np.uint8), dims=("y", "x"), transformations={"fov0": Identity()}
    )


def far_away(sdata):
    set_transformation(sdata["fov0_labels"], {"fov0": Translation([1e4, 0], axes=("x", "y"))}, set_all=True)


def other_system(sdata):
    set_transformation(sdata["fov0_labels"], {"elsewhere": Identity()}, set_all=True)


def no_pixel_size(sdata):
    for name in ("fov0_image", "fov0_labels"):
        set_transformation(sdata[name], {"fov0": Identity()}, set_all=True)


def oblong_pixels(sdata):
    to = {"fov0": Identity(), "microns": Scale([0.5, 1.0], axes=("x", "y"))}
    for name in ("fov0_image", "fov0_labels"):
        set_transformation(sdata[name], to, set_all=True)


def float_labels(sdata):
    sdata["fov0_labels"].data = sdata["fov0_labels"].data.astype("float32")


def negative_labels(sdata):
    sdata["fov0_labels"].data = -sdata["fov0_labels"].data.astype("int32")


def empty_labels(sdata):
    sdata["fov0_labels"].data = sdata["fov0_labels"].data * 0


def pixels(value, dtype="float32"):
    def put(sdata):
        image = np.asarray(sdata["fov0_image"].data).astype(dtype)
        image[1, 30, 20] = value
        sdata["fov0_image"].data = da.from_array(image)

    put.__name__ = f"a pixel is {value}"
    return put


def duplicated_channels(sdata):
    sdata.images["fov0_image"] = sdata["fov0_image"].assign_coords(c=["CD3", "CD8", "CD3"])


def only_nuclei(sdata):
    sdata.images["fov0_image"] = sdata["fov0_image"].assign_coords(c=["DAPI", "HH3", "blank"])


@pytest.mark.filterwarnings("ignore:The element:UserWarning")
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_labels, r"no labels.*Labels2DModel"),
        (no_image, r"labels 'fov0_labels': no image overlaps it.*images: none.*pass image="),
        (two_images, r"labels 'fov0_labels': several images overlap it: 'fov0_image', 'second'; pass image="),
        (image_in_3d, r"image 'stack' has dimensions \('c', 'z', 'y', 'x'\); valid: \(c, y, x\)"),
        (labels_in_3d, r"labels 'stack' have dimensions \('z', 'y', 'x'\); valid: \(y, x\)"),
        (other_shape, r"image 'fov0_image' is \(70, 52\).*labels 'fov0_labels' are \(70, 50\).*crop or pad"),
        (far_away, r"labels 'fov0_labels': no image overlaps it.*images: 'fov0_image'"),
        (other_system, r"labels 'fov0_labels': no image overlaps it.*images: 'fov0_image'"),
        (no_pixel_size, r"image 'fov0_image': the pixel size is unknown. Pass mpp= .*microns"),
        (oblong_pixels, r"images 'fov0_image': pixels are 0.5 x 1 µm, not square.*mpp="),
        (float_labels, r"labels 'fov0_labels' have dtype float32; valid: integers.*astype"),
        (negative_labels, r"labels 'fov0_labels': label ids must be ≥ 0, found -14"),
        (empty_labels, r"labels 'fov0_labels': no labelled pixel"),
        (pixels(np.nan), r"image 'fov0_image', channel 'CD8': 1 NaN pixels.*finite and ≥ 0"),
        (pixels(np.inf), r"image 'fov0_image', channel 'CD8': 1 infinite pixels"),
        (pixels(-3, "int32"), r"image 'fov0_image', channel 'CD8': 1 negative pixels.*clip"),
        (pixels(1j, "complex64"), r"image 'fov0_image' has dtype complex64; valid: integers, float16"),
        (duplicated_channels, r"image 'fov0_image' has duplicated channel names \['CD3'\]; rename"),
        (only_nuclei, r"image 'fov0_image': every channel \(DAPI, HH3, blank\).*channels=\[...\]"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_objects(sdata, score, unchanged, damage, said):
    damage(sdata)
    with unchanged(sdata), pytest.raises(InputError, match=said):
        score(sdata)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"image": "img"}, ElementNotFoundError, r"no image 'img'.*'fov0_image', 'fov1_image'"),
        ({"labels": "lab"}, ElementNotFoundError, r"no labels 'lab'.*'fov0_labels', 'fov1_labels'"),
        ({"image": {"lab": "fov0_image"}}, ElementNotFoundError, r"no labels 'lab'.*'fov0_labels'"),
        ({"image": {"fov0_labels": "img"}}, ElementNotFoundError, r"no image 'img'.*'fov0_image'"),
        ({"image": {}}, InputError, r"at least one pair.*fov0_labels"),
        ({"labels": []}, InputError, r"at least one labels element"),
        ({"labels": ["fov0_labels"] * 2}, InputError, r"each once"),
        (
            {"image": "fov0_image", "labels": "fov1_labels"},
            InputError,
            r"labels 'fov1_labels' and image 'fov0_image' don't overlap.*'fov1', 'microns'.*transformation",
        ),
        ({"coordinate_system": "room"}, InputError, r"labels 'fov0_labels': no image overlaps it.*'room'"),
        (
            {"channels": ["CD3", "CD99"]},
            ElementNotFoundError,
            r"'fov0_image' has no channel \['CD99'\]; valid: CD3",
        ),
        ({"channels": ["CD3", "CD3"]}, InputError, r"each once"),
        ({"channels": []}, InputError, r"at least one channel"),
        ({"mpp": 0}, InputError, r"mpp=0 must be a positive number"),
        ({"mpp": -1.0}, InputError, r"mpp=-1\.0 must be a positive number"),
        ({"model": "nimbus-v9"}, ElementNotFoundError, r"'nimbus-v9'.*Registered: .*nimbus-v1"),
        ({"model": "gone.pt"}, WeightsError, r"no weights at gone\.pt"),
        ({"views": 4}, InputError, r"views=4.*1 \(none\) or 8 \(all\).*flip_y"),
        ({"views": ["identity", "rot45"]}, InputError, r"rot45.*valid: identity"),
        ({"tile": 100}, InputError, r"tile=100.*96"),
        ({"batch_size": 0}, InputError, r"batch_size=0"),
        ({"n_threads": -1}, InputError, r"n_threads=-1"),
        ({"device": "cuda:7"}, InputError, r"'cuda:7' is not on this machine; valid: 'auto', 'cpu'"),
        ({"device": "gpu"}, InputError, r"'gpu' is not a device name; valid: 'auto', 'cpu'"),
        ({"precision": "half"}, InputError, r"'half'; valid: 'auto', 'float32', 'bfloat16'"),
        ({"quantile": 99.9}, InputError, r"quantile=99\.9 must be in \(0, 1\]"),
        ({"rule": "median"}, InputError, r"'median'; valid: dataset, fov_mean"),
        (
            {"normalization": Normalization(("CD3",), (1.0,), 0.9, "dataset", ())},
            InputError,
            r"no scale for \['CD8', 'CD20'\]; it knows \['CD3'\]",
        ),
        (
            {"table": "fov0_image"},
            InputError,
            r"'fov0_image' is the name of another element, in images; pass another table=",
        ),
    ],
    ids=lambda v: ",".join(v) if isinstance(v, dict) else "",
)
def test_arguments(factory, score, unchanged, options, error, said):
    sdata = factory(2)
    with unchanged(sdata), pytest.raises(error, match=said):
        score(sdata, **options)


def test_which_labels_of_an_image_must_be_clear(sdata, score, unchanged):
    nb.pp.expand_labels(sdata, "fov0_labels", distance=2.0)
    with (
        unchanged(sdata),
        pytest.raises(InputError, match=r"'fov0_image': which labels\? .*'fov0_labels_expanded'"),
    ):
        score(sdata, image="fov0_image")


def test_an_existing_table_is_kept_unless_told(sdata, score, unchanged):
    first = score(sdata)
    with (
        unchanged(sdata),
        pytest.raises(InputError, match=r"table 'nimbus' exists; pass overwrite=True.*table="),
    ):
        score(sdata, channels=["CD3"])
    assert sdata["nimbus"] is first
    assert score(sdata, channels=["CD3"], overwrite=True).n_vars == 1
    assert score(sdata, table="second").n_vars == 3


def test_a_failure_on_overwrite_keeps_the_old_table(sdata, score, unchanged):
    score(sdata)
    pixels(np.nan)(sdata)
    with unchanged(sdata), pytest.raises(InputError, match="NaN"):
        score(sdata, overwrite=True)


def test_fields_must_have_the_same_markers(factory, score, unchanged):
    sdata = factory(2)
    sdata.images["fov1_image"] = sdata["fov1_image"].assign_coords(c=["CD3", "CD8", "CD4"])
    with (
        unchanged(sdata),
        pytest.raises(
            InputError, match=r"'fov0_image' and 'fov1_image' differ in channels \['CD20', 'CD4'\].*channels="
        ),
    ):
        score(sdata)
    assert list(score(sdata, channels=["CD8", "CD3"]).var_names) == ["CD8", "CD3"]


def test_nothing_is_written_to_disk_either(factory, score, unchanged, tmp_path):
    factory().write(tmp_path / "s.zarr")
    sdata = SpatialData.read(tmp_path / "s.zarr")
    with unchanged(sdata), pytest.raises(InputError, match="quantile=7"):
        score(sdata, write=True, maps="score", quantile=7)
    sdata.labels["fov0_labels"] = xr.zeros_like(sdata["fov0_labels"])
    with unchanged(sdata), pytest.raises(InputError, match="'fov0_labels': no labelled pixel"):
        score(sdata, write=True, maps="score")


def test_one_empty_field_among_others_is_skipped_with_a_warning(factory, score):
    sdata = factory(2)
    sdata["fov1_labels"].data = sdata["fov1_labels"].data * 0
    with pytest.warns(nb._core.errors.NimbusWarning, match="no labelled pixel in fov1_labels"):
        table = score(sdata)
    assert table.obs["region"].cat.categories.tolist() == ["fov0_labels"]
    assert random_labels(SHAPE).any()
