"""read_fovs: every layout of images and labels, laziness as a count, every error."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path

import dask
import numpy as np
import pytest
import tifffile
from spatialdata.transformations import Identity, Scale, get_transformation

import nimbus_sd as nb
from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd.io import _pixels, _scan

Y, X = 70, 50


def pixels(shape: tuple[int, ...], dtype: str = "uint16", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(0, min(np.iinfo(dtype).max, 40_000), shape).astype(dtype)


def write(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, **{"photometric": "minisblack", **options})
    return path


def cells(dtype: str = "uint32") -> np.ndarray:
    labels = np.zeros((Y, X), dtype)
    labels[3:9, 4:9] = 7
    labels[20:30, 10:20] = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else 3
    return labels


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Two fields with a folder each, one TIFF per channel, and labels beside them."""
    stacks = {fov: pixels((3, Y, X), seed=seed) for seed, fov in enumerate(("fov1", "fov10"))}
    for fov, stack in stacks.items():
        for name, plane in zip(("CD3", "CD8", "DAPI"), stack, strict=True):
            write(tmp_path / "image_data" / fov / f"{name}.tiff", plane)
        write(tmp_path / "segmentation" / f"{fov}_whole_cell.tiff", cells())
    return tmp_path / "image_data", stacks


def stack_folder(tmp_path: Path, **options: object) -> tuple[Path, np.ndarray]:
    stack = pixels((3, Y, X))
    write(tmp_path / "images" / "fov1.ome.tif", stack, **options)
    return tmp_path / "images", stack


# ---- layouts ---------------------------------------------------------------------------------------------


def test_folder_per_field(folders):
    path, stacks = folders
    sdata = nb.io.read_fovs(path, labels="segmentation", mpp=0.488)
    assert set(sdata.images) == {"fov1_image", "fov10_image"}
    assert set(sdata.labels) == {"fov1_labels", "fov10_labels"}
    for fov, stack in stacks.items():
        image, labels = sdata[f"{fov}_image"], sdata[f"{fov}_labels"]
        assert image.dims == ("c", "y", "x")
        assert image.c.values.tolist() == ["CD3", "CD8", "DAPI"]
        assert image.dtype == np.uint16
        np.testing.assert_array_equal(image.values, stack)
        assert labels.dtype == np.uint32
        np.testing.assert_array_equal(labels.values, cells())
        for element in (image, labels):
            systems = get_transformation(element, get_all=True)
            assert systems == {fov: Identity(), "microns": Scale([0.488, 0.488], axes=("x", "y"))}
    assert sdata.attrs["nimbus_sd"] == {"mpp": 0.488}


def test_round_trip_through_zarr(folders, tmp_path):
    path, stacks = folders
    sdata = nb.io.read_fovs(path, labels="segmentation", mpp=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata.write(tmp_path / "out.zarr")
        back = nb_read(tmp_path / "out.zarr")
    np.testing.assert_array_equal(back["fov10_image"].values, stacks["fov10"])
    np.testing.assert_array_equal(back["fov10_labels"].values, cells())
    assert back.attrs["nimbus_sd"]["mpp"] == 0.5


def nb_read(store):
    from spatialdata import read_zarr

    return read_zarr(store)


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".ome.tif", ".OME.TIFF"])
def test_suffixes(tmp_path, suffix):
    plane = pixels((Y, X))
    write(tmp_path / "images" / "a.b" / f"CD3{suffix}", plane)
    write(tmp_path / "images" / "a.b" / f"CD4{suffix}", plane + 1)
    (tmp_path / "images" / "a.b" / "._CD3.tif").write_bytes(b"left by a Mac")
    image = nb.io.read_fovs(tmp_path / "images", mpp=1)["a.b_image"]
    assert image.c.values.tolist() == ["CD3", "CD4"]
    np.testing.assert_array_equal(image.values[1], plane + 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"compression": "zlib", "rowsperstrip": 16},
        {"compression": "lzw", "rowsperstrip": Y},
        {"tile": (16, 16)},
        {"tile": (16, 32), "compression": "zstd"},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"byteorder": ">", "compression": "zlib", "rowsperstrip": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float16", "float32"])
