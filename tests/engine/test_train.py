"""Training: batches depend on seed and step alone, resumed equals uninterrupted, exports reload."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine import train_pool
from nimbus_sd.engine.train import TrainConfig, TrainState, main, pixel_loss, train, update_average
from nimbus_sd.engine.train_batch import Batch, BatchConfig, degrade, draw_batch
from nimbus_sd.engine.train_pool import PoolConfig, decode, encode, make_pool, split_codes, truth_codes
from nimbus_sd.engine.train_validate import cell_scores
from nimbus_sd.models.loading import load
from nimbus_sd.simulation import simulate_samples

TINY = TrainConfig(
    name="tiny",
    width=2,
    depth=3,
    steps=4,
    batch=2,
    crop=32,
    tissues=2,
    channels=2,
    side=64,
    validation=1,
    warmup=1,
)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return make_pool(tmp_path_factory.mktemp("pool"), TINY.pool_config)


def test_samples_repeat_and_fit_together():
    first, again = (simulate_samples(5, shape=(64, 96), n_channels=2) for _ in range(2))
    np.testing.assert_array_equal(first.images, again.images)
    assert first.images.shape == (2, 64, 96)
    assert first.images.dtype == np.float32
    assert first.positive.shape == (first.labels.max(), 2)
    assert (first.labels[first.interior] > 0).all()


def test_bytes_hold_square_roots():
    values = np.linspace(0, 4, 1000, dtype=np.float32)
    np.testing.assert_allclose(np.sqrt(decode(encode(values))), np.sqrt(values), atol=2 / 255 / 2 + 1e-6)


def test_codes_carry_truth_and_mask():
    labels = np.array([[0, 1], [2, 3]])
    interior = np.array([[False, True], [True, False]])
    truth, mask = split_codes(truth_codes(labels, interior, np.array([[1.0], [0.0], [np.nan]])))
    np.testing.assert_array_equal(truth[0], [[3, 1], [0, 2]])
    np.testing.assert_array_equal(mask[0], interior)


def test_a_pool_made_by_processes_is_the_same(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(train_pool, "_SHARD", 1)
    other = make_pool(tmp_path, TINY.pool_config, workers=2)
    np.testing.assert_array_equal(pool.pixels, other.pixels)
    np.testing.assert_array_equal(pool.codes, other.codes)


def test_a_pool_of_another_configuration_is_refused(tmp_path):
    make_pool(tmp_path, PoolConfig(n_tissues=1, n_channels=1, side=32))
    with pytest.raises(InputError, match="give another folder"):
        make_pool(tmp_path, PoolConfig(n_tissues=2, n_channels=1, side=32))


def test_batches_depend_on_seed_and_step_only(pool):
    config = TINY.batch_config
    first, again = (draw_batch(pool, config, seed=1, step=7) for _ in range(2))
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.inputs, draw_batch(pool, config, seed=1, step=8).inputs)
    assert first.inputs.shape == (2, 2, 32, 32)
    assert first.inputs.min() >= 0
    assert first.inputs.max() <= 1


def test_weights_leave_out_undefined_pixels(pool):
    batch = draw_batch(pool, BatchConfig(size=4, crop=64, background=0.25), seed=0, step=0)
    assert set(batch.weights.unique().tolist()) <= {0.0, 0.25, 1.0}
    np.testing.assert_allclose(sorted(batch.targets.unique().tolist()), [0.025, 0.975], atol=1e-6)


def test_gain_and_thinning():
    image = np.full((64, 64), 0.5, np.float32)
    fixed = BatchConfig(thinning=0, gain_low=0.5, gain_high=0.5)
    np.testing.assert_allclose(degrade(np.random.default_rng(0), image, fixed), 0.25, rtol=1e-6)
    thinned = BatchConfig(thinning=1, gain_low=1, gain_high=1, counts_low=20, counts_high=20)
    result = degrade(np.random.default_rng(0), image, thinned)
    assert result.mean() == pytest.approx(0.5, rel=0.05)
    np.testing.assert_allclose(result * 20, np.rint(result * 20), atol=1e-4)


def test_loss_ignores_weightless_pixels():
    logits = torch.zeros(1, 1, 2, 2)
    targets = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    weights = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    assert pixel_loss(logits, Batch(logits, targets, weights)).item() == pytest.approx(np.log(2), rel=1e-5)
    assert pixel_loss(logits, Batch(logits, targets, weights * 0)).item() == 0


def test_average_moves_faster_when_young():
    old, new = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    with torch.no_grad():
        old.weight.fill_(0)
        new.weight.fill_(1)
    update_average(old, new, step=0, decay=0.99)
    assert old.weight.item() == pytest.approx(0.9)
    update_average(old, new, step=10_000, decay=0.99)
    assert old.weight.item() == pytest.approx(0.901)


def test_cell_scores_are_means_over_all_pixels():
    probability = np.array([[[0.0, 0.5, 1.0]], [[1.0, 1.0, 0.0]]])
    np.testing.assert_allclose(cell_scores(probability, np.array([[1, 1, 2]])), [[0.25, 1], [1, 0]])


def test_resumed_equals_uninterrupted(tmp_path):
    whole, parts, pool = tmp_path / "whole", tmp_path / "parts", tmp_path / "pool"
    train(TINY, whole, precision="float32", pool=pool, every=2)
    train(TINY, parts, precision="float32", pool=pool, every=2, stop_at=2)
    train(TINY, parts, precision="float32", pool=pool, every=2)
    first, second = (torch.load(f / "checkpoint.pt", weights_only=True) for f in (whole, parts))
    assert first["step"] == second["step"] == TINY.steps
    for part in ("net", "average"):
        for key, value in first[part].items():
            torch.testing.assert_close(value, second[part][key], rtol=0, atol=0, msg=key)


def test_checkpoint_of_another_configuration_is_refused(tmp_path):
    device = torch.device("cpu")
    TrainState.fresh(TINY, device).save(tmp_path / "checkpoint.pt", TINY)
    other = replace(TINY, learning_rate=1e-3)
    with pytest.raises(InputError, match="learning_rate"):
        TrainState.fresh(other, device).restore(tmp_path / "checkpoint.pt", other)


def test_command_line_trains_and_exports(tmp_path):
    options = {
        "width": 2,
        "depth": 3,
        "steps": 1,
        "batch": 1,
        "crop": 32,
        "tissues": 1,
        "channels": 1,
        "side": 64,
    }
    arguments = ["--out", str(tmp_path), "--workers", "1", "--device", "cpu", "--validation", "1"]
    main(arguments + [part for k, v in options.items() for part in (f"--{k}", str(v))])
    model = load(tmp_path / "weights")
    assert model.card.transform == "sqrt"
    assert model.card.licence == "BSD-3-Clause"
    assert model.card.command.startswith("python -m nimbus_sd.engine.train --out")
    assert model.card.architecture["width"] == 2
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["average"]
    for key, value in model.net.state_dict().items():
        torch.testing.assert_close(value.float(), saved[key].float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainConfig(steps=0),
        lambda: TrainConfig(crop=1024),
        lambda: TrainConfig(ema=1.0),
        lambda: BatchConfig(crop=100),
        lambda: BatchConfig(gain_low=0),
        lambda: BatchConfig(thinning=2),
        lambda: PoolConfig(n_tissues=0),
    ],
)
def test_impossible_configurations_are_refused(make):
    with pytest.raises(InputError):
        make()
