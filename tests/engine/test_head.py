"""The cell head on all samples' cells: whatever the tiles and the samples, the same score for a cell."""

import numpy as np
import pytest
import torch

from nimbus_sd.arrays.cell_context import cell_features, fit_context, nearest_cells, neighbour_mean
from nimbus_sd.arrays.cells import Cells
from nimbus_sd.engine.head import apply_head, dataset_context
from nimbus_sd.models.head import CellHead


@pytest.fixture
def head():
    torch.manual_seed(0)
    return CellHead().eval()


def cells(seed=0, n=60, k=3, views=0):
    rng = np.random.default_rng(seed)
    means = {
        "score": rng.random((n, k), np.float32),
        "intensity": rng.gamma(1, 30, (n, k)).astype(np.float32),
        "position": rng.random((n, 2)) * 100,
    }
    if views:
        means["score_view"] = rng.random((n, k, views), np.float32)
    return Cells(np.arange(1, n + 1), rng.integers(20, 90, n), means)


def slow(head, parts, scale):
    """Cell by cell."""
    p = [q.means["score"].astype(float) for q in parts]
    x = [q.means["intensity"] / scale for q in parts]
    out = []
    for q, score, bright in zip(parts, p, x, strict=True):
        near = neighbour_mean(bright, nearest_cells(q.means["position"]))
        found = np.empty_like(score)
        for m in range(score.shape[1]):
            context = fit_context(np.concatenate([s[:, m] for s in p]), np.concatenate([b[:, m] for b in x]))
            for i in range(len(score)):
                f = cell_features(
                    score[i : i + 1, m],
                    bright[i : i + 1, m],
                    neighbours=near[i : i + 1, m],
                    area=q.count[i : i + 1].astype(float),
                    context=context,
                )
                found[i, m] = torch.sigmoid(head(torch.from_numpy(f))).item()
        out.append(found)
    return out


def run(head, parts, scale, **other):
    return apply_head(head, parts, scale=scale, areas=[p.count.astype(float) for p in parts], **other)


def test_scores_are_those_of_every_cell_by_itself(head):
    parts, scale = [cells(0, 17), cells(1, 9)], np.array([20.0, 30.0, 40.0])
    found, _ = run(head, parts, scale)
    for p, expected in zip(found, slow(head, parts, scale), strict=True):
        np.testing.assert_allclose(p.means["score"], expected, atol=1e-6)


def test_context_is_that_of_all_samples_and_can_be_reused(head):
    parts, scale = [cells(0), cells(1)], np.full(3, 25.0)
    both, context = run(head, parts, scale)
    alone, _ = run(head, parts[1:], scale, context=context)
    np.testing.assert_array_equal(alone[0].means["score"], both[1].means["score"])
    other, _ = run(head, parts[1:], scale)
    assert np.abs(other[0].means["score"] - both[1].means["score"]).max() > 0
    assert context.shape[0] == 3


def test_samples_without_cells_stay_empty(head):
    empty = Cells(np.empty(0, np.int64), np.empty(0, np.int64), {})
    found, _ = run(head, [empty, cells()], np.full(3, 25.0))
    assert len(found[0]) == 0
    np.testing.assert_array_equal(
        found[1].means["score"], run(head, [cells()], np.full(3, 25.0))[0][0].means["score"]
    )
    assert len(run(head, [empty], np.full(3, 25.0))[0][0]) == 0


def test_views_go_through_the_head_too(head):
    part = cells(views=2)
    part.means["score_view"][..., 0] = part.means["score"]
    found = run(head, [part], np.full(3, 25.0))[0][0]
    np.testing.assert_array_equal(found.means["score_view"][..., 0], found.means["score"])


def test_inputs_are_left_as_they_were(head):
    part = cells()
    before = {k: v.copy() for k, v in part.means.items()}
    run(head, [part], np.full(3, 25.0))
    for name, value in before.items():
        np.testing.assert_array_equal(part.means[name], value)


def test_no_samples_have_no_context():
    assert not dataset_context([], np.ones(3)).any()