def test_ways_to_store_pixels(tmp_path, options, dtype):
    if options.get("predictor") and dtype.startswith("float"):
        options = {**options, "predictor": tifffile.PREDICTOR.FLOATINGPOINT}
    stack = pixels((2, Y, X), dtype)
    ome = dtype != "float16"  # OME has no such type
    write(tmp_path / "images" / "f.tif", stack, metadata={"axes": "CYX"}, ome=ome, **options)
    image = nb.io.read_fovs(tmp_path / "images", mpp=1, chunks=20)["f_image"]
    assert image.dtype == np.dtype(dtype)
    assert image.dtype.isnative
    assert image.data.chunksize[0] == 1
    np.testing.assert_array_equal(image.values, stack)
    np.testing.assert_array_equal(image.data[1, 5:41, 7:30].compute(), stack[1, 5:41, 7:30])
    np.testing.assert_array_equal(image.data[:, ::-3, 30:7:-2].compute(), stack[:, ::-3, 30:7:-2])


def test_ome_names_and_pixel_size(tmp_path):
    meta = {
        "axes": "CYX",
        "Channel": {"Name": ["CD3", "007", "é, ü"]},
        "PhysicalSizeX": 500,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.0005,
        "PhysicalSizeYUnit": "mm",
    }
    path, stack = stack_folder(tmp_path, metadata=meta)
    sdata = nb.io.read_fovs(path)
    assert sdata["fov1_image"].c.values.tolist() == ["CD3", "007", "é, ü"]
    assert sdata.attrs["nimbus_sd"]["mpp"] == pytest.approx(0.5)
    np.testing.assert_array_equal(sdata["fov1_image"].values, stack)
    with pytest.warns(NimbusWarning, match=r"mpp=1 was given, the metadata says 0.5"):
        assert nb.io.read_fovs(path, mpp=1).attrs["nimbus_sd"]["mpp"] == 1


def test_a_pixel_size_in_the_wrong_unit(tmp_path):
    path, _ = stack_folder(tmp_path, metadata={"axes": "CYX", "PhysicalSizeX": 488, "PhysicalSizeY": 488})
    with pytest.raises(InputError, match=r"fov1.*: the metadata says that a px is 488 µm .*Pass mpp=0\.488"):
        nb.io.read_fovs(path)


def test_unnamed_channels(tmp_path):
    stack = pixels((3, Y, X))
    images = tmp_path / "images"
    write(images / "ome.ome.tif", stack, metadata={"axes": "CYX"})
    write(images / "pages.tif", stack, compression="zlib", metadata=None)
    write(images / "shaped.tif", stack)
    write(images / "truncated_pages.tif", stack, truncate=True)
    write(images / "planar.tif", stack, planarconfig="separate")
    write(images / "planar_z.tif", stack, planarconfig="separate", compression="zlib", tile=(16, 16))
    write(images / "imagej.tif", stack, imagej=True)
    write(images / "imagej_axes.tif", stack, imagej=True, metadata={"axes": "CYX"})
    for name, options in {"one_by_one": {}, "one_by_one_z": {"compression": "zlib"}}.items():
        with tifffile.TiffWriter(images / f"{name}.tif") as tif:
            for plane in stack:
                tif.write(plane, **options)
    sdata = nb.io.read_fovs(images, mpp=1)
    assert len(sdata.images) == 10
    for name, image in sdata.images.items():
        assert image.c.values.tolist() == ["channel_0", "channel_1", "channel_2"], name
        np.testing.assert_array_equal(image.values, stack, err_msg=name)


def test_imagej_slice_labels(tmp_path):
    path, _ = stack_folder(tmp_path, imagej=True, metadata={"axes": "CYX", "Labels": ["a", "b", "c"]})
    assert nb.io.read_fovs(path, mpp=1)["fov1_image"].c.values.tolist() == ["a", "b", "c"]


def test_pyramid_gives_the_full_resolution(tmp_path):
    stack = pixels((2, 64, 64))
    (tmp_path / "images").mkdir()
    with tifffile.TiffWriter(tmp_path / "images" / "f.ome.tif") as tif:
        options = {"tile": (16, 16), "photometric": "minisblack"}
        tif.write(stack, subifds=1, metadata={"axes": "CYX"}, **options)
        tif.write(stack[:, ::2, ::2], subfiletype=1, **options)
    image = nb.io.read_fovs(tmp_path / "images", mpp=1)["f_image"]
    np.testing.assert_array_equal(image.values, stack)


OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{own}">'
    '<Image ID="Image:0" Name="{title}"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" '
    'SizeX="50" SizeY="70" SizeC="2" SizeZ="1" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeY="0.5">'
    '<Channel ID="Channel:0:0" Name="CD3"/><Channel ID="Channel:0:1" Name="CD8"/>'
    '<TiffData FirstC="0" IFD="0" PlaneCount="1"><UUID FileName="{files[0]}">urn:uuid:0</UUID></TiffData>'
    '<TiffData FirstC="1" IFD="0" PlaneCount="1"><UUID FileName="{files[1]}">urn:uuid:1</UUID></TiffData>'
    "</Pixels></Image></OME>"
)


def joint(
    folder: Path, files: list[str], stack: np.ndarray, *, title: str = "", both: bool = True, **options
) -> None:
    for own, (name, plane) in enumerate(zip(files, stack, strict=True)):
        xml = OME.format(own=own, files=files, title=title).encode() if both or own == 0 else None
        write(folder / name, plane, description=xml, metadata=None, **options)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "tile": (16, 16)}], ids=["raw", "tiled"])
def test_files_that_refer_to_each_other(tmp_path, options):
    images = tmp_path / "images"
    stacks = [pixels((2, Y, X), seed=seed) for seed in range(5)]
    joint(images, ["a_C0.ome.tif", "a_C1.ome.tif"], stacks[0], **options)
    joint(images, ["x.ome.tif", "y.ome.tif"], stacks[1], title="b", **options)
    joint(images, ["c.ome.tif", "other.tif"], stacks[2], both=False, **options)
    joint(images / "d", ["CD3.ome.tif", "CD8.ome.tif"], stacks[3], **options)
    for name, plane in zip(("p.tif", "q.tif"), stacks[4], strict=True):
        write(images / name, plane, **options)
    companion = OME.format(own="x", files=["p.tif", "q.tif"], title="")
    (images / "e.companion.ome").write_text(companion, encoding="utf-8")
    sdata = nb.io.read_fovs(images)
    assert set(sdata.images) == {f"{name}_image" for name in "abcde"}
    for name, stack in zip("abcde", stacks, strict=True):
        image = sdata[f"{name}_image"]
        assert image.c.values.tolist() == ["CD3", "CD8"], name
        np.testing.assert_array_equal(image.values, stack, err_msg=name)
        np.testing.assert_array_equal(image.data[1, 9:33, 2:40].compute(), stack[1, 9:33, 2:40], err_msg=name)
    assert sdata.attrs["nimbus_sd"]["mpp"] == 0.5


def test_files_referred_to_but_absent(tmp_path):
    joint(tmp_path / "images", ["a_0.ome.tif", "a_1.ome.tif"], pixels((2, Y, X)))
    (tmp_path / "images" / "a_1.ome.tif").unlink()
    with pytest.raises(InputError, match=r"refers to files that are not beside it: a_1.ome.tif"):
        nb.io.read_fovs(tmp_path / "images")


# ---- labels ----------------------------------------------------------------------------------------------


def one_field(tmp_path: Path, fov: str = "fov1") -> Path:
    write(tmp_path / "images" / fov / "CD3.tif", pixels((Y, X)))
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("fov1_whole_cell.tiff", None),
        ("fov1_whole_cell.TIF", None),
        ("fov1.tif", None),
        ("fov1.ome.tiff", None),
        ("sample-fov1-mask.tif", None),
        ("fov1_nuclei.tif", "{fov}_nuclei"),
        ("fov1_nuclei.tif", "{fov}_nuclei.tiff"),
        ("fov1/mask.tif", "{fov}/mask"),
    ],
)
def test_label_rules(tmp_path, name, pattern):
    path = one_field(tmp_path)
    write(tmp_path / "masks" / name, cells())
    write(tmp_path / "masks" / "fov10.tif", cells())
    sdata = nb.io.read_fovs(path, labels="masks", mpp=1, labels_pattern=pattern)
    np.testing.assert_array_equal(sdata["fov1_labels"].values, cells())


