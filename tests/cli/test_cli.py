"""The command line on small TIFF trees: what it writes, and what it says when it can't."""

import json
import sys
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import tifffile

from nimbus_sd import __version__, datasets
from nimbus_sd._core.errors import NimbusWarning
from nimbus_sd.cli._warnings import one_line_each
from nimbus_sd.pp import Normalization

CHANNELS = ["HH3", "CD3", "CD20"]


@pytest.fixture
def tree(tmp_path):
    """Two fields as the published tool's users have them: one TIFF per channel, masks beside."""
    sdata = datasets.simulated_tissue(n_fovs=2, shape=(96, 128), channels=CHANNELS)
    for fov in ("fov0", "fov1"):
        folder = tmp_path / "image_data" / fov
        folder.mkdir(parents=True)
        for name, plane in zip(CHANNELS, np.asarray(sdata[f"{fov}_image"].data), strict=True):
            tifffile.imwrite(folder / f"{name}.tiff", plane)
        masks = tmp_path / "segmentation"
        masks.mkdir(exist_ok=True)
        tifffile.imwrite(masks / f"{fov}_whole_cell.tiff", np.asarray(sdata[f"{fov}_labels"].data))
    return tmp_path


def convert(nimbus, tree, *more):
    out = tree / "tissue.zarr"
    options = ("--labels", "segmentation", "--mpp", 0.5)
    return out, nimbus("convert", tree / "image_data", out, *options, *more)


def test_convert_predict_csv(nimbus, tree):
    store, (code, out, _) = convert(nimbus, tree)
    assert (code, "wrote 2 fields of view" in out) == (0, True)
    csv = tree / "cells.csv"
    code, out, _ = nimbus("predict", store, "--csv", csv, "--no-progress")
    assert code == 0
    assert "x 2 markers" in out
    table = sd.read_zarr(store)["nimbus"]
    assert list(table.var_names) == ["CD20", "CD3"]
    written = pd.read_csv(csv)
    np.testing.assert_allclose(written[["CD20", "CD3"]], table.X, atol=1e-6)


def test_a_dry_run_of_convert_reads_metadata_and_writes_nothing(facts, nimbus, tree, unchanged):
    unchanged(tree)
    call = ("convert", tree / "image_data", tree / "new.zarr", "--labels", "segmentation", "--mpp", 0.5)
    found = facts(*call, "--dry-run")
    assert (found["n_fields"], found["channels"]) == (2, ["CD20", "CD3", "HH3"])
    assert [f["labels"] for f in found["fields"]] == ["fov0_labels", "fov1_labels"]
    first = found["fields"][0]
    assert (first["shape"], first["dtype"], first["mpp"]) == ([3, 96, 128], "uint8", 0.5)
    code, out, _ = nimbus(*call, "--dry-run", "--channels", "CD3")
    assert (code, "channels: CD3\n" in out) == (0, True)
    assert nimbus(*call, "--dry-run", "--channels", "CD99")[0] == 1
    assert nimbus("convert", tree / "image_data", tree / "segmentation", "--dry-run")[0] == 1


def test_one_run_is_judged_like_another(facts, nimbus, scored):
    first, other = scored / "s0.zarr", scored / "s1.zarr"
    like = ("--normalization", first / "tables" / "nimbus", "--context", first / "tables" / "nimbus")
    found = facts("predict", other, *like, "--table", "again", "--no-progress")
    ((place, n),) = [(t["written"], t["n_markers"]) for t in found["tables"]]
    assert (place, n) == (f"{other}/tables/again", 3)
    sdata = sd.read_zarr(other)
    # both were one cohort, so scales and context are those that they had together
    np.testing.assert_array_equal(sdata["again"].X, sdata["nimbus"].X)
    scales = scored / "scales.json"
    Normalization.from_dict(json.loads(sdata["nimbus"].uns["nimbus"]["normalization"])).save(scales)
    found = facts("predict", other, "--normalization", scales, "--dry-run", "--table", "third")
    assert (found["seconds_normalization"], found["would_write"]) == (0, [f"{other}/tables/third"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "'nimbus' exists; pass --overwrite"),
        (("--table", "new", "--normalization", "s0.zarr/tables/truth"), "this table holds none"),
        (("--table", "new", "--context", "s0.zarr/tables/truth"), "holds no context"),
        (
            ("--table", "new", "--normalization", "s0.zarr/tables/nimbus", "--rule", "dataset"),
            "fitted already",
        ),
        (("--table", "new", "--rule", "median"), "valid: dataset, fov_mean"),
        (("--table", "new", "--quantile", 2), "must be in (0, 1]"),
        (("--table", "new", "--maps", "fov0_labels"), "'fov0_labels'"),
        (("--table", "new", "--maps-dtype", "int4"), "int4"),
        (("--table", "new", "--score-std"), "--views 8"),
        (("--table", "new", "--device", "cuda:77"), "not on this machine"),
        (("--table", "new", "--model", "nothing"), "neither registered nor a path"),
        (("--into", "moon"), "no table 'moon'"),
        (("--out-dir", "s1.zarr"), "is a SpatialData store"),
    ],
)
def test_a_dry_run_finds_what_is_wrong(nimbus, scored, monkeypatch, unchanged, options, said):
    monkeypatch.chdir(scored)
    unchanged(scored)
    code, out, err = nimbus("predict", "s0.zarr", "--dry-run", *options)
    assert (code, out) == (1, "")
    assert said in err


