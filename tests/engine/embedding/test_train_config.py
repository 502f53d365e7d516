"""Configurations of embeddings: the papers' figures, checks, round trips."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.embedding.train_config import EmbeddingTrainConfig, ViewConfig

PAPER = EmbeddingTrainConfig.paper()


def test_the_paper_is_the_paper():
    assert (PAPER.size, PAPER.crops, PAPER.batch, PAPER.optimiser) == (32, (16, 16, 14, 12), 768, "lars")
    assert (PAPER.learning_rate, PAPER.momentum, PAPER.weight_decay) == (4.6, 0.9, 1e-6)
    assert PAPER.views == ViewConfig((0.5, 2.0), False, (0.0, 0.1), (0.0, 360.0), (0.9, 1.1), 0.5)
    views = PAPER.total_steps(1_800_000) * PAPER.batch * len(PAPER.crops)
    assert views == 15_360_000, "5,000 epochs of one batch"
    assert PAPER.rate(9, 1_800_000) == pytest.approx(4.6)


def test_cim_is_cim():
    cim = EmbeddingTrainConfig.cim()
    assert (cim.architecture, cim.crops, cim.batch) == ({"kind": "cim"}, (20, 18), 512)
    assert (cim.temperature, cim.weight_decay, cim.total_steps(10**6)) == (0.2, 1e-5, 2000)
    assert cim.rate(199, 10**6) == pytest.approx(0.3)
    assert cim.rate(98, 10**6) == pytest.approx(0.3 * 99 / 200)


def test_rate_warms_up_and_falls_to_zero():
    config = replace(EmbeddingTrainConfig.small(), epochs=10, warmup_epochs=2, batch=100, scaling="none")
    rates = [config.rate(step, 1050) for step in range(config.total_steps(1050))]
    assert len(rates) == 100, "10 batches of 100 in 1,050 cells"
    assert rates[0] == pytest.approx(config.learning_rate / 20)
    assert rates.index(max(rates)) in (19, 20)
    assert all(a >= b for a, b in pairwise(rates[20:]))
    assert 0 < rates[-1] < 0.01 * max(rates)
    # a warm-up may not eat the whole of a short run
    assert max(replace(config, epochs=1).rate(s, 1050) for s in range(10)) == pytest.approx(
        config.learning_rate
    )


def test_reports_come_often_enough():
    assert PAPER.report_every(10**6) == 200
    short = replace(EmbeddingTrainConfig.small(), epochs=2)
    assert short.report_every(2458) == 5
    assert replace(short, epochs=100).report_every(2458) == 45
    assert replace(short, every=7).report_every(2458) == 7


@pytest.mark.parametrize(("scaling", "factor"), [("linear", 0.25), ("sqrt", 0.5), ("none", 1.0)])
def test_rate_follows_the_views(scaling, factor):
    config = replace(PAPER, batch=192, scaling=scaling)
    assert config.rate(9, 10**6) == pytest.approx(4.6 * factor)


@pytest.mark.parametrize("name", EmbeddingTrainConfig.PRESETS)
def test_presets_survive_json(name):
    config = EmbeddingTrainConfig.preset(name)
    assert EmbeddingTrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crops": (16,)}, r"crops=\(16,\) must hold whole numbers from 1: at least two, one per view"),
        ({"crops": (16, 12.5)}, "crops="),
        ({"crops": (40, 16)}, r"crops=\(40, 16\).*none can be larger than the patch, size=32"),
        ({"crop": 33}, "crop=33"),
        ({"projection": (0,)}, r"projection=\(0,\) must hold whole numbers"),
        ({"batch": 1}, r"batch must lie in \[2, "),
        ({"epochs": 0}, "epochs must lie in"),
        ({"epochs": 2.5}, "epochs must be an int, got 2.5"),
        ({"temperature": 0}, "temperature must lie in"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"optimiser": "sgd"}, "optimiser='sgd'; valid: lars, adamw"),
        ({"scaling": "log"}, "scaling='log'; valid: linear, sqrt, none"),
        ({"transform": "log"}, "transform='log'; valid: identity, sqrt"),
        ({"name": "a/b"}, "name must be a plain name"),
    ],
)
def test_wrong_values_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        replace(PAPER, **wrong)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="config='huge' is no preset; valid: small, paper, cim"):
        EmbeddingTrainConfig.preset("huge")
    with pytest.raises(InputError, match="unknown keys in the configuration: rate"):
        EmbeddingTrainConfig.from_dict({"rate": 1})
    with pytest.raises(InputError, match=r"unknown keys in \[views\]: blur"):
        EmbeddingTrainConfig.from_dict({"views": {"blur": 1}})
