"""What commands refuse to write to, before they compute and in the dry run alike; options without effect."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd

import nimbus_sd as nb
from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.writable import check_model_folder, check_writable
from nimbus_sd.cli._options import device_count

LABELS = ("--table", "truth", "--labels-layer", "X")
DRY = pytest.mark.parametrize("dry", [(), ("--dry-run",)])


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(scored):
    """Address of a server that gives out the stores of ``scored``, and takes nothing."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=scored))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@DRY
@pytest.mark.parametrize(
    "call",
    [
        ("predict", "--table", "new"),
        ("predict", "--into", "truth"),
        ("integrate",),
        ("cluster", "--key-added", "groups"),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_store_that_can_only_be_read_is_said_before_any_is_written(
    scored, served, nimbus, unchanged, call, dry
):
    unchanged(scored)
    command, *options = call
    code, out, err = nimbus(command, scored / "s0.zarr", f"{served}/s1.zarr", *options, *dry)
    assert (code, out) == (1, "")
    assert f"{served}/s1.zarr can be read but not written to" in err


def test_functions_say_so_too(served, scored, unchanged):
    unchanged(scored)
    sdata = nb.io.open_store(f"{served}/s0.zarr")
    with pytest.raises(InputError, match="can be read but not written to"):
        nb.io.write_table(sdata, "nimbus")
    with pytest.raises(InputError, match="can be read but not written to"):
        nb.tl.predict(sdata, table="new", write=True, progress=False)
    assert "new" not in sdata.tables


def test_results_of_their_own_go_elsewhere(served, scored, facts):
    call = ("predict", f"{served}/s0.zarr", "--table", "new", "--out-dir", scored / "out", "--no-progress")
    assert facts(*call, "--dry-run")["would_write"] == [f"{scored}/out/s0.zarr/tables/new"]
    check_writable(sd.read_zarr(scored / "s0.zarr"))


@DRY
@pytest.mark.parametrize("where", ["s0.zarr", "s1.zarr/models/mine"])
@pytest.mark.parametrize(
    "command",
    [("train", *LABELS), ("finetune", "--steps", 1, *LABELS), ("train-embedding",), ("train-subtyper",)],
)
def test_a_model_never_goes_into_a_store(scored, nimbus, unchanged, command, where, dry):
    unchanged(scored)
    name, *options = command
    code, out, err = nimbus(
        name, scored / "s0.zarr", "--out", scored / where, "--no-progress", *options, *dry
    )
    assert (code, out) == (1, "")
    assert "a zarr store; give a folder outside of it" in err
    assert "error: --out " in err


def test_models_go_to_a_local_disk(tmp_path):
    with pytest.raises(InputError, match="s3://bucket/model' is a URL"):
        check_model_folder(Path("s3://bucket/model"))
    (tmp_path / "old.zarr").mkdir()
    (tmp_path / "old.zarr" / ".zgroup").write_text("{}")
    with pytest.raises(InputError, match="is a zarr store"):
        check_model_folder(tmp_path / "old.zarr")
    check_model_folder(tmp_path / "model")
    check_model_folder(None)


@DRY
def test_a_store_given_twice_is_refused_by_integrate(scored, nimbus, unchanged, dry):
    unchanged(scored)
    store = scored / "s0.zarr"
    code, out, err = nimbus("integrate", store, store, *dry)
    assert (code, out, "comes twice" in err) == (1, "", True)


def test_a_dry_run_into_a_table_is_about_its_markers(scored, facts):
    call = ("predict", scored / "s0.zarr", "--into", "truth")
    planned = facts(*call, "--dry-run")
    assert planned["n_tiles_markers"] == planned["n_blocks"] * 4  # HH3 too, as the table has it
    facts(*call, "--no-progress")
    assert np.isfinite(sd.read_zarr(scored / "s0.zarr")["truth"].layers["nimbus"]).all()


def test_a_dry_run_looks_for_the_scheduler(scored, nimbus):
    call = ("predict", scored / "s0.zarr", "--table", "new", "--scheduler", "nowhere", "--dry-run")
    code, out, err = nimbus(*call)
    assert (code, out, "no dask scheduler answers there" in err) == (1, "", True)


@pytest.mark.parametrize("url", ["http://x.org/c.zarr", "s3://bucket/c.zarr"])
@DRY
def test_convert_writes_to_a_local_disk(tmp_path, monkeypatch, nimbus, url, dry):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    code, out, err = nimbus("convert", "images", url, *dry)
    assert (code, out) == (1, "")
    assert f"{url} is a URL; convert writes to a local disk" in err
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


@DRY
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (("report", "s0.zarr", "--max-samples", -4), "--max-samples -4; at least 1"),
        (("demo", "--n-fovs", 0), "at least 1 field"),
        (("demo", "--size", 3), "of at least 64 px"),
        (("demo", "--device", "abacus"), "--device abacus is not a device name"),
        (("demo", "--out", "note.txt"), "note.txt is a file; give a folder"),
        (("demo", "--out", "note.txt/demo"), "note.txt is a file; give a folder"),
        (("models", "nimbus-sd-s", "--onnx", "onnx", "--fetch"), "give one of them"),
        (("models", "nimbus-sd-s", "--onnx", "note.txt"), "note.txt is a file"),
        (("models", "moon", "--onnx", "onnx"), "moon"),
        (("models", "moon", "--fetch"), "moon"),
        (("models", "nimbus-sd-s", "--overwrite", "--fetch"), "--overwrite is for --onnx"),
        (("models", "--fetch"), "are for one model"),
        (("train", "s0.zarr", "--config", "small", "--preset", "paper"), "give one of them"),
        (("train", "s0.zarr", "--preset", "nope"), "--preset nope: no preset"),
        (("train", "s0.zarr", "--devices", "4"), "--devices 4 is for --trainer lightning"),
        (("train", "s0.zarr", "--devices", "abc"), "--devices 'abc' must be a number from 1, or auto"),
        (("train-embedding", "s0.zarr", "--strategy", "ddp"), "--strategy ddp is for --trainer lightning"),
        (("train-subtyper", "s0.zarr", "--devices", "2"), "--devices 2 is for --trainer lightning"),
        (("train", "s0.zarr", "--config", "note.txt"), "error: --config note.txt is not TOML"),
    ],
)
def test_what_would_fail_or_do_nothing_is_refused(scored, monkeypatch, nimbus, unchanged, call, said, dry):
    monkeypatch.chdir(scored)
    (scored / "note.txt").write_text("a note")
    unchanged(scored)
    out = ("--out", "model") if call[0].startswith("train") else ()
    code, told, err = nimbus(*call, *out, *dry)
    assert (code, told) == (1, "")
    assert said in err