def test_labels_of_a_longer_name_are_not_taken(tmp_path):
    for fov in ("a", "a_b"):
        write(tmp_path / "images" / fov / "CD3.tif", pixels((Y, X)))
    write(tmp_path / "masks" / "mask_a.tif", cells())
    write(tmp_path / "masks" / "mask_a_b.tif", cells() // 2)
    sdata = nb.io.read_fovs(tmp_path / "images", labels="masks", mpp=1)
    np.testing.assert_array_equal(sdata["a_labels"].values, cells())
    np.testing.assert_array_equal(sdata["a_b_labels"].values, cells() // 2)


def test_where_the_labels_folder_is_looked_for(tmp_path, monkeypatch):
    path = one_field(tmp_path)
    write(tmp_path / "segmentation" / "deepcell_output" / "fov1_whole_cell.tiff", cells())
    write(tmp_path / "here" / "masks" / "fov1.tif", cells() // 2)
    assert nb.io.read_fovs(path, labels="segmentation", mpp=1)["fov1_labels"].values.max() == cells().max()
    monkeypatch.chdir(tmp_path / "here")
    assert nb.io.read_fovs(path, labels="masks", mpp=1)["fov1_labels"].values.max() == cells().max() // 2
    write(path / "inside" / "fov1.tif", cells() // 3)
    sdata = nb.io.read_fovs(path, labels=path / "inside", mpp=1)
    assert set(sdata.images) == {"fov1_image"}
    assert sdata["fov1_labels"].values.max() == cells().max() // 3
    with pytest.raises(InputError, match=r"labels='nowhere' is not a folder; tried"):
        nb.io.read_fovs(path, labels="nowhere", mpp=1)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "int64"])
def test_label_types_are_kept(tmp_path, dtype):
    path = one_field(tmp_path)
    write(tmp_path / "masks" / "fov1.tif", cells(dtype), compression="zlib")
    labels = nb.io.read_fovs(path, labels="masks", mpp=1)["fov1_labels"]
    assert labels.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(labels.values, cells(dtype))


@pytest.mark.parametrize(
    "options", [{}, {"compression": "zlib", "tile": (16, 16)}, {"planarconfig": "separate"}], ids=str
)
def test_rgb_labels(tmp_path, options):
    path = one_field(tmp_path)
    ids = cells() % 2**24
    rgb = np.stack([ids >> 16, ids >> 8 & 255, ids & 255], axis=-1).astype("uint8")
    if "planarconfig" in options:
        rgb = np.ascontiguousarray(np.moveaxis(rgb, -1, 0))
    write(tmp_path / "masks" / "fov1.tif", rgb, **{**options, "photometric": "rgb"})
    labels = nb.io.read_fovs(path, labels="masks", mpp=1, chunks=16)["fov1_labels"]
    assert labels.dtype == np.uint32
    assert labels.values.max() == 2**24 - 1
    np.testing.assert_array_equal(labels.values, ids)


def test_missing_and_ambiguous_labels(folders):
    path, _ = folders
    masks = path.parent / "masks"
    write(masks / "fov1_a.tif", cells())
    write(masks / "fov1_b.tif", cells())
    with pytest.raises(InputError) as caught:
        nb.io.read_fovs(path, labels="masks", mpp=1)
    for part in (
        "fov1: ambiguous: fov1_a.tif, fov1_b.tif",
        "fov10: none",
        "labels_pattern=",
        "The folder holds",
    ):
        assert part in str(caught.value)
    assert (
        len(nb.io.read_fovs(path, labels="masks", mpp=1, labels_pattern="{fov}_b", fovs=["fov1"]).labels) == 1
    )
    with pytest.raises(InputError, match=r"has no '\{fov\}' in it"):
        nb.io.read_fovs(path, labels="masks", mpp=1, labels_pattern="whole_cell")


def test_one_label_image_for_two_fields(tmp_path):
    for fov in ("a", "b"):
        write(tmp_path / "images" / fov / "CD3.tif", pixels((Y, X)))
    write(tmp_path / "masks" / "a-b.tif", cells())
    with pytest.raises(InputError, match="would be the labels of two fields, 'a' and 'b'"):
        nb.io.read_fovs(tmp_path / "images", labels="masks", mpp=1)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (cells().astype("float32"), {}, "labels are float32; valid: an integer type"),
        (cells() > 0, {}, "labels are bool"),
        (cells()[:, :-1], {}, r"labels of shape \(y, x\) \(70, 49\), but the image .* has \(70, 50\)"),
        (np.stack([cells()] * 2), {}, "2 pages or channels"),
        (np.zeros((Y, X, 3), "uint16"), {"photometric": "rgb"}, "an RGB image of uint16"),
    ],
)
def test_bad_labels(tmp_path, labels, options, message):
    path = one_field(tmp_path)
    write(tmp_path / "masks" / "fov1.tif", labels, **options)
    with pytest.raises(InputError, match=rf"fov1\.tif: {message}"):
        nb.io.read_fovs(path, labels="masks", mpp=1)


