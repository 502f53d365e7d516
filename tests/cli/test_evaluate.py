"""``nimbus-sd evaluate``: the figures of the function, from every place where labels may lie."""

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import nimbus_sd as nb


@pytest.fixture
def expected(scored):
    sdata = sd.read_zarr(scored / "s0.zarr")
    return nb.tl.evaluate(sdata["nimbus"], sdata["truth"], n_bootstrap=0)


def test_figures_are_those_of_the_function(nimbus, facts, scored, expected):
    store, out = scored / "s0.zarr", scored / "all.csv"
    found = pd.DataFrame(
        facts("evaluate", store, "--truth", "truth", "--n-bootstrap", 5, "--out", out)["rows"]
    )
    for column in ("n", "f1", "auroc"):
        np.testing.assert_allclose(found[column].astype(float), expected[column], equal_nan=True)
    written = pd.read_csv(out)
    assert {"f1_lower", "f1_upper"} <= set(written)
    np.testing.assert_allclose(written["f1"], expected["f1"])
    code, text, _ = nimbus("evaluate", store, "--truth", "truth", "--n-bootstrap", 0)
    assert code == 0
    assert text.splitlines()[0].split()[:3] == ["marker", "n", "positive"]
    assert f"{expected['f1'][0]:.3f}" in text


def test_labels_may_lie_in_a_layer_a_table_or_a_file(facts, scored, expected):
    sdata = sd.read_zarr(scored / "s0.zarr")
    adata, truth = sdata["nimbus"], sdata["truth"]
    frame = truth.to_df().reindex(index=adata.obs_names, columns=adata.var_names)
    adata.layers["gold"] = frame.to_numpy(np.float32)
    nb.io.write_table(sdata)
    frame.to_csv(scored / "frame.csv")
    truth.write_h5ad(scored / "truth.h5ad")
    nb.io.write_cell_table(truth[:, adata.var_names], scored / "cells.csv")
    places = ["gold", "layers/gold", "truth", "tables/truth", scored / "s0.zarr" / "tables" / "truth"]
    for place in [*places, scored / "frame.csv", scored / "cells.csv", scored / "truth.h5ad"]:
        rows = facts("evaluate", scored / "s0.zarr", "--truth", place, "--n-bootstrap", 0)["rows"]
        np.testing.assert_allclose([r["f1"] for r in rows], expected["f1"], err_msg=str(place))


def test_a_cohort_is_measured_together_or_store_by_store(facts, scored):
    stores = (scored / "s0.zarr", scored / "s1.zarr")
    options = ("--truth", "truth", "--n-bootstrap", 0)
    each = [facts("evaluate", s, *options)["rows"] for s in stores]
    rows = facts("evaluate", *stores, *options, "--by", "sample,marker")["rows"]
    assert [(r["sample"], r["marker"]) for r in rows if r["marker"] == "CD3"] == [
        ("s0", "CD3"),
        ("s1", "CD3"),
    ]
    assert sorted(r["tp"] for r in rows) == sorted(r["tp"] for part in each for r in part)
    (whole,) = facts("evaluate", *stores, *options, "--by", "")["rows"]
    assert whole["tp"] == sum(r["tp"] for r in rows)


def test_thresholds_per_score(facts, scored):
    call = ("evaluate", scored / "s0.zarr", "--truth", "truth", "--n-bootstrap", 0, "--markers", "CD3")
    both = ("--scores", "X,integrated_expression")
    rows = facts(*call, *both, "--threshold", "X=2", "--threshold", "integrated_expression=-1")["rows"]
    assert [(r["scores"], r["tp"] + r["fp"]) for r in rows] == [
        ("X", 0),
        ("integrated_expression", rows[1]["n"]),
    ]
    assert facts(*call, "--threshold", "-1")["rows"][0]["tn"] == 0


def test_a_dry_run_checks_and_writes_nothing(nimbus, facts, scored, unchanged):
    unchanged(scored)
    call = ("evaluate", scored / "s0.zarr", "--dry-run", "--out", scored / "x.csv")
    found = facts(*call, "--truth", "truth")
    assert (found["dry_run"], found["n_rows"]) == (True, 3)
    assert nimbus(*call, "--truth", "truth", "--resample", "moon")[0] == 1
    assert nimbus(*call, "--truth", "truth", "--n-bootstrap", "-3")[0] == 1


def test_a_csv_may_name_the_region_or_the_field(facts, scored, expected):
    stores = [scored / "s0.zarr", scored / "s1.zarr"]
    frames = []
    for store in stores:
        truth = sd.read_zarr(store)["truth"]
        where = {"label": truth.obs["instance_id"], "fov": truth.obs["region"].astype(str)}
        frames.append(pd.concat([pd.DataFrame(where), truth.to_df()[["CD3", "CD20", "PanCK"]]], axis=1))
    wanted = facts("evaluate", *stores, "--truth", "truth", "--n-bootstrap", 0)["rows"]
    for ending in ("_labels", ""):
        for frame, name in zip(frames, ("s0", "s1"), strict=True):
            frame["fov"] = frame["fov"].str.removesuffix("_labels") + ending
            frame.to_csv(scored / f"{name}.csv", index=False)
        call = ("evaluate", stores[0], "--truth", scored / "s0.csv", "--n-bootstrap", 0)
        np.testing.assert_allclose([r["f1"] for r in facts(*call)["rows"]], expected["f1"])
        both = [f.assign(fov=f"{name}_" + f["fov"]) for f, name in zip(frames, ("s0", "s1"), strict=True)]
        pd.concat(both).to_csv(scored / "both.csv", index=False)
        rows = facts("evaluate", *stores, "--truth", scored / "both.csv", "--n-bootstrap", 0)["rows"]
        assert [r["tp"] for r in rows] == [r["tp"] for r in wanted]


def test_a_file_is_written_whole(nimbus, scored, monkeypatch):
    call = ("evaluate", scored / "s0.zarr", "--truth", "truth", "--n-bootstrap", 0, "--out", scored / "a.csv")
    assert nimbus(*call)[0] == 0
    before = (scored / "a.csv").read_text()

    def half(self, path, **more):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", half)
    assert nimbus(*call, "--overwrite")[0] == 1
    assert (scored / "a.csv").read_text() == before
    assert not list(scored.glob(".a.csv*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--truth", "gold"), "layer (there are: 'integrated_expression')"),
        (("--truth", "truth", "--table", "cells"), "has no table 'cells'; its tables: 'nimbus', 'truth'"),
        (("--truth", "truth", "--scores", "gold"), "no layer 'gold'"),
        (("--truth", "truth", "--threshold", "high"), "--threshold high: a number such as 0.5"),
        (("--truth", "truth", "--threshold", "0.5", "--threshold", "0.6"), "SCORES=NUMBER"),
        (("--truth", "truth", "--by", "moon"), "no column 'moon'"),
        (("--truth", "truth", "--out", "no/where.csv"), "there is no folder"),
        (("--truth", "truth", "--out", "where.txt"), "valid endings are .csv"),
        (("--truth", "empty.csv"), "can't be read as CSV"),
        (("--truth", "s0.zarr/images"), "there is no table"),
    ],
)
def test_bad_calls(nimbus, scored, monkeypatch, options, said):
    (scored / "empty.csv").write_text("")
    monkeypatch.chdir(scored)
    code, out, err = nimbus("evaluate", "s0.zarr", *options)
    assert (code, out) == (1, "")
    assert said in err
    assert nimbus("evaluate", "s0.zarr")[0] == 2
