"""The cell head on merged partials: whatever the tiles and the samples, the same score for a cell."""

import numpy as np
import pytest
import torch

from nimbus_sd.arrays import Partials
from nimbus_sd.arrays.cell_context import cell_features, fit_context, neighbour_mean
from nimbus_sd.engine.head import apply_head, dataset_context
from nimbus_sd.models.head import CellHead


@pytest.fixture
def head():
    torch.manual_seed(0)
    return CellHead().eval()


def partials(seed=0, n=60, k=3, views=0):
    rng = np.random.default_rng(seed)
    count = rng.integers(20, 90, n)
    sums = {
        "score": rng.random((n, k)) * count[:, None],
        "intensity": rng.gamma(1, 30, (n, k)) * count[:, None],
        "position": rng.random((n, 2)) * 100 * count[:, None],
    }
    if views:
        sums["score_view"] = rng.random((n, k, views)) * count[:, None, None]
    return Partials(np.arange(1, n + 1), count, sums)


def slow(head, parts, scale):
    """Cell by cell."""
    p = [q.sums["score"] / q.count[:, None] for q in parts]
    x = [q.sums["intensity"] / q.count[:, None] / scale for q in parts]
    out = []
    for q, score, bright in zip(parts, p, x, strict=True):
        near = neighbour_mean(bright, q.sums["position"] / q.count[:, None])
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
    parts, scale = [partials(0, 17), partials(1, 9)], np.array([20.0, 30.0, 40.0])
    found, _ = run(head, parts, scale)
    for p, expected in zip(found, slow(head, parts, scale), strict=True):
        np.testing.assert_allclose(p.sums["score"] / p.count[:, None], expected, atol=1e-6)


def test_context_is_that_of_all_samples_and_can_be_reused(head):
    parts, scale = [partials(0), partials(1)], np.full(3, 25.0)
    both, context = run(head, parts, scale)
    alone, _ = run(head, parts[1:], scale, context=context)
    np.testing.assert_array_equal(alone[0].sums["score"], both[1].sums["score"])
    other, _ = run(head, parts[1:], scale)
    assert np.abs(other[0].sums["score"] - both[1].sums["score"]).max() > 0
    assert context.shape[0] == 3


def test_samples_without_cells_stay_empty(head):
    empty = Partials(np.empty(0, np.int64), np.empty(0, np.int64), {})
    found, _ = run(head, [empty, partials()], np.full(3, 25.0))
    assert found[0].ids.size == 0
    np.testing.assert_array_equal(
        found[1].sums["score"], run(head, [partials()], np.full(3, 25.0))[0][0].sums["score"]
    )
    assert run(head, [empty], np.full(3, 25.0))[0][0].ids.size == 0


def test_views_go_through_the_head_too(head):
    part = partials(views=2)
    part.sums["score_view"][..., 0] = part.sums["score"]
    found = run(head, [part], np.full(3, 25.0))[0][0]
    np.testing.assert_allclose(found.sums["score_view"][..., 0], found.sums["score"])


def test_inputs_are_left_as_they_were(head):
    part = partials()
    before = {k: v.copy() for k, v in part.sums.items()}
    run(head, [part], np.full(3, 25.0))
    for name, value in before.items():
        np.testing.assert_array_equal(part.sums[name], value)


def test_no_samples_have_no_context():
    assert dataset_context([], []).shape[0] == 0
