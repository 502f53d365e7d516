"""``nimbus-sd train`` and ``finetune``: what they would do, do, go on with and refuse."""

import json

import pytest
import spatialdata as sd

import nimbus_sd as nb

CONFIG = """preset = "small"
steps = 3
robust_steps = 0
batch = 2
crop = 64

[architecture]
depth = 3
width = 2
"""
LABELS = ("--table", "truth", "--labels-layer", "X", "--no-progress", "--device", "cpu")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(CONFIG)
    return path


def test_train_says_does_and_goes_on(scored, config, nimbus, facts, unchanged):
    store, out = scored / "s0.zarr", scored / "model"
    unchanged(store)
    call = ("train", store, "--out", out, "--config", config, *LABELS)
    plan = facts(*call, "--dry-run", "--stop-at", 2)
    assert not out.exists()
    assert (plan["step"], plan["end"], plan["steps"], plan["batch"]) == (0, 2, 3, 2)
    truth = sd.read_zarr(store)["truth"]
    assert (plan["n_cells"], plan["fields"]) == (truth.n_obs, {"train": 1})
    assert set(plan["markers"]) <= set(truth.var_names)
    code, told, _ = nimbus(*call, "--dry-run")
    assert code == 0
    assert "would train nimbus-small from random weights: 3 steps of 2 tiles on cpu" in told
    first = facts(*call, "--stop-at", 2)
    assert (first["model"], first["metrics"]["step"]) == ("nimbus-small", 2)
    assert facts(*call, "--dry-run")["step"] == 2
    done = facts(*call)
    model = nb.models.load(out)
    assert done["sha256"] == model.card.sha256
    assert done["metrics"] == model.card.metrics
    assert model.card.architecture["width"] == 2
    config.write_text(CONFIG.replace("steps = 3", "steps = 4", 1))
    code, _, err = nimbus(*call, "--dry-run")
    assert (code, "another configuration (steps differ)" in err) == (1, True)


def test_finetune(scored, facts, nimbus, tmp_path):
    tiny = nb.models.load("nimbus-sd-s")
    out = scored / "tuned"
    call = ("finetune", scored / "s0.zarr", "--out", out, "--steps", 1, *LABELS)
    plan = facts(*call, "--dry-run", "--learning-rate", 1e-5)
    assert not out.exists()
    assert (plan["parent"], plan["model"], plan["steps"]) == (tiny.name, f"{tiny.name}-finetuned", 1)
    config = tmp_path / "tune.toml"
    config.write_text('preset = "finetune"\nbatch = 1\ncrop = 64\n')
    done = facts(*call, "--config", config, "--name", "ours")
    assert done["model"] == nb.models.load(out).name == "ours"
    assert done["metrics"]["parent"] == tiny.name
    code, out, _ = nimbus("finetune", scored / "s0.zarr", "--out", scored / "other", *LABELS, "--dry-run")
    assert (code, "would train nimbus-sd-s-finetuned from nimbus-sd-s: 200 steps" in out) == (0, True)


def test_training_tiles(scored, config, facts):
    sdata = sd.read_zarr(scored / "s0.zarr")
    tiles = scored / "tiles.zarr"
    store = nb.pp.training_tiles(
        sdata, tiles, table="truth", labels_layer="X", tile=64, split=(1, 0, 0), progress=False
    )
    call = ("train", tiles, "--out", scored / "model", "--config", config, "--dry-run")
    plan = facts(*call)
    assert (plan["n_tiles"], plan["n_cells"]) == (len(store), None)
    plan = facts(*call, "--validation", tiles)
    assert plan["fields"]["validation"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--config", "tiny"), "no preset (paper, small, finetune), and no such file"),
        (("--labels-layer", "gold"), "has no layer 'gold'"),
        (("--table", "cells"), "cells"),
        (("--trainer", "tpu"), "valid: plain, lightning"),
        (("--model", "nothing"), "neither registered nor a path"),
        (("--model", '{"width"'), "neither a name nor JSON"),
        (("--stop-at", 0), "must be at least 1"),
        (("--precision", "int8"), "int8"),
        (("--validation", "nothing.zarr"), "nothing.zarr"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_bad_calls_are_one_message(scored, nimbus, unchanged, options, said, dry):
    unchanged(scored)
    code, out, err = nimbus(
        "train", scored / "s0.zarr", "--out", scored / "model", *LABELS, *options, *["--dry-run"] * dry
    )
    assert (code, out) == (1, "")
    assert said in err
    assert "Traceback" not in err


def test_a_configuration_with_a_wrong_key_names_the_file(scored, nimbus, tmp_path):
    for name, text, said in [
        ("a.toml", 'preset = "small"\nsteeps = 3', "steeps"),
        ("b.toml", "steps =", "is not TOML"),
        ("c.json", "[3]", "holds no names and values"),
        ("d.json", json.dumps({"preset": "small", "steps": -1}), "steps"),
    ]:
        (tmp_path / name).write_text(text)
        call = ("train", scored / "s0.zarr", "--out", scored / "model", "--config", tmp_path / name)
        code, _, err = nimbus(*call, *LABELS)
        assert (code, name in err, said in err) == (1, True, True), err
