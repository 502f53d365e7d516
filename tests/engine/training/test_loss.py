"""Losses and selection against slow, obvious oracles in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nimbus_sd.engine.training.config import SelectionConfig
from nimbus_sd.engine.training.loss import (
    cell_means,
    cell_sizes,
    pixel_losses,
    pixel_weights,
    weighted_mean,
)
from nimbus_sd.engine.training.selection import fresh_quantiles, group_quantiles, select


def case(seed, n=9):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n + 1, (2, 12, 10))
    labels[labels == 3] = 0  # a cell without pixels
    target = rng.choice([0, 1, np.nan], n + 1).astype(np.float32)
    target[0] = np.nan
    logits = rng.normal(0, 3, (2, 1, 12, 10)).astype(np.float32)
    return logits, labels, target


def slow_losses(logits, labels, target, smoothing):
    out = np.zeros(labels.shape)
    for at in np.ndindex(labels.shape):
        t = target[labels[at]]
        t = 0.0 if np.isnan(t) else float(t)
        t = t * (1 - smoothing) + smoothing / 2
        p = 1 / (1 + np.exp(-float(logits[at[0], 0, at[1], at[2]])))
        out[at] = -t * np.log(p) - (1 - t) * np.log(1 - p)
    return out


def torched(*arrays):
    return [torch.from_numpy(a) for a in arrays]


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.05, 0.2]))
def test_pixel_losses_are_cross_entropy_with_the_cells_label(seed, smoothing):
    logits, labels, target = case(seed)
    found = pixel_losses(*torched(logits, labels, target), smoothing=smoothing)
    np.testing.assert_allclose(found, slow_losses(logits, labels, target, smoothing), rtol=2e-4, atol=1e-6)


@given(st.integers(0, 1000))
def test_cell_means_are_means(seed):
    logits, labels, target = case(seed)
    sizes = cell_sizes(torch.from_numpy(labels), len(target))
    found = cell_means(torch.from_numpy(logits[:, 0]), torch.from_numpy(labels), sizes)
    for i in range(len(target)):
        inside = logits[:, 0][labels == i]
        assert sizes[i] == inside.size
        assert found[i] == pytest.approx(inside.mean() if inside.size else 0, abs=1e-5)


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from([0.0, 0.5, 1.0]))
def test_the_loss_leaves_undefined_cells_out_and_keeps_the_background(seed, background, balance):
    logits, labels, target = case(seed)
    losses = slow_losses(logits, labels, target, 0.05)
    areas = {i: (labels == i).sum() for i in range(1, len(target)) if (labels == i).any()}
    known = [i for i in areas if not np.isnan(target[i])]
    mean = np.mean([areas[i] for i in known]) if known else 0
    top = bottom = 0.0
    for at in np.ndindex(labels.shape):
        i = labels[at]
        w = background if i == 0 else (mean / areas[i]) ** balance if i in known else 0
        top, bottom = top + w * losses[at], bottom + w
    t_logits, t_labels, t_target = torched(logits, labels, target)
    sizes = cell_sizes(t_labels, len(target))
    weights = pixel_weights(t_target, sizes, background=background, balance=balance)
    found = weighted_mean(pixel_losses(t_logits, t_labels, t_target, smoothing=0.05), t_labels, weights)
    assert float(found) == pytest.approx(top / bottom if bottom else 0, rel=2e-4)


def test_balanced_cells_weigh_the_same():
    labels = torch.tensor([[[1] * 9 + [2]]])
    target = torch.tensor([torch.nan, 1, 0])
    weights = pixel_weights(target, cell_sizes(labels, 3), background=0, balance=1)
    assert 9 * weights[1] == pytest.approx(float(weights[2]))


@given(st.integers(0, 1000), st.floats(0, 1))
def test_group_quantiles_are_those_of_numpy(seed, q):
    rng = np.random.default_rng(seed)
    n = rng.integers(0, 40)
    losses, rows = rng.random(n).round(1), rng.integers(0, 6, n)
    found, count = group_quantiles(torch.from_numpy(losses), torch.from_numpy(rows), 7, q)
    for row in range(7):
        mine = losses[rows == row]
        assert count[row] == mine.size
        assert float(found[row]) == pytest.approx(np.quantile(mine, q) if mine.size else 0, abs=1e-5)


class Oracle:
    """The rule of the paper, cell by cell, with a dictionary."""

    def __init__(self, config):
        self.config, self.running = config, {}

    def step(self, step, losses, scores, target, group, present):
        c = self.config
        q = c.quantile_first + (c.quantile_last - c.quantile_first) * min(step / c.quantile_steps, 1)
        members = {}
        for i in range(1, len(target)):
            if present[i] and not np.isnan(target[i]):
                members.setdefault((group[i], target[i]), []).append(losses[i])
        for key, values in members.items():
            new = np.quantile(np.float64(values), q)
            old = self.running.get(key, new)
            self.running[key] = old * (1 - c.ema) + new * c.ema
        keep = []
        for i in range(len(target)):
            if i == 0 or not present[i] or np.isnan(target[i]):
                keep.append(False)
                continue
            small = losses[i] <= self.running[group[i], target[i]] + 1e-6
            sure = scores[i] > c.confidence if target[i] == 1 else scores[i] < 1 - c.confidence
            keep.append(bool(small or sure))
        return keep


@given(st.integers(0, 500))
def test_selection_follows_the_paper_cell_by_cell(seed):
    rng = np.random.default_rng(seed)
    config = SelectionConfig(ema=0.1, quantile_steps=5)
    oracle, quantiles = Oracle(config), fresh_quantiles(3)
    for step in range(8):
        n = int(rng.integers(1, 30))
        losses, scores = (rng.random(n + 1).astype(np.float32) for _ in range(2))
        target = rng.choice([0, 1, np.nan], n + 1).astype(np.float32)
        group = rng.integers(0, 3, n + 1)
        present = rng.random(n + 1) < 0.9
        target[0], group[0] = np.nan, -1
        before = quantiles.clone()
        quantiles, keep = select(
            quantiles,
            *torched(losses, scores),
            target=torch.from_numpy(target),
            group=torch.from_numpy(group),
            present=torch.from_numpy(present),
            config=config,
            step=step,
        )
        expected = oracle.step(step, losses, scores, target, group, present)
        edge = np.array(
            [
                (g, t) in oracle.running and abs(loss - oracle.running[g, t]) < 1e-5
                for g, t, loss in zip(group, target, losses, strict=True)
            ]
        )
        np.testing.assert_array_equal(keep.numpy()[~edge], np.array(expected)[~edge])
        for g in range(3):
            for t in (0, 1):
                want = oracle.running.get((g, float(t)), np.nan)
                np.testing.assert_allclose(float(quantiles[g, t]), want, rtol=1e-5)
        # what was not seen stays as it was
        untouched = [
            (g, t) for g in range(3) for t in (0, 1) if not ((group == g) & (target == t) & present).any()
        ]
        for at in untouched:
            np.testing.assert_array_equal(before[at], quantiles[at])


def test_positive_and_negative_cells_have_quantiles_of_their_own():
    losses = torch.tensor([9.0, 0.1, 0.2, 0.3, 5.0, 6.0, 7.0])
    target = torch.tensor([torch.nan, 0, 0, 0, 1, 1, 1])
    quantiles, keep = select(
        fresh_quantiles(1),
        losses,
        torch.full((7,), 0.5),
        target=target,
        group=torch.tensor([-1, 0, 0, 0, 0, 0, 0]),
        present=torch.ones(7, dtype=torch.bool),
        config=SelectionConfig(),
        step=0,
    )
    assert quantiles.tolist() == [[pytest.approx(0.2), 6.0]]
    assert keep.tolist() == [False, True, True, False, True, True, False]


def test_confident_agreement_is_kept_whatever_the_loss():
    scores = torch.tensor([0.5, 0.95, 0.95, 0.05, 0.05])
    _, keep = select(
        torch.zeros(1, 2),  # no loss is below
        torch.ones(5),
        scores,
        target=torch.tensor([torch.nan, 1, 0, 1, 0]),
        group=torch.tensor([-1, 0, 0, 0, 0]),
        present=torch.ones(5, dtype=torch.bool),
        config=SelectionConfig(),
        step=0,
    )
    assert keep.tolist() == [False, True, False, False, True]


def test_processes_share_their_quantiles():
    """Two processes, each with half of the cells, end with the same running quantiles."""
    target = torch.tensor([torch.nan, 0.0, 0.0])
    options = {
        "target": target,
        "group": torch.tensor([-1, 0, 0]),
        "present": torch.ones(3, dtype=torch.bool),
        "config": SelectionConfig(quantile_first=1.0, quantile_last=1.0),
        "step": 0,
    }
    sent = []
    for own in (1.0, 3.0):
        select(
            fresh_quantiles(1), torch.full((3,), own), target, total=lambda x: sent.append(x) or x, **options
        )
    sums = [sent[0] + sent[2], sent[1] + sent[3]]
    for own in (1.0, 3.0):
        replies = iter(sums)
        new, _ = select(
            fresh_quantiles(1), torch.full((3,), own), target, total=lambda _, r=replies: next(r), **options
        )
        assert float(new[0, 0]) == 2.0