# ---- choosing --------------------------------------------------------------------------------------------


def test_channels_and_fovs_are_chosen_and_ordered(folders):
    path, stacks = folders
    (path / "fov1" / "DAPI.tiff").write_bytes(b"not asked for, so not opened")
    sdata = nb.io.read_fovs(path, mpp=1, channels=["CD8", "CD3"], fovs=["fov10", "fov1"])
    assert list(sdata.images) == ["fov10_image", "fov1_image"]
    assert not sdata.labels
    assert sdata["fov1_image"].c.values.tolist() == ["CD8", "CD3"]
    np.testing.assert_array_equal(sdata["fov1_image"].values, stacks["fov1"][[1, 0]])
    with pytest.raises(InputError, match=r"field 'fov10' has no channel CD99; it has: CD3, CD8, DAPI"):
        nb.io.read_fovs(path, mpp=1, channels=["CD99"], fovs=["fov10"])
    with pytest.raises(InputError, match=r"no fields fov2; it has: fov1, fov10"):
        nb.io.read_fovs(path, mpp=1, fovs=["fov2"])


def test_fields_with_other_channels(folders):
    path, _ = folders
    (path / "fov10" / "CD3.tiff").rename(path / "fov10" / "CD4.tiff")
    with pytest.raises(InputError, match=r"fov10 lacks CD3 and has besides CD4.*common: CD8, DAPI"):
        nb.io.read_fovs(path, mpp=1)
    assert len(nb.io.read_fovs(path, mpp=1, channels=["CD8", "DAPI"]).images) == 2


def test_channel_order_of_the_first_field(tmp_path):
    stack = pixels((2, Y, X))
    for fov, names in {"a": ["x", "y"], "b": ["y", "x"]}.items():
        write(
            tmp_path / "images" / f"{fov}.ome.tif",
            stack,
            metadata={"axes": "CYX", "Channel": {"Name": names}},
        )
    sdata = nb.io.read_fovs(tmp_path / "images", mpp=1)
    assert sdata["b_image"].c.values.tolist() == ["x", "y"]
    np.testing.assert_array_equal(sdata["b_image"].values, stack[::-1])


def test_types_are_widened_within_a_field(tmp_path):
    write(tmp_path / "images" / "a" / "x.tif", pixels((Y, X), "uint8"))
    write(tmp_path / "images" / "a" / "y.tif", pixels((Y, X), "uint16"))
    image = nb.io.read_fovs(tmp_path / "images", mpp=1)["a_image"]
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image.values[0], pixels((Y, X), "uint8"))


def test_names_spatialdata_does_not_allow(tmp_path):
    for fov in ("tile (1,2)", "__x"):
        write(tmp_path / "images" / fov / "CD3.tif", pixels((Y, X)))
        write(tmp_path / "masks" / f"{fov}_whole_cell.tif", cells())
    with pytest.warns(NimbusWarning, match=r"'tile \(1,2\)' → 'tile__1_2_'"):
        sdata = nb.io.read_fovs(tmp_path / "images", labels="masks", mpp=1)
    assert set(sdata.labels) == {"tile__1_2__labels", "_x_labels"}
    write(tmp_path / "images" / "tile (1;2)" / "CD3.tif", pixels((Y, X)))
    with pytest.raises(InputError, match=r"would both be named 'tile__1_2_'"):
        nb.io.read_fovs(tmp_path / "images", mpp=1)


# ---- bad input -------------------------------------------------------------------------------------------


