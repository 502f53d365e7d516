"""``nb.pp.compensate`` and ``nb.io.read_spillover``: matching by name, laziness, stores, what is refused."""

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from spatialdata.transformations import get_transformation

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd.arrays.compensation import compensate_pixels
from nimbus_sd.testing import CountedArray

NAMES = ["CD3", "CD8", "CD20"]


def matrix(**spill):
    """Identity with ``CD3_CD8=0.1`` from CD3 to CD8 and so on."""
    frame = pd.DataFrame(np.eye(3), index=NAMES, columns=NAMES)
    for pair, value in spill.items():
        frame.loc[tuple(pair.split("_"))] = value
    return frame


SPILL = matrix(CD3_CD8=0.2, CD8_CD20=0.1, CD20_CD3=0.05)


def solved(sdata, spillover=SPILL, name="fov0_image", **options):
    frame = spillover.reindex(index=NAMES, columns=NAMES)
    return np.maximum(compensate_pixels(np.asarray(sdata[name].data), frame.to_numpy(), **options), 0)


@pytest.mark.parametrize("chunks", [None, (1, 70, 52), (2, 20, 13), (3, 7, 50)])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("method", ["nnls", "linear"])
def test_equals_the_kernel_on_the_whole_image(factory, chunks, dtype, method):
    sdata = factory(chunks=chunks, dtype=dtype)
    nb.pp.compensate(sdata, SPILL, method=method)
    image = sdata["fov0_image_compensated"]
    np.testing.assert_allclose(image.data.compute(), solved(sdata, method=method), rtol=1e-6, atol=1e-5)
    assert image.dtype == np.float32
    assert image.data.chunks == sdata["fov0_image"].data.chunks
    assert image.c.values.tolist() == NAMES
    assert get_transformation(image, get_all=True) == get_transformation(sdata["fov0_image"], get_all=True)


def test_building_reads_nothing_and_reading_takes_each_chunk_once(sdata):
    counted = CountedArray(np.asarray(sdata["fov0_image"].data), chunks=(1, 30, 30))
    sdata["fov0_image"].data = counted.dask
    nb.pp.compensate(sdata, SPILL)
    assert not counted.reads
    sdata["fov0_image_compensated"].data.compute()
    assert set(counted.reads.values()) == {1}
    assert len(counted.reads) == counted.n_chunks
    counted.reads.clear()
    sdata["fov0_image_compensated"].data[1, :10, :10].compute()
    assert len(counted.reads) == 3  # all channels, one place


def test_large_chunks_are_solved_in_parts():
    pixels = da.zeros((3, 2500, 10), chunks=(1, 2500, 10), dtype="uint8")
    image = sd.models.Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=NAMES)
    sdata = sd.SpatialData.init_from_elements({"a": image})
    nb.pp.compensate(sdata, SPILL)
    assert sdata["a_compensated"].data.chunks[1:] == ((1024, 1024, 452), (10,))


def test_columns_and_rows_are_matched_by_name(sdata):
    shuffled = SPILL.loc[["CD20", "CD3", "CD8"], ["CD8", "CD20", "CD3"]]
    nb.pp.compensate(sdata, shuffled)
    np.testing.assert_allclose(sdata["fov0_image_compensated"].data, solved(sdata), atol=1e-5)
    array = SPILL.loc[["CD8", "CD3", "CD20"], ["CD8", "CD3", "CD20"]].to_numpy()
    nb.pp.compensate(sdata, array, channels=["CD8", "CD3", "CD20"], overwrite=True)
    np.testing.assert_allclose(sdata["fov0_image_compensated"].data, solved(sdata), atol=1e-5)


def test_metals_become_markers(sdata):
    metals = {"Sm147Di": "CD3", "Nd148Di": "CD8", "Er166Di": "CD20"}
    frame = SPILL.rename(index={v: k for k, v in metals.items()}, columns={v: k for k, v in metals.items()})
    nb.pp.compensate(sdata, frame, rename=metals)
    np.testing.assert_allclose(sdata["fov0_image_compensated"].data, solved(sdata), atol=1e-5)
    with pytest.raises(
        InputError, match=r"no channel is named as in the spill-over matrix \(Sm147Di.*rename="
    ):
        nb.pp.compensate(sdata, frame, overwrite=True)


