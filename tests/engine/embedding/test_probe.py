"""Probes against loops, and against what chance gives."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from nimbus_sd.engine.embedding.probe import Probe, knn_accuracy, measure, twins_found
from nimbus_sd.engine.embedding.train_config import EmbeddingTrainConfig

CONFIG = EmbeddingTrainConfig.small()
CPU = torch.device("cpu")


def slow(embedding, labels, k):
    """Leave-one-out, cell by cell."""
    hits = {}
    for i, z in enumerate(embedding):
        cosine = [
            -np.inf if j == i else z @ w / np.linalg.norm(z) / np.linalg.norm(w)
            for j, w in enumerate(embedding)
        ]
        near = np.argsort(cosine)[::-1][:k]
        votes, nearness = Counter(), Counter()
        for j in near:
            votes[labels[j]] += 1
            nearness[labels[j]] += cosine[j]
        guess = max(votes, key=lambda c: (votes[c], nearness[c]))
        hits.setdefault(labels[i], []).append(guess == labels[i])
    return float(np.mean([np.mean(h) for h in hits.values() if len(h) > 1]))


@pytest.mark.parametrize("k", [1, 4, 9, 200])
def test_knn_equals_the_slow_reference(rng, k):
    labels = np.array([0] * 25 + [1] * 12 + [2] * 6 + [3] + [5, 5])  # a class of one cell, and one of none
    embedding = rng.normal(size=(len(labels), 6)) + 1.5 * np.eye(6)[labels]
    got = knn_accuracy(torch.from_numpy(embedding), labels, k=k)
    assert got == pytest.approx(slow(embedding, labels, min(k, len(labels) - 1)))


def test_knn_is_perfect_for_what_is_apart_and_chance_for_noise(rng):
    labels = rng.integers(0, 4, 800)
    apart = torch.from_numpy(rng.normal(size=(800, 8)) + 30 * np.eye(8)[labels])
    assert knn_accuracy(apart, labels, k=20) == 1.0
    noise = torch.from_numpy(rng.normal(size=(800, 8)))
    assert knn_accuracy(noise, labels, k=20) == pytest.approx(0.25, abs=0.06)


def test_twins_are_found_by_direction(rng):
    first = torch.from_numpy(rng.normal(size=(50, 5)))
    assert twins_found(first, 3 * first + 0.01) == 1.0
    assert twins_found(first, first.roll(1, 0)) == 0.0


class Means(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class Constant(nn.Module):
    def forward(self, x):
        return x.new_ones(len(x), 3)


def test_measure_sees_the_untouched_centre_and_scales_by_marker(rng):
    labels = np.repeat([0, 1], 150)
    raw = rng.integers(0, 20, (300, 2, 28, 28)).astype(np.uint16)
    raw[:150, 0, 6:22, 6:22] += 80  # only the centre of the first half
    probe = Probe(raw, labels)
    assert probe.kind == "balanced accuracy of k-NN"
    assert measure(Means(), probe, CONFIG, scale=np.array([100.0, 20.0]), device=CPU) == 1.0
    raw[:] = rng.integers(0, 100, raw.shape)
    assert measure(Means(), probe, CONFIG, scale=np.array([100.0, 20.0]), device=CPU) < 0.7


def test_measure_without_labels_is_the_same_at_each_call_and_beats_chance(rng):
    raw = rng.random((400, 8, 28, 28), dtype=np.float32) * rng.random((400, 8, 1, 1), dtype=np.float32)
    probe = Probe(raw)
    first = measure(Means(), probe, CONFIG, scale=np.ones(8), device=CPU)
    assert first == measure(Means(), probe, CONFIG, scale=np.ones(8), device=CPU)
    assert first > 10 / 400
    assert measure(Constant(), probe, CONFIG, scale=np.ones(8), device=CPU) == 1 / 400
