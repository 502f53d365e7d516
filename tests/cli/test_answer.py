"""What commands print: lines for people or one JSON object; errors and interruptions in one message."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer

from nimbus_sd import datasets
from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.cli._answer import answer, plain, say
from nimbus_sd.cli._guard import as_options, interruptible, one_message


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (-np.inf, None),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1.0, np.nan]]), [[1.0, None]]),
        (Path("a") / "b", "a/b"),
        ({1: (Path("x"), None)}, {"1": ["x", None]}),
        (pd.Index(["a", "b"]), ["a", "b"]),
        (pd.Series([1, 2]), [1, 2]),
        (pd.DataFrame({"m": ["CD3"], "f1": [np.nan]}), [{"m": "CD3", "f1": None}]),
        (ValueError("odd"), "odd"),
    ],
)
def test_values_as_json_has_them(value, expected):
    assert plain(value) == expected
    json.dumps(plain(value), allow_nan=False)


def test_json_is_alone_on_stdout(capsys):
    say("working", as_json=True)
    answer({"µm": np.float32(0.5)}, ["for people"], as_json=True)
    captured = capsys.readouterr()
    assert captured.out == '{"µm": 0.5}\n'
    assert captured.err == "working\n"
    say("working", as_json=False)
    answer({"a": 1}, ["for", "people"], as_json=False)
    assert capsys.readouterr().out == "working\nfor\npeople\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InputError("pass overwrite=True, or another table="), "pass --overwrite, or another --table"),
        (ElementNotFoundError("no layer 'a'"), "no layer 'a'"),
        (FileNotFoundError(2, "No such file", "x.csv"), "no such file or folder: x.csv"),
        (PermissionError(13, "Permission denied", "/a"), "Permission denied: /a"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_expected_errors_are_one_message(capsys, error, said):
    with pytest.raises(SystemExit) as end, one_message():
        raise error
    captured = capsys.readouterr()
    assert (end.value.code, captured.out, captured.err) == (1, "", f"error: {said}\n")


def test_other_errors_show_where_they_come_from():
    for error in (RuntimeError("a bug"), OSError("without a number")):
        with pytest.raises(type(error)), one_message():
            raise error


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("pass mpp= (µm per px, e.g. 0.5)", "pass --mpp (µm per px, e.g. 0.5)"),
        ("use coordinate_system=.", "use --coordinate-system."),
        ("tile=.5 is none", "tile=.5 is none"),
        ("choose with channels=", "choose with --channels"),
        ("score_std needs views=8", "score_std needs --views 8"),
        ("channels=[...] or channels='all', out='h.py'", "--channels NAME,... or --channels all, --out h.py"),
        ('labels=["a b", "c"] is wrong', "--labels a b,c is wrong"),
        (
            "pass write=True, or a folder: write=<folder>",
            "pass no --out-dir, or a folder: --out-dir <folder>",
        ),
        ("progress=False and lazy=False", "--no-progress and lazy=False"),
        ("valid: width=2, name=value", "valid: width=2, name=value"),
        ("n_folds=2.", "--n-folds 2."),
        ("uns['nimbus']['context'] a==b", "uns['nimbus']['context'] a==b"),
        ("sdata.attrs['x']= or x.y=True", "sdata.attrs['x']= or x.y=True"),
    ],
)
def test_arguments_are_said_as_options(message, expected):
    assert as_options(message) == expected


def test_an_interruption_is_one_line_and_130(capsys):
    def predict():
        raise KeyboardInterrupt

    def evaluate():
        raise KeyboardInterrupt

    for command, told in ((predict, "goes on from there"), (evaluate, "starts anew")):
        with pytest.raises(typer.Exit) as end:
            interruptible(command)()
        assert end.value.exit_code == 130
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("interrupted")
        assert told in line


def test_control_c_stops_a_run_that_then_goes_on(tmp_path):
    store = tmp_path / "tissue.zarr"
    datasets.simulated_tissue(n_fovs=1, shape=(256, 256), channels=["CD3", "CD20"]).write(store)
    script = "from nimbus_sd.cli import main; main()"
    command = [sys.executable, "-c", script, "predict", str(store), "--tile", "16"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while running.poll() is None and time.monotonic() < deadline and not _has_blocks(tmp_path, store):
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 130, err.decode()
    assert out == b""
    assert b"interrupted; the same command again goes on from there" in err
    assert b"Traceback" not in err
    done = subprocess.run([*command, "--no-progress", "--json"], capture_output=True, check=True)
    assert json.loads(done.stdout)["tables"][0]["n_markers"] == 2


def _has_blocks(folder, store):
    """Whether a run has begun to keep what it finished."""
    return any(p != store and p.is_dir() and any(p.rglob("*")) for p in folder.iterdir())