def test_names_fit_with_and_without_di(factory):
    sdata = factory(channels=("Sm147", "Nd148Di"))
    frame = pd.DataFrame([[1, 0.1], [0.02, 1]], index=["Sm147Di", "Nd148"], columns=["Sm147Di", "Nd148"])
    nb.pp.compensate(sdata, frame)
    expected = compensate_pixels(np.asarray(sdata["fov0_image"].data), frame.to_numpy())
    np.testing.assert_allclose(sdata["fov0_image_compensated"].data, expected, atol=1e-5)


def test_what_only_one_side_has_is_told_and_left(sdata):
    frame = SPILL.drop(index="CD20", columns="CD20")
    frame["Ir191"] = 0.01  # receives, and is not in the image
    with pytest.warns(NimbusWarning, match=r"left as they are.*lacks them: CD20; in the matrix only: Ir191"):
        nb.pp.compensate(sdata, frame)
    found = sdata["fov0_image_compensated"].data.compute()
    np.testing.assert_allclose(found[2], sdata["fov0_image"].data[2], rtol=1e-6)
    expected = solved(sdata, matrix(CD3_CD8=0.2))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_fewer_rows_than_columns(sdata):
    with_all = solved(sdata, matrix(CD3_CD8=0.2))
    nb.pp.compensate(sdata, matrix(CD3_CD8=0.2).loc[["CD3"]])
    np.testing.assert_allclose(sdata["fov0_image_compensated"].data, with_all, atol=1e-5)


def test_several_images_scales_and_what_is_remembered(factory):
    sdata = factory(2, scale_factors=[2, 2])
    before = np.asarray(nb._sdata.elements.get_image(sdata, "fov0_image").data)
    nb.pp.compensate(sdata, SPILL)
    assert {"fov0_image_compensated", "fov1_image_compensated"} <= set(sdata.images)
    tree, source = sdata["fov0_image_compensated"], sdata["fov0_image"]
    assert list(tree.children) == list(source.children)
    for scale in source.children:
        assert tree[scale].ds["image"].shape == source[scale].ds["image"].shape
    np.testing.assert_array_equal(nb._sdata.elements.get_image(sdata, "fov0_image").data, before)
    facts = sdata.attrs["nimbus_sd"]["derived"]["fov0_image_compensated"]
    assert (facts["by"], facts["image"], facts["receiving"]) == ("compensate", "fov0_image", NAMES)
    assert facts["spillover"] == SPILL.to_numpy().tolist()
    # what was made is no source of its own
    nb.pp.compensate(sdata, SPILL, overwrite=True)
    assert len(sdata.images) == 4


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("scale_factors", [None, [2]])
def test_stores(factory, tmp_path, write, scale_factors):
    sdata = factory(scale_factors=scale_factors)
    sdata.write(tmp_path / "a.zarr")
    sdata = sd.read_zarr(tmp_path / "a.zarr")
    nb.pp.compensate(sdata, SPILL, write=write)
    expected = nb._sdata.elements.get_image(sdata, "fov0_image_compensated").data.compute()
    if not write:
        sdata.write_element("fov0_image_compensated")
        sdata.write_attrs()
    again = sd.read_zarr(tmp_path / "a.zarr")
    image = nb._sdata.elements.get_image(again, "fov0_image_compensated")
    np.testing.assert_array_equal(image.data, expected)
    assert again.attrs["nimbus_sd"]["derived"]["fov0_image_compensated"]["method"] == "nnls"
    if write:
        nb.pp.compensate(sdata, matrix(), write=True, overwrite=True)
        image = nb._sdata.elements.get_image(sd.read_zarr(tmp_path / "a.zarr"), "fov0_image_compensated")
        np.testing.assert_array_equal(image.data, nb._sdata.elements.get_image(sdata, "fov0_image").data)