def test_folders_that_hold_nothing(tmp_path):
    (tmp_path / "image_data").mkdir()
    (tmp_path / "image_data" / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=r"holds no TIFF images; valid: .* It holds: notes.txt"):
        nb.io.read_fovs(tmp_path / "image_data", mpp=1)
    with pytest.raises(InputError, match=r"images is not a folder.*beside it: image_data"):
        nb.io.read_fovs(tmp_path / "images", labels="x", mpp=1)


def test_channels_of_different_shapes(tmp_path):
    path = one_field(tmp_path)
    write(path / "fov1" / "CD8.tif", pixels((Y, X + 1)))
    with pytest.raises(InputError, match=r"'fov1' differ in shape \(y, x\): CD3 \(70, 50\), CD8 \(70, 51\)"):
        nb.io.read_fovs(path, mpp=1)


def test_names_there_twice(tmp_path):
    path = one_field(tmp_path)
    write(path / "fov1" / "CD3.tiff", pixels((Y, X)))
    with pytest.raises(InputError, match="more than one channel named CD3"):
        nb.io.read_fovs(path, mpp=1)
    meta = {"axes": "CYX", "Channel": {"Name": ["a", "b", "a"]}}
    path, _ = stack_folder(tmp_path / "ome", metadata=meta)
    with pytest.raises(InputError, match="more than one channel named a"):
        nb.io.read_fovs(path, mpp=1)
    write(path / "fov1" / "CD3.tif", pixels((Y, X)))
    with pytest.raises(InputError, match="more than one image for the fields fov1"):
        nb.io.read_fovs(path, mpp=1)


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((4, Y, X), "uint8"), {"metadata": {"axes": "ZYX"}, "ome": True}, "a stack, axes ZYX"),
        (np.zeros((4, Y, X), "uint8"), {"metadata": {"axes": "ZYX"}, "imagej": True}, "a stack, axes ZYX"),
        (np.zeros((2, 3, Y, X), "uint8"), {"metadata": {"axes": "TCYX"}, "ome": True}, "a stack, axes TCYX"),
        (
            np.zeros((Y, X, 3), "uint8"),
            {"photometric": "rgb"},
            "an RGB picture.*Image2DModel.parse.*read_orion",
        ),
        (np.zeros((Y, X, 5), "uint8"), {"planarconfig": "contig"}, "5 interleaved samples"),
        (np.zeros((Y, X), "complex64"), {}, "pixels are complex64"),
        (np.zeros((Y, X), "bool"), {}, "pixels are bool"),
    ],
    ids=lambda value: str(value)[:24] if isinstance(value, str) else "",
)
def test_not_the_channels_of_a_field(tmp_path, array, options, message):
    write(tmp_path / "images" / "fov1.tif", array, **options)
    with pytest.raises(InputError, match=rf"fov1\.tif: {message}"):
        nb.io.read_fovs(tmp_path / "images", mpp=1)


def test_several_images_in_one_file(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    with tifffile.TiffWriter(images / "a.ome.tif") as tif:
        tif.write(pixels((Y, X)))
        tif.write(pixels((Y, X)))
    with pytest.raises(InputError, match=r"a\.ome\.tif: holds 2 images"):
        nb.io.read_fovs(images, mpp=1)
    (images / "a.ome.tif").unlink()
    write(images / "fov1" / "CD3.tif", pixels((2, Y, X)))
    write(images / "fov1" / "CD8.tif", pixels((Y, X)))
    with pytest.raises(InputError, match=r"CD3\.tif: 2 pages or channels"):
        nb.io.read_fovs(images, mpp=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib", "metadata": None},
        {"tile": (16, 16), "compression": "zlib"},
        {"metadata": {"axes": "CYX"}, "ome": True},
        {"metadata": {"axes": "CYX"}, "ome": True, "compression": "zlib"},
        {"imagej": True},
        {"truncate": True},
        {"planarconfig": "separate"},
    ],
    ids=str,
)
@pytest.mark.parametrize("keep", [0, 4, 30, 0.3, 0.6, 0.9, -20])
def test_truncated_files_are_found_at_once(tmp_path, options, keep):
    file = write(tmp_path / "images" / "fov1.tif", pixels((3, Y, X)), **options)
    raw = file.read_bytes()
    cut = keep if isinstance(keep, int) else int(len(raw) * keep)
    file.write_bytes(raw[:cut])
    with pytest.raises(InputError, match=r"fov1\.tif: .*(truncated|missing)"):
        nb.io.read_fovs(tmp_path / "images", mpp=1)


