"""The loop of a sub-typing network: it learns, weighs, stops, resumes to the bit, refuses what can't work."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._core.stain import combine
from nimbus_sd.engine.embedding.supply import MemorySupply
from nimbus_sd.engine.subtyping.augment import StainConfig, augment, draw
from nimbus_sd.engine.subtyping.inputs import prepare
from nimbus_sd.engine.subtyping.loss import defined_counts, masked_bce, positive_weights
from nimbus_sd.engine.subtyping.train_config import SubtypeTrainConfig
from nimbus_sd.engine.subtyping.train_data import SubtypeData
from nimbus_sd.engine.subtyping.train_loop import fit_subtyper
from nimbus_sd.engine.subtyping.train_step import StepBatch, SubtypeState, losses, train_step
from nimbus_sd.engine.subtyping.validate import PatchArray, Validation, judge, means, probabilities

MARKERS = ("A", "B")
TINY = replace(
    SubtypeTrainConfig.small(),
    name="tiny",
    backbone={"kind": "hovernet", "width": 2, "units": [1, 1, 1, 1]},
    hidden=8,
    patch=24,
    epochs=3,
    batch=16,
    accumulation=2,
    learning_rate=3e-3,
)
QUIET = {"device": "cpu", "progress": False}


def cells(n, seed=0, size=24):
    """A: the nucleus is dark. B: it is large. A tenth of the labels is missing."""
    rng = np.random.default_rng(seed)
    kind = rng.random((n, 2)) < (0.3, 0.2)
    y, x = np.mgrid[:size, :size] - size // 2
    radius = rng.uniform(3.5, 5, n) + 3 * kind[:, 1]
    nucleus = (y**2 + x**2)[None] < radius[:, None, None] ** 2
    hed = np.zeros((n, size, size, 3))
    hed[..., 0] = np.where(nucleus, (0.04 + 0.05 * kind[:, 0])[:, None, None], 0.004)
    hed[..., 1] = rng.uniform(0.01, 0.02, (n, 1, 1)) + rng.uniform(0, 0.005, (n, size, size))
    targets = kind.astype(np.float32)
    targets[rng.random((n, 2)) < 0.1] = np.nan
    return np.ascontiguousarray(combine(hed).transpose(0, 3, 1, 2)), targets


def data(n=100, config=TINY, n_judged=60, **told):
    raw, targets = cells(n)
    judged, truth = cells(n_judged, seed=1)
    supply = MemorySupply(raw, config.effective_batch, config.seed)
    return SubtypeData(supply, targets, MARKERS, Validation(PatchArray(judged), truth), told)


def assert_same(a, b):
    for name, value in a.net.state_dict().items():
        torch.testing.assert_close(b.net.state_dict()[name], value, rtol=0, atol=0, msg=name)


def rows_of(folder):
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_tiny_network_learns_an_easy_task(tmp_path):
    backbone = {"kind": "hovernet", "width": 4, "units": [1, 1, 1, 1]}
    config = replace(TINY, backbone=backbone, epochs=10, accumulation=1, learning_rate=1e-2)
    result = fit_subtyper(data(240, config, 120), config, out=tmp_path, **QUIET)
    assert result.metrics["auroc A"] > 0.95
    assert result.metrics["auroc B"] > 0.85
    assert result.metrics["balanced_accuracy A"] > 0.85
    rows = rows_of(tmp_path)
    assert [int(r["step"]) for r in rows] == [15 * (i + 1) for i in range(10)]
    assert float(rows[-1]["loss"]) < 0.6 * float(rows[0]["loss"])
    best = max(rows, key=lambda r: float(r["auroc"]))
    assert int(best["step"]) == result.metrics["step"]
    assert float(best["auroc B"]) == pytest.approx(result.metrics["auroc B"], abs=1e-5)
    # the weights are those of the best validation
    judged, truth = cells(120, seed=1)
    scores = probabilities(result.net, PatchArray(judged), 2, patch=24, device=torch.device("cpu"))
    found = judge(truth, scores, MARKERS, threshold=0.5)
    assert found["auroc"] == pytest.approx(result.metrics["auroc"], abs=1e-6)
    assert not result.net.training
    assert result.finished
    assert json.loads((tmp_path / "config.json").read_text()) == config.to_dict()


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path):
    whole = fit_subtyper(data(), TINY, out=tmp_path / "whole", **QUIET)
    for stop in (1, 3, 5):  # within the first epoch, at its end, later
        torch.manual_seed(stop)  # not to be relied on
        part = fit_subtyper(data(), TINY, out=tmp_path / "parts", stop_at=stop, **QUIET)
        assert (part.step, part.finished) == (stop, False)
    parts = fit_subtyper(data(), TINY, out=tmp_path / "parts", **QUIET)
    assert (parts.step, parts.finished) == (9, True)
    assert_same(whole, parts)
    assert parts.metrics == whole.metrics
    numbers = [
        [{k: v for k, v in r.items() if k != "patches_per_s"} for r in rows_of(tmp_path / n)]
        for n in ("whole", "parts")
    ]
    assert numbers[0] == numbers[1]
    assert_same(whole, fit_subtyper(data(), TINY, out=tmp_path / "parts", **QUIET))


def test_lightning_takes_the_same_steps(tmp_path):
    pytest.importorskip("lightning")
    from nimbus_sd.engine.subtyping.train_lightning import fit_subtyper_lightning

    plain = fit_subtyper(data(), TINY, out=tmp_path / "plain", **QUIET)
    fit_subtyper_lightning(data(), TINY, out=tmp_path / "l", stop_at=4, **QUIET)
    fit_subtyper(data(), TINY, out=tmp_path / "l", stop_at=5, **QUIET)
    other = fit_subtyper_lightning(data(), TINY, out=tmp_path / "l", **QUIET)
    assert_same(plain, other)
    assert other.metrics == plain.metrics
    odd = replace(TINY, batch=15, accumulation=1)
    with pytest.raises(InputError, match="batch_size=15 can't be divided among 2 processes"):
        fit_subtyper_lightning(data(config=odd), odd, devices=2, strategy="ddp_spawn", **QUIET)


def test_two_processes_take_the_same_steps(tmp_path):
    pytest.importorskip("lightning")
    script = Path(__file__).with_name("subtype_two_processes.py")
    subprocess.run([sys.executable, "-W", "ignore", str(script), str(tmp_path)], check=True, timeout=200)
    (first, told), (second, silent) = (torch.load(tmp_path / f"rank{i}", weights_only=True) for i in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert silent == {}, "only one process looks"
    config = smooth(TINY)
    alone = fit_subtyper(data(config=config), config, out=tmp_path / "alone", stop_at=4, **QUIET)
    # sums are taken in another order
    for name, value in torch.load(tmp_path / "alone" / "last.pt", weights_only=True)["net"].items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=2e-5, msg=name)
    assert told["loss"] == pytest.approx(alone.metrics["loss"], abs=1e-5)


def smooth(config):
    """Without batch norms, whose statistics follow the pieces."""
    backbone = {"kind": "convnext", "depths": [1, 1], "hidden_sizes": [4, 8], "drop_path_rate": 0.0}
    return replace(config, backbone=backbone)


@pytest.mark.parametrize("multitask", [True, False])
def test_pieces_add_up_to_the_step(multitask):
    config = replace(smooth(TINY), multitask=multitask, augment=StainConfig(gain=(0.5, 2)))
    raw, targets = cells(32)
    batch = StepBatch(torch.from_numpy(raw), torch.from_numpy(targets))
    weights = torch.tensor([2.0, 5.0])
    found = []
    for size in (32, 16, 5):
        state = SubtypeState.fresh(config, MARKERS)
        pieced = replace(config, batch=size)
        loss = sum(each for each in losses(state.net, batch, pieced, weights=weights, step=3))
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in state.net.named_parameters()}))
    # the whole of it in one go, slowly
    state = SubtypeState.fresh(config, MARKERS)
    x = augment(prepare(batch.raw, 24), config.augment, draw(config.augment, 32, seed=0, step=3))
    logits = state.net(x).double()
    slow = []
    for i, weight in enumerate(weights.tolist()):
        each = [
            -(weight * np.log(p) if t == 1 else np.log(1 - p))
            for p, t in zip(torch.sigmoid(logits[:, i]).tolist(), targets[:, i], strict=True)
            if not np.isnan(t)
        ]
        slow.append(np.mean(each))
    for loss, grads in found:
        assert float(loss) == pytest.approx(np.mean(slow), rel=1e-4)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, found[0][1][name], rtol=1e-3, atol=1e-6, msg=name)


def test_undefined_labels_teach_nothing():
    logits = torch.randn(6, 2, requires_grad=True)
    targets = torch.tensor([[1, 0], [0, np.nan], [np.nan, np.nan], [1, 1], [0, 0], [1, np.nan]]).float()
    masked_bce(logits, targets, torch.ones(2), defined_counts(targets)).backward()
    assert torch.equal(logits.grad == 0, torch.isnan(targets))
    none = torch.full((3, 2), np.nan)
    assert float(masked_bce(torch.randn(3, 2), none, torch.ones(2), defined_counts(none))) == 0


def test_weights_follow_the_ratio_of_the_training_cells():
    _, targets = cells(500)
    got = positive_weights(targets, weighted=True)
    for weight, column in zip(got, targets.T, strict=True):
        assert weight == pytest.approx((column == 0).sum() / (column == 1).sum(), rel=1e-6)
    # weighed, both classes count the same
    positive, negative = (np.nansum(targets == v, axis=0) for v in (1, 0))
    np.testing.assert_allclose(got * positive, negative, rtol=1e-6)
    assert positive_weights(targets, weighted=False).tolist() == [1, 1]


def test_weighting_moves_what_is_unsure_to_the_middle():
    """Labels that nothing shows: without weights every cell gets the share of positives, with them a half."""
    plain = data(160)
    unseen = (np.random.default_rng(5).random(plain.targets.shape) < 0.15).astype(np.float32)
    mean = {}
    for weighted in (True, False):
        config = replace(TINY, weighted=weighted, epochs=8, learning_rate=1e-2, every=40)
        source = replace(data(160, config), targets=unseen)
        net = fit_subtyper(source, config, **QUIET).net
        found = probabilities(net, plain.validation.patches, 2, patch=24, device=torch.device("cpu"))
        mean[weighted] = found.mean()
    assert mean[True] == pytest.approx(0.5, abs=0.12)
    assert mean[False] == pytest.approx(0.15, abs=0.1)


def test_training_stops_when_validation_gets_no_better(tmp_path):
    config = replace(TINY, epochs=50, patience=2, learning_rate=1e-9, schedule="constant", weight_decay=0.0)
    part = fit_subtyper(data(config=config), config, out=tmp_path / "a", stop_at=4, **QUIET)
    assert not part.finished
    result = fit_subtyper(data(config=config), config, out=tmp_path / "a", **QUIET)
    assert result.finished
    assert result.step < 30
    rows = rows_of(tmp_path / "a")
    assert int(rows[-3]["step"]) == result.metrics["step"]
    again = fit_subtyper(data(config=config), config, out=tmp_path / "a", **QUIET)
    assert (again.step, again.finished) == (result.step, True)
    pytest.importorskip("lightning")
    from nimbus_sd.engine.subtyping.train_lightning import fit_subtyper_lightning

    other = fit_subtyper_lightning(data(config=config), config, **QUIET)
    assert (other.step, other.finished) == (result.step, True)


def test_a_marker_that_can_not_be_judged_is_named_and_does_not_count(tmp_path):
    plain = data()
    truth = plain.validation.targets.copy()
    truth[truth[:, 1] == 1, 1] = np.nan
    lacking = replace(plain, validation=Validation(plain.validation.patches, truth))
    result = fit_subtyper(lacking, TINY, out=tmp_path, **QUIET)
    assert np.isnan(result.metrics["auroc B"])
    assert result.metrics["auroc"] == result.metrics["auroc A"]
    row = rows_of(tmp_path)[-1]
    assert (row["auroc B"], row["undefined"]) == ("", "B: no positive cell to validate with")
    alone = replace(TINY, multitask=False, every=2)
    found = fit_subtyper(lacking, alone, out=tmp_path / "alone", **QUIET)
    assert np.isnan(found.metrics["auroc B"])
    last = torch.load(tmp_path / "alone" / "last.pt", weights_only=True)
    assert last["best_weights"].keys() == last["net"].keys(), "it follows the others"
    neither = Validation(plain.validation.patches, np.where(truth == 1, np.nan, truth))
    with pytest.raises(InputError, match=r"no marker can be validated \(A: no positive.*; B: no positive"):
        fit_subtyper(replace(plain, validation=neither), TINY, **QUIET)


def test_dropout_is_drawn_by_seed_and_step(tmp_path):
    config = replace(smooth(TINY), epochs=1)
    config = replace(config, backbone={**config.backbone, "depths": [2, 2], "drop_path_rate": 0.5})
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = fit_subtyper(data(config=config), config, **QUIET)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert_same(first, fit_subtyper(data(config=config), config, **QUIET))


def test_independent_networks_keep_the_best_weights_of_each(tmp_path):
    config = replace(TINY, multitask=False, learning_rate=2e-2, epochs=5)
    result = fit_subtyper(data(config=config), config, out=tmp_path, **QUIET)
    rows = rows_of(tmp_path)
    for marker in MARKERS:
        best = max(float(r[f"auroc {marker}"]) for r in rows)
        assert result.metrics[f"auroc {marker}"] == pytest.approx(best, abs=1e-5)
    assert result.metrics["auroc"] == pytest.approx(
        np.mean([result.metrics[f"auroc {m}"] for m in MARKERS]), abs=1e-9
    )
    judged, truth = cells(60, seed=1)
    scores = probabilities(result.net, PatchArray(judged), 2, patch=24, device=torch.device("cpu"))
    found = judge(truth, scores, MARKERS, threshold=0.5)
    for key, value in found.items():
        assert result.metrics[key] == pytest.approx(value, abs=1e-6), "weights and figures belong together"


@pytest.mark.parametrize("markers", [("CD45 RO", "CD4"), ("CD45 RO", "RO"), ("CD4 ", "CD4")])
def test_figures_of_independent_networks_follow_whole_names(markers):
    """Markers may have blanks, and be the end of another's name."""
    state = SubtypeState.fresh(replace(TINY, multitask=False), markers)
    state.keep_best({"loss": 1.0, **judged_as(markers, 0.6, 0.7)})
    state.keep_best({"loss": 2.0, **judged_as(markers, 0.8, 0.5)})
    expected = judged_as(markers, 0.8, 0.7)
    for kind in ("auroc", "balanced_accuracy"):
        for marker in markers:
            assert state.best[f"{kind} {marker}"] == expected[f"{kind} {marker}"], marker
        assert state.best[kind] == pytest.approx(0.75)


