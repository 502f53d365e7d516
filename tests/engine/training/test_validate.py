"""Validation against scikit-learn."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from nimbus_sd.engine.training.loop import warn_of_collapse
from nimbus_sd.engine.training.validate import (
    CellScores,
    average_precision,
    score_cells,
    spread_indices,
    validate,
)


class Bright(torch.nn.Module):
    """Logit from the marker alone."""

    def forward(self, x):
        return 12 * (x[:, :1] - 0.2)


def test_metrics_are_those_of_scikit_learn(dataset, config):
    truth, where = dataset.truth, {"device": torch.device("cpu"), "precision": torch.float32}
    found = validate(Bright(), truth, config, **where)
    score, target, group = [], [], []
    for i in range(len(truth)):
        tile = truth.tile(i)
        p = 1 / (1 + np.exp(-12 * (np.sqrt(tile.image) - 0.2)))
        for label in range(1, tile.labels.max() + 1):
            if (tile.labels == label).any() and not np.isnan(tile.target[label - 1]):
                score.append(p[tile.labels == label].mean())
                target.append(tile.target[label - 1])
                group.append(tile.marker)
    score, target, group = map(np.array, (score, target, group))
    called = score > 0.5
    assert found["f1"] == pytest.approx(f1_score(target, called))
    assert found["precision"] == pytest.approx(precision_score(target, called))
    assert found["recall"] == pytest.approx(recall_score(target, called))
    assert found["specificity"] == pytest.approx(recall_score(1 - target, ~called))
    each = [f1_score(target[group == m], called[group == m]) for m in np.unique(group)]
    assert found["f1_groups"] == pytest.approx(np.mean(each))
    cells = score_cells(Bright(), truth, config, **where)
    np.testing.assert_allclose(cells.score, score, rtol=1e-4)
    np.testing.assert_array_equal(cells.target, target)


@given(st.integers(0, 200))
def test_average_precision_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    n = rng.integers(1, 40)
    score, target = rng.random(n).round(1), rng.integers(0, 2, n)
    cells = CellScores(torch.from_numpy(score), torch.from_numpy(target), torch.zeros(n))
    if target.any():
        assert average_precision(cells) == pytest.approx(average_precision_score(target, score))
    else:
        assert np.isnan(average_precision(cells))


def test_few_tiles_are_spread_evenly():
    assert spread_indices(10, 3) == [0, 4, 9]
    assert spread_indices(3, 10) == [0, 1, 2]


def test_a_class_that_is_given_up_is_told(caplog):
    with caplog.at_level(logging.WARNING, "nimbus_sd"):
        warn_of_collapse({"kept_negative": 0.5, "kept_positive": 0.4}, 0.6)
        assert not caplog.records
        warn_of_collapse({"kept_negative": 0.02, "kept_positive": 0.9}, 0.6)
    assert "learns from only 2 % of the negative cells (expected about 60 %)" in caplog.text