@pytest.mark.parametrize(
    ("spillover", "options", "said"),
    [
        (matrix(CD3_CD3=0.9), {}, r"0\.9 from 'CD3' to 'CD3'"),
        (matrix(CD3_CD8=-0.1), {}, r"-0\.1 from 'CD3' to 'CD8'; valid: shares from 0 to 1"),
        (matrix(CD3_CD8=1.5), {}, r"1\.5 from 'CD3'"),
        (matrix(CD3_CD8=np.nan), {}, r"nan from 'CD3'"),
        (matrix() * 100, {}, r"in percent\? divide it by 100"),
        (matrix(CD3_CD8=1.0, CD8_CD3=1.0), {}, "is singular"),
        (matrix().replace(1.0, "x"), {}, "no number"),
        (pd.DataFrame(np.eye(2), index=["a", "a"], columns=["a", "b"]), {}, r"rows.*\['a'\]"),
        (np.eye(3), {}, "an array has no names; pass channels="),
        (np.eye(2), {"channels": NAMES}, r"is \(2, 2\); 3 channels need \(3, 3\)"),
        (matrix(), {"channels": NAMES}, "leave it out"),
        (matrix(), {"rename": {"CD4": "CD3"}}, r"rename= has \['CD4'\]"),
        (matrix(), {"rename": {"CD8": "CD3"}}, "renamed: rows"),
        (matrix(), {"method": "flow"}, "method='flow'; valid: 'nnls', 'linear'"),
        (matrix(), {"name": "fov0_labels"}, "'fov0_labels' is the name of another element"),
        (matrix(), {"name": "fov0_image"}, "'fov0_image' exists"),
        (matrix(), {"write": True}, "needs an object with a zarr store"),
    ],
)
def test_errors_change_nothing(sdata, unchanged, spillover, options, said):
    with unchanged(sdata), pytest.raises(InputError, match=said):
        nb.pp.compensate(sdata, spillover, **options)


def test_several_images_need_several_names(factory, unchanged):
    sdata = factory(2)
    with unchanged(sdata), pytest.raises(InputError, match=r"name='a' for 2 images; put '\{image\}'"):
        nb.pp.compensate(sdata, SPILL, name="a")
    with unchanged(sdata), pytest.raises(ElementNotFoundError, match="no image 'x'"):
        nb.pp.compensate(sdata, SPILL, image="x")


def test_pixels_that_are_none_show_when_they_are_read(factory):
    sdata = factory(dtype="float32")
    pixels = np.asarray(sdata["fov0_image"].data).copy()
    pixels[1, 3, 4] = np.nan
    sdata["fov0_image"].data = da.from_array(pixels)
    nb.pp.compensate(sdata, SPILL)
    with pytest.raises(InputError, match="image 'fov0_image': 1 NaN pixels"):
        sdata["fov0_image_compensated"].data.compute()


@pytest.mark.parametrize(
    "text",
    [
        '"","Sm147Di","Nd148Di","Pt195Di"\n"Sm147Di",1,0.02,0\n"Nd148Di",0.005,1,\n',
        "Sm147Di,Nd148Di,Pt195Di\r\nSm147Di,1,0.02,0\r\nNd148Di,0.005,1,0\r\n\r\n",
        "\ufeffname;Sm147Di;Nd148Di;Pt195Di\nSm147Di;1;2e-2;0\nNd148Di;.005;1;0",
        "\tSm147Di\tNd148Di\tPt195Di\nSm147Di\t1\t0.02\t0\nNd148Di\t0.005\t1\t0\n",
    ],
)
def test_forms_of_csv(tmp_path, text):
    file = tmp_path / "m.csv"
    file.write_bytes(text.encode("utf-8"))
    frame = nb.io.read_spillover(file)
    assert frame.index.tolist() == ["Sm147Di", "Nd148Di"]
    assert frame.columns.tolist() == ["Sm147Di", "Nd148Di", "Pt195Di"]
    np.testing.assert_array_equal(frame, [[1, 0.02, 0], [0.005, 1, 0]])


def test_a_path_is_a_matrix(sdata, tmp_path):
    SPILL.to_csv(tmp_path / "m.csv")
    pd.testing.assert_frame_equal(nb.io.read_spillover(tmp_path / "m.csv"), SPILL)
    nb.pp.compensate(sdata, tmp_path / "m.csv")
    np.testing.assert_allclose(sdata["fov0_image_compensated"].data, solved(sdata), atol=1e-5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no matrix"),
        ("a,b\n", "no matrix"),
        (",a,b\na,1,x\n", "line 2 holds 'x', which is no number"),
        (",a,b\na,1,0\nb,1\n", "line 3 does not hold one name and 2 numbers"),
        (",a,a\na,1,0\n", r"columns.*\['a'\]"),
        (",a,b\na,1,0\na,0,1\n", r"rows.*\['a'\]"),
    ],
)
def test_files_that_hold_no_matrix(tmp_path, text, said):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        nb.io.read_spillover(tmp_path / "m.csv")
    with pytest.raises(InputError, match="can't be read as CSV"):
        nb.io.read_spillover(tmp_path / "none.csv")