def judged_as(markers, *values):
    found = {
        f"{k} {m}": v for k in ("auroc", "balanced_accuracy") for m, v in zip(markers, values, strict=True)
    }
    return {**means(found), **found}


def test_the_clip_of_independent_networks_is_each_ones_own():
    """What one of them learns does not depend on how steep the others are."""
    raw, targets = cells(32)
    both = np.where(np.arange(2) == 0, targets, np.nan).astype(np.float32)
    config = replace(TINY, multitask=False, clip=1e-3, augment=StainConfig.off())
    grads = {}
    for name, labels in (("alone", both), ("together", targets)):
        state = SubtypeState.fresh(config, MARKERS)
        batch = StepBatch(torch.from_numpy(raw), torch.from_numpy(labels))
        train_step(state, batch, config, weights=torch.tensor([1.0, 50.0]), rate=0.0)
        each = {k: p.grad for k, p in state.net.named_parameters() if p.grad is not None}
        mine = {k: g for k, g in each.items() if k.startswith(("backbones.0.", "heads.0."))}
        grads[name] = torch.cat([g.flatten() for g in mine.values()])
        if name == "together":
            for i in range(2):
                part = [g for k, g in each.items() if k.startswith((f"backbones.{i}.", f"heads.{i}."))]
                norm = torch.cat([g.flatten() for g in part]).norm().item()
                assert norm == pytest.approx(1e-3, rel=1e-3)
    torch.testing.assert_close(grads["together"], grads["alone"], rtol=1e-4, atol=1e-9)