def test_devices_of_the_trainers():
    assert device_count("plain", "1", "auto") == 1
    assert device_count("lightning", "4", "ddp") == 4
    assert device_count("lightning", "auto", "auto") == "auto"


def test_models_say_what_they_would_write(tmp_path, monkeypatch, facts, nimbus):
    monkeypatch.setenv("NIMBUS_SD_CACHE", str(tmp_path / "cache"))
    planned = facts("models", "nimbus-sd-s", "--onnx", tmp_path / "onnx", "--dry-run")
    assert planned["files"] == ["card.json", "head.onnx", "model.onnx"]
    assert facts("models", "nimbus-sd-s", "--fetch", "--dry-run")["there"]
    code, out, _ = nimbus("models", "nimbus-v1", "--fetch", "--dry-run")
    assert (code, "would download " in out, str(tmp_path / "cache") in out) == (0, True, True)
    assert facts("models", "nimbus-v1", "--onnx", tmp_path / "onnx", "--dry-run")["files"]
    assert list(tmp_path.iterdir()) == []
    assert nimbus("models", "nimbus-sd-s", "--dry-run")[0] == 1
    taken = tmp_path / "onnx"
    taken.mkdir()
    (taken / "model.onnx").write_bytes(b"old")
    code, _, err = nimbus("models", "nimbus-sd-s", "--onnx", taken)
    assert (code, "pass --overwrite to replace" in err) == (1, True)


def test_stores_without_a_cell_have_nothing_to_tell():
    empty = [sd.SpatialData(), sd.SpatialData()]
    assert import_module("nimbus_sd.cli.subtype")._called(empty, "subtypes") == ({}, 0, 0)
    where = {"table": "embedding", "write": False, "model": "none"}
    assert import_module("nimbus_sd.cli.embed")._attribute(empty, where, ("occlusion",), {}) == {}