def test_report(facts, nimbus, scored, unchanged):
    call = ("report", scored / "s0.zarr", "--out", scored / "report.html")
    assert facts(*call)["bytes"] == (scored / "report.html").stat().st_size > 1000
    unchanged(scored)
    assert facts("report", scored / "s0.zarr", "--out", scored / "new.html", "--dry-run")["dry_run"]
    assert nimbus(*call, "--dry-run")[0] == 1
    for options in (("--table", "moon"), ("--markers", "CD99"), ("--groupby", "moon"), ("--layer", "moon")):
        assert nimbus(*call, "--overwrite", "--dry-run", *options)[0] == 1, options


def test_predict_takes_the_options_of_the_function(nimbus, tree):
    store, _ = convert(nimbus, tree)
    assert nimbus("predict", store, "--no-progress", "--exclude", "CD3")[0] == 0
    first = sd.read_zarr(store)["nimbus"]
    assert list(first.var_names) == ["CD20", "HH3"]
    first.X[:] = 0.25
    options = ("--into", "first", "--quantile", 0.9, "--rule", "fov_mean", "--no-progress")
    sdata = sd.read_zarr(store)
    sdata["first"] = first
    sdata.write_element("first")
    code, out, err = nimbus("predict", store, *options, "--csv", tree / "into.csv")
    assert (code, "tables/first, layer nimbus" in out) == (0, True), err
    joined = sd.read_zarr(store)["first"]
    assert (joined.X == 0.25).all()
    fitted = json.loads(joined.uns["nimbus"]["normalization"])
    assert (fitted["quantile"], fitted["rule"]) == (0.9, "fov_mean")
    csv = pd.read_csv(tree / "into.csv")[["CD20", "HH3"]]
    np.testing.assert_allclose(csv, joined.layers["nimbus"], atol=1e-6)
    options = ("--table", "spread", "--views", 8, "--score-std", "--coordinate-system", "fov0")
    code, _, err = nimbus("predict", store, *options, "--labels", "fov0_labels", "--no-progress")
    assert code == 0, err
    assert (sd.read_zarr(store)["spread"].layers["score_std"] >= 0).all()


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(nimbus, tree):
    store, _ = convert(nimbus, tree)
    code, out, err = nimbus("predict", store, "--dry-run", "--views", 8, "--tile-size", 16)
    assert code == 0, err
    for word in ("blocks", "tile", "FLOP", "memory", "time"):
        assert word in out
    assert not list(sd.read_zarr(store).tables)


