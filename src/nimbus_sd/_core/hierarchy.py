"""Which marker implies which: lineage trees of markers, child to parent."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from nimbus_sd._core.errors import InputError

#: Markers of the lymphocyte sub-types.
MARKERS = ("CD45", "CD3e", "CD4", "CD8a")
#: CD45 > CD3e > {CD4, CD8a}: a helper or cytotoxic T cell is a T cell is a leukocyte.
HIERARCHY = {"CD3e": "CD45", "CD4": "CD3e", "CD8a": "CD3e"}


def check_tree(tree: Mapping[str, str], markers: Sequence[str], *, where: str) -> dict[str, str]:
    """Check a tree of markers.

    Parameters
    ----------
    tree
        Child to parent.
    markers
        Those that there are.
    where
        What has these markers, for messages.

    Returns
    -------
    The tree as a plain dict.

    Raises
    ------
    InputError
        If it is no mapping of names, names a marker that is not there, or runs in a circle.
    """
    good = isinstance(tree, Mapping) and all(isinstance(n, str) for pair in tree.items() for n in pair)
    if not good:
        msg = f"tree={tree!r} must map each marker to the one it implies, for instance {HIERARCHY}"
        raise InputError(msg)
    missing = sorted({n for pair in tree.items() for n in pair} - set(markers))
    if missing:
        msg = f"tree names {', '.join(missing)}, missing from {where}; valid: {', '.join(markers)}"
        raise InputError(msg)
    for child in tree:
        seen = [child]
        while seen[-1] in tree:
            seen.append(tree[seen[-1]])
            if seen[-1] in seen[:-1]:
                msg = f"tree runs in a circle: {' > '.join(reversed(seen))}; a marker can't imply itself"
                raise InputError(msg)
    return dict(tree)


def contracted(tree: Mapping[str, str], markers: Collection[str]) -> dict[str, str]:
    """The tree over those markers that there are: a grandparent takes the place of a missing parent.

    Examples
    --------
    >>> contracted(HIERARCHY, ["CD45", "CD4", "CD8a"])
    {'CD4': 'CD45', 'CD8a': 'CD45'}
    """
    above = {m: next((a for a in ancestors(tree, m) if a in markers), None) for m in tree if m in markers}
    return {m: a for m, a in above.items() if a is not None}


def ancestors(tree: Mapping[str, str], marker: str) -> Iterator[str]:
    """What a marker implies, nearest first.

    Examples
    --------
    >>> list(ancestors(HIERARCHY, "CD8a"))
    ['CD3e', 'CD45']
    """
    while marker in tree:
        marker = tree[marker]
        yield marker
