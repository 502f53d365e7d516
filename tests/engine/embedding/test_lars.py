"""LARS against NumPy, tensor by tensor."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.embedding.lars import LARS, decay_groups

SETTINGS = {"lr": 4.6, "momentum": 0.9, "weight_decay": 1e-2, "trust": 1e-3}


def slow(weights, grads, adapt, *, lr, momentum, weight_decay, trust):
    """Weights after one step per gradient, in the words of the paper."""
    w, v = weights.astype(np.float64), 0.0
    for g in grads:
        local, decay = 1.0, 0.0
        if adapt:
            decay = weight_decay
            norm_w, norm_g = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
            if norm_w > 0 and norm_g > 0:
                local = trust * norm_w / (norm_g + decay * norm_w)
        v = momentum * v + lr * local * (g + decay * w)
        w = w - v
    return w


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3)
    ).double()


def test_steps_equal_the_slow_reference(rng):
    net = network()
    net[3].weight.data.zero_()  # a layer without weights yet: rate not adapted
    before = {n: p.detach().numpy().copy() for n, p in net.named_parameters()}
    optimiser = LARS(decay_groups(net), **SETTINGS)
    grads = [{n: rng.normal(size=p.shape) for n, p in net.named_parameters()} for _ in range(4)]
    grads[2]["0.weight"] = np.zeros_like(grads[2]["0.weight"])  # no gradient: momentum and decay go on
    for each in grads:
        for name, p in net.named_parameters():
            p.grad = torch.from_numpy(each[name])
        optimiser.step()
    for name, p in net.named_parameters():
        expected = slow(before[name], [g[name] for g in grads], p.ndim > 1, **SETTINGS)
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12, atol=1e-14, err_msg=name)


def test_biases_and_norms_are_neither_adapted_nor_decayed():
    net = network()
    adapted, left = decay_groups(net)
    names = {id(p): n for n, p in net.named_parameters()}
    assert {names[id(p)] for p in adapted["params"]} == {"0.weight", "3.weight"}
    assert {names[id(p)] for p in left["params"]} == {"0.bias", "1.weight", "1.bias", "3.bias"}
    assert (left["weight_decay"], left["adapt"]) == (0.0, False)


def test_saved_state_goes_on_alike(rng):
    net = network()
    optimiser = LARS(decay_groups(net), **SETTINGS)

    def step(net, optimiser, seed):
        for p in net.parameters():
            p.grad = torch.from_numpy(np.random.default_rng((seed, p.numel())).normal(size=p.shape))
        optimiser.step()

    step(net, optimiser, 1)
    other = copy.deepcopy(net)
    resumed = LARS(decay_groups(other), lr=1.0)
    resumed.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    step(net, optimiser, 2)
    step(other, resumed, 2)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_closure_is_evaluated():
    weight = nn.Parameter(torch.ones(2, 2))
    optimiser = LARS([weight], lr=0.1)

    def closure():
        optimiser.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return float(loss.detach())

    assert optimiser.step(closure) == 4.0
    assert float(weight.detach().max()) < 1


def test_numbers_out_of_range_are_refused():
    with pytest.raises(InputError, match="LARS: lr=-1"):
        LARS([nn.Parameter(torch.ones(2, 2))], lr=-1)
    with pytest.raises(InputError, match="0 ≤ momentum < 1"):
        LARS([nn.Parameter(torch.ones(2, 2))], lr=1, momentum=1)