def test_a_cohort(nimbus, tree):
    stores = []
    for i in range(2):
        nimbus("convert", tree / "image_data", tree / f"s{i}.zarr", "--labels", "segmentation", "--mpp", 0.5)
        stores.append(tree / f"s{i}.zarr")
    code, out, _ = nimbus("predict", *stores, "--dry-run", "--json")
    counted = json.loads(out)
    assert (code, counted["n_samples"]) == (0, 4)
    results, csv, whole = tree / "results", tree / "all.csv", tree / "all.h5ad"
    options = ("--out-dir", results, "--csv", csv, "--concat", whole, "--no-progress")
    code, out, err = nimbus("predict", *stores, *options)
    assert code == 0, err
    assert f"{results / 's1.zarr'}/tables/nimbus" in out
    assert f"table of all cells -> {whole}" in out
    both = ad.read_h5ad(whole)
    assert list(both.obs["sample"].cat.categories) == ["s0", "s1"]
    frame = pd.read_csv(csv)
    assert set(frame["fov"]) == {f"{s}/fov{i}" for s in ("s0", "s1") for i in (0, 1)}
    np.testing.assert_allclose(frame["CD3"], both[:, "CD3"].X.ravel(), rtol=1e-5)
    one = ad.read_zarr(results / "s0.zarr" / "tables" / "nimbus")
    np.testing.assert_array_equal(both[both.obs["sample"] == "s0"].X, one.X)
    assert not list(stores[0].glob("tables/nimbus"))

    code, _, err = nimbus("predict", *stores, "--out-dir", tree / "r2", "--concat", whole)
    assert (code, "--overwrite" in err) == (1, True)
    code, _, err = nimbus("predict", stores[0], "--concat", stores[1], "--overwrite")
    assert (code, "holds no table, and is left alone" in err) == (1, True)
    assert (stores[1] / "images").is_dir()
    code, _, err = nimbus("predict", *stores, "--concat", tree / "all.parquet")
    assert (code, "valid endings are .h5ad and .zarr" in err) == (1, True)
    options = ("--concat", tree / "all.zarr", "--csv", csv, "--overwrite", "--no-progress")
    for _ in range(2):
        assert nimbus("predict", stores[0], *options)[0] == 0
        assert ad.read_zarr(tree / "all.zarr").n_obs * 2 == both.n_obs
    assert not list(tree.glob(".*"))
    assert set(pd.read_csv(csv)["fov"]) == {"fov0", "fov1"}


def test_predict_on_a_scheduler(nimbus, tree):
    from distributed import LocalCluster

    store, _ = convert(nimbus, tree)
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": ":0"}
    with warnings.catch_warnings(), LocalCluster(**options) as cluster:
        warnings.simplefilter("ignore")
        address = cluster.scheduler_address
        code, _, err = nimbus("predict", store, "--scheduler", address, "--no-resume", "--no-progress")
    assert code == 0, err
    by_workers = sd.read_zarr(store)["nimbus"]
    assert "workers" in by_workers.uns["nimbus"]["device"]
    assert nimbus("predict", store, "--overwrite", "--no-progress")[0] == 0
    np.testing.assert_allclose(by_workers.X, sd.read_zarr(store)["nimbus"].X, atol=1e-2)
    code, _, err = nimbus("predict", store, "--scheduler", "tcp://127.0.0.1:9", "--overwrite")
    assert code != 0
    assert "no dask scheduler answers there" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rule", "median"), "valid: dataset, fov_mean"),
        (("--exclude", "["), "not a regular expression"),
        (("--score-std",), "--views 8"),
        (("--into", "nothing"), "no table 'nothing'"),
        (("--coordinate-system", "moon"), "'moon'"),
    ],
)
def test_options_that_do_not_fit_write_nothing(nimbus, tree, options, said):
    store, _ = convert(nimbus, tree)
    code, _, err = nimbus("predict", store, "--no-progress", *options)
    assert code == 1
    assert said in err
    assert not sd.read_zarr(store).tables


