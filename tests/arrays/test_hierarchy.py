"""Contradicting labels: kernels against a cell-by-cell oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.hierarchy import HIERARCHY, MARKERS
from nimbus_sd.arrays.hierarchy import curate, families, inconsistent, rules

LABELS = hnp.arrays(
    np.float32, st.tuples(st.integers(0, 30), st.just(5)), elements=st.sampled_from([0.0, 1.0, np.nan])
)
NAMES = [*MARKERS, "PanCK"]
TREES = st.sampled_from(
    [
        HIERARCHY,
        {"CD8a": "CD3e"},
        {"CD3e": "CD45", "CD8a": "PanCK"},
        {},
        {"CD45": "CD3e", "CD3e": "CD4", "CD4": "CD8a", "CD8a": "PanCK"},
    ]
)


def up(tree, marker):
    while marker in tree:
        marker = tree[marker]
        yield marker


def oracle(row, tree):
    """The row after curation, one cell and one rule at a time."""
    cell = dict(zip(NAMES, row, strict=True))
    doubtful = set()
    for child in tree:
        for above in up(tree, child):
            if cell[child] == 1 and cell[above] == 0:
                root = list(up(tree, child))[-1]
                doubtful |= {m for m in NAMES if m == root or root in up(tree, m)}
    return [np.nan if m in doubtful else v for m, v in cell.items()]


@given(LABELS, TREES)
def test_curation_equals_the_oracle_and_leaves_nothing_to_do(labels, tree):
    before = labels.copy()
    found, broken = curate(labels, NAMES, tree=tree)
    np.testing.assert_array_equal(labels, before)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([oracle(r, tree) for r in labels]).reshape(labels.shape))
    assert broken.shape == (len(labels), len(rules(tree)))
    assert not inconsistent(found, NAMES, tree=tree).any()
    np.testing.assert_array_equal(curate(found, NAMES, tree=tree)[0], found)


@given(LABELS, TREES)
def test_only_cells_that_break_a_rule_change_and_none_gains_a_label(labels, tree):
    found, broken = curate(labels, NAMES, tree=tree)
    kept = ~broken.any(axis=1)
    np.testing.assert_array_equal(found[kept], labels[kept])
    assert (np.isnan(found) | (found == labels)).all()
    assert np.isnan(found[~kept]).sum() >= (~kept).sum()


def test_a_grandparent_counts_although_the_parent_is_undefined():
    labels = np.array([[0, np.nan, 1, 0, 1.0]])
    assert rules(HIERARCHY) == [
        ("CD3e", "CD45"),
        ("CD4", "CD3e"),
        ("CD4", "CD45"),
        ("CD8a", "CD3e"),
        ("CD8a", "CD45"),
    ]
    assert inconsistent(labels, NAMES, tree=HIERARCHY).tolist() == [[False, False, True, False, False]]
    found, _ = curate(labels, NAMES, tree=HIERARCHY)
    np.testing.assert_array_equal(found, [[np.nan, np.nan, np.nan, np.nan, 1]])


def test_an_undefined_parent_contradicts_nothing():
    labels = np.array([[np.nan, np.nan, 1, 1, 0]], np.float32)
    np.testing.assert_array_equal(curate(labels, NAMES, tree=HIERARCHY)[0], labels)


def test_families_of_a_forest():
    assert families({"CD3e": "CD45", "CD8a": "PanCK"}) == [{"CD45", "CD3e"}, {"PanCK", "CD8a"}]
    assert families({}) == []


@pytest.mark.parametrize(
    ("tree", "match"),
    [({"CD3e": "CD19"}, "names CD19"), ({"CD3e": "CD45", "CD45": "CD3e"}, "circle"), (["CD3e"], "must map")],
)
def test_bad_trees(tree, match):
    with pytest.raises(InputError, match=match):
        curate(np.zeros((1, 5)), NAMES, tree=tree)
