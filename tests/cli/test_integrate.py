"""``nimbus-sd integrate``: the tables of the function, in every store."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import nimbus_sd as nb


def test_tables_are_those_of_the_function(facts, scored):
    stores = (scored / "s0.zarr", scored / "s1.zarr")
    options = ("--statistics", "mean,max", "--quantiles", "0.5", "--no-progress")
    files = ("--csv", scored / "all.csv", "--concat", scored / "all.h5ad")
    found = facts("integrate", *stores, *options, *files)
    assert [t["table"] for t in found["tables"]] == ["integrated_expression"] * 2
    for store in stores:
        sdata = sd.read_zarr(store)
        table = sdata["integrated_expression"]
        nb.pp.integrated_expression(
            sdata, statistics=("mean", "max"), quantiles=(0.5,), overwrite=True, progress=False
        )
        np.testing.assert_array_equal(table.X, sdata["integrated_expression"].X)
        assert set(table.layers) == {"max", "q0.5"}
    n = sum(t["n_cells"] for t in found["tables"])
    assert len(pd.read_csv(scored / "all.csv")) == ad.read_h5ad(scored / "all.h5ad").n_obs == n


def test_options_choose_elements_channels_and_table(facts, nimbus, scored):
    call = ("integrate", scored / "s0.zarr", "--channels", "CD3,HH3", "--table", "raw", "--no-progress")
    image = ("--image", "fov0_labels=fov0_image", "--labels", "fov0_labels")
    assert facts(*call, *image)["tables"][0]["channels"] == ["CD3", "HH3"]
    code, _, err = nimbus(*call)
    assert (code, "--overwrite" in err) == (1, True)
    assert facts(*call, "--overwrite", "--statistics", "sum")["tables"][0]["table"] == "raw"
    assert nimbus("integrate", scored / "s0.zarr", "--channels", "auto", "--no-progress")[2].count("HH3") == 1


def test_a_dry_run_writes_nothing(facts, scored, unchanged):
    unchanged(scored)
    found = facts("integrate", scored / "s0.zarr", scored / "s1.zarr", "--dry-run")
    assert (found["dry_run"], found["n_blocks"]) == (True, 2)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--statistics", "median"), "valid: mean, sum, min, max"),
        (("--quantiles", "half"), "comma-separated numbers"),
        (("--quantiles", "50"), "must lie in [0, 1]"),
        (("--table", "truth"), "'truth' exists; pass --overwrite"),
        (("--labels", "moon"), "moon"),
        (("--channels", "CD99"), "CD99"),
        (("--image", "fov0_labels=fov0_image,fov1_image"), "LABELS=IMAGE for every"),
        (("--concat", "all.csv"), "valid endings are .h5ad and .zarr"),
    ],
)
def test_bad_calls_write_nothing(nimbus, scored, unchanged, options, said, more):
    unchanged(scored)
    code, out, err = nimbus("integrate", scored / "s0.zarr", "--no-progress", *options, *more)
    assert (code, out) == (1, "")
    assert said in err