def test_no_truncated_file_reads_as_something_else(tmp_path):
    meta = {"axes": "CYX", "Channel": {"Name": ["a", "b"]}}
    stack = pixels((2, 9, 7), "uint8")
    file = write(tmp_path / "images" / "f.ome.tif", stack, metadata=meta)
    raw = file.read_bytes()
    for cut in [*range(0, len(raw), 9), *range(len(raw) - 20, len(raw))]:
        file.write_bytes(raw[:cut])
        try:
            image = nb.io.read_fovs(tmp_path / "images", mpp=1)["f_image"]
        except InputError as error:
            assert "f.ome.tif" in str(error)  # noqa: PT017
        else:
            assert image.c.values.tolist() == ["a", "b"], cut
            np.testing.assert_array_equal(image.values, stack)


def test_files_that_are_no_tiff(folders):
    path, _ = folders
    (path / "fov10" / "CD8.tiff").write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match=r"fov10/CD8\.tiff: can't be read as TIFF"):
        nb.io.read_fovs(path, mpp=1)


def test_a_file_that_goes_bad_after_opening_is_named(tmp_path):
    path = one_field(tmp_path)
    image = nb.io.read_fovs(path, mpp=1)["fov1_image"]
    (path / "fov1" / "CD3.tif").unlink()
    with pytest.raises(InputError, match=r"CD3\.tif"):
        image.values  # noqa: B018


def test_mpp_unknown_or_impossible(folders, tmp_path):
    path, _ = folders
    with pytest.raises(InputError, match=r"pixel size of field 'fov1' is not in its metadata.*mpp=0.5"):
        nb.io.read_fovs(path)
    for mpp in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="µm per px, a number above 0"):
            nb.io.read_fovs(path, mpp=mpp)
    meta = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.6}
    anisotropic, _ = stack_folder(tmp_path, metadata=meta)
    with pytest.raises(InputError, match=r"pixels of 0.5 by 0.6 µm \(x, y\); only square"):
        nb.io.read_fovs(anisotropic)


def test_fields_of_different_pixel_size(tmp_path):
    for fov, size in {"a": 0.5, "b": 0.25}.items():
        meta = {"axes": "CYX", "PhysicalSizeX": size, "PhysicalSizeY": size}
        write(tmp_path / "images" / f"{fov}.ome.tif", pixels((2, Y, X)), metadata=meta)
    sdata = nb.io.read_fovs(tmp_path / "images")
    assert sdata.attrs["nimbus_sd"] == {}
    assert get_transformation(sdata["b_image"], "microns") == Scale([0.25, 0.25], axes=("x", "y"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"channels": "CD3"}, r"channels='CD3' is one string.*channels=\['CD3'\]"),
        ({"fovs": []}, "one or more names, each once"),
        ({"channels": ["CD3", "CD3"]}, "one or more names, each once"),
        ({"chunks": 0}, "chunks=0; valid"),
    ],
)
def test_bad_arguments(folders, argument, message):
    with pytest.raises(InputError, match=message):
        nb.io.read_fovs(folders[0], mpp=1, **argument)


# ---- laziness --------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch) -> list[tuple[str, slice, slice]]:
    """Every read of pixels, in order."""
    calls = []
    real = _pixels.read_plane

    def counting(plane, rows, columns):
        calls.append((Path(plane.path).name, rows, columns))
        return real(plane, rows, columns)

    monkeypatch.setattr(_pixels, "read_plane", counting)
    return calls


