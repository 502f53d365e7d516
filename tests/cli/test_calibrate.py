"""``nimbus-sd calibrate``: layers in the store, and fits that go from one table to the next."""

import json

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import nimbus_sd as nb
from nimbus_sd.cli.calibrate import _shown

FEW = ("--min-cells", 20)


def test_layers_are_those_of_the_function(nimbus, scored):
    sdata = sd.read_zarr(scored / "s0.zarr")
    report = nb.tl.calibrate(sdata["nimbus"], sdata["truth"], min_cells=20, error_rate=0.1)
    code, out, err = nimbus("calibrate", scored / "s0.zarr", "--truth", "truth", *FEW, "--error-rate", 0.1)
    assert code == 0, err
    assert out.splitlines()[0].split()[0] == "group"
    assert len(out.splitlines()) == len(report) + 2
    table = sd.read_zarr(scored / "s0.zarr")["nimbus"]
    for layer in ("calibrated", "call"):
        np.testing.assert_allclose(table.layers[layer], sdata["nimbus"].layers[layer], equal_nan=True)


def test_a_fit_goes_to_another_store(facts, scored):
    fit = scored / "fit.json"
    made = facts("calibrate", scored / "s0.zarr", "--truth", "truth", *FEW, "--save", fit)
    assert (made["layers"], made["save"]) == (["calibrated"], str(fit))
    assert {row["group"] for row in made["groups"]} == {"CD20", "CD3", "PanCK", "(all)"}
    json.loads(fit.read_text())
    first, other = (sd.read_zarr(scored / f"s{i}.zarr")["nimbus"] for i in (0, 1))
    nb.tl.apply_calibration(other, first)
    for given in (fit, scored / "s0.zarr" / "tables" / "nimbus"):
        assert facts("calibrate", scored / "s1.zarr", "--fitted", given, "--overwrite")["groups"] is None
        found = sd.read_zarr(scored / "s1.zarr")["nimbus"]
        np.testing.assert_allclose(found.layers["calibrated"], other.layers["calibrated"])
        assert "call" not in found.layers


def test_layers_are_replaced_only_when_told(nimbus, scored):
    call = ("calibrate", scored / "s0.zarr", "--truth", "truth", *FEW)
    assert nimbus(*call)[0] == 0
    code, _, err = nimbus(*call)
    assert (code, "pass --overwrite" in err) == (1, True)
    assert nimbus(*call, "--overwrite", "--method", "platt")[0] == 0
    assert sd.read_zarr(scored / "s0.zarr")["nimbus"].uns["calibration"]["method"] == "platt"


def test_calls_of_an_earlier_fit_go_with_it(facts, scored):
    call = ("calibrate", scored / "s0.zarr", "--truth", "truth", *FEW)
    facts(*call, "--error-rate", 0.2)
    assert facts(*call, "--key-added", "other")["dropped"] == []
    facts(*call, "--error-rate", 0.2, "--overwrite")
    assert facts(*call, "--overwrite")["dropped"] == ["call"]
    assert set(sd.read_zarr(scored / "s0.zarr")["nimbus"].layers) >= {"calibrated", "other"}
    assert "call" not in sd.read_zarr(scored / "s0.zarr")["nimbus"].layers


def test_a_truth_of_more_markers_is_narrowed(nimbus, facts, scored):
    adata = sd.read_zarr(scored / "s0.zarr")["truth"]
    frame = adata.to_df().assign(CD99=1.0)
    frame.to_csv(scored / "more.csv")
    call = ("calibrate", scored / "s0.zarr", "--truth", scored / "more.csv", *FEW)
    assert "labels 1 markers that the table lacks: CD99" in nimbus(*call)[2]
    groups = facts(*call, "--markers", "CD3")["groups"]
    assert {g["group"] for g in groups if g["n"]} == {"CD3", "(all)"}


def test_a_dry_run_writes_nothing(facts, nimbus, scored, unchanged):
    unchanged(scored)
    call = ("calibrate", scored / "s0.zarr", "--dry-run", *FEW)
    found = facts(*call, "--truth", "truth", "--save", scored / "fit.json")
    assert found["dry_run"]
    assert len(found["groups"]) == 4
    assert (
        "would write the layers calibrated, call" in nimbus(*call, "--truth", "truth", "--error-rate", 0.1)[1]
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "give --truth to fit, or --fitted"),
        (("--truth", "truth", "--fitted", "fit.json"), "and not both"),
        (("--truth", "truth", "--method", "magic"), "valid: temperature, platt, isotonic"),
        (("--truth", "truth", "--by", "moon"), "no column 'moon'"),
        (("--fitted", "fit.json"), "no such file or folder: fit.json"),
        (("--fitted", "broken.json"), "is not JSON"),
        (("--fitted", "other.json"), "no calibration there"),
        (("--fitted", "s1.zarr/tables/nimbus"), "no calibration there"),
        (("--truth", "truth", "--save", "no/fit.json"), "there is no folder"),
        (("--truth", "truth", "--save", "fit.txt"), "valid endings are .json"),
        (("--fitted", "list.json"), "holds no fit"),
        (("--fitted", "half.json"), "groups can't be read"),
        (("--truth", "empty.csv"), "can't be read as CSV"),
        (("--truth", "truth", "--key-added", "a/b", "--dry-run"), "can't be stored"),
        (("--truth", "truth", "--key-added", "integrated_expression", "--overwrite"), "intensities"),
        (("--truth", "truth", "--key-call", "calibrated", "--error-rate", 0.2), "are one layer"),
        (("--truth", "truth", "--markers", "CD99"), "no marker CD99"),
        (("--fitted", "other.json", "--markers", "CD3"), "--markers chooses labels of --truth"),
    ],
)
def test_bad_calls_write_nothing(nimbus, scored, monkeypatch, unchanged, options, said):
    (scored / "broken.json").write_text("{")
    (scored / "list.json").write_text("[1]")
    (scored / "half.json").write_text('{"by": "marker", "groups": "{}"}')
    (scored / "empty.csv").write_text("")
    (scored / "other.json").write_text('{"a": 1}')
    monkeypatch.chdir(scored)
    unchanged(scored)
    code, out, err = nimbus("calibrate", "s0.zarr", *options)
    assert (code, out) == (1, "")
    assert said in err


def test_limits_that_nothing_passes_are_words():
    report = pd.DataFrame(
        {"group": ["CD3", "SMA", "CD31"], "low": [0.25, -1.0, 0.5], "high": [0.75, 2.0, 2.0], "error": np.nan}
    )
    assert [line.split() for line in _shown(report)[0].splitlines()] == [
        ["group", "low", "high", "error"],
        ["CD3", "0.250", "0.750", "-"],
        ["SMA", "never", "never", "-"],
        ["CD31", "0.500", "never", "-"],
    ]
    negative, positive = _shown(report)[1:]
    assert "no cell is called negative by the fit of: SMA (" in negative
    assert "no cell is called positive by the fit of: SMA, CD31 (" in positive
    assert len(_shown(report.drop(columns=["low", "high"]))) == 1
    assert len(_shown(report.iloc[:1])) == 1
