"""Trees of markers."""

import pytest

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.hierarchy import HIERARCHY, MARKERS, ancestors, check_tree


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
        ({"CD4": "CD99"}, "CD99, which the table does not have; valid: CD45"),
        ({"CD4": "CD8a", "CD8a": "CD4"}, "circle: CD4 > CD8a > CD4"),
        ({"CD4": "CD4"}, "circle"),
        ({"CD4": 3}, "must map each marker"),
        (["CD4"], "must map each marker"),
    ],
)
def test_trees_that_are_none(tree, match):
    with pytest.raises(InputError, match=match):
        check_tree(tree, MARKERS, where="the table")
