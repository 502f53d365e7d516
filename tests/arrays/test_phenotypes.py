"""Rules on scores: against a walk down the tree cell by cell, and what must hold for any rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays.phenotypes import (
    ROOT,
    Rule,
    deepest,
    exclusive_pairs,
    rule_probabilities,
    rule_tree,
)

MARKERS = ["CD45", "CD3", "CD4", "CD8", "CD20", "CD68", "CD163", "PanCK"]
RULES = [
    Rule(ROOT, "immune", ("CD45",), ("PanCK",)),
    Rule(ROOT, "tumour", ("PanCK",), ("CD45",)),
    Rule("immune", "T", ("CD3",), ("CD20",)),
    Rule("immune", "B", ("CD20",)),
    Rule("immune", "myeloid", anypos=("CD68", "CD163"), anyneg=("CD3", "CD20")),
    Rule("T", "CD4 T", ("CD4",)),
    Rule("T", "CD8 T", ("CD8",)),
    Rule("T", "double", ("CD4", "CD8")),
    Rule("myeloid", "T", ("CD3",)),
    Rule("T-rest", "odd T", ("PanCK",)),
]


def by_hand(p, tree):
    """One cell, by recursion: probability of each phenotype."""
    p = dict(zip(MARKERS, p, strict=True))

    def fit(conditions):
        out = 1.0
        for sign, markers in conditions:
            out *= max(p[m] if sign == "pos" else 1 - p[m] for m in markers)
        return out

    def shares(group):
        rules = [r for r in tree.rules if r.parent == group]
        odds = []
        for r in rules:
            q = fit(r.conditions)
            for other in rules:
                if r.conditions < other.conditions:
                    q *= 1 - fit(other.conditions - r.conditions)
            odds.append(q / (1 - q))
        return {r.name: o / (1 + sum(odds)) for r, o in zip(rules, odds, strict=True)}

    def mass(group):
        if group == ROOT:
            return 1.0
        if group.endswith("-rest"):
            base = group.removesuffix("-rest")
            return mass(base) * (1 - sum(shares(base).values()))
        return sum(mass(r.parent) * shares(r.parent)[group] for r in tree.rules if r.name == group)

    return [mass(name) for name in tree.names]


def test_probabilities_equal_a_walk_down_the_tree():
    tree = rule_tree(RULES)
    scores = np.random.default_rng(0).random((40, len(MARKERS)))
    expected = [by_hand(p, tree) for p in scores]
    np.testing.assert_allclose(rule_probabilities(scores, MARKERS, tree), expected, rtol=1e-9)
    mixed = np.random.default_rng(1).permutation(len(MARKERS))
    again = rule_probabilities(scores[:, mixed], [MARKERS[i] for i in mixed], tree)
    np.testing.assert_allclose(again, expected, rtol=1e-9)


@given(st.lists(st.lists(st.floats(0, 1), min_size=8, max_size=8), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_parts_never_exceed_their_group_and_names_reach_the_threshold(scores):
    tree = rule_tree([r for r in RULES if r.name != "odd T" and r.parent != "myeloid"])
    found = rule_probabilities(np.array(scores), MARKERS, tree)
    column = {name: found[:, i] for i, name in enumerate(tree.names)} | {ROOT: np.ones(len(found))}
    for group, mass in column.items():
        parts = [column[r.name] for r in tree.parts(group)]
        assert (sum(parts, np.zeros(len(found))) <= mass + 1e-9).all()
    place = deepest(found, tree, 0.5)
    named = place >= 0
    assert (found[named, place[named]] >= 0.5).all()
    top = found[:, [i for i, name in enumerate(tree.names) if name in ("immune", "tumour")]]
    assert ((top.max(1) >= 0.5) == named).all()


def test_one_part_is_a_plain_product_and_a_sure_cell_goes_to_the_bottom():
    tree = rule_tree([Rule(ROOT, "immune", ("CD45",)), Rule("immune", "T", ("CD3",), ("CD20",))])
    p = np.array([[0.9, 0.8, 0.1]])
    found = rule_probabilities(p, ["CD45", "CD3", "CD20"], tree)
    np.testing.assert_allclose(found, [[0.9, 0.9 * 0.8 * 0.9]])
    tree = rule_tree(RULES)
    cell = dict.fromkeys(MARKERS, 0.0) | {"CD45": 1.0, "CD3": 1.0, "CD4": 1.0}
    for more, name in (({}, "CD4 T"), ({"CD8": 1.0}, "double"), ({"CD4": 0.0}, "T"), ({"CD45": 0.0}, None)):
        values = np.array([list((cell | more).values())])
        place = deepest(rule_probabilities(values, MARKERS, tree), tree, 0.5)[0]
        assert (tree.names[place] if place >= 0 else None) == name


def test_two_sure_siblings_share_and_nan_stays_with_its_cell():
    tree = rule_tree([Rule(ROOT, "T", ("CD3",)), Rule(ROOT, "B", ("CD20",))])
    found = rule_probabilities(np.array([[1.0, 1.0], [np.nan, 1.0], [0.0, 1.0]]), ["CD3", "CD20"], tree)
    np.testing.assert_allclose(found[0], 0.5, rtol=1e-6)
    assert np.isnan(found[1]).all()
    assert deepest(found, tree, 0.6).tolist() == [-1, -1, 1]


def test_a_narrower_sibling_goes_first():
    flat = rule_tree([Rule(ROOT, "T", ("CD3",)), Rule(ROOT, "CD4 T", ("CD3", "CD4"))])
    found = rule_probabilities(np.array([[0.95, 0.9], [0.95, 0.1]]), ["CD3", "CD4"], flat)
    assert [flat.names[i] for i in deepest(found, flat, 0.5)] == ["CD4 T", "T"]


def test_exclusive_pairs_leave_out_what_some_phenotype_has_together():
    assert exclusive_pairs(rule_tree(RULES)) == [("CD3", "CD20")]
    plain = [r for r in RULES if r.name not in ("double", "odd T")]
    assert set(exclusive_pairs(rule_tree(plain))) == {("CD45", "PanCK"), ("CD3", "CD20"), ("CD4", "CD8")}


@pytest.mark.parametrize(
    ("rules", "match"),
    [
        ([], "no rules"),
        ([Rule(ROOT, "T")], "'T': names no marker"),
        ([Rule(ROOT, "T", ("CD3",), ("CD3",))], "'T': gives CD3 more than once"),
        ([Rule(ROOT, "T", ("CD3",)), Rule(ROOT, "T", ("CD4",))], "two rules for 'T' below 'all'"),
        ([Rule("immune", "T", ("CD3",))], "makes the parent 'immune'; valid: 'all', 'T'"),
        ([Rule(ROOT, ROOT, ("CD3",))], "'all' can't be the name"),
        ([Rule(ROOT, "", ("CD3",))], "'' can't be the name"),
        ([Rule("T", "T", ("CD3",))], "circle: T < T"),
        ([Rule("B", "A", ("CD3",)), Rule("A", "B", ("CD4",))], "circle: A < B < A"),
        ([Rule("A-rest", "A", ("CD3",)), Rule(ROOT, "A", ("CD4",))], "circle: A < A"),
    ],
)
def test_rules_that_do_not_fit_together(rules, match):
    with pytest.raises(InputError, match=match):
        rule_tree(rules)
