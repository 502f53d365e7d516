"""Labels that contradict each other: positive for a marker, negative for one that it implies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nimbus_sd._core.hierarchy import ancestors, check_tree


def rules(tree: Mapping[str, str]) -> list[tuple[str, str]]:
    """Every pair (marker, marker that it implies), over any number of generations.

    Examples
    --------
    >>> rules({"CD3e": "CD45", "CD4": "CD3e"})
    [('CD3e', 'CD45'), ('CD4', 'CD3e'), ('CD4', 'CD45')]
    """
    return [(child, above) for child in tree for above in ancestors(tree, child)]


def inconsistent(labels: np.ndarray, markers: Sequence[str], *, tree: Mapping[str, str]) -> np.ndarray:
    """Which cells break which rule: positive for the child, negative for an ancestor.

    An undefined label contradicts nothing.

    Parameters
    ----------
    labels
        ``(n, m)`` of 1 positive, 0 negative, NaN undefined.
    markers
        Names of the m columns.
    tree
        Child to parent.

    Returns
    -------
    bool ``(n, len(rules(tree)))``, columns in the order of :func:`rules`.

    Raises
    ------
    InputError
        If the tree runs in a circle or names a marker that is not among the columns.

    Examples
    --------
    >>> labels = np.array([[1, 1], [0, 1], [np.nan, 1]])
    >>> inconsistent(labels, ["CD45", "CD3e"], tree={"CD3e": "CD45"}).tolist()
    [[False], [True], [False]]
    """
    tree = check_tree(tree, markers, where="the labels")
    column = {name: i for i, name in enumerate(markers)}
    out = np.zeros((len(labels), len(rules(tree))), bool)
    for i, (child, above) in enumerate(rules(tree)):
        out[:, i] = (labels[:, column[child]] == 1) & (labels[:, column[above]] == 0)
    return out


def curate(
    labels: np.ndarray, markers: Sequence[str], *, tree: Mapping[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Make inconsistent cells undefined, as the paper filters them out.

    Which of two contradicting labels is wrong can't be told, and a label that rests on
    either of them is as doubtful: a cell that breaks a rule becomes undefined for all
    markers that hang together with that rule in the tree. Markers outside of it stay.

    Parameters
    ----------
    labels, markers, tree
        As for :func:`inconsistent`.

    Returns
    -------
    The labels, a float32 copy; and the broken rules as :func:`inconsistent` gives them.

    Examples
    --------
    >>> found, broken = curate(np.array([[1, 1, 0], [0, 1, 0]]), ["CD45", "CD3e", "CD20"],
    ...                        tree={"CD3e": "CD45"})
    >>> found.tolist(), broken.sum(0).tolist()
    ([[1.0, 1.0, 0.0], [nan, nan, 0.0]], [1])
    """
    broken = inconsistent(labels, markers, tree=tree)
    out = np.array(labels, dtype=np.float32)
    for family in families(tree):
        of_family = [i for i, (child, _) in enumerate(rules(tree)) if child in family]
        cells = broken[:, of_family].any(axis=1)
        out[np.ix_(cells, np.array([m in family for m in markers]))] = np.nan
    return out, broken


def families(tree: Mapping[str, str]) -> list[set[str]]:
    """Markers that hang together, by their common root.

    Examples
    --------
    >>> [sorted(f) for f in families({"CD3e": "CD45", "CD4": "CD3e", "KRT7": "PanCK"})]
    [['CD3e', 'CD4', 'CD45'], ['KRT7', 'PanCK']]
    """
    out: dict[str, set[str]] = {}
    for child in tree:
        *_, root = ancestors(tree, child)
        out.setdefault(root, {root}).add(child)
    return list(out.values())
