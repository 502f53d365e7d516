"""``nb.pp.detect_nuclei`` on objects: places, names, what is read, what is refused."""

import warnings

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
from scipy import ndimage
from scipy.spatial import cKDTree
from spatialdata.models import Image2DModel, PointsModel
from spatialdata.transformations import Identity, Scale, get_transformation

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd.testing import CountedArray

SHAPE = (120, 100)


def nuclei(shape=SHAPE, seed=0, step=17):
    """Centres (y, x) as indices on a loose grid, and their light, brighter and dimmer."""
    rng = np.random.default_rng(seed)
    y, x = (np.arange(10, n - 9, step) for n in shape)
    centers = np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2) + rng.uniform(
        -3, 3, (y.size * x.size, 2)
    )
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    power = rng.uniform(30, 90, len(centers))
    light = sum(
        p * np.exp(-((rows - a) ** 2 + (columns - b) ** 2) / 18)
        for p, (a, b) in zip(power, centers, strict=True)
    )
    return centers, light


def make(n=1, *, channels=("CD3", "DAPI"), dtype="uint16", mpp=0.5, chunks=None, scale_factors=None, step=17):
    """Fields with a marker of noise and nuclei in each other channel; and their centres."""
    elements, truth = {}, []
    for i in range(n):
        centers, light = nuclei(seed=i, step=step)
        rng = np.random.default_rng(100 + i)
        planes = [rng.poisson(3.0 if c.startswith("CD") else light + 1, SHAPE) for c in channels]
        to = {f"fov{i}": Identity()} | ({"microns": Scale([mpp, mpp], axes=("x", "y"))} if mpp else {})
        elements[f"fov{i}_image"] = Image2DModel.parse(
            np.stack(planes).astype(dtype),
            dims=("c", "y", "x"),
            c_coords=list(channels),
            transformations=to,
            chunks=chunks,
            scale_factors=scale_factors,
        )
        truth.append(centers)
    return sd.SpatialData.init_from_elements(elements), truth


def find(sdata, **options):
    nb.pp.detect_nuclei(sdata, progress=False, **options)


def places(sdata, name="nuclei"):
    """Index coordinates (y, x)."""
    return sdata[name].compute()[["y", "x"]].to_numpy() - 0.5


