"""Configurations: TOML and back, presets, rates, refusals."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.training.config import AugmentConfig, SelectionConfig, TrainConfig


def test_the_default_is_the_recipe_of_the_paper():
    config = TrainConfig()
    assert config == TrainConfig.preset("paper")
    assert (config.batch, config.learning_rate, config.weight_decay) == (16, 3e-4, 1e-3)
    assert (config.steps, config.robust_steps, config.smoothing) == (300_000, 100_000, 0.05)
    assert (config.selection.ema, config.selection.quantile_first, config.selection.quantile_last) == (
        0.01,
        0.5,
        0.85,
    )
    assert config.selection.quantile_steps == 100_000
    assert (config.augment.elastic_alpha, config.augment.elastic_sigma) == (10, 4)
    assert config.augment.thinning == config.augment.gain == 0
    assert config.architecture == {"depth": 5, "width": 64}


@pytest.mark.parametrize("name", TrainConfig.PRESETS)
def test_toml_and_back(name, tmp_path):
    config = replace(TrainConfig.preset(name), name='a "quoted" näme\n')
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert TrainConfig.from_toml(path) == config


def test_toml_may_start_from_a_preset(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('preset = "small"\nsteps = 7\n[augment]\nblur = 0.0\n[architecture]\nwidth = 4\n')
    config = TrainConfig.from_toml(path)
    small = TrainConfig.small()
    assert config == replace(
        small, steps=7, augment=replace(small.augment, blur=0.0), architecture={"width": 4}
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepps = 3", "unknown keys in the configuration: stepps; valid: name, architecture"),
        ("[augment]\nflop = 1", r"unknown keys in \[augment\]: flop"),
        ("augment = 3", r"\[augment\] must be a table"),
        ('preset = "huge"', "'huge' is no preset; valid: paper, small, finetune"),
        ("steps = [", "is not TOML"),
        ("batch = 0", r"TrainConfig.batch must lie in \[1"),
        ("steps = 1.5", "must be an int"),
        ('sampling = "best"', "valid: uniform, balanced"),
        ("learning_rate = true", "learning_rate must lie"),
        ("[augment]\nscale = [1.2, 0.8]", "must be .low, high."),
    ],
)
def test_bad_toml_says_what_is_wrong(text, message, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        TrainConfig.from_toml(path)
    assert "config.toml" in str(error.value) or "preset" in str(error.value)


@given(st.integers(0, 10**6))
def test_the_rate_warms_up_falls_and_starts_again(step):
    config = TrainConfig(
        steps=1000, robust_steps=500, warmup=100, learning_rate=1.0, robust_learning_rate=0.5, final_rate=0.1
    )
    rate = config.rate(step)
    if step < 100:
        assert rate == pytest.approx((step + 1) / 100)
    elif step < 1000:
        assert rate == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * (step - 100) / 900)) / 2)
    else:
        done = min((step - 1000) / 500, 1)
        assert rate == pytest.approx(0.5 * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2))
    assert config.is_robust(step) == (step >= 1000)


def test_the_quantile_rises_and_stays():
    config = SelectionConfig()
    assert config.quantile(0) == 0.5
    assert config.quantile(50_000) == pytest.approx(0.675)
    assert config.quantile(100_000) == config.quantile(10**7) == pytest.approx(0.85)


def test_augmentation_can_be_turned_off():
    off = AugmentConfig.off()
    switches = ("flip", "rotate", "affine", "elastic", "noise", "blur", "contrast", "thinning", "gain")
    assert all(getattr(off, f.name) == 0 for f in fields(off) if f.name in switches)
