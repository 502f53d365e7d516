"""The loop: learns, repeats itself, resumes bit by bit, agrees with lightning, stops at rubbish."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.training.array_write import in_memory
from nimbus_sd.engine.training.batch import Sampler, random_crop
from nimbus_sd.engine.training.config import AugmentConfig, TrainConfig
from nimbus_sd.engine.training.loop import fit
from nimbus_sd.engine.training.report import read_log
from nimbus_sd.engine.training.state import TrainState
from nimbus_sd.engine.training.step import compute_loss, network_inputs, train_step
from nimbus_sd.engine.training.validate import validate

CPU = {"device": "cpu", "progress": False}


@pytest.fixture
def sources(dataset):
    return dataset.truth.split("train"), dataset.truth.split("validation")


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) for k in a)


def checkpoint(folder):
    return torch.load(folder / "last.pt", weights_only=True)


def test_training_learns_to_tell_bright_from_dark(tile, list_source, tmp_path):
    train = list_source([tile(i, field=f"f{i}") for i in range(8)])
    held = list_source([tile(100 + i, field=f"g{i}") for i in range(4)])
    config = TrainConfig(
        architecture={"depth": 2, "width": 4},
        steps=50,
        robust_steps=10,
        batch=4,
        learning_rate=1e-2,
        ema=0.9,
        every=20,
        augment=replace(AugmentConfig.off(), flip=0.5),
    )
    result = fit(train, held, config, out=tmp_path, **CPU)
    assert result.finished
    assert result.step == 60
    assert result.metrics["f1"] > 0.9
    rows = read_log(tmp_path / "log.csv")
    assert [r["step"] for r in rows] == ["20", "40", "60"]
    assert [r["stage"] for r in rows] == ["first", "first", "robust"]
    for kept in ("kept_negative", "kept_positive"):
        assert float(rows[0][kept]) == 1
        assert 0.4 < float(rows[-1][kept]) <= 1
    assert float(rows[-1]["loss"]) < 0.5
    # the kept weights are those of the best validation
    best = max(rows, key=lambda r: float(r["f1"]))
    assert result.metrics["f1"] == pytest.approx(float(best["f1"]), abs=1e-6)
    again = validate(result.net, held, config, device=torch.device("cpu"), precision=torch.float32)
    assert again["f1"] == pytest.approx(result.metrics["f1"])


def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(sources, config, tmp_path):
    whole = fit(*sources, config, out=tmp_path / "whole", **CPU)
    for stop in (1, 3, 5, None):  # within each stage, off the checkpoints' rhythm
        torch.rand(3)  # nothing may hang on the global generator
        parts = fit(*sources, config, out=tmp_path / "parts", stop_at=stop, n_threads=0, **CPU)
        assert parts.step == (stop or 8)
    one, two = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    assert same(one["net"], two["net"])
    assert same(one["average"], two["average"])
    torch.testing.assert_close(one["quantiles"], two["quantiles"], rtol=0, atol=0, equal_nan=True)
    assert (one["best"], one["running"], one["step"]) == (two["best"], two["running"], two["step"])
    assert same(whole.net.state_dict(), parts.net.state_dict())
    logs = [read_log(tmp_path / name / "log.csv") for name in ("whole", "parts")]
    for a, b in zip(*logs, strict=True):
        assert {k: v for k, v in a.items() if k != "steps_per_s"} == {
            k: v for k, v in b.items() if k != "steps_per_s"
        }


def test_a_killed_run_goes_on_from_its_last_checkpoint(sources, config, tmp_path, monkeypatch):
    whole = fit(*sources, config, out=tmp_path / "whole", **CPU)
    draw = Sampler.draw

    def killed(self, step, **options):
        if step == 5:
            raise KeyboardInterrupt
        return draw(self, step, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "draw", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(*sources, config, out=tmp_path / "killed", n_threads=0, **CPU)
    assert checkpoint(tmp_path / "killed")["step"] == 4
    resumed = fit(*sources, config, out=tmp_path / "killed", **CPU)
    assert same(whole.net.state_dict(), resumed.net.state_dict())
    assert [r["step"] for r in read_log(tmp_path / "killed" / "log.csv")] == ["2", "4", "6", "8"]


def test_lightning_gives_the_same_weights_and_resumes(sources, config, tmp_path):
    pytest.importorskip("lightning")
    from nimbus_sd.engine.training.lightning import fit_lightning

    plain = fit(*sources, config, out=tmp_path / "plain", **CPU)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # third party, and not in our hands
        wrapped = fit_lightning(*sources, config, out=tmp_path / "lightning", **CPU)
        fit_lightning(*sources, config, out=tmp_path / "parts", stop_at=3, **CPU)
        fit(*sources, config, out=tmp_path / "parts", stop_at=5, **CPU)
        parts = fit_lightning(*sources, config, out=tmp_path / "parts", **CPU)
    assert wrapped.step == parts.step == 8
    for other in (wrapped, parts):
        for name, value in plain.net.state_dict().items():
            torch.testing.assert_close(other.net.state_dict()[name], value, rtol=0, atol=0)
        assert dict(other.metrics) == dict(plain.metrics)
    one, two = checkpoint(tmp_path / "plain"), checkpoint(tmp_path / "lightning")
    assert same(one["net"], two["net"])


@pytest.mark.parametrize("trainer", ["plain", "lightning"])
def test_a_loss_that_is_not_finite_names_the_tile_and_leaves_the_checkpoint(
    trainer, sources, config, tmp_path
):
    good = in_memory(sources[0])
    fit(good, None, config, out=tmp_path, stop_at=2, **CPU)
    before = (tmp_path / "last.pt").read_bytes()
    images = good.images.copy()
    images[7] = np.nan  # CD3... of the third field
    bad = replace(good, images=images)
    run = fit
    if trainer == "lightning":
        pytest.importorskip("lightning")
        from nimbus_sd.engine.training.lightning import fit_lightning as run
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match="pixels not finite for") as error:
            run(bad, None, config, out=tmp_path, **CPU)
    assert good.tile(7).name in str(error.value)
    assert str(error.value).count("marker") == 1, "no other tile is blamed"
    after = torch.load(tmp_path / "last.pt", weights_only=True)
    assert all(torch.isfinite(v).all() for v in after["net"].values() if v.is_floating_point())
    assert after["step"] > 2 or (tmp_path / "last.pt").read_bytes() == before


def test_weights_that_are_not_finite_stop_the_run_with_all_names(sources, config, tmp_path):
    broken = TrainState.fresh(config, 3).net.state_dict()
    broken["final_conv.bias"][:] = torch.inf
    with pytest.raises(InputError, match="training stopped at step 0: loss not finite for dataset") as error:
        fit(*sources, config, out=tmp_path, weights=broken, **CPU)
    assert str(error.value).count("marker") == config.batch
    assert not (tmp_path / "last.pt").exists()


def test_another_configuration_or_other_data_is_refused(sources, config, tmp_path):
    fit(*sources, config, out=tmp_path, stop_at=1, **CPU)
    with pytest.raises(InputError, match=r"another configuration .*learning_rate differ.*another out folder"):
        fit(*sources, replace(config, learning_rate=1.0), out=tmp_path, **CPU)
    with pytest.raises(InputError, match=r"other data .validation differ"):
        fit(sources[0], None, config, out=tmp_path, **CPU)


def test_shared_fields_and_unfit_tiles_are_refused(sources, config, dataset, tile, list_source, tmp_path):
    with pytest.raises(InputError, match="share 4 field"):
        fit(sources[0], dataset.truth, config, out=tmp_path / "a", **CPU)
    odd = list_source([tile(shape=(36, 36))])
    with pytest.raises(InputError, match="multiples of 16"):
        fit(odd, None, replace(config, architecture={}, crop=0), out=tmp_path / "b", **CPU)
    with pytest.raises(InputError, match="in_channels=3, but the tiles give 2"):
        fit(odd, None, replace(config, architecture={"in_channels": 3}), out=tmp_path / "c", **CPU)
    with pytest.raises(InputError, match="a crop of 48 px does not fit into 36 x 36"):
        fit(odd, None, replace(config, crop=48), out=tmp_path / "d", n_threads=0, **CPU)
    undefined = list_source([replace(tile(field="g"), target=np.full(6, np.nan, np.float32))])
    with pytest.raises(InputError, match="no cell of the validation tiles has a label"):
        fit(list_source([tile()]), undefined, config, out=tmp_path / "e", **CPU)
    with pytest.raises(InputError, match="has no tiles"):
        fit(list_source([]), None, config, out=tmp_path / "f", **CPU)


def test_every_tile_is_seen_once_per_epoch(sources, config):
    sampler = Sampler(sources[0], replace(config, batch=5))
    seen = [i for step in range(12) for i in sampler.indices(step)]
    n = len(sources[0])
    for epoch in range(60 // n):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert seen[:n] != seen[n : 2 * n]
    assert sampler.indices(3) == Sampler(sources[0], replace(config, batch=5)).indices(3)


def test_balanced_sampling_gives_small_groups_their_share(tile, list_source, config):
    source = list_source([tile(i) for i in range(30)] + [tile(0, marker="rare")])
    sampler = Sampler(source, replace(config, sampling="balanced", batch=10))
    rare = np.mean([i == 30 for step in range(100) for i in sampler.indices(step)])
    assert 0.45 < rare < 0.55


def test_processes_divide_a_batch(sources, config):
    config = replace(config, batch=4)
    sampler = Sampler(sources[0], config)
    whole = sampler.draw(3)
    halves = [sampler.draw(3, part=k, parts=2) for k in range(2)]
    assert [h.names for h in halves] == [whole.names[::2], whole.names[1::2]]
    assert torch.equal(halves[1].planes, whole.planes[1::2])


def test_cells_are_numbered_through_the_batch(sources, config):
    batch = Sampler(sources[0], replace(config, batch=4, crop=0)).draw(0)
    assert batch.labels.max() + 1 <= len(batch.target) == len(batch.group)
    assert torch.isnan(batch.target[0])
    assert batch.group[0] == -1
    for k, index in enumerate(Sampler(sources[0], replace(config, batch=4)).indices(0)):
        tile = sources[0].tile(index)
        inside = tile.labels > 0
        assert torch.equal(batch.labels[k] > 0, torch.from_numpy(inside))
        np.testing.assert_array_equal(
            batch.target[batch.labels[k]].numpy()[inside], tile.target[tile.labels[inside] - 1]
        )
        rows = batch.group[batch.labels[k]].numpy()[inside]
        assert set(rows.tolist()) == {sources[0].groups.index((tile.dataset, tile.marker))}


def test_crops_stay_within_and_keep_their_cells(tile):
    whole = tile()
    for u, v in ((0, 0), (0.999999, 0.999999), (0.3, 0.6)):
        part = random_crop(whole, 16, u, v)
        assert part.image.shape == part.mask.shape == part.labels.shape == (16, 16)
        top, left = int(u * 17), int(v * 17)
        np.testing.assert_array_equal(part.labels, whole.labels[top : top + 16, left : left + 16])


def test_the_network_sees_what_prediction_feeds(sources, config):
    batch = Sampler(sources[0], replace(config, crop=0)).draw(0)
    inputs = network_inputs(replace(batch, planes=batch.planes * 3 - 1), "sqrt")
    np.testing.assert_allclose(inputs[:, 0], np.sqrt(np.clip(batch.planes[:, 0].numpy() * 3 - 1, 0, 1)))
    assert torch.equal(inputs[:, 1], batch.mask.float())


def test_context_and_extra_planes_reach_the_network(tile, list_source, config):
    class Contextual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, x, context):
            assert x.shape[1] == 4
            assert context.shape == (2, 3)
            return (context @ self.weight)[:, None, None, None] * x.mean(1, keepdim=True)

    tiles = [
        replace(tile(i), context=np.full(3, i, np.float32), extra=np.full((2, 32, 32), 0.25, np.float32))
        for i in range(2)
    ]
    batch = Sampler(list_source(tiles), replace(config, crop=0)).draw(0)
    state = TrainState.fresh(config, 1)
    outcome = compute_loss(Contextual(), batch, replace(config, l2_sp=0.0), state=state)
    assert torch.isfinite(outcome.loss)


def test_l2_sp_keeps_near_the_first_weights(sources, config):
    moved = []
    for strength in (0.0, 10.0):
        c = replace(config, l2_sp=strength, learning_rate=1e-3, weight_decay=0.0)
        state = TrainState.fresh(c, 3)
        first = {k: v.clone() for k, v in state.net.named_parameters()}
        sampler = Sampler(sources[0], c)
        for step in range(4):
            train_step(state, sampler.draw(step), c)
        after = state.net.state_dict()
        moved.append(sum(float((after[k] - v.detach()).square().sum()) for k, v in first.items()))
    assert moved[1] < 0.5 * moved[0]


def test_frozen_norms_keep_their_statistics(sources, config):
    for frozen in (True, False):
        c = replace(config, freeze_norm=frozen)
        state = TrainState.fresh(c, 3)
        first = {k: v.clone() for k, v in state.net.named_buffers()}
        train_step(state, Sampler(sources[0], c).draw(0), c)
        assert same(first, dict(state.net.named_buffers())) == frozen


def test_weights_to_start_from_are_taken_over(sources, config, tmp_path):
    start = TrainState.fresh(replace(config, seed=9), 3).net.state_dict()
    slow = replace(config, learning_rate=1e-9, robust_learning_rate=1e-9, weight_decay=0.0, freeze_norm=True)
    result = fit(sources[0], None, slow, out=tmp_path, weights=start, **CPU)
    for name, value in result.net.state_dict().items():
        torch.testing.assert_close(value, start[name], rtol=0, atol=1e-5)


def test_mixed_precision_stays_close(sources, config, tmp_path):
    results = [
        fit(sources[0], None, config, out=tmp_path / p, precision=p, stop_at=2, **CPU)
        for p in ("float32", "bfloat16")
    ]
    weights = [torch.cat([v.flatten() for v in r.net.state_dict().values()]).float() for r in results]
    assert not torch.equal(*weights)
    assert float((weights[0] - weights[1]).abs().max()) < 0.2
    assert all(torch.isfinite(w).all() for w in weights)


@pytest.mark.parametrize("kind", [{"kind": "resnet", "layers": 14}, {"kind": "efficientnet", "depth": 0.2}])
def test_other_backbones_train_and_are_exported(kind, tile, list_source, config, tmp_path):
    from nimbus_sd.engine.training.export import export
    from nimbus_sd.models import load

    tiles = [replace(tile(i, shape=(64, 64)), extra=np.zeros((1, 64, 64), np.float32)) for i in range(4)]
    source = list_source(tiles)
    c = replace(config, architecture={**kind, "width": 4 if "layers" in kind else 0.2}, crop=0, steps=1)
    result = fit(source, None, replace(c, robust_steps=1), out=tmp_path / "run", **CPU)
    assert result.config.architecture["in_channels"] == 3
    model = export(result, tmp_path / "m", preprocessing=source.preprocessing, training_data="nothing")
    again = load(tmp_path / "m")
    assert again.card == model.card
    assert (again.card.stride, again.card.halo) == (result.net.config.stride, result.net.config.halo)
    assert same(again.net.state_dict(), result.net.state_dict())
