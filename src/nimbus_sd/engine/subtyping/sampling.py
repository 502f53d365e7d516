"""Which labelled cells a sub-typing network sees: balanced to train, natural to test; patients kept apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nimbus_sd._core.errors import InputError

PARTS = ("train", "validation", "test")
LEAST = 0.25  # of the positive half, for each marker
Split = Sequence[float] | Mapping[str, str]


@dataclass(frozen=True)
class CellSample:
    """Cells drawn from one section.

    Attributes
    ----------
    rows
        Positions of the cells, int64, ascending, each once.
    negative
        How many of them are negative for every marker.
    positive
        How many are positive for at least one.
    per_marker
        How many are positive for each marker, int64 ``(m,)``.
    short_negative, short_positive
        Cells that are missing from either half.
    short_marker
        Positive cells that each marker's share lacks since there are no more, int64 ``(m,)``.
    crowded
        Those that it lacks since other markers' cells take their place, int64 ``(m,)``; 0 for up
        to four markers.
    """

    rows: np.ndarray
    negative: int
    positive: int
    per_marker: np.ndarray
    short_negative: int
    short_positive: int
    short_marker: np.ndarray
    crowded: np.ndarray

    @property
    def satisfied(self) -> bool:
        """Whether nothing is missing."""
        short = self.short_negative or self.short_positive
        return not (short or self.short_marker.any() or self.crowded.any())


def check_labels(labels: np.ndarray) -> np.ndarray:
    """Labels as float32 ``(n, m)``; raise :class:`InputError` unless they are 1, 0 or NaN."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "fiub":
        msg = f"labels have shape {labels.shape}, dtype {labels.dtype}; valid: numbers (cells, markers)"
        raise InputError(msg)
    labels = labels.astype(np.float32, copy=False)
    odd = ~(np.isnan(labels) | (labels == 0) | (labels == 1))
    if odd.any():
        msg = (
            f"labels hold {np.unique(labels[odd])[:5].tolist()}; valid: 1 positive, 0 negative, NaN undefined"
        )
        raise InputError(msg)
    return labels


