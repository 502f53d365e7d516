"""The contrastive loop: it learns, it resumes to the bit, it refuses what can't work."""

from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.embedding.contrastive import nt_xent
from nimbus_sd.engine.embedding.probe import Probe, measure
from nimbus_sd.engine.embedding.supply import MemorySupply
from nimbus_sd.engine.embedding.train_config import EmbeddingTrainConfig
from nimbus_sd.engine.embedding.train_loop import EmbeddingData, fit_embedding
from nimbus_sd.engine.embedding.train_step import EmbeddingState, draw_views

MARKERS = ("a", "b", "c", "d")
TINY = replace(
    EmbeddingTrainConfig.small(),
    architecture={"kind": "next_channel", "width": 1, "embedding": 16},
    size=16,
    crops=(8, 8),
    crop=0,
    transform="identity",
    batch=16,
    epochs=3,
    optimiser="adamw",
    learning_rate=2e-3,
    reference_views=512,
    temperature=0.2,
    projection=(16, 8),
    every=4,
)
QUIET = {"device": "cpu", "progress": False}


def cells(n, seed=0):
    """Blobs: the marker that is brightest is the type, and how bright the others are tells cells apart."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, n)
    light = rng.uniform(0, 0.4, (n, 4))
    light[np.arange(n), kind] = rng.uniform(0.6, 1.0, n)
    y, x = np.mgrid[:16, :16] - 8
    blob = 200 * np.exp(-(y**2 + x**2) / 18)
    raw = rng.poisson(6, (n, 4, 16, 16)) + light[:, :, None, None] * blob
    return raw.astype(np.uint16), kind


def data(n=80, config=TINY, probe=None, **told):
    return EmbeddingData(
        MemorySupply(cells(n)[0], config.batch, config.seed), MARKERS, np.full(4, 200.0), probe, told
    )


def state_of(result):
    return result.net.state_dict()


def assert_same(a, b):
    for name, value in state_of(a).items():
        torch.testing.assert_close(state_of(b)[name], value, rtol=0, atol=0, msg=name)


def rows_of(folder):
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def test_training_lowers_the_loss_and_tells_types_apart(tmp_path):
    raw, kind = cells(200, seed=1)
    config = replace(TINY, epochs=10, batch=32, every=10, learning_rate=5e-3, scaling="none")
    untrained = replace(config, epochs=1, learning_rate=1e-12)
    probe = Probe(raw)
    before = fit_embedding(data(160, untrained, probe), untrained, **QUIET).metrics
    result = fit_embedding(data(160, config, probe), config, out=tmp_path, **QUIET)
    rows = rows_of(tmp_path)
    losses = [float(r["loss"]) for r in rows]
    assert losses[-1] < 0.75 * losses[0]
    assert losses[-1] < 0.75 * before["loss"]
    assert result.metrics["probe"] > 1.5 * before["probe"]
    here = {"scale": np.full(4, 200.0), "device": torch.device("cpu")}
    assert measure(result.net, Probe(raw, kind), config, **here) > 0.95
    assert result.metrics["loss"] == pytest.approx(losses[-1], abs=1e-5)
    assert [int(r["step"]) for r in rows] == [10, 20, 30, 40, 50]
    assert float(rows[1]["epoch"]) == 4.0
    assert float(rows[-1]["views_per_s"]) > 0
    assert result.finished
    assert not result.net.training
    assert json.loads((tmp_path / "config.json").read_text()) == config.to_dict()


@pytest.mark.parametrize("optimiser", ["lars", "adamw"])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, optimiser):
    config = replace(TINY, optimiser=optimiser)
    whole = fit_embedding(data(probe=Probe(cells(30)[0])), config, out=tmp_path / "whole", **QUIET)
    for stop in (3, 4, 9):  # between reports, at one, and after one
        torch.manual_seed(stop)  # not to be relied on
        part = fit_embedding(
            data(probe=Probe(cells(30)[0])), config, out=tmp_path / "parts", stop_at=stop, **QUIET
        )
        assert (part.step, part.finished) == (stop, False)
    parts = fit_embedding(data(probe=Probe(cells(30)[0])), config, out=tmp_path / "parts", **QUIET)
    assert (parts.step, parts.finished) == (15, True)
    assert_same(whole, parts)
    assert parts.metrics == whole.metrics
    numbers = [
        [{k: v for k, v in r.items() if k != "views_per_s"} for r in rows_of(tmp_path / n)]
        for n in ("whole", "parts")
    ]
    assert numbers[0] == numbers[1]
    again = fit_embedding(data(probe=Probe(cells(30)[0])), config, out=tmp_path / "parts", **QUIET)
    assert_same(whole, again)
    assert again.metrics == whole.metrics


def test_the_seed_decides_everything_and_a_probe_nothing():
    before = torch.random.get_rng_state()
    first = fit_embedding(data(), TINY, **QUIET)
    assert torch.equal(before, torch.random.get_rng_state())
    assert_same(first, fit_embedding(data(probe=Probe(*cells(30))), TINY, **QUIET))
    other = replace(TINY, seed=1)
    assert not torch.equal(
        first.net.last.weight, fit_embedding(data(config=other), other, **QUIET).net.last.weight
    )


def test_the_architecture_is_kept_and_the_projection_is_not():
    config = replace(TINY, architecture={"kind": "cim", "embedding": 24}, epochs=1)
    net = fit_embedding(data(config=config), config, **QUIET).net
    assert type(net).__name__ == "CIM"
    assert net(torch.zeros(2, 4, 8, 8)).shape == (2, 24)
    assert net.config.markers == MARKERS
    assert not any("head" in name for name in net.state_dict())


def test_without_a_projection_embeddings_are_compared_themselves():
    config = replace(TINY, projection=())
    model = EmbeddingState.fresh(config, MARKERS).model.eval()
    seen = [torch.rand(3, 4, 8, 8) for _ in range(2)]
    torch.testing.assert_close(model(seen)[:, 1], model.net(seen[1]), rtol=1e-5, atol=1e-6)
    assert fit_embedding(data(config=config), replace(config, epochs=1), **QUIET).finished


def test_views_of_one_size_share_a_pass_and_all_keep_their_place():
    model = EmbeddingState.fresh(TINY, MARKERS).model.eval()
    seen = [torch.rand(3, 4, k, k) for k in (12, 8, 12)]
    passes = []
    model.net.register_forward_hook(lambda m, x, y: passes.append(x[0].shape))
    got = model(seen)
    assert [tuple(p) for p in passes] == [(3, 4, 8, 8), (6, 4, 12, 12)]
    for i, view in enumerate(seen):
        torch.testing.assert_close(got[:, i], model.head(model.net(view)), rtol=1e-5, atol=1e-6)


def test_another_run_in_the_folder_is_refused(tmp_path):
    fit_embedding(data(), TINY, out=tmp_path, stop_at=2, **QUIET)
    bytes_before = (tmp_path / "last.pt").read_bytes()
    other = replace(TINY, temperature=0.5)
    with pytest.raises(InputError, match=r"another configuration \(temperature differ\); give another out"):
        fit_embedding(data(config=other), other, out=tmp_path, **QUIET)
    with pytest.raises(InputError, match=r"other data \(cells differ\)"):
        fit_embedding(data(64), TINY, out=tmp_path, **QUIET)
    with pytest.raises(InputError, match=r"other data \(fingerprint differ\)"):
        fit_embedding(data(fingerprint="x"), TINY, out=tmp_path, **QUIET)
    assert (tmp_path / "last.pt").read_bytes() == bytes_before


def test_a_configuration_that_can_not_be_written_leaves_the_old_one(tmp_path):
    fit_embedding(data(), TINY, out=tmp_path, stop_at=1, **QUIET)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))  # as on a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            fit_embedding(data(), TINY, out=tmp_path, stop_at=2, **QUIET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert json.loads((tmp_path / "config.json").read_text()) == TINY.to_dict()


def test_a_loss_that_is_not_finite_stops_before_the_weights(tmp_path):
    good = data()
    fit_embedding(good, TINY, out=tmp_path, stop_at=3, **QUIET)
    before = torch.load(tmp_path / "last.pt", weights_only=True)
    broken = replace(good, scale=np.full(4, np.nan))
    with pytest.raises(InputError, match=r"stopped at step 3: loss not finite.*lower learning_rate"):
        fit_embedding(broken, TINY, out=tmp_path, **QUIET)
    after = torch.load(tmp_path / "last.pt", weights_only=True)
    assert all(torch.equal(before["model"][k], after["model"][k]) for k in before["model"])


def test_what_can_not_be_trained_is_refused(tmp_path):
    with pytest.raises(InputError, match="12 cells to train on, fewer than the 16 of a batch"):
        fit_embedding(data(12), TINY, out=tmp_path / "x", **QUIET)
    deep = replace(TINY, architecture={"kind": "next_channel", "depths": (1, 1, 1, 1)})
    with pytest.raises(InputError, match=r"crops=\(8, 8\), crop=0: this network needs at least 16 px"):
        fit_embedding(data(config=deep), deep, out=tmp_path / "x", **QUIET)
    with pytest.raises(InputError, match="stop_at=0 must be at least 1"):
        fit_embedding(data(), TINY, out=tmp_path / "x", stop_at=0, **QUIET)
    assert not (tmp_path / "x").exists()


def test_every_cell_is_drawn_once_per_pass_and_shares_make_the_batch():
    supply = MemorySupply(np.arange(35)[:, None, None, None], 8, 3)
    passes = [np.concatenate([supply.rows(4 * turn + i) for i in range(4)]) for turn in range(3)]
    for rows in passes:
        assert len(set(rows.tolist())) == 32, "35 cells, batches of 8: three wait"
    assert passes[0].tolist() != passes[1].tolist()
    whole = [b.ravel() for b in supply.batches(2, 7)]
    parts = [[b.ravel() for b in supply.batches(2, 7, part=p, parts=2)] for p in (0, 1)]
    assert len(whole) == 5
    for together, a, b in zip(whole, *parts, strict=True):
        assert together.tolist() == [*a, *b]


def test_a_pass_is_put_in_order_once(monkeypatch):
    patches = np.arange(40)[:, None, None, None]
    expected = [MemorySupply(patches, 8, 3).rows(step).tolist() for step in range(12)]
    drawn, draw = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or draw(seed))
    supply = MemorySupply(patches, 8, 3)
    assert [supply.rows(step).tolist() for step in range(12)] == expected
    assert len(drawn) == 3
    assert supply.rows(1).tolist() == expected[1]
    threaded = MemorySupply(patches, 8, 3, n_threads=4)
    assert [b.ravel().tolist() for b in threaded.batches(0, 12)] == expected


def test_lightning_takes_the_same_steps(tmp_path):
    pytest.importorskip("lightning")
    from nimbus_sd.engine.embedding.train_lightning import fit_embedding_lightning

    probe = Probe(*cells(40))
    plain = fit_embedding(data(probe=probe), TINY, out=tmp_path / "plain", **QUIET)
    fit_embedding_lightning(data(probe=probe), TINY, out=tmp_path / "l", stop_at=5, **QUIET)
    mixed = fit_embedding(data(probe=probe), TINY, out=tmp_path / "l", stop_at=7, **QUIET)
    assert mixed.step == 7
    other = fit_embedding_lightning(data(probe=probe), TINY, out=tmp_path / "l", **QUIET)
    assert_same(plain, other)
    assert other.metrics == plain.metrics
    odd = replace(TINY, batch=15)
    with pytest.raises(InputError, match="batch_size=15 can't be divided among 2 processes"):
        fit_embedding_lightning(data(config=odd), odd, devices=2, strategy="ddp_spawn", **QUIET)


def loss_over_two_processes(config):
    """First loss of the first of two processes, its views compared with those of both."""
    model = EmbeddingState.fresh(config, MARKERS).model.train()
    projected = []
    for part in (0, 1):
        (raw,) = data(config=config).supply.batches(0, 1, part=part, parts=2)
        here = {"scale": np.full(4, 200.0), "step": 0, "part": part, "device": torch.device("cpu")}
        projected.append(model(draw_views(raw, config, **here)).detach())
    mine, other = (torch.nn.functional.normalize(z, dim=-1).flatten(0, 1) for z in projected)
    alone = nt_xent(projected[0], temperature=config.temperature)
    both = nt_xent(
        projected[0], temperature=config.temperature, gather=lambda rows: (torch.cat([mine, other]), 0)
    )
    return float(both), float(alone)


def test_two_processes_compare_with_all_views_and_keep_the_same_weights(tmp_path):
    pytest.importorskip("lightning")
    script = Path(__file__).with_name("two_processes.py")
    subprocess.run([sys.executable, "-W", "ignore", str(script), str(tmp_path)], check=True, timeout=200)
    (first, told), (second, silent) = (torch.load(tmp_path / f"rank{i}", weights_only=True) for i in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert silent == {}, "only one process looks"
    rows = rows_of(tmp_path / "run")
    assert [r["step"] for r in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["loss"]) == pytest.approx(told["loss"], abs=1e-5)
    both, alone = loss_over_two_processes(replace(TINY, every=1))
    assert abs(both - alone) > 0.1
    assert float(rows[0]["loss"]) == pytest.approx(both, abs=1e-4)