def test_another_run_in_the_folder_is_refused(tmp_path):
    fit_subtyper(data(), TINY, out=tmp_path, stop_at=2, **QUIET)
    before = (tmp_path / "last.pt").read_bytes()
    for source, config, message in [
        (data(), replace(TINY, weighted=False), r"another configuration \(weighted differ\)"),
        (data(96), TINY, r"other data \(cells differ\)"),
        (data(train="x"), TINY, r"other data \(train differ\)"),
    ]:
        with pytest.raises(InputError, match=message):
            fit_subtyper(source, config, out=tmp_path, **QUIET)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_before_the_weights():
    state = SubtypeState.fresh(TINY, MARKERS)
    raw, targets = cells(32)
    before = {k: v.clone() for k, v in state.net.state_dict().items() if "running" not in k}
    batch = StepBatch(torch.from_numpy(raw), torch.from_numpy(targets))
    with pytest.raises(
        InputError, match=r"stopped at step 0: loss not finite.*lower learning_rate, or set clip"
    ):
        train_step(state, batch, TINY, weights=torch.tensor([1.0, np.inf]), rate=1e-3)
    after = state.net.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before if "num_batches" not in k)


def test_what_can_not_be_trained_is_refused(tmp_path):
    one = data()
    targets = one.targets.copy()
    targets[targets[:, 1] == 1, 1] = 0
    with pytest.raises(
        InputError, match=r"too few cells to train on for B \(0 positive, \d+ negative\); at least 1"
    ):
        fit_subtyper(replace(one, targets=targets), TINY, out=tmp_path / "x", **QUIET)
    with pytest.raises(InputError, match="20 cells to train on, fewer than the 16 x 2 of a step"):
        fit_subtyper(data(20), TINY, out=tmp_path / "x", **QUIET)
    with pytest.raises(InputError, match="stop_at=0 must be at least 1"):
        fit_subtyper(one, TINY, out=tmp_path / "x", stop_at=0, **QUIET)
    assert not (tmp_path / "x").exists()


