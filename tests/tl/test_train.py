"""Training and fine-tuning of labelled objects: what comes out predicts, what can't be is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import nimbus_sd as nb
from nimbus_sd import cli
from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.engine.training.config import TrainConfig
from nimbus_sd.models import LoadedModel, ModelCard, UNet, UNetConfig
from nimbus_sd.models.head import CellHead
from nimbus_sd.models.loading import save

CHANNELS = ["CD3", "PanCK", "CD20"]
TINY = replace(
    TrainConfig.small(),
    name="tiny",
    architecture={"depth": 3, "width": 2},
    steps=3,
    robust_steps=2,
    batch=2,
    crop=32,
    every=2,
)
QUIET = {"device": "cpu", "precision": "float32", "progress": False}


@pytest.fixture(scope="module")
def tissue():
    """Four fields at 0.5 µm per px with silver labels; do not change it."""
    sdata = nb.datasets.simulated_tissue(n_fovs=4, shape=(100, 140), channels=CHANNELS)
    table = sdata["truth"]
    table.layers["silver"] = table.X.copy()
    return sdata


@pytest.fixture
def labelled(tissue):
    """A copy of the table that may be changed."""
    sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(64, 64), channels=CHANNELS)
    sdata["truth"].layers["silver"] = sdata["truth"].X.copy()
    return sdata


def test_a_trained_model_predicts_at_once(tissue, tmp_path):
    model = nb.tl.train(tissue, config=TINY, out=tmp_path / "mine", **QUIET)
    assert isinstance(model, LoadedModel)
    card = ModelCard.read(tmp_path / "mine")
    assert card == model.card == nb.models.load(tmp_path / "mine").card
    assert (card.name, card.transform, card.mpp) == ("tiny", "sqrt", 1.0)
    assert (card.stride, card.halo) == (
        UNetConfig(depth=3, width=2).stride,
        UNetConfig(depth=3, width=2).halo,
    )
    assert card.metrics["step"] in (2, 4, 5)
    assert 0 <= card.metrics["validation_f1"] <= 1
    assert "2 fields and 3 markers (CD20, CD3, PanCK) of data" in card.training_data
    assert {p.name for p in (tmp_path / "mine" / "run").iterdir()} >= {
        "last.pt",
        "best.pt",
        "config.toml",
        "log.csv",
    }
    sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(64, 64), channels=CHANNELS, seed=1)
    for source in (tmp_path / "mine", model):
        nb.tl.predict(sdata, model=source, overwrite=True, **QUIET)
        assert np.isfinite(sdata["nimbus"].X).all()
        assert sdata["nimbus"].uns["nimbus"]["weights_sha256"] == card.sha256


def test_an_interrupted_training_of_an_object_goes_on(tissue, tmp_path):
    whole = nb.tl.train(tissue, config=TINY, out=tmp_path / "whole", **QUIET)
    nb.tl.train(tissue, config=TINY, out=tmp_path / "parts", stop_at=3, **QUIET)
    parts = nb.tl.train(tissue, config=TINY, out=tmp_path / "parts", **QUIET)
    assert whole.card.sha256 == parts.card.sha256


def test_both_trainers_give_the_same_model(tissue, tmp_path):
    pytest.importorskip("lightning")
    plain = nb.tl.train(tissue, config=TINY, out=tmp_path / "plain", **QUIET)
    other = nb.tl.train(tissue, config=TINY, out=tmp_path / "lightning", trainer="lightning", **QUIET)
    assert plain.card.sha256 == other.card.sha256
    # what was written is a source of its own
    again = nb.tl.train(tmp_path / "plain" / "tiles.zarr", config=TINY, out=tmp_path / "again", **QUIET)
    assert again.card.sha256 == plain.card.sha256


def test_finetuning_starts_from_its_parent_and_names_it(tissue, tmp_path):
    parent = nb.tl.train(tissue, config=TINY, out=tmp_path / "parent", **QUIET)
    config = replace(TrainConfig.finetune(), crop=32, batch=2)
    near = nb.tl.finetune(
        tissue, model=tmp_path / "parent", steps=4, config=config, out=tmp_path / "near", l2_sp=1e4, **QUIET
    )
    far = nb.tl.finetune(
        tissue, model=parent, steps=4, config=config, out=tmp_path / "far", l2_sp=0, name="mine", **QUIET
    )
    assert (near.name, far.name) == ("tiny-finetuned", "mine")
    for model in (near, far):
        assert model.card.metrics["parent"] == "tiny"
        assert model.card.metrics["parent_sha256"] == parent.card.sha256
        assert model.card.training_data.startswith(f"Fine-tuned from tiny (sha256 {parent.card.sha256})")
        assert "4 fields" in model.card.training_data, "no field is held out"
        assert (model.card.transform, model.card.architecture) == ("sqrt", parent.card.architecture)

    def moved(model):
        theirs = parent.net.state_dict()
        return sum(
            float((v.float() - theirs[k].float()).square().sum()) for k, v in model.net.state_dict().items()
        )

    assert 0 < moved(near) < 0.5 * moved(far)


def test_a_cell_head_stays_when_tuning_and_goes_when_training(tissue, tmp_path):
    parent = nb.tl.train(tissue, config=TINY, out=tmp_path / "parent", **QUIET)
    head = CellHead()
    save(parent.net, tmp_path / "headed", replace(parent.card, name="headed"), half=False, head=head)
    options = {"model": tmp_path / "headed", **QUIET}
    config = replace(TrainConfig.finetune(), crop=32, batch=2)
    tuned = nb.tl.finetune(tissue, steps=1, config=config, out=tmp_path / "tuned", **options)
    trained = nb.tl.train(tissue, config=TINY, out=tmp_path / "trained", stop_at=1, **options)
    again = nb.models.load(tmp_path / "tuned")
    for name, value in head.state_dict().items():
        torch.testing.assert_close(again.head.state_dict()[name], value, rtol=0, atol=0)
    assert tuned.card.score_rule == again.card.score_rule == "cell_head"
    assert trained.head is None
    assert nb.models.load(tmp_path / "trained").card.score_rule == "mean_probability"


def test_tiles_of_another_normalisation_are_refused(tissue, tmp_path):
    model = nb.tl.train(tissue, config=TINY, out=tmp_path / "a", **QUIET)
    other = replace(model, card=replace(model.card, quantile=0.999))
    with pytest.raises(InputError, match=r"don't fit model 'tiny' .quantile: tiles 0.9999, model 0.999"):
        nb.tl.finetune(tmp_path / "a" / "tiles.zarr", model=other, out=tmp_path / "b", **QUIET)


def test_the_architecture_can_be_given(tissue, tmp_path):
    model = nb.tl.train(
        tissue,
        config=replace(TINY, steps=1, robust_steps=0),
        model={"depth": 2, "width": 3},
        out=tmp_path,
        **QUIET,
    )
    assert isinstance(model.net, UNet)
    assert (model.net.config.depth, model.net.config.width) == (2, 3)


def test_bad_labels_are_refused_before_anything_is_written(labelled, tmp_path):
    table = labelled["truth"]

    def refused(message, error=InputError, **options):
        with pytest.raises(error, match=message):
            nb.tl.train(labelled, out=tmp_path / "x", **({"config": TINY} | QUIET | options))
        assert not (tmp_path / "x").exists()

    refused("no table has a layer 'gold'", ElementNotFoundError, labels_layer="gold")
    refused("no table 'cells' in the object; tables: 'truth'", ElementNotFoundError, table="cells")
    refused("config='huge' is no preset .paper, small, finetune. and no file", config="huge")
    refused("trainer='keras'; valid: plain, lightning", trainer="keras")
    silver = table.layers["silver"].copy()
    table.layers["silver"] = np.full_like(silver, np.nan)
    refused("labels none of the images' channels")
    table.layers["silver"] = np.where(silver == 1, 2, silver)
    refused(r"holds \[2.0\] for 'CD3'; valid: 1 positive, 0 negative")
    table.layers["silver"] = silver
    table.obs["instance_id"] += 100_000
    refused("of another segmentation")


def test_tiles_of_changed_labels_are_not_reused(labelled, tmp_path):
    nb.tl.train(labelled, config=TINY, out=tmp_path, stop_at=1, **QUIET)
    labelled["truth"].layers["silver"] = 1 - labelled["truth"].layers["silver"]
    with pytest.raises(InputError, match=r"tiles made with other settings or data"):
        nb.tl.train(labelled, config=TINY, out=tmp_path, **QUIET)


def test_things_that_are_no_tiles_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no training tiles|is no store of training tiles"):
        nb.tl.train(tmp_path, config=TINY, out=tmp_path / "x", **QUIET)
    with pytest.raises(InputError, match="data is a int"):
        nb.tl.train(3, config=TINY, out=tmp_path / "x", **QUIET)


def test_the_command_line_trains_and_tunes(tissue, tmp_path, monkeypatch, capsys):
    store = tmp_path / "tissue.zarr"
    sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(64, 64), channels=CHANNELS)
    sdata["truth"].layers["silver"] = sdata["truth"].X.copy()
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdata.write(store)
    toml = tmp_path / "config.toml"
    toml.write_text(TINY.to_toml())

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["nimbus-sd", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out + captured.err

    common = ("--device", "cpu", "--no-progress")
    code, said = run("train", store, "--out", tmp_path / "mine", "--config", toml, *common)
    assert code == 0, said
    assert "tiny: step 5" in said
    code, said = run(
        "finetune", store, "--out", tmp_path / "tuned", "--model", tmp_path / "mine", "--steps", 1, *common
    )
    assert code == 0, said
    card = json.loads((tmp_path / "tuned" / "card.json").read_text())
    assert card["metrics"]["parent"] == "tiny"
    code, said = run("train", store, "--out", tmp_path / "x", "--config", "none.toml")
    assert code == 1
    assert "error: --config none.toml: no preset" in said
