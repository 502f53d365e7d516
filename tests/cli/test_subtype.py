"""``nimbus-sd train-subtyper`` and ``subtype``, end to end on two small stores of H&E."""

import json
import shutil

import numpy as np
import pytest
import spatialdata as sd

import nimbus_sd as nb

TINY = json.dumps({"kind": "hovernet", "units": [1, 1, 1, 1], "width": 2})
QUIET = ("--no-progress", "--device", "cpu")
FEW = ("--config", "small", "--backbone", TINY, "--epochs", 1, "--batch-size", 16, "--markers", "CD45")

pytestmark = pytest.mark.filterwarnings("ignore::nimbus_sd._core.errors.NimbusWarning")


@pytest.fixture(scope="module")
def _cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("he")
    for i in range(2):
        sdata = nb.datasets.simulated_sections(n_patients=2, shape=(256, 256), immune=0.5, seed=i)
        table = sdata["table"]
        table.obs["patient"] = [f"{i}{p}" for p in table.obs["patient"]]
        truth = sdata["truth"][table.obs_names].to_df().reindex(columns=table.var_names)
        table.layers["gated"] = truth.to_numpy(np.float32)
        sdata.write(folder / f"s{i}.zarr")
    net = nb.models.load_subtyper(_untrained())
    nb.models.save_subtyper(net, folder / "untrained")
    return folder


def _untrained():
    from nimbus_sd.models.subtyper import SubtypeConfig, SubtypeNet

    return SubtypeNet(SubtypeConfig(backbone=json.loads(TINY)))


@pytest.fixture
def cohort(_cohort, tmp_path):
    """Folder with ``s0.zarr``, ``s1.zarr`` and ``untrained``."""
    for each in _cohort.iterdir():
        shutil.copytree(each, tmp_path / each.name)
    return tmp_path


def test_train_subtyper(cohort, nimbus, facts, unchanged):
    stores, out = (cohort / "s0.zarr", cohort / "s1.zarr"), cohort / "model"
    split = cohort / "split.csv"
    split.write_text("patient,part\n0p0,train\n0p1,validation\n1p0,train\n1p1,test\n")
    call = ("train-subtyper", *stores, "--out", out, "--split", split, *FEW, *QUIET)
    for store in stores:
        unchanged(store)
    plan = facts(*call, "--dry-run")
    assert not out.exists()
    assert plan["patients"] == {"train": ["0p0", "1p0"], "validation": ["0p1"], "test": ["1p1"]}
    assert (plan["markers"], plan["step"]) == (["CD45"], 0)
    code, told, _ = nimbus(*call, "--dry-run")
    assert code == 0
    assert "patients: 2 to train, 1 to validate, 1 to leave for a test" in told
    facts(*call, "--stop-at", 1)
    assert facts(*call, "--dry-run")["step"] == 1
    done = facts(*call)
    card = nb.models.load_subtyper(out).card
    assert (done["sha256"], done["hierarchy"], done["metrics"]) == (card.sha256, {}, card.metrics)
    assert done["cells"]["train"]["cells"] == plan["cells"]["train"]["n_cells"]
    code, _, err = nimbus(*call, "--seed", 3, "--dry-run")
    assert (code, "another configuration" in err) == (1, True)


def test_subtype_writes_a_table_into_each_store(cohort, nimbus, facts):
    stores = (cohort / "s0.zarr", cohort / "s1.zarr")
    call = ("subtype", *stores, "--model", cohort / "untrained", *QUIET)
    plan = facts(*call, "--dry-run", "--thresholds", "CD45=0.4", "--hierarchy", "CD3e=CD45")
    assert (plan["thresholds"]["CD45"], plan["thresholds"]["CD4"]) == (0.4, 0.5)
    assert plan["hierarchy"] == {"CD3e": "CD45"}
    assert "subtypes" not in sd.read_zarr(stores[0]).tables
    cuts = cohort / "cuts.json"
    cuts.write_text(json.dumps({"CD45": 0.45, "CD3e": 0.55}))
    done = facts(*call, "--thresholds", cuts, "--hierarchy", "none")
    assert sum(t["n_cells"] for t in done["tables"]) == plan["n_cells"]
    assert done["n_inconsistent"] == 0
    objects = [sd.read_zarr(store) for store in stores]
    for sdata in objects:
        del sdata.tables["subtypes"]
    asked = {"thresholds": {"CD45": 0.45, "CD3e": 0.55}, "hierarchy": False, "progress": False}
    nb.tl.predict_subtypes(objects, model=cohort / "untrained", **asked)
    for sdata, store in zip(objects, stores, strict=True):
        found = sd.read_zarr(store)["subtypes"]
        np.testing.assert_array_equal(found.X, sdata["subtypes"].X)
        np.testing.assert_array_equal(found.layers["positive"], sdata["subtypes"].layers["positive"])
    code, out, err = nimbus(*call, "--out-dir", cohort / "found", "--table", "other")
    assert code == 0, err
    assert f"{cohort}/found/s1.zarr/tables/other" in out
    assert "other" not in sd.read_zarr(stores[1]).tables


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "nothing"), "no sub-typing model at nothing"),
        (("--image", "p0s0_if"), "an H&E has 3"),
        (("--thresholds", "CD99=0.4"), "does not predict"),
        (("--thresholds", "CD45=high"), "must be a number"),
        (("--thresholds", "1.4"), "must be a probability"),
        (("--thresholds", "cuts.csv"), "there is no such file"),
        (("--hierarchy", "CD3e"), "valid: name=value"),
        (("--hierarchy", "CD3e=CD45,CD3e=CD4"), "'CD3e' comes twice"),
        (("--mpp", 325), "is that in nm?"),
        (("--precision", "int8"), "int8"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_bad_calls_are_one_message(cohort, nimbus, unchanged, options, said, dry):
    unchanged(cohort)
    call = ("subtype", cohort / "s0.zarr", "--model", cohort / "untrained", *QUIET)
    code, out, err = nimbus(*call, *options, *["--dry-run"] * dry)
    assert (code, out) == (1, "")
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--config", "huge"), "no preset (finetune, paper, small)"),
        (("--layer", "gold"), "gold"),
        (("--split", "1,2"), "split"),
        (("--split", "a.csv"), "there is no such file"),
        (("--backbone", "resnet"), "--backbone resnet is unknown"),
        (("--markers", "CD99"), "CD99"),
        (("--no-pretrained", "--pretrained-path", "w"), "leave one of them out"),
        (("--trainer", "tpu"), "valid: plain, lightning"),
    ],
)
def test_training_refuses_before_it_reads(cohort, nimbus, unchanged, options, said):
    unchanged(cohort)
    call = ("train-subtyper", cohort / "s0.zarr", "--out", cohort / "model", *FEW, *QUIET, *options)
    for dry in ((), ("--dry-run",)):
        code, out, err = nimbus(*call, *dry)
        assert (code, out, said in err) == (1, "", True), err
