"""Jaccard graph and confusion kernels against slow oracles of sets and loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus_sd.arrays import neighbour_graph
from nimbus_sd.arrays.neighbour_graph import jaccard_graph, without_self
from nimbus_sd.arrays.rediscovery import count_pairs, majority, row_shares


def random_neighbours(n: int, k: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(np.delete(np.arange(n), i), k, replace=False) for i in range(n)])


def slow_jaccard(neighbours: np.ndarray) -> np.ndarray:
    n = len(neighbours)
    sets = [set(row.tolist()) for row in neighbours]
    directed = np.zeros((n, n))
    for i in range(n):
        for j in sets[i]:
            directed[i, j] = len(sets[i] & sets[j]) / len(sets[i] | sets[j])
    return (directed + directed.T) / 2


@given(st.integers(2, 25), st.integers(1, 9), st.integers(0, 99))
def test_jaccard_equals_sets(n, k, seed):
    neighbours = random_neighbours(n, min(k, n - 1), seed)
    graph = jaccard_graph(neighbours)
    np.testing.assert_allclose(graph.toarray(), slow_jaccard(neighbours), atol=1e-15)
    assert (graph.data > 0).all()
    assert graph.nnz <= 2 * neighbours.size


def test_blocks_make_no_difference(monkeypatch):
    neighbours = random_neighbours(60, 5, 1)
    whole = jaccard_graph(neighbours)
    monkeypatch.setattr(neighbour_graph, "_COMPARED", 7 * 125)  # seven rows at a time
    assert (jaccard_graph(neighbours) != whole).nnz == 0


def test_the_cell_itself_is_dropped_wherever_it_stands():
    found = np.array([[0, 1, 2], [2, 1, 0], [0, 1, 3], [1, 2, 3]])
    assert without_self(found, 2).tolist() == [[1, 2], [2, 0], [0, 1], [1, 2]]


@given(st.integers(0, 99))
def test_counts_majority_and_shares_equal_loops(seed):
    rng = np.random.default_rng(seed)
    cluster, kind = rng.integers(-1, 4, 40), rng.integers(-1, 3, 40)
    counts = count_pairs(cluster, kind, (4, 3))
    total = [int(sum((kind == t) & (cluster >= 0))) for t in range(3)]
    winners = majority(counts)
    for c in range(4):
        mine = [int(((cluster == c) & (kind == t)).sum()) for t in range(3)]
        assert counts[c].tolist() == mine
        best = -1 if not sum(mine) else min(range(3), key=lambda t: (-mine[t], total[t], t))
        assert winners[c] == best
        if sum(mine):
            assert row_shares(counts)[c].tolist() == pytest.approx([m / sum(mine) for m in mine])
        else:
            assert np.isnan(row_shares(counts)[c]).all()