def test_our_warnings_are_one_line_and_the_libraries_silent(capsys, monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", [])
    usual = warnings.showwarning
    with one_line_each():
        # as libraries do when they are imported
        warnings.simplefilter("always")
        for _ in range(2):
            warnings.warn("dim\n  channels", NimbusWarning, stacklevel=1)
        warnings.warn("nothing for you to do", FutureWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: dim channels\n"
    assert warnings.showwarning is usual
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    with one_line_each():
        warnings.simplefilter("always")
        with pytest.warns(FutureWarning, match="asked for"):
            warnings.warn("asked for", FutureWarning, stacklevel=1)


def test_a_warning_of_predict_is_one_line(nimbus, tree):
    for fov in ("fov0", "fov1"):
        tifffile.imwrite(tree / "image_data" / fov / "CD3.tiff", np.zeros((96, 128), "uint16"))
    store, _ = convert(nimbus, tree)
    code, _, err = nimbus("predict", store, "--no-progress")
    assert code == 0
    lines = [line for line in err.splitlines() if line.startswith("warning:")]
    assert lines == ["warning: empty channels: CD3 (all pixels are 0; every score will be near 0)"]
    assert "warnings.warn" not in err


def test_version(nimbus):
    code, out, _ = nimbus("--version")
    assert (code, out) == (0, f"nimbus-sd {__version__}\n")


def test_a_folder_that_is_no_store_is_left_alone(nimbus, tree):
    precious = tree / "tissue.zarr"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    _, (code, _, err) = convert(nimbus, tree, "--overwrite")
    assert code == 1
    assert "is not a zarr store: it is left alone" in err
    assert (precious / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("out", ["image_data", "image_data/x.zarr", "segmentation", "."])
def test_the_sources_are_never_the_target(nimbus, tree, out):
    before = sorted(p.name for p in tree.rglob("*"))
    code, _, err = nimbus(
        "convert", tree / "image_data", tree / out, "--labels", "segmentation", "--mpp", 0.5, "--overwrite"
    )
    assert code == 1
    assert "lie within each other" in err
    assert sorted(p.name for p in tree.rglob("*")) == before


def test_a_store_is_replaced_only_when_told(nimbus, tree):
    store, _ = convert(nimbus, tree)
    _, (code, _, err) = convert(nimbus, tree)
    assert (code, "pass --overwrite" in err) == (1, True)
    _, (code, _, _) = convert(nimbus, tree, "--overwrite", "--channels", "CD3")
    assert code == 0
    assert sd.read_zarr(store)["fov0_image"].shape[0] == 1
    assert [p.name for p in tree.iterdir() if p.name.startswith(".")] == []


def test_a_failed_conversion_keeps_the_old_store(nimbus, tree):
    store, _ = convert(nimbus, tree)
    (tree / "image_data" / "fov1" / "CD3.tiff").write_bytes(b"II*\x00")
    _, (code, _, err) = convert(nimbus, tree, "--overwrite")
    assert code == 1
    assert "CD3.tiff" in err
    assert len(sd.read_zarr(store).images) == 2


def test_a_csv_that_can_not_be_written_is_said_first(nimbus, tree):
    store, _ = convert(nimbus, tree)
    code, _, err = nimbus("predict", store, "--csv", tree / "nowhere" / "cells.csv")
    assert (code, "there is no folder" in err) == (1, True)
    assert "nimbus" not in sd.read_zarr(store).tables


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("predict", "nothing.zarr"), 1, "is not a SpatialData zarr store"),
        (("models", "nothing"), 1, "neither registered nor a path"),
        (("predict",), 2, "Missing argument"),
    ],
)
def test_errors_are_one_message(nimbus, arguments, code, said):
    got, _, err = nimbus(*arguments)
    assert got == code
    assert said in err
    assert "Traceback" not in err


def test_models(nimbus):
    code, out, _ = nimbus("models")
    assert code == 0
    assert out.splitlines()[0].startswith("nimbus-sd-s")
    assert '"sha256"' in nimbus("models", "nimbus-sd-s", "--json")[1]


def test_a_dry_run_of_the_demo_makes_nothing(facts, tmp_path):
    assert facts("demo", "--out", tmp_path / "demo", "--dry-run")["store"].endswith("tissue.zarr")
    assert not (tmp_path / "demo").exists()


def test_demo(nimbus, tmp_path):
    code, out, _ = nimbus("demo", "--out", tmp_path / "demo", "--n-fovs", 1, "--size", 512)
    assert code == 0
    mean = next(line for line in out.splitlines() if line.strip().startswith("mean")).split()
    scores, integrated = float(mean[1]), float(mean[2])
    assert scores > 0.8
    assert scores > integrated
    assert {p.name for p in (tmp_path / "demo").glob("*.png")} == {
        "scores.png",
        "distributions.png",
        "clusters.png",
    }
    assert "nimbus" in sd.read_zarr(tmp_path / "demo" / "tissue.zarr").tables


def test_pixel_sizes_that_are_wrong_or_not_the_stores(nimbus, scored):
    call = ("predict", scored / "s0.zarr", "--channels", "CD3", "--table", "again", "--dry-run", "--mpp")
    code, out, err = nimbus(*call, 488)
    assert (code, out) == (1, "")
    assert "error: mpp=488" in err or "error: --mpp 488" in err
    assert "is that in nm? Pass --mpp 0.488" in err
    code, _, err = nimbus(*call, 0.3)
    assert code == 0
    assert err.count("says 0.5 µm per px; the former is used. Leave --mpp out") == 1