def test_weights_to_start_from_are_recorded_and_asked_for_once(tmp_path):
    config = replace(TINY, pretrained=None, epochs=1)
    with pytest.warns(NimbusWarning, match="starts from random weights"):
        part = fit_subtyper(data(), config, out=tmp_path, stop_at=1, **QUIET)
    assert part.origin == "random"
    assert fit_subtyper(data(), config, out=tmp_path, **QUIET).origin == "random", "and no second warning"


def test_configurations_are_checked_and_survive_json():
    for name in ("finetune", "paper", "small"):
        config = SubtypeTrainConfig.preset(name)
        assert SubtypeTrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    paper = SubtypeTrainConfig.paper()
    assert (paper.backbone, paper.learning_rate, paper.weight_decay) == ("convnext-base", 5e-5, 1e-5)
    assert (paper.batch, paper.accumulation, paper.patch, paper.hidden) == (32, 16, 112, 512)
    assert [round(replace(TINY, warmup_epochs=1.0).rate(s, 96) / 3e-3, 3) for s in (0, 2, 3, 9)] == [
        0.333,
        1.0,
        1.0,
        0.0,
    ]
    for values, message in [
        ({"patience": 2.5}, "patience must be an int"),
        ({"multitask": 1}, "multitask must be True or False"),
        ({"batch": 0}, r"batch must lie in \[1, "),
        ({"schedule": "step"}, "valid: constant, cosine"),
        ({"threshold": 1.5}, "threshold must lie in"),
        ({"threshold": 0}, "threshold must lie between 0 and 1, got 0"),
        ({"threshold": 1.0}, "threshold must lie between 0 and 1, got 1.0"),
        ({"pretrained": 3}, "valid: None, True, False or a path"),
        ({"patch": 4}, r"patch must lie in \[8, "),
    ]:
        with pytest.raises(InputError, match=message):
            replace(TINY, **values)
    with pytest.raises(InputError, match="'huge' is no preset; valid: finetune, paper, small"):
        SubtypeTrainConfig.preset("huge")
    with pytest.raises(InputError, match="unknown keys in the configuration: rate"):
        SubtypeTrainConfig.from_dict({"rate": 3})