class TestLaziness:
    def test_building_reads_metadata_only(self, folders, reads, monkeypatch):
        read = 0
        real = tifffile.FileHandle.read

        def counting(self, size=-1, /):
            nonlocal read
            data = real(self, size)
            read += len(data)
            return data

        def never(*args: object, **kwargs: object):
            pytest.fail("something was computed")

        monkeypatch.setattr(tifffile.FileHandle, "read", counting)
        for dtype in ("asarray", "aszarr"):
            monkeypatch.setattr(tifffile.TiffPage, dtype, never)
        with dask.config.set(scheduler=never):
            nb.io.read_fovs(folders[0], labels="segmentation", mpp=1)
        assert reads == []
        assert 0 < read < 8 * 3000  # bytes of tags of eight files; their pixels are 63,000

    def test_one_channel_reads_one_file_once(self, folders, reads):
        image = nb.io.read_fovs(folders[0], mpp=1)["fov1_image"]
        image.sel(c="CD8").values  # noqa: B018
        assert [name for name, *_ in reads] == ["CD8.tiff"]

    def test_a_crop_reads_the_chunks_it_touches(self, tmp_path, reads):
        path, stack = stack_folder(tmp_path, metadata={"axes": "CYX"}, tile=(16, 16), compression="zlib")
        image = nb.io.read_fovs(path, mpp=1, chunks=16)["fov1_image"]
        assert image.data.chunksize == (1, 16, 16)
        np.testing.assert_array_equal(image.data[2, 10:20, 5:12].compute(), stack[2, 10:20, 5:12])
        assert len(reads) == 2

    def test_nothing_is_kept_open(self, folders):
        fds = Path("/proc/self/fd")
        if not fds.is_dir():
            pytest.skip("open files are counted in /proc")
        before = len(os.listdir(fds))  # noqa: PTH208
        sdata = nb.io.read_fovs(folders[0], labels="segmentation", mpp=1)
        sdata["fov1_image"].values  # noqa: B018
        assert len(os.listdir(fds)) <= before  # noqa: PTH208

    def test_processes_can_read(self, folders):
        import pickle

        image = nb.io.read_fovs(folders[0], mpp=1)["fov1_image"].data
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(image)).compute(), folders[1]["fov1"])  # noqa: S301

    def test_a_rewritten_file_is_another_array(self, folders):
        path, _ = folders
        before = nb.io.read_fovs(path, mpp=1)["fov1_image"].data.name
        assert nb.io.read_fovs(path, mpp=1)["fov1_image"].data.name == before
        write(path / "fov1" / "CD3.tiff", pixels((Y, X), seed=9))
        os.utime(path / "fov1" / "CD3.tiff", ns=(1, 1))
        assert nb.io.read_fovs(path, mpp=1)["fov1_image"].data.name != before


@pytest.mark.parametrize(
    ("offset", "native", "shape", "expected"),
    [
        (8, (5000, 4000), (5000, 4000), (1024, 1024)),  # raw: any part can be read
        (None, (256, 256), (5000, 4000), (1024, 1024)),
        (None, (384, 384), (5000, 4000), (768, 768)),
        (None, (2048, 2048), (5000, 4000), (2048, 2048)),
        (None, (16, 1024), (1024, 1024), (1024, 1024)),
        (None, (16, 20000), (30000, 20000), (48, 20000)),  # wide strips: whole, fewer rows
        (None, (5000, 4000), (5000, 4000), (5000, 4000)),  # one strip: one chunk
        (None, (16, 50), (70, 50), (70, 50)),
    ],
)
def test_chunks_follow_strips_and_tiles(offset, native, shape, expected):
    plane = _scan.Plane("f.tif", 0, None, True, offset, "<u2", shape, native, (0, 0))
    assert _pixels.chunk_shape(plane, 1024) == expected


# ---- the real thing --------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_breast_dcis(reads):
    given = os.environ.get("NIMBUS_SD_DATA")
    root = Path(given) if given else Path(__file__).parents[3] / "shared" / "data"
    images = root / "mibi_breast_dcis" / "image_data"
    if not images.is_dir():
        pytest.skip(f"real images are not in {root}; set NIMBUS_SD_DATA to their folder")
    start = time.perf_counter()
    sdata = nb.io.read_fovs(images, labels="segmentation", mpp=0.488)
    built = time.perf_counter() - start
    assert reads == []
    assert len(sdata.images) == len(sdata.labels) == 26
    assert all(image.shape == (41, 1024, 1024) for image in sdata.images.values())
    start = time.perf_counter()
    plane = sdata["fov2204_image"].sel(c="CD3").values
    took = time.perf_counter() - start
    print(f"26 fields x 41 channels opened in {built:.2f} s, one channel read in {took:.3f} s")
    assert len(reads) == 1
    np.testing.assert_array_equal(plane, tifffile.imread(images / "fov2204" / "CD3.tif"))
