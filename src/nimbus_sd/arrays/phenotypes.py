"""Phenotypes by rule: probabilities of marker states multiplied down a tree; NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from nimbus_sd._core.errors import InputError

ROOT = "all"
"""Group of all cells."""
REST = "-rest"
"""Ends the name of the group of cells that are none of a phenotype's parts."""
_CERTAIN = 1 - 1e-9  # keeps odds finite


@dataclass(frozen=True)
class Rule:
    """One line of a rule table: which cells of a group are of a phenotype.

    Parameters
    ----------
    parent
        Group that is divided: :data:`ROOT`, another phenotype, or one with :data:`REST`.
    name
        The phenotype.
    pos, neg
        Markers that must all be positive, negative.
    anypos, anyneg
        Markers of which at least one must be.
    """

    parent: str
    name: str
    pos: tuple[str, ...] = ()
    neg: tuple[str, ...] = ()
    anypos: tuple[str, ...] = ()
    anyneg: tuple[str, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """Markers that the rule reads, each once."""
        return tuple(dict.fromkeys((*self.pos, *self.neg, *self.anypos, *self.anyneg)))

    @property
    def conditions(self) -> frozenset[tuple[str, tuple[str, ...]]]:
        """What must hold, all of it: ``("pos", markers)``, at least one of the markers."""
        each = {("pos", (m,)) for m in self.pos} | {("neg", (m,)) for m in self.neg}
        some = {("pos", tuple(sorted(self.anypos))), ("neg", tuple(sorted(self.anyneg)))}
        return frozenset(each | {(sign, markers) for sign, markers in some if markers})


@dataclass(frozen=True)
class Tree:
    """Rules that fit together, parents before their parts.

    Parameters
    ----------
    rules
        In the order given.
    names
        Every phenotype once, after all groups that it is a part of.
    """

    rules: tuple[Rule, ...]
    names: tuple[str, ...]

    def parts(self, group: str) -> tuple[Rule, ...]:
        """Rules that divide a group."""
        return tuple(rule for rule in self.rules if rule.parent == group)

    def base(self, group: str) -> str:
        """Phenotype whose remaining cells make a group; itself if it is a phenotype or the root."""
        return group if group == ROOT or group in self.names else group.removesuffix(REST)

    @property
    def markers(self) -> tuple[str, ...]:
        """Markers that some rule reads, each once."""
        return tuple(dict.fromkeys(m for rule in self.rules for m in rule.markers))


def rule_tree(rules: Sequence[Rule]) -> Tree:
    """Order rules into a tree.

    A phenotype may be a part of several groups (cells come to it on several ways).

    Raises
    ------
    InputError
        If there are no rules; one has no marker, asks a marker to be both, or comes twice; a
        parent is missing; or phenotypes are parts of themselves.

    Examples
    --------
    >>> rules = [Rule("immune", "T", ("CD3",)), Rule("all", "immune", ("CD45",))]
    >>> rule_tree(rules).names
    ('immune', 'T')
    """
    if not rules:
        msg = "there are no rules; give at least one phenotype with a marker"
        raise InputError(msg)
    seen: set[tuple[str, str]] = set()
    for rule in rules:
        _check_rule(rule)
        if (rule.parent, rule.name) in seen:
            msg = f"two rules for {rule.name!r} below {rule.parent!r}; merge them, or give them two names"
            raise InputError(msg)
        seen.add((rule.parent, rule.name))
    names = tuple(dict.fromkeys(rule.name for rule in rules))
    tree = Tree(tuple(rules), names)
    lost = sorted({r.parent for r in rules if tree.base(r.parent) not in (ROOT, *names)})
    if lost:
        msg = (
            f"no rule makes the parent {', '.join(map(repr, lost))}; valid: {ROOT!r}, "
            f"{', '.join(map(repr, names))}, or one of these with {REST!r}"
        )
        raise InputError(msg)
    return Tree(tree.rules, _sorted(tree))


def _check_rule(rule: Rule) -> None:
    where = f"rule for {rule.name!r}"
    if not rule.name or rule.name == ROOT:
        msg = f"{rule.name!r} can't be the name of a phenotype below {rule.parent!r}; {ROOT!r} is all cells"
        raise InputError(msg)
    if not rule.markers:
        msg = f"{where}: names no marker; give at least one that is positive or negative"
        raise InputError(msg)
    n_given = len(rule.pos) + len(rule.neg) + len(rule.anypos) + len(rule.anyneg)
    if len(rule.markers) < n_given:
        given = [*rule.pos, *rule.neg, *rule.anypos, *rule.anyneg]
        twice = sorted({m for m in given if given.count(m) > 1})
        msg = f"{where}: gives {', '.join(twice)} more than once; ask one thing of each marker"
        raise InputError(msg)


def _sorted(tree: Tree) -> tuple[str, ...]:
    """Names, each after what it is a part of, else in the order given."""
    waiting = {name: {tree.base(r.parent) for r in tree.rules if r.name == name} for name in tree.names}
    done = [ROOT]
    while waiting:
        ready = next((name for name, parents in waiting.items() if parents <= set(done)), None)
        if ready is None:
            msg = (
                f"rules form a circle: {' < '.join(_circle(waiting))}; a phenotype can't be a part of itself"
            )
            raise InputError(msg)
        done.append(ready)
        del waiting[ready]
    return tuple(done[1:])


def _circle(waiting: dict[str, set[str]]) -> list[str]:
    way = [next(iter(waiting))]
    while True:
        after = min(name for name in waiting[way[-1]] if name in waiting)
        if after in way:
            return [*way[way.index(after) :], after]
        way.append(after)


def rule_probabilities(scores: np.ndarray, markers: Sequence[str], tree: Tree) -> np.ndarray:
    """Probability that each cell is of each phenotype.

    Parameters
    ----------
    scores
        ``(n, k)`` in [0, 1].
    markers
        Names of the columns; at least those of the tree.
    tree
        From :func:`rule_tree`.

    Returns
    -------
    float64 ``(n, len(tree.names))``. The parts of a group sum to at most the group; what is
    left is the probability to be none of them. NaN where a score that the tree reads is.

    Examples
    --------
    >>> tree = rule_tree([Rule("all", "immune", ("CD45",)), Rule("immune", "T", ("CD3",))])
    >>> rule_probabilities(np.array([[0.9, 0.5]]), ["CD45", "CD3"], tree).round(3).tolist()
    [[0.9, 0.45]]
    """
    scores = np.asarray(scores, dtype=np.float64)
    column = {name: i for i, name in enumerate(markers)}
    mass = {ROOT: np.ones(len(scores))} | {name: np.zeros(len(scores)) for name in tree.names}
    rest: dict[str, np.ndarray] = {}
    for group in (ROOT, *tree.names):  # all that flows into a group has done so when its turn comes
        for part in (group, group + REST):
            if part != group:
                if part in tree.names:
                    continue
                mass[part] = rest[group]
            rules = tree.parts(part)
            shares = _shares(scores, column, rules)
            for rule, share in zip(rules, shares.T, strict=True):
                mass[rule.name] += mass[part] * share
            rest[part] = mass[part] * np.clip(1 - shares.sum(1), 0, 1)
    out = np.stack([mass[name] for name in tree.names], axis=1)
    out[np.isnan(scores[:, [column[m] for m in tree.markers]]).any(1)] = np.nan
    return out


def _shares(scores: np.ndarray, column: dict[str, int], rules: Sequence[Rule]) -> np.ndarray:
    """Of a group's cells, probability of each part if at most one of them can be, ``(n, parts)``."""
    odds = np.zeros((len(scores), len(rules)))
    for i, rule in enumerate(rules):
        fits = _fit(scores, column, rule.conditions)
        for other in rules:  # T cells next to T cells with CD4: the former are those without
            if rule.conditions < other.conditions:
                fits = fits * (1 - _fit(scores, column, other.conditions - rule.conditions))
        fits = np.minimum(fits, _CERTAIN)
        odds[:, i] = fits / (1 - fits)
    return odds / (1 + odds.sum(1, keepdims=True))


def _fit(
    scores: np.ndarray, column: dict[str, int], conditions: frozenset[tuple[str, tuple[str, ...]]]
) -> np.ndarray:
    """Product over the conditions; of several markers the one that fits best counts."""
    out = np.ones(len(scores))
    for sign, markers in sorted(conditions):
        values = scores[:, [column[m] for m in markers]]
        out *= values.max(1) if sign == "pos" else 1 - values.min(1)
    return out


def deepest(probabilities: np.ndarray, tree: Tree, threshold: float) -> np.ndarray:
    """Phenotype of each cell: down the tree, to the likeliest part while it reaches the threshold.

    Returns
    -------
    Place in ``tree.names`` int64 ``(n,)``, -1 where no part of all cells reaches the threshold.

    Examples
    --------
    >>> tree = rule_tree([Rule("all", "immune", ("CD45",)), Rule("immune", "T", ("CD3",))])
    >>> deepest(np.array([[0.9, 0.8], [0.9, 0.3], [0.2, 0.1]]), tree, 0.5).tolist()
    [1, 0, -1]
    """
    out = np.full(len(probabilities), -1)
    for place, group in [(-1, ROOT), *enumerate(tree.names)]:
        parts = parts_below(tree, group)
        here = np.flatnonzero(out == place)
        if not parts or not here.size:
            continue
        values = np.nan_to_num(probabilities[here][:, parts], nan=-1.0)
        best = values.argmax(1)
        enough = values[np.arange(here.size), best] >= threshold
        out[here[enough]] = np.asarray(parts)[best[enough]]
    return out


def parts_below(tree: Tree, group: str) -> list[int]:
    """Places in ``tree.names`` of a phenotype's parts, those of its rest among them."""
    found = {rule.name for rule in tree.rules if tree.base(rule.parent) == group}
    return [i for i, name in enumerate(tree.names) if name in found]


def exclusive_pairs(tree: Tree) -> list[tuple[str, str]]:
    """Markers that should not be positive in one cell: they tell the parts of a group apart.

    A pair is one that two parts of a group require (``pos``), one each, and that no
    phenotype requires together, its parents' markers included.

    Examples
    --------
    >>> exclusive_pairs(rule_tree([Rule("all", "T", ("CD3",)), Rule("all", "B", ("CD20",))]))
    [('CD3', 'CD20')]
    """
    together = {pair for way in _ways(tree) for pair in product(way, way)}
    found: dict[tuple[str, str], None] = {}
    for group in dict.fromkeys(rule.parent for rule in tree.rules):
        parts = tree.parts(group)
        for i, one in enumerate(parts):
            for other in parts[i + 1 :]:
                for pair in product(one.pos, other.pos):
                    if pair not in together and pair[::-1] not in found:
                        found[pair] = None
    return list(found)


def _ways(tree: Tree) -> set[frozenset[str]]:
    """Markers that are required together on some way down."""
    ways: dict[str, set[frozenset[str]]] = {ROOT: {frozenset()}}
    for name in tree.names:
        ways[name] = {
            above | set(rule.pos) | set(rule.anypos)
            for rule in tree.rules
            if rule.name == name
            for above in ways[tree.base(rule.parent)]
        }
    return set().union(*ways.values())
