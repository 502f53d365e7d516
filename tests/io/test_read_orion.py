"""read_orion: a small tree in the shape of the data, both layouts of RGB, pyramids, what is missing."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import tifffile
from spatialdata.transformations import Identity, Scale, get_transformation

import nimbus_sd as nb
from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata.elements import channel_names, finest
from nimbus_sd.io import _pixels

Y, X = 150, 110
NAMES = ["Hoechst", "AF1", *(f"M{i}" for i in range(13)), "CD45", "CD3e", "CD4", "CD8a"]
TILED = {"tile": (64, 64), "compression": "zlib"}


def pyramid(path: Path, array: np.ndarray, *, metadata: dict, **options) -> None:
    """An OME-TIFF with two coarser levels in SubIFDs."""
    rows = {"CYX": slice(None), "SYX": slice(None)}.get(metadata["axes"])
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(array, subifds=2, metadata=metadata, **options)
        for step in (2, 4):
            small = array[:, ::step, ::step] if rows is not None else array[::step, ::step]
            tif.write(np.ascontiguousarray(small), subfiletype=1, **options)


def pixels(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60_000, (len(NAMES), Y, X)).astype(np.uint16)
    he = rng.integers(0, 256, (Y, X, 3)).astype(np.uint8)
    labels = np.zeros((Y, X), np.uint32)
    labels[10:20, 30:40], labels[50:60, 3:9], labels[90:93, 100:110] = 7, 300, 4_000_000_000
    return image, he, labels


def table(labels: np.ndarray, names: list[str], *, suffix: str = "") -> pd.DataFrame:
    """Rows in another order than the ids."""
    rows = []
    for i in (300, 7, 4_000_000_000):
        y, x = np.nonzero(labels == i)
        rows.append(
            {"CellID": i}
            | {f"{n}{suffix}": float(i % 1000 + k) for k, n in enumerate(names)}
            | {"X_centroid": x.mean(), "Y_centroid": y.mean(), "Area": len(x), "Solidity": 0.9}
        )
    return pd.DataFrame(rows)


def section(
    root: Path, name: str = "CRC01", *, seed: int = 0, rgb: str = "contig", names: list[str] | None = NAMES
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write one section; return what should be read."""
    image, he, labels = pixels(seed)
    folder = root / name
    for part in ("registration", "segmentation", "quantification"):
        (folder / part).mkdir(parents=True)
    meta = {"axes": "CYX", "PhysicalSizeX": 0.325, "PhysicalSizeY": 0.325}
    pyramid(
        folder / "registration" / "P37_S29@20220106_014304.ome.tiff",
        image,
        metadata=meta if names is None else meta | {"Channel": {"Name": names}},
        photometric="minisblack",
        **TILED,
    )
    file = folder / "registration" / "18459$LSP10353-registered.ome.tif"
    if rgb == "contig":
        pyramid(file, he, metadata={"axes": "YXS"}, photometric="rgb", **TILED)
    elif rgb == "separate":
        planar = np.ascontiguousarray(np.moveaxis(he, -1, 0))
        pyramid(file, planar, metadata={"axes": "SYX"}, photometric="rgb", planarconfig="separate", **TILED)
    else:
        pages = np.ascontiguousarray(np.moveaxis(he, -1, 0))
        pyramid(file, pages, metadata={"axes": "CYX"}, photometric="minisblack", **TILED)
    tifffile.imwrite(folder / "segmentation" / "cellRingMask.tif", labels, **TILED)
    tifffile.imwrite(folder / "segmentation" / "nucleiRingMask.tif", labels // 2)
    table(labels, NAMES).to_csv(folder / "quantification" / f"{name}.csv", index=False)
    return image, he, labels


# ---- what comes back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rgb", ["contig", "separate", "pages"])
def test_a_section(tmp_path, rgb):
    image, he, labels = section(tmp_path, rgb=rgb)
    sdata = nb.io.read_orion(tmp_path / "CRC01", chunks=64)
    assert set(sdata.images) == {"CRC01_he", "CRC01_if"}
    assert finest(sdata["CRC01_he"]).dims == ("c", "y", "x")
    assert finest(sdata["CRC01_he"]).dtype == np.uint8
    np.testing.assert_array_equal(finest(sdata["CRC01_he"]).values, np.moveaxis(he, -1, 0))
    crop = finest(sdata["CRC01_he"]).data[::-1, 100:33:-3, 60:90].compute()
    np.testing.assert_array_equal(crop, np.moveaxis(he, -1, 0)[::-1, 100:33:-3, 60:90])
    assert finest(sdata["CRC01_if"]).c.values.tolist() == NAMES
    np.testing.assert_array_equal(finest(sdata["CRC01_if"]).values, image)
    assert sdata["CRC01_labels"].dtype == np.uint32
    np.testing.assert_array_equal(sdata["CRC01_labels"].values, labels)
    for name in ("CRC01_he", "CRC01_if", "CRC01_labels"):
        systems = get_transformation(sdata[name], get_all=True)
        assert systems == {"CRC01": Identity(), "microns": Scale([0.325, 0.325], axes=("x", "y"))}
    assert sdata.attrs["nimbus_sd"] == {"mpp": 0.325}


@pytest.mark.parametrize("rgb", ["contig", "separate", "pages"])
def test_pyramids_are_multiscale(tmp_path, rgb):
    image, he, _ = section(tmp_path, rgb=rgb)
    sdata = nb.io.read_orion(tmp_path)
    for name, full in (("CRC01_if", image), ("CRC01_he", np.moveaxis(he, -1, 0))):
        levels = [next(iter(each.to_dataset().values())) for each in sdata[name].children.values()]
        assert len(levels) == 3
        for level, step in zip(levels, (1, 2, 4), strict=True):
            np.testing.assert_array_equal(level.values, full[:, ::step, ::step])
            np.testing.assert_array_equal(level.data[1, 3:9, 4:].compute(), full[1, ::step, ::step][3:9, 4:])
        # every level covers the image
        assert float(levels[2].x[-1]) == pytest.approx(X - 2, abs=2)
        assert get_transformation(sdata[name], "microns") == Scale([0.325, 0.325], axes=("x", "y"))


def test_without_a_pyramid(tmp_path):
    _, he, _ = section(tmp_path)
    file = tmp_path / "CRC01/registration/18459$LSP10353-registered.ome.tif"
    tifffile.imwrite(file, he, photometric="rgb", **TILED)
    np.testing.assert_array_equal(nb.io.read_orion(tmp_path)["CRC01_he"].values, np.moveaxis(he, -1, 0))


def test_the_table_joins_on_the_cell_id(tmp_path):
    _, _, labels = section(tmp_path)
    cells = nb.io.read_orion(tmp_path / "CRC01")["table"]
    assert cells.var_names.tolist() == NAMES
    assert cells.X.dtype == np.float32
    assert cells.obs_names.tolist() == [f"CRC01_labels_{i}" for i in (300, 7, 4_000_000_000)]
    assert cells.obs["instance_id"].dtype == np.int64
    assert cells.obs["region"].unique().tolist() == ["CRC01_labels"]
    assert cells.obs["section"].unique().tolist() == cells.obs["patient"].unique().tolist() == ["CRC01"]
    assert cells.obs["area_px"].tolist() == [60, 100, 30]
    assert "Solidity" in cells.obs
    np.testing.assert_array_equal(cells[:, "CD45"].X.ravel(), np.float32([315, 22, 15]))
    np.testing.assert_array_equal(cells.layers["integrated_expression"], cells.X)
    for i, (x, y) in zip(cells.obs["instance_id"], cells.obsm["spatial"], strict=True):
        rows, columns = np.nonzero(labels == i)
        assert (x, y) == (columns.mean() + 0.5, rows.mean() + 0.5)


def test_several_sections_in_one_object(tmp_path):
    _, he, _ = section(tmp_path, "CRC02", seed=2)
    section(tmp_path, "CRC01", seed=1)
    (tmp_path / "thumbnails").mkdir()
    sdata = nb.io.read_orion(tmp_path, patients={"CRC01": "p1", "CRC02": "p1", "CRC09": "x"})
    assert list(sdata.images) == ["CRC01_he", "CRC01_if", "CRC02_he", "CRC02_if"]
    np.testing.assert_array_equal(finest(sdata["CRC02_he"]).values, np.moveaxis(he, -1, 0))
    cells = sdata["table"]
    assert cells.n_obs == 6
    assert cells.obs_names.is_unique
    assert cells.obs["region"].cat.categories.tolist() == ["CRC01_labels", "CRC02_labels"]
    assert set(cells.obs["patient"]) == {"p1"}
    only = nb.io.read_orion(tmp_path, sections=["CRC02"])
    assert list(only.images) == ["CRC02_he", "CRC02_if"]
    pd.DataFrame({"section": ["CRC02", "CRC01"], "patient": ["007", "b"]}).to_csv(tmp_path / "p.csv")
    cells = nb.io.read_orion(tmp_path, patients=tmp_path / "p.csv")["table"]
    assert cells.obs.groupby("section", observed=True)["patient"].first().tolist() == ["b", "007"]


def test_round_trip_and_downstream(tmp_path):
    section(tmp_path)
    sdata = nb.io.read_orion(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata.write(tmp_path / "out.zarr")
        back = sd.read_zarr(tmp_path / "out.zarr")
    nb.io.write_table(back, "table")
    assert back["table"].obs["patient"].tolist() == ["CRC01"] * 3
    from nimbus_sd._sdata.he import he_centers

    found = he_centers(back, image="CRC01_he", centers=None)
    assert found.samples[0].mpp == 0.325
    assert found.samples[0].ids.tolist() == [7, 300, 4_000_000_000]
    order = np.argsort(back["table"].obs["instance_id"])
    np.testing.assert_allclose(found.samples[0].positions(), back["table"].obsm["spatial"][order])


def test_suffixes_of_columns(tmp_path):
    _, _, labels = section(tmp_path)
    folder = tmp_path / "CRC01" / "quantification"
    wide = table(labels, NAMES, suffix="_cellRingMask")
    wide[[f"{n}_nucleiRingMask" for n in NAMES]] = 1.0
    wide.drop(columns=[c for c in wide if c == "nothing"]).to_csv(folder / "CRC01.csv")
    cells = nb.io.read_orion(tmp_path)["table"]
    assert cells.var_names.tolist() == NAMES
    assert cells[:, "CD45"].X.ravel().tolist() == [315, 22, 15]
    # of tables of several masks, the mask's own
    (folder / "CRC01.csv").rename(folder / "CRC01_cellRingMask.csv")
    table(labels, NAMES).head(1).to_csv(folder / "CRC01_nucleiRingMask.csv")
    assert nb.io.read_orion(tmp_path)["table"].n_obs == 3


def test_columns_called_as_the_tables_own(tmp_path):
    _, _, labels = section(tmp_path)
    section(tmp_path, "CRC02", seed=1)
    frame = table(labels, NAMES).assign(
        region=["tumour", "stroma", "tumour"],
        Patient=5,
        section=[9, 8, 7],
        instance_id=[1, 1, 2],
        area_px=-1.0,
    )
    frame["region_csv"] = "older"
    frame.to_csv(tmp_path / "CRC01" / "quantification" / "CRC01.csv", index=False)
    plain = nb.io.read_orion(tmp_path, sections=["CRC02"])["table"].obs
    with pytest.warns(NimbusWarning, match=r"5 columns .*'region' is 'region_csv_csv'") as caught:
        sdata = nb.io.read_orion(tmp_path, patients={"CRC01": "a", "CRC02": "b"})
    assert [w.filename for w in caught] == [__file__]
    obs = sdata["table"].obs
    mine = obs[obs["section"] == "CRC01"]
    assert set(mine["region"]) == {"CRC01_labels"}
    assert set(mine["patient"]) == {"a"}
    assert mine["instance_id"].tolist() == frame["CellID"].tolist()
    assert mine["area_px"].tolist() == frame["Area"].tolist()
    for column, new in {
        "region": "region_csv_csv",
        "region_csv": "region_csv",
        "Patient": "Patient_csv",
        "section": "section_csv",
        "instance_id": "instance_id_csv",
        "area_px": "area_px_csv",
    }.items():
        assert mine[new].tolist() == frame[column].tolist(), column
    # no marker of the CSV is one of them, and the other section is as it was
    assert sdata["table"].var_names.tolist() == NAMES
    np.testing.assert_array_equal(obs.loc[plain.index, "instance_id"], plain["instance_id"])
    sdata.write(tmp_path / "s.zarr")


def test_numbers_of_the_tables_own_are_no_markers(tmp_path):
    _, _, labels = section(tmp_path, names=None)
    frame = table(labels, NAMES).assign(patient=5, section=9)
    frame.to_csv(tmp_path / "CRC01" / "quantification" / "CRC01.csv", index=False)
    with pytest.warns(NimbusWarning, match="2 columns"):
        sdata = nb.io.read_orion(tmp_path)
    # as many as the channels, so they name these
    assert channel_names(finest(sdata["CRC01_if"])) == tuple(NAMES)
    assert sdata["table"].var_names.tolist() == NAMES


def test_where_names_of_channels_come_from(tmp_path):
    section(tmp_path, names=None)
    assert channel_names(finest(nb.io.read_orion(tmp_path)["CRC01_if"])) == tuple(NAMES)  # the CSV's
    mine = [f"c{i}" for i in range(19)]
    sdata = nb.io.read_orion(tmp_path, channels=mine)
    assert finest(sdata["CRC01_if"]).c.values.tolist() == mine
    assert sdata["table"].var_names.tolist() == NAMES
    with pytest.raises(InputError, match=r"19 channels, but channels= names 2: a, b"):
        nb.io.read_orion(tmp_path, channels=["a", "b"])
    (tmp_path / "CRC01" / "quantification" / "CRC01.csv").unlink()
    with pytest.warns(NimbusWarning) as caught:
        image = finest(nb.io.read_orion(tmp_path)["CRC01_if"])
    assert image.c.values[:2].tolist() == ["channel_0", "channel_1"]
    assert any("19 channels have no names" in str(w.message) for w in caught)


# ---- laziness --------------------------------------------------------------------------------------------


def test_nothing_is_decoded_at_read_time(tmp_path, monkeypatch):
    section(tmp_path, "CRC01")
    section(tmp_path, "CRC02", rgb="separate")
    reads = []
    real = _pixels.read_plane

    def counting(plane, rows, columns):
        reads.append((Path(plane.path).name, plane.page))
        return real(plane, rows, columns)

    def never(*args: object, **kwargs: object):
        pytest.fail("something was computed")

    monkeypatch.setattr(_pixels, "read_plane", counting)
    with dask.config.set(scheduler=never), monkeypatch.context() as at_read_time:
        for method in ("asarray", "aszarr"):
            at_read_time.setattr(tifffile.TiffPage, method, never)
        sdata = nb.io.read_orion(tmp_path, chunks=64)
    assert reads == []
    finest(sdata["CRC01_he"]).data[:, :64, :64].compute()
    assert len(reads) == 1  # three colours at once
    finest(sdata["CRC02_if"]).sel(c="CD45").data[:64, :64].compute()
    assert reads[1:] == [("P37_S29@20220106_014304.ome.tiff", NAMES.index("CD45"))]


# ---- what is missing or wrong ----------------------------------------------------------------------------


def test_missing_pieces_are_left_out_and_counted(tmp_path):
    for name in ("a", "b", "c"):
        section(tmp_path, name)
    shutil.rmtree(tmp_path / "a" / "quantification")
    (tmp_path / "b" / "registration" / "18459$LSP10353-registered.ome.tif").unlink()
    (tmp_path / "c" / "segmentation" / "cellRingMask.tif").unlink()
    with pytest.warns(NimbusWarning) as caught:
        sdata = nb.io.read_orion(tmp_path)
    text = " ".join(str(w.message) for w in caught)
    for part in ("of 3 sections", "no H&E in 1 (b)", "no label image in 1 (c)", "no table of cells in 1 (a)"):
        assert part in text
    assert set(sdata.images) == {"a_he", "a_if", "b_if", "c_he", "c_if"}
    assert set(sdata.labels) == {"a_labels", "b_labels"}
    assert sdata["table"].obs["region"].unique().tolist() == ["b_labels", "c_cells"]
    # cells without labels are points
    assert sdata["c_cells"].compute().index.tolist() == [7, 300, 4_000_000_000]
    from nimbus_sd._sdata.he import he_centers

    assert len(he_centers(sdata, image={"c_cells": "c_he"}, centers=None)) == 3


def test_an_he_alone(tmp_path):
    section(tmp_path)
    (tmp_path / "CRC01" / "registration" / "P37_S29@20220106_014304.ome.tiff").unlink()
    with pytest.warns(NimbusWarning, match="no immunofluorescence in 1"):
        sdata = nb.io.read_orion(tmp_path)
    assert list(sdata.images) == ["CRC01_he"]
    assert sdata["table"].var_names.tolist() == NAMES


@pytest.mark.parametrize(
    ("he", "options", "message"),
    [
        (np.zeros((Y, X, 3), "uint16"), {"photometric": "rgb"}, "3 channels of uint16; an H&E has 3"),
        (np.zeros((5, Y, X), "uint8"), {"photometric": "minisblack"}, "5 channels of uint8; an H&E has 3"),
        (np.zeros((Y, X), "uint8"), {"photometric": "minisblack"}, "1 channels of uint8; an H&E has 3"),
        (np.zeros((Y, X - 1, 3), "uint8"), {"photometric": "rgb"}, r"\(150, 109\) px .* has \(150, 110\)"),
    ],
)
def test_no_he(tmp_path, he, options, message):
    section(tmp_path)
    tifffile.imwrite(tmp_path / "CRC01/registration/18459$LSP10353-registered.ome.tif", he, **options)
    with pytest.raises(InputError, match=message):
        nb.io.read_orion(tmp_path)


def test_alpha_is_dropped(tmp_path):
    _, he, _ = section(tmp_path)
    rgba = np.concatenate([he, np.full((Y, X, 1), 255, np.uint8)], axis=-1)
    file = tmp_path / "CRC01/registration/18459$LSP10353-registered.ome.tif"
    tifffile.imwrite(file, rgba, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(
        finest(nb.io.read_orion(tmp_path)["CRC01_he"]).values, np.moveaxis(he, -1, 0)
    )


def test_labels_of_another_size(tmp_path):
    section(tmp_path)
    tifffile.imwrite(tmp_path / "CRC01/segmentation/cellRingMask.tif", np.ones((Y // 2, X // 2), "uint32"))
    with pytest.raises(InputError, match=r"cellRingMask\.tif: \(75, 55\) px \(y, x\), but .* \(150, 110\)"):
        nb.io.read_orion(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop(columns="X_centroid"), "lacks the columns X_centroid"),
        (lambda f: f.assign(CellID=7), "holds cells 7 twice"),
        (lambda f: f.assign(CellID=[0, 1, 2]), "holds the cell id 0"),
        (lambda f: f.assign(CellID=[0.5, 1, 2]), "values that are not whole numbers"),
        (lambda f: f.assign(Y_centroid=[1.0, np.nan, 3]), "1 of 3 cells have no finite"),
        (lambda f: f.assign(Y_centroid=9999.0), "3 of 3 cells lie outside the image of 110 x 150 px"),
        (lambda f: f[["CellID", "X_centroid", "Y_centroid", "Area"]], "could be a marker"),
        (lambda f: f.head(0), "has no rows"),
    ],
)
def test_bad_tables(tmp_path, change, message):
    _, _, labels = section(tmp_path)
    change(table(labels, NAMES)).to_csv(tmp_path / "CRC01/quantification/CRC01.csv", index=False)
    with pytest.raises(InputError, match=rf"CRC01\.csv: .*{message}"):
        nb.io.read_orion(tmp_path)


def test_sections_with_other_markers(tmp_path):
    section(tmp_path, "a")
    _, _, labels = section(tmp_path, "b")
    file = tmp_path / "b/quantification/b.csv"
    table(labels, ["CD45", "Hoechst", "new"]).to_csv(file, index=False)
    with pytest.warns(NimbusWarning, match="2 of 2 sections have markers that others lack"):
        cells = nb.io.read_orion(tmp_path)["table"]
    assert cells.var_names.tolist() == ["Hoechst", "CD45"]
    assert cells[:, "CD45"].X.ravel().tolist() == [315, 22, 15, 300, 7, 0]
    table(labels, ["new"]).to_csv(file, index=False)
    with pytest.raises(InputError, match="no marker in common"):
        nb.io.read_orion(tmp_path)


def test_folders_and_arguments(tmp_path):
    section(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        nb.io.read_orion(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no section of ORION data"):
        nb.io.read_orion(tmp_path / "empty")
    with pytest.raises(InputError, match="no sections CRC09; it has: CRC01"):
        nb.io.read_orion(tmp_path, sections=["CRC09"])
    with pytest.raises(InputError, match="no patient for the sections CRC01"):
        nb.io.read_orion(tmp_path, patients={"CRC02": "p"})
    with pytest.raises(InputError, match="channels='CD45' is one string"):
        nb.io.read_orion(tmp_path, channels="CD45")
    with pytest.warns(NimbusWarning, match="mpp=0.5 was given, the metadata says 0.325"):
        nb.io.read_orion(tmp_path, mpp=0.5)
    assert nb.io.read_orion(tmp_path, mpp=None).attrs["nimbus_sd"]["mpp"] == 0.325
    images = tmp_path / "CRC01" / "registration"
    shutil.copy(images / "P37_S29@20220106_014304.ome.tiff", images / "again.ome.tiff")
    with pytest.raises(InputError, match=r"2 immunofluorescence images: registration/P37_S29.*again"):
        nb.io.read_orion(tmp_path)
    for file in images.iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"no image; wanted registration"):
        nb.io.read_orion(tmp_path)


# ---- downstream ------------------------------------------------------------------------------------------


def test_a_simulated_section_from_files_to_checked_cells(tmp_path):
    truth = nb.datasets.simulated_sections(shape=(256, 256), registration_error=0.0)
    folder = tmp_path / "CRC01"
    section(tmp_path)
    image, labels = truth["p0s0_if"], truth["p0s0_labels"].values
    names = list(channel_names(image))
    files = {
        part: next((folder / "registration").glob(f"*{part}"))
        for part in ("014304.ome.tiff", "registered.ome.tif")
    }
    pyramid(
        files["014304.ome.tiff"], image.values, metadata={"axes": "CYX", "Channel": {"Name": names}}, **TILED
    )
    he = np.ascontiguousarray(np.moveaxis(truth["p0s0_he"].values, 0, -1))
    pyramid(files["registered.ome.tif"], he, metadata={"axes": "YXS"}, photometric="rgb", **TILED)
    tifffile.imwrite(folder / "segmentation" / "cellRingMask.tif", labels.astype(np.uint32), **TILED)
    cells = truth["table"]
    frame = pd.DataFrame(cells.X, columns=names).assign(CellID=cells.obs["instance_id"].to_numpy())
    frame[["X_centroid", "Y_centroid"]] = cells.obsm["spatial"] - 0.5
    frame.to_csv(folder / "quantification" / "CRC01.csv", index=False)

    sdata = nb.io.read_orion(tmp_path)
    np.testing.assert_allclose(sdata["table"].obsm["spatial"], cells.obsm["spatial"])
    np.testing.assert_allclose(sdata["table"].X, cells.X, rtol=1e-6)
    found = nb.pp.registration_qc(
        sdata, he="CRC01_he", image="CRC01_if", block_um=40, table="table", progress=False
    )
    assert found["ok"].all()
    assert sdata["table"].obs["registered"].all()
    nb.pl.registration(found, sdata, save=tmp_path / "r.png")
