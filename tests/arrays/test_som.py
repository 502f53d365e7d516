"""Kernels of clustering: nearest nodes, sums, grids, z-scores, trees, consensus."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays.metaclusters import consensus, hierarchical, largest_first, z_scores
from nimbus_sd.arrays.som import add_node_sums, block_rows, grid_sides, nearest_nodes


@pytest.mark.parametrize("offset", [0, 1e5])
def test_nearest_nodes_are_those_of_all_distances(rng, offset):
    rows, codes = rng.random((500, 7)) + offset, rng.random((40, 7)) + offset
    node, distance = nearest_nodes(rows, codes)
    every = cdist(rows, codes)
    assert node.dtype == np.int32
    np.testing.assert_array_equal(node, every.argmin(1))
    np.testing.assert_allclose(distance, every.min(1), rtol=1e-6)


def test_an_equal_node_is_taken_at_distance_nought_and_the_first_of_two(rng):
    codes = rng.random((9, 4)).astype(np.float32)
    codes[7] = codes[2]
    node, distance = nearest_nodes(codes, codes)
    assert node.tolist() == [0, 1, 2, 3, 4, 5, 6, 2, 8]
    np.testing.assert_allclose(distance, 0, atol=1e-6)


def test_sums_add_up_over_blocks(rng):
    rows, node = rng.random((100, 3)), rng.integers(0, 5, 100)
    sums = np.zeros((6, 3))
    for start in range(0, 100, 17):
        add_node_sums(sums, rows[start : start + 17], node[start : start + 17])
    for i in range(6):
        np.testing.assert_allclose(sums[i], rows[node == i].sum(0), atol=1e-12)


@given(st.integers(1, 2000))
def test_grids_hold_their_nodes_or_name_numbers_that_do(n):
    try:
        short, long = grid_sides(n)
    except InputError as error:
        valid = [int(x) for x in str(error).rsplit(": ", 1)[1].split(", ")]
        assert len(valid) == 2
        for other in valid:
            grid_sides(other)
    else:
        assert short * long == n
        assert short <= long <= 3 * short
    assert block_rows(n) >= 1


def test_z_scores_are_capped_and_constants_are_nought():
    values = np.column_stack([np.r_[np.zeros(99), 1], np.full(100, 7.0)])
    z, mean, std = z_scores(values, 3.0)
    assert z.max() == 3
    assert (z[:, 1] == 0).all()
    np.testing.assert_allclose(z[:99, 0], -values[:, 0].mean() / values[:, 0].std())
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(std, values.std(0))


@pytest.mark.parametrize("method", ["average", "ward", "complete"])
@pytest.mark.parametrize("kernel", ["hierarchical", "consensus"])
def test_planted_groups_are_found_whatever_the_method(rng, kernel, method):
    planted = rng.permutation(np.repeat(np.arange(4), 10))
    z = rng.normal(0, 0.1, (40, 3)) + np.array([[0, 0, 0], [3, 0, 0], [0, 3, 0], [0, 0, 3]])[planted]
    if kernel == "hierarchical":
        labels, tree = hierarchical(z, 4, method=method)
    else:
        labels, tree = consensus(z, 4, method=method, seed=1)
    assert tree.shape == (39, 4)
    assert len({(a, b) for a, b in zip(labels, planted, strict=True)}) == 4
    assert sorted(set(labels)) == [0, 1, 2, 3]


@pytest.mark.parametrize("n_clusters", [1, 2, 5, 6])
def test_as_many_clusters_as_asked_for_even_with_equal_rows(n_clusters):
    z = np.zeros((6, 2))
    z[5] = 1
    assert len(set(hierarchical(z, n_clusters, method="average")[0])) == n_clusters
    assert len(set(consensus(z, n_clusters, method="average", seed=0)[0])) == n_clusters


def test_consensus_is_the_seeds_and_forgives_a_stray_node(rng):
    z = rng.normal(0, 1, (30, 4))
    one, two = consensus(z, 5, method="average", seed=3), consensus(z, 5, method="average", seed=3)
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
    assert not np.array_equal(one[1], consensus(z, 5, method="average", seed=4)[1])


def test_numbers_go_by_size(rng):
    labels, sizes = np.r_[np.arange(6), rng.integers(0, 6, 44)], rng.integers(0, 100, 50)
    new = largest_first(labels, sizes)
    totals = np.bincount(new, weights=sizes)
    assert (np.diff(totals) <= 0).all()
    assert len({(a, b) for a, b in zip(labels, new, strict=True)}) == 6
