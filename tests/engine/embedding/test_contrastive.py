"""NT-Xent against loops in float64, and over processes against one."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.embedding.contrastive import nt_xent


def slow(views, temperature):
    """The definition, pair by pair."""
    b, v, _ = views.shape
    unit = views / np.linalg.norm(views, axis=2, keepdims=True)
    rows = [(p, i) for p in range(b) for i in range(v)]
    losses = []
    for p, i in rows:
        others = sum(math.exp(unit[p, i] @ unit[q, k] / temperature) for q, k in rows if q != p)
        similar = [math.exp(unit[p, i] @ unit[p, j] / temperature) for j in range(v) if j != i]
        losses += [-math.log(s / (s + others)) for s in similar]
    return float(np.mean(losses))


def simclr(first, second, temperature):
    """The loss as the SimCLR paper writes it, l(2k - 1, 2k) + l(2k, 2k - 1) over 2N."""
    z = np.concatenate([first, second])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    n, s = len(first), np.exp(z @ z.T / temperature)
    total = 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        total -= math.log(s[i, j] / (s[i].sum() - s[i, i]))
    return total / (2 * n)


@pytest.mark.parametrize("v", [2, 3, 4])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_loss_equals_the_slow_reference(rng, v, temperature):
    views = rng.normal(size=(7, v, 5)) * rng.uniform(0.1, 30, (7, v, 1))
    got = nt_xent(torch.from_numpy(views), temperature=temperature)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(slow(views, temperature), rel=1e-12)


def test_two_views_give_simclr(rng):
    views = rng.normal(size=(9, 2, 6))
    got = float(nt_xent(torch.from_numpy(views), temperature=0.2))
    assert got == pytest.approx(simclr(views[:, 0], views[:, 1], 0.2), rel=1e-12)


def test_half_precision_is_summed_in_single(rng):
    views = torch.from_numpy(rng.normal(size=(6, 4, 8)))
    got = nt_xent(views.bfloat16(), temperature=0.1)
    assert got.dtype == torch.float32
    assert float(got) == pytest.approx(slow(views.bfloat16().double().numpy(), 0.1), rel=1e-5)


def test_gradient_is_that_of_the_definition(rng):
    views = torch.from_numpy(rng.normal(size=(3, 3, 4))).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: nt_xent(x, temperature=0.5), views)


def test_twins_cost_less_than_strangers(rng):
    base = torch.from_numpy(rng.normal(size=(20, 1, 16)))
    twins = nt_xent(base.expand(-1, 4, -1), temperature=0.1)
    strangers = nt_xent(torch.from_numpy(rng.normal(size=(20, 4, 16))), temperature=0.1)
    assert float(twins) < 1.2 < float(strangers)


def test_nothing_to_compare_is_an_error():
    for shape in ((5, 1, 4), (1, 4, 4)):
        with pytest.raises(InputError, match="the loss needs at least 2 of each"):
            nt_xent(torch.ones(shape), temperature=0.1)


def test_two_processes_give_the_gradient_of_one(rng, tmp_path):
    views = torch.from_numpy(rng.normal(size=(6, 3, 5)))
    weight = torch.from_numpy(rng.normal(size=(5, 4)))
    torch.save((views, weight), tmp_path / "data")
    script = Path(__file__).with_name("gathered.py")
    runs = [
        subprocess.Popen(
            [
                sys.executable,
                str(script),
                str(rank),
                "2",
                *(str(tmp_path / n) for n in ("meet", "data", "out")),
            ]
        )
        for rank in (0, 1)
    ]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    parts = [torch.load(tmp_path / f"out{rank}", weights_only=True) for rank in (0, 1)]
    weight.requires_grad_()
    whole = nt_xent(views @ weight, temperature=0.3)
    whole.backward()
    # data-parallel training averages losses and gradients over its processes
    torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, whole.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close((parts[0][1] + parts[1][1]) / 2, weight.grad, rtol=1e-10, atol=1e-14)
    assert not torch.allclose(parts[0][1], parts[1][1])