@pytest.mark.parametrize("method", ["log", "local_maxima"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_every_nucleus_is_found_once(method, dtype):
    sdata, (truth,) = make(dtype=dtype)
    find(sdata, method=method)
    found = places(sdata)
    assert len(found) == len(truth)
    distance, index = cKDTree(found).query(truth)
    assert distance.max() < 1.5
    assert len(set(index)) == len(truth)


def test_what_is_written():
    sdata, _ = make()
    find(sdata)
    points = sdata["nuclei"]
    PointsModel.validate(points)
    frame = points.compute()
    assert list(frame.columns) == ["x", "y", "response"]
    assert [str(t) for t in frame.dtypes] == ["float64", "float64", "float32"]
    assert frame.index.tolist() == list(range(len(frame)))
    assert np.all(np.diff(np.floor(frame["y"].round())) >= -1)
    assert (frame["response"] > 0).all()
    ours, theirs = (get_transformation(sdata[n], get_all=True) for n in ("nuclei", "fov0_image"))
    assert ours == theirs
    facts = sdata.attrs["nimbus_sd"]["derived"]["nuclei"]
    assert facts["channels"] == ["DAPI"]
    assert facts["sigma_px"] == pytest.approx(7 / 0.5 / np.sqrt(8))
    assert 0 < facts["threshold"] < frame["response"].min()


def test_one_coordinate_system():
    sdata, _ = make()
    find(sdata, coordinate_system="microns")
    assert list(get_transformation(sdata["nuclei"], get_all=True)) == ["microns"]


@pytest.mark.parametrize("chunks", [(1, 120, 100), (2, 31, 17), (1, 5, 100)])
@pytest.mark.parametrize("scale_factors", [None, [2]])
def test_chunks_and_scales_do_not_show(chunks, scale_factors):
    expected, _ = make()
    find(expected)
    sdata, _ = make(chunks=chunks, scale_factors=scale_factors)
    find(sdata, n_threads=1)
    np.testing.assert_array_equal(places(sdata), places(expected))


def test_only_nuclear_chunks_are_read_and_each_twice():
    sdata, _ = make()
    counted = CountedArray(np.asarray(sdata["fov0_image"].data), chunks=(1, 40, 50))
    sdata["fov0_image"].data = counted.dask
    find(sdata)
    assert set(counted.reads.values()) == {2}  # for the scale, and for the nuclei
    assert {c for c, _, _ in counted.reads} == {1}


def test_several_fields_share_scale_and_threshold():
    sdata, truth = make(2)
    find(sdata)
    assert sorted(sdata.points) == ["fov0_image_nuclei", "fov1_image_nuclei"]
    for i, centers in enumerate(truth):
        assert len(places(sdata, f"fov{i}_image_nuclei")) == len(centers)
    facts = sdata.attrs["nimbus_sd"]["derived"]
    assert len({(f["threshold"], *f["scale"]) for f in facts.values()}) == 1
    find(sdata, image="fov1_image")
    find(sdata, image=["fov0_image", "fov1_image"], name="{image}.cells")
    assert {"nuclei", "fov0_image.cells", "fov1_image.cells"} <= set(sdata.points)


def test_nuclear_channels_are_known_by_name_and_used_together():
    sdata, (truth,) = make(channels=("CD3", "HH3", "Nuc", "H3K9ac"))
    find(sdata)
    assert sdata.attrs["nimbus_sd"]["derived"]["nuclei"]["channels"] == ["HH3", "Nuc"]
    assert len(places(sdata)) == len(truth)
    find(sdata, channel="H3K9ac", name="other")
    assert sdata.attrs["nimbus_sd"]["derived"]["other"]["channels"] == ["H3K9ac"]


def test_thresholds_sizes_and_distances_have_their_effect():
    sdata, (truth,) = make(mpp=None)
    find(sdata, sigma=4.0, threshold=0.2, name="few")
    find(sdata, sigma=4.0, threshold=0.0, name="many")
    find(sdata, mpp=0.5, diameter_um=4 * np.sqrt(8) * 0.5, threshold=0.0, name="same")
    find(sdata, sigma=4.0, min_distance=40, name="far")
    n = {name: len(sdata[name]) for name in sdata.points}
    assert n["far"] < n["few"] < len(truth) <= n["many"] == n["same"]
    np.testing.assert_array_equal(places(sdata, "many"), places(sdata, "same"))
    find(sdata, sigma=4.0, refine=False, name="whole")
    assert np.array_equal(places(sdata, "whole"), np.round(places(sdata, "whole")))


def test_written_and_read_back(tmp_path):
    sdata, _ = make(2)
    find(sdata)
    sdata.write(tmp_path / "a.zarr")
    again = sd.read_zarr(tmp_path / "a.zarr")
    for name in sdata.points:
        np.testing.assert_array_equal(places(again, name), places(sdata, name))
    assert again.attrs["nimbus_sd"]["derived"] == sdata.attrs["nimbus_sd"]["derived"]


def test_a_field_without_nuclei_is_told_and_stays_empty(tmp_path):
    sdata, _ = make(2)
    sdata["fov1_image"].data = da.zeros_like(sdata["fov1_image"].data)
    with pytest.warns(NimbusWarning, match="image 'fov1_image': no nuclei found; lower threshold="):
        find(sdata)
    assert len(sdata["fov1_image_nuclei"]) == 0
    sdata.write(tmp_path / "a.zarr")
    assert len(sd.read_zarr(tmp_path / "a.zarr")["fov1_image_nuclei"]) == 0


def noisy(shape, n, *, background, seed=0):
    """A field of `n` nuclei, 14 px or more apart, on a background, with Poisson noise; and their centres."""
    rng = np.random.default_rng(seed)
    light, centers = np.full(shape, float(background)), np.empty((0, 2))
    y, x = np.mgrid[-16:17, -16:17]
    while len(centers) < n:
        center = rng.uniform(18, np.array(shape) - 18)
        if (np.hypot(*(centers - center).T) < 14).any():
            continue
        centers = np.vstack([centers, center])
        a, b = np.round(center).astype(int)
        distance = (y + a - center[0]) ** 2 + (x + b - center[1]) ** 2
        light[a - 16 : a + 17, b - 16 : b + 17] += rng.uniform(30, 90) * np.exp(-distance / 32)
    return rng.poisson(light).astype("uint16"), centers


def object_of(*planes):
    """Images ``fov0``, … with one channel each."""
    images = {
        f"fov{i}": Image2DModel.parse(plane[None], dims=("c", "y", "x"), c_coords=["DAPI"])
        for i, plane in enumerate(planes)
    }
    return sd.SpatialData.init_from_elements(images)


@pytest.mark.parametrize("method", ["log", "local_maxima"])
@pytest.mark.parametrize("background", [0.05, 1, 20])
@pytest.mark.parametrize("n", [5, 30])
def test_few_nuclei_among_thousands_of_noise_peaks(method, background, n):
    plane, truth = noisy((512, 512), n, background=background)
    sdata = object_of(plane)
    find(sdata, mpp=0.5, method=method)
    found = places(sdata)
    assert n <= len(found) <= n + 2
    assert cKDTree(found).query(truth)[0].max() < 1.5
    find(sdata, mpp=0.5, threshold=0.0, name="all_peaks")
    assert len(sdata["all_peaks"]) > 500


@pytest.mark.filterwarnings("ignore:image 'fov.* no nuclei found")
@pytest.mark.parametrize("background", [0.05, 3, 200])
def test_an_empty_field_gets_next_to_no_nuclei_and_does_not_spoil_a_full_one(background):
    full, truth = noisy((512, 512), 110, background=3)
    empty = [noisy((512, 512), 0, background=background, seed=i)[0] for i in (1, 2)]
    sdata = object_of(full, *empty)
    find(sdata, mpp=0.5)
    found = places(sdata, "fov0_nuclei")
    assert len(found) == len(truth)
    assert cKDTree(found).query(truth)[0].max() < 1.5
    assert all(len(sdata[f"fov{i}_nuclei"]) <= 1 for i in (1, 2))
    find(sdata, image="fov1", mpp=0.5, name="alone")
    assert len(sdata["alone"]) <= 1


def test_noise_that_was_smoothed_is_no_nucleus_beside_nuclei():
    plane, truth = noisy((512, 512), 20, background=20)
    sdata = object_of(ndimage.gaussian_filter(plane.astype("float32"), 1.0))
    find(sdata, mpp=0.5)
    assert len(sdata["nuclei"]) == len(truth)


def test_a_black_margin_does_not_hide_the_noise():
    plane, truth = noisy((512, 512), 8, background=20)
    wide = np.pad(plane, [(0, 0), (0, 1500)])
    sdata = object_of(wide)
    find(sdata, mpp=0.5)
    found = places(sdata)
    inner = found[found[:, 1] < 480]  # where light ends at once is an edge, not noise
    assert len(truth) <= len(inner) <= len(truth) + 1


def test_a_warning_that_is_an_error_leaves_every_old_element(unchanged):
    sdata = object_of(noisy((128, 128), 6, background=1)[0], np.zeros((128, 128), "uint16"))
    with pytest.warns(NimbusWarning):
        find(sdata, mpp=0.5, threshold=0.01)
    with (
        unchanged(sdata),
        warnings.catch_warnings(action="error", category=NimbusWarning),
        pytest.raises(NimbusWarning, match="'fov1': no nuclei found"),
    ):
        find(sdata, mpp=0.5, overwrite=True)


def test_a_tiny_image():
    sdata, _ = make()
    data = np.zeros((2, 3, 1), np.uint8)
    data[1, 1] = 9
    sdata["fov0_image"] = Image2DModel.parse(data, dims=("c", "y", "x"), c_coords=["CD3", "DAPI"])
    find(sdata, sigma=2.0)
    np.testing.assert_allclose(places(sdata), [[1, 0]], atol=0.5)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"channel": "DNA"}, ElementNotFoundError, r"no channel \['DNA'\]; valid: CD3, DAPI"),
        ({"channel": []}, InputError, "name at least one channel"),
        ({"image": "fov9"}, ElementNotFoundError, "no image 'fov9'"),
        ({"image": []}, InputError, "name at least one image"),
        ({"diameter_um": 0}, InputError, "diameter_um=0 must be a positive number"),
        ({"diameter_um": 0.1}, InputError, r"'fov0_image': nuclei of 0.1 µm are 0.2 px wide at 0.5"),
        ({"mpp": -1}, InputError, "mpp=-1"),
        ({"sigma": 0.0}, InputError, "sigma=0.0 must be at least 0.5 px"),
        ({"min_distance": 0.2}, InputError, "min_distance=0.2 must be at least 1 px"),
        ({"method": "dog"}, InputError, "method='dog'; valid: 'log', 'local_maxima'"),
        ({"threshold": -0.1}, InputError, "threshold=-0.1 must be a number of at least 0"),
        ({"threshold": "otsu"}, InputError, "threshold='otsu'"),
        ({"name": "fov0_image"}, InputError, "'fov0_image' is the name of another element"),
        ({"name": "a/b"}, InputError, "not a valid element name"),
        ({"coordinate_system": "world"}, InputError, "no coordinate system 'world'; valid: fov0, microns"),
    ],
)
def test_errors_change_nothing(unchanged, options, error, said):
    sdata, _ = make()
    with unchanged(sdata), pytest.raises(error, match=said):
        find(sdata, **options)


