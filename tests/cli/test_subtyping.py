"""``nimbus-sd benchmark subtyping``: every network of a study on the same cells, resumed where it stopped."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import nimbus_sd as nb
from nimbus_sd._core.errors import InputError, NimbusError
from nimbus_sd._core.hierarchy import MARKERS
from nimbus_sd.cli import app
from nimbus_sd.cli._subtyping_study import _test_cells, model_rows, patch_rows
from nimbus_sd.models.subtyper import SubtypeConfig, SubtypeNet

TINY = {"kind": "hovernet", "units": [1, 1, 1, 1], "width": 2}
NAME = "hovernet-1x1x1x1-2"
FEW = ["--epochs", "1", "--batch-size", "16", "--config", "small", "--no-progress", "--split", "2,1,1"]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def run(*args):
    return CliRunner().invoke(app, ["benchmark", "subtyping", *map(str, args)], catch_exceptions=False)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Four patients in two stores; the second's labels are gated already."""
    folder = tmp_path_factory.mktemp("stores")
    paths = []
    for i in range(2):
        sdata = nb.datasets.simulated_sections(n_patients=2, shape=(320, 320), immune=0.5, seed=i)
        table = sdata["table"]
        table.obs["patient"] = [f"store{i}-{p}" for p in table.obs["patient"]]
        paths.append(folder / f"store{i}.zarr")
        if i:
            truth = sdata["truth"][table.obs_names].to_df().reindex(columns=table.var_names)
            table.layers["gated"] = truth.to_numpy(np.float32)
        sdata.write(paths[-1])
    return paths


def test_the_table_has_a_row_per_network():
    rows = model_rows(["convnext-base", "hovernet", "phikon"])
    assert len(rows) == len({r.name for r in rows}) == 12
    assert {(r.told["weighted"], r.told["multitask"]) for r in rows} == {
        (a, b) for a in (True, False) for b in (True, False)
    }
    sides = patch_rows("convnext-base", [32, 112], mpp=0.325, marker="CD45")
    assert [r.options["patch_um"] for r in sides] == pytest.approx([10.4, 36.4])
    with pytest.raises(InputError, match="neither a name nor JSON"):
        model_rows(["{kind"])


def test_every_network_is_measured_on_test_patients(stored, tmp_path):
    out = tmp_path / "study"
    args = [*stored, "--out", out, "--backbone", json.dumps(TINY), "--n-cells", 200, *FEW]
    plan = json.loads(run(*args, "--dry-run", "--json").stdout)
    assert not out.exists()
    assert list(plan["networks"].values()) == [False] * 4
    assert [plan["parts"][part]["n_sections"] for part in ("train", "validation", "test")] == [2, 1, 1]
    first = run(*args)
    assert first.exit_code == 0, first.output
    table = pd.read_csv(out / "models.csv")
    assert table[["weighted", "multitask"]].value_counts().tolist() == [1, 1, 1, 1]
    assert set(table.columns) >= {
        f"{m} {k}" for m in ("CD45", "CD3e", "CD4", "CD8a") for k in ("AUROC", "BAcc")
    }
    for row in model_rows([json.dumps(TINY)]):
        found = pd.read_csv(out / row.name / "test.csv")
        assert found["marker"].tolist() == list(MARKERS)
        card = json.loads((out / row.name / "subtyper.json").read_text())
        patients = card["training"]["patients"]
        assert len(patients["test"]) == 1
        assert not set(patients["test"]) & {*patients["train"], *patients["validation"]}
    # what is done is not done again
    for file in out.glob("*/subtyper.json"):
        file.unlink()
    again = run(*args, "--json")
    assert again.stderr.count("done before") == 4
    assert [row["backbone"] for row in json.loads(again.stdout)["models"]] == [NAME] * 4
    assert run(*args, "--dry-run").stdout.count("(done before)") == 4
    pd.testing.assert_frame_equal(pd.read_csv(out / "models.csv"), table)
    # and figures of other cells are not passed off as these
    for other in (["--seed", 1], ["--epochs", 2], ["--n-cells", 40]):
        with pytest.raises(InputError, match=r"holds another study \((cells|options)"):
            run(*args, *other)


def test_patch_sizes_on_simulated_patients(tmp_path):
    out = tmp_path / "study"
    args = ["--simulated", 4, "--side", 256, "--study", "patches", "--patch", 32, "--patch", 64]
    plan = run(*args, "--out", out, "--backbone", json.dumps(TINY), *FEW, "--dry-run")
    assert "would train 2 networks of 2" in plan.stdout
    assert not out.exists()
    done = run(*args, "--out", out, "--backbone", json.dumps(TINY), *FEW)
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out / "patches.csv")
    assert table["patch_um"].tolist() == [10.4, 20.8]
    sides = [
        json.loads((out / f"{NAME}-CD45-{p}px" / "subtyper.json").read_text())["patch"] for p in (32, 64)
    ]
    assert sides == [32, 64]


def test_test_cells_are_the_sampled_ones_in_their_places():
    sdata = nb.datasets.simulated_sections(n_patients=1, shape=(256, 256), seed=2)
    table = sdata["table"]
    table.obs["split"], table.obs["sampled"] = "test", np.arange(table.n_obs) % 3 == 0
    ((cells, labels),) = _test_cells(sdata, table, None)
    assert labels.obs_names.tolist() == table.obs_names[::3].tolist()
    where = cells["cells"].compute()[["x", "y"]].to_numpy()
    np.testing.assert_allclose(where, labels.obsm["spatial"], atol=1e-6)


def test_bad_rows_are_refused_before_there_is_any_data(tmp_path, monkeypatch):
    monkeypatch.setattr(nb.datasets, "simulated_sections", lambda **_: pytest.fail("simulated"))
    (tmp_path / "gates.csv").write_text("marker,negative\nCD45,3\n")
    done = tmp_path / "study" / f"{NAME}-multitask-weighted"
    nb.models.save_subtyper(nb.models.load_subtyper(SubtypeNet(SubtypeConfig(backbone=TINY))), done)
    for args, match in [
        (["--backbone", "resnet"], "backbone='resnet' is unknown"),
        (["--backbone", '{"kind": "hovernet", "deep": 3}'], "hovernet"),
        (["--backbone", json.dumps(TINY), "--pretrained"], "no weights on the hub"),
        (["--backbone", json.dumps(TINY), "--out", tmp_path / "study"], "holds a model of another run"),
        (["--split", "0,1,1"], "training above 0"),
        (["--thresholds", tmp_path / "gates.csv"], r"columns \['positive', 'overexposed'\] are missing"),
        (["--epochs", 0], "epochs"),
    ]:
        with pytest.raises(NimbusError, match=match):
            run("--simulated", 3, "--out", tmp_path / "x", *args)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ([], "give stores, or --simulated"),
        (["x.zarr", "--simulated", 3], "and not both"),
        (["--simulated", 3, "--study", "all"], "valid: models, patches, both"),
        (["--simulated", 3, "--side", 256, "--split", "a,b"], "three numbers"),
        (["--simulated", 3, "--side", 256, "--table", "cells"], "no table 'cells'"),
        (
            ["--simulated", 3, "--side", 256, "--split", "2,1,0"],
            r"no cell is left for a test \(--split 2,1,0\)",
        ),
        (["--simulated", 3, "--side", 256, "--backbone", "resnet"], "backbone='resnet' is unknown"),
        (
            ["--simulated", 3, "--side", 256, "--study", "patches", "--patch-marker", "CD99"],
            "has no marker CD99",
        ),
    ],
)
def test_bad_calls_say_what_would_be_right(args, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=match):
        run(*args)
