"""Trees of markers."""

import pytest

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.hierarchy import HIERARCHY, MARKERS, ancestors, check_tree, contracted


def test_the_lymphocytes_are_a_tree():
    assert check_tree(HIERARCHY, MARKERS, where="it") == HIERARCHY
    assert [list(ancestors(HIERARCHY, m)) for m in MARKERS] == [
        [],
        ["CD45"],
        ["CD3e", "CD45"],
        ["CD3e", "CD45"],
    ]


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        ({"CD4": "CD99"}, "CD99, missing from the table; valid: CD45"),
        ({"CD4": "CD8a", "CD8a": "CD4"}, "circle: CD4 > CD8a > CD4"),
        ({"CD4": "CD4"}, "circle"),
        ({"CD4": 3}, "must map each marker"),
        (["CD4"], "must map each marker"),
    ],
)
def test_trees_that_are_none(tree, match):
    with pytest.raises(InputError, match=match):
        check_tree(tree, MARKERS, where="the table")


def test_a_grandparent_takes_the_place_of_a_missing_parent():
    assert contracted(HIERARCHY, MARKERS) == HIERARCHY
    assert contracted(HIERARCHY, {"CD45", "CD8a", "CD20"}) == {"CD8a": "CD45"}
    assert contracted(HIERARCHY, {"CD4", "CD8a"}) == contracted(HIERARCHY, ()) == {}
    assert contracted({"d": "c", "c": "b", "b": "a"}, "ad") == {"d": "a"}