def test_no_nuclear_channel_lists_the_channels(unchanged):
    sdata, _ = make(2, channels=("CD3", "CD8"))
    with unchanged(sdata), pytest.raises(InputError, match=r"looks nuclear; name it with channel=.*CD3, CD8"):
        find(sdata)


def test_the_pixel_size_must_be_known_and_overwrite_replaces(unchanged):
    sdata, _ = make(mpp=None)
    with unchanged(sdata), pytest.raises(InputError, match=r"pixel size is unknown; pass mpp=.*sigma="):
        find(sdata)
    find(sdata, sigma=4.0)
    with unchanged(sdata), pytest.raises(InputError, match=r"'nuclei' exists; pass overwrite=True"):
        find(sdata, sigma=4.0)
    before = len(sdata["nuclei"])
    find(sdata, sigma=4.0, min_distance=40, overwrite=True)
    assert len(sdata["nuclei"]) < before


def test_pixels_that_are_none(unchanged):
    sdata, _ = make(dtype="float32")
    pixels = np.asarray(sdata["fov0_image"].data).copy()
    pixels[1, 3, 4] = np.nan
    sdata["fov0_image"].data = da.from_array(pixels)
    with unchanged(sdata), pytest.raises(InputError, match="'fov0_image', channel 'DAPI': 1 NaN pixels"):
        find(sdata)


def test_real_tissue(real_data):
    root = real_data / "mibi_breast_dcis"
    sdata = nb.io.read_fovs(
        root / "image_data", labels=root / "segmentation", mpp=0.488, fovs=["fov2204", "fov2303"]
    )
    find(sdata)
    for fov in ("fov2204", "fov2303"):
        labels = np.asarray(sdata[f"{fov}_labels"].data)
        cells = ndimage.center_of_mass(labels > 0, labels, np.unique(labels)[1:])
        found = places(sdata, f"{fov}_image_nuclei")
        distance, nearest = cKDTree(found).query(cells, distance_upper_bound=4)
        hit = len(set(nearest[np.isfinite(distance)]))
        assert hit / len(cells) > 0.7
        assert hit / len(found) > 0.6