def sample_balanced(
    labels: np.ndarray, *, n_cells: int = 20_000, rng: np.random.Generator, least: float = LEAST
) -> CellSample:
    """Draw cells of one section for training, without replacement.

    Half of them are negative for all markers (a cell with an undefined label is not). The
    other half is positive for at least one marker, and at least a quarter of it is positive
    for each marker; a cell that is positive for several counts for each of them. Markers are
    served in the order of how rare they are, then the half is filled with any positive cells.
    More than four markers have no room for a quarter each unless their cells are the same in
    part: every one is served 1 / m first, and then as much of a quarter as there is room for.

    Where a section has too few positive cells for their half, all are taken, and as many
    negative ones: the half stays a half and the sample is smaller. Where it has too few of one
    marker, all of them are taken and others fill their place. The result says what is missing.

    Parameters
    ----------
    labels
        ``(n, m)``: 1, 0, NaN (undefined).
    n_cells
        Cells to draw.
    rng
        Decides the draw.
    least
        Share of the positive half for each marker.

    Raises
    ------
    InputError
        If labels are anything else, or a number is out of range.

    Examples
    --------
    >>> labels = np.repeat([[0, 0], [1, 0], [1, 1]], [60, 30, 10], axis=0)
    >>> found = sample_balanced(labels, n_cells=40, rng=np.random.default_rng(0))
    >>> found.negative, found.positive, found.per_marker.tolist(), found.satisfied
    (20, 20, [20, 5], True)
    """
    labels = check_labels(labels)
    _check_numbers(n_cells, least)
    is_positive = labels == 1
    negatives = np.flatnonzero((labels == 0).all(axis=1)) if labels.shape[1] else np.empty(0, np.int64)
    n_positive = min(n_cells // 2, int(is_positive.any(axis=1).sum()))
    quota = math.ceil(least * n_positive - 1e-9)
    chosen = _draw_positives(is_positive, n_positive, quota, rng)
    wanted = n_cells - n_cells // 2
    most = wanted if n_positive == n_cells // 2 else n_positive
    drawn = rng.choice(negatives, min(most, len(negatives)), replace=False)
    per_marker = is_positive[chosen].sum(axis=0, dtype=np.int64)
    used_up = per_marker == is_positive.sum(axis=0)
    room = math.floor(least * n_positive + 1e-9)
    return CellSample(
        rows=np.sort(np.concatenate([chosen, drawn]).astype(np.int64)),
        negative=len(drawn),
        positive=len(chosen),
        per_marker=per_marker,
        short_negative=wanted - len(drawn),
        short_positive=n_cells // 2 - len(chosen),
        short_marker=np.where(used_up, np.maximum(quota - per_marker, 0), 0),
        crowded=np.where(used_up, 0, np.maximum(room - per_marker, 0)),
    )


def _draw_positives(is_positive: np.ndarray, n: int, quota: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of `n` positive cells, the rarest marker's share first; int64 in the order they were drawn."""
    order = rng.permutation(np.flatnonzero(is_positive.any(axis=1)))
    free = np.ones(len(order), bool)
    taken: list[np.ndarray] = []

    def take(candidates: np.ndarray, most: int) -> None:
        at = candidates[: max(most, 0)]
        free[at] = False
        taken.append(order[at])

    rarest_first = np.argsort(is_positive.sum(axis=0), kind="stable").tolist()
    # what has room for all, then what is asked for
    for share in (min(quota, n // max(len(rarest_first), 1)), quota):
        for marker in rarest_first:
            mine = is_positive[order, marker]
            missing = share - int((mine & ~free).sum())
            take(np.flatnonzero(mine & free), min(missing, n - sum(map(len, taken))))
    take(np.flatnonzero(free), n - sum(map(len, taken)))
    return np.concatenate(taken) if taken else np.empty(0, np.int64)


def sample_natural(labels: np.ndarray, *, n_cells: int = 20_000, rng: np.random.Generator) -> CellSample:
    """Draw cells of one section for a test: uniformly, of those with at least one defined label.

    Each marker's ratio of positive to negative cells is that of the section, up to chance.

    Parameters
    ----------
    labels, n_cells, rng
        As for :func:`sample_balanced`.
    """
    labels = check_labels(labels)
    _check_numbers(n_cells, LEAST)
    known = np.flatnonzero(~np.isnan(labels).all(axis=1)) if labels.shape[1] else np.empty(0, np.int64)
    rows = np.sort(rng.choice(known, min(n_cells, len(known)), replace=False)).astype(np.int64)
    chosen = labels[rows]
    return CellSample(
        rows=rows,
        negative=int((chosen == 0).all(axis=1).sum()),
        positive=int((chosen == 1).any(axis=1).sum()),
        per_marker=(chosen == 1).sum(axis=0, dtype=np.int64),
        short_negative=0,
        short_positive=0,
        short_marker=np.zeros(labels.shape[1], np.int64),
        crowded=np.zeros(labels.shape[1], np.int64),
    )


def _check_numbers(n_cells: int, least: float) -> None:
    if isinstance(n_cells, bool) or not isinstance(n_cells, int | np.integer) or n_cells < 2:
        msg = f"n_cells={n_cells!r} must be a whole number from 2, for instance 20000"
        raise InputError(msg)
    if not 0 <= least <= 1:
        msg = f"least={least!r} must be a share in [0, 1], for instance 0.25"
        raise InputError(msg)


def split_patients(patients: Sequence[str], split: Split = (25, 7, 9), *, seed: int = 0) -> dict[str, str]:
    """Part of every patient: ``"train"``, ``"validation"`` or ``"test"``.

    Parameters
    ----------
    patients
        One name per section; a patient may have several.
    split
        Three numbers, for training, validation and test: how many patients, or in what
        proportion (largest remainder); a part above 0 gets one patient at least as long as
        there are enough, training first. Or the part of each patient.
    seed
        Decides the draw; the order of `patients` does not matter.

    Raises
    ------
    InputError
        If the numbers are negative or all 0, or a mapping leaves out or invents patients or parts.

    Examples
    --------
    >>> found = split_patients([f"p{i}" for i in range(41)])
    >>> [list(found.values()).count(p) for p in PARTS]
    [25, 7, 9]
    >>> sorted(split_patients(["a", "b"]).values())
    ['train', 'validation']
    """
    names = sorted(set(patients))
    if isinstance(split, Mapping):
        return _given_parts(names, split)
    counts = _counts(len(names), _weights(split))
    drawn = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    ends = np.cumsum(counts)
    parts = np.searchsorted(ends, np.arange(len(drawn)), side="right")
    found = {name: PARTS[p] for name, p in zip(drawn, parts.tolist(), strict=True)}
    return {name: found[name] for name in names}


def _given_parts(names: list[str], split: Mapping[str, str]) -> dict[str, str]:
    missing, unknown = sorted(set(names) - set(split)), sorted(map(str, set(split) - set(names)))
    if missing or unknown:
        what = f"leaves out {missing[:5]}" if missing else f"names {unknown[:5]}, who have no section"
        msg = f"split= {what}; give a part ({', '.join(PARTS)}) for each of {names[:8]}"
        raise InputError(msg)
    wrong = {n: p for n, p in split.items() if p not in PARTS}
    if wrong:
        msg = f"split= holds {wrong}; valid parts: {', '.join(PARTS)}"
        raise InputError(msg)
    return {n: split[n] for n in names}


def _weights(split: Sequence[float]) -> np.ndarray:
    good = isinstance(split, Sequence) and not isinstance(split, str) and len(split) == len(PARTS)
    numbers = good and all(isinstance(v, int | float) and not isinstance(v, bool) for v in split)
    if not numbers or not all(math.isfinite(v) and v >= 0 for v in split) or not split[0] > 0:
        msg = (
            f"split={split!r} must be three numbers ≥ 0 for {', '.join(PARTS)}, training above 0, "
            "for instance (25, 7, 9), or {patient: part}"
        )
        raise InputError(msg)
    return np.array(split, np.float64)


def _counts(n: int, weights: np.ndarray) -> np.ndarray:
    """Patients per part: largest remainder; none empty that should not be, if that can be."""
    exact = n * weights / weights.sum()
    counts = np.floor(exact + 1e-9).astype(np.int64)
    by_remainder = np.argsort(-(exact - counts), kind="stable")
    counts[by_remainder[: n - counts.sum()]] += 1
    for part in np.flatnonzero(weights > 0).tolist():  # training first
        if counts[part]:
            continue
        # from a part that can spare one, else from a later one
        rich = [i for i in range(len(counts)) if counts[i] > 1] or [
            i for i in range(part + 1, len(counts)) if counts[i]
        ]
        if rich:
            counts[max(rich, key=lambda i: counts[i])] -= 1
            counts[part] += 1
    return counts


def check_leaks(patients: Sequence[str], parts: Sequence[str]) -> None:
    """Raise :class:`InputError` if cells of one patient are in two parts.

    Parameters
    ----------
    patients, parts
        Of each cell or section; a part of ``""`` is none.
    """
    seen: dict[str, set[str]] = {}
    for patient, part in set(zip(patients, parts, strict=True)):
        if part:
            seen.setdefault(patient, set()).add(part)
    shared = {p: sorted(found) for p, found in sorted(seen.items()) if len(found) > 1}
    if shared:
        msg = (
            f"patients in several parts: {dict(list(shared.items())[:5])}; cells of one patient are alike, "
            "so that figures would be too good. Give all sections of a patient one part"
        )
        raise InputError(msg)
