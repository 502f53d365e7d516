"""Opinions of reviewers on single cells, and the one answer per cell and marker they amount to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import anndata as ad
import numpy as np

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.truth import matrix

LAYER = "gold"
SKIP = "skip"
Place = tuple[int, int]
Answer = float | str


class Gold:
    """Who said what, and ``layers["gold"]`` that follows.

    The last word of each reviewer counts. The majority decides; where as many say
    positive as negative the cell is undefined. Cells that nobody calls positive or
    negative keep, or get back, what the layer held before the first opinion on them.

    Parameters
    ----------
    adata
        The table; its layer is made with the first answer.

    Raises
    ------
    InputError
        If the layer holds something else than 1, 0 and NaN.
    """

    def __init__(self, adata: ad.AnnData) -> None:
        self.adata = adata
        self.opinions: dict[Place, dict[str, tuple[Answer, str]]] = {}
        self.base: dict[Place, float] = {}  # before the first opinion
        self._stored: dict[Place, float] = {}  # as loaded or saved
        self._unsaved: set[Place] = set()
        self._of_marker: dict[int, set[int]] = defaultdict(set)
        if LAYER in adata.layers:
            _checked(matrix(adata, LAYER))

    @property
    def n_unsaved(self) -> int:
        """Values of the layer that differ from those loaded, or saved last."""
        return len(self._unsaved)

    def saved(self) -> None:
        """Take the layer as it is for saved."""
        self._stored.clear()
        self._unsaved.clear()

    def now(self, place: Place) -> float:
        """What the layer holds: 1, 0 or NaN."""
        return float(self._layer()[place]) if LAYER in self.adata.layers else float("nan")

    def give(
        self, place: Place, who: str, answer: Answer | None, when: str, *, base: float | None = None
    ) -> None:
        """Note an answer: 1.0, 0.0 or ``"skip"``; None takes it back.

        Parameters
        ----------
        place
            Row and column.
        who, answer, when
            Reviewer, answer and time.
        base
            What the layer held before the first opinion on this place; None takes what it holds.
        """
        if place not in self.base:
            self.base[place] = self.now(place) if base is None else base
        opinions = self.opinions.setdefault(place, {})
        if answer is None:
            opinions.pop(who, None)
        else:
            opinions[who] = (answer, when)
        self._of_marker[place[1]].add(place[0])
        self._set(place, self.answer(place))

    def answer(self, place: Place) -> float:
        """What holds for a cell and marker: 1, 0 or NaN; without votes, what held before."""
        votes = _votes(self.opinions.get(place, {}))
        return _majority(votes) if votes else self.base.get(place, float("nan"))

    def column(self, marker: int) -> np.ndarray:
        """int8 ``(n_obs,)``: 1, 0, -1 undefined."""
        if LAYER not in self.adata.layers:
            return np.full(self.adata.n_obs, -1, dtype=np.int8)
        values = self._layer()[:, marker]
        return np.where(np.isnan(values), -1, values).astype(np.int8)

    def reviewed(self, marker: int, who: str | None = None) -> np.ndarray:
        """Rows that somebody, or `who`, has an opinion on (skipped ones included)."""
        rows = (
            row
            for row in self._of_marker.get(marker, ())
            if (found := self.opinions[row, marker]) and (who is None or who in found)
        )
        return np.fromiter(rows, dtype=np.int64)

    def disputed(self, marker: int) -> np.ndarray:
        """Rows of which one reviewer says positive and another negative."""
        rows = (
            row
            for row in self._of_marker.get(marker, ())
            if {1.0, 0.0} <= {a for a, _ in self.opinions[row, marker].values()}
        )
        return np.fromiter(rows, dtype=np.int64)

    def reviewers(self) -> dict[str, int]:
        """Name to number of opinions."""
        count: dict[str, int] = defaultdict(int)
        for found in self.opinions.values():
            for who in found:
                count[who] += 1
        return dict(sorted(count.items()))

    def statistics(self, marker: int, scores: np.ndarray, threshold: float) -> dict[str, Any]:
        """Progress and agreement of one marker.

        Parameters
        ----------
        marker
            Column.
        scores
            ``(n_obs,)`` of this marker.
        threshold
            Above it the model says positive.

        Returns
        -------
        Counts; ``agreement``: share of decided cells whose score is on the same side;
        ``between``: share of pairs of reviewers that agree on a cell, over ``pairs`` pairs.
        None where there is nothing to divide by.
        """
        found = {row: self.opinions[row, marker] for row in self._of_marker.get(marker, ())}
        found = {row: each for row, each in found.items() if each}
        decided = {row: a for row, each in found.items() if not np.isnan(a := _majority(_votes(each)))}
        same = sum((scores[row] > threshold) == (answer == 1) for row, answer in decided.items())
        pairs = [one == other for each in found.values() for one, other in combinations(_votes(each), 2)]
        return {
            "reviewed": len(found),
            "positive": sum(answer == 1 for answer in decided.values()),
            "negative": sum(answer == 0 for answer in decided.values()),
            "skipped": sum(not _votes(each) for each in found.values()),
            "disputed": len(self.disputed(marker)),
            "agreement": int(same) / len(decided) if decided else None,
            "pairs": len(pairs),
            "between": sum(pairs) / len(pairs) if pairs else None,
        }

    def rows(self) -> Iterator[tuple[int, int, str, Answer, str]]:
        """Row, marker, reviewer, answer and time of every opinion."""
        for (row, marker), found in sorted(self.opinions.items()):
            for who, (answer, when) in found.items():
                yield row, marker, who, answer, when

    def _set(self, place: Place, value: float) -> None:
        stored = self._stored.setdefault(place, self.now(place))
        if _same(stored, value):
            self._unsaved.discard(place)
        else:
            self._unsaved.add(place)
        if LAYER in self.adata.layers or not np.isnan(value):
            self._layer()[place] = value

    def _layer(self) -> np.ndarray:
        layer = self.adata.layers.get(LAYER)
        if not isinstance(layer, np.ndarray) or layer.dtype != np.float32:
            shape = self.adata.shape
            dense = np.full(shape, np.nan) if layer is None else matrix(self.adata, LAYER)
            layer = self.adata.layers[LAYER] = dense.astype(np.float32)
        return layer


def _votes(opinions: Mapping[str, tuple[Answer, str]]) -> list[float]:
    return [answer for answer, _ in opinions.values() if not isinstance(answer, str)]


def _majority(votes: Sequence[float]) -> float:
    positive = sum(votes)
    return float("nan") if 2 * positive == len(votes) else float(2 * positive > len(votes))


def _same(one: float, other: float) -> bool:
    return one == other or bool(np.isnan(one) and np.isnan(other))


def _checked(values: np.ndarray) -> None:
    odd = ~(np.isnan(values) | (values == 0) | (values == 1))
    if odd.any():
        msg = (
            f"layers[{LAYER!r}] holds {np.unique(values[odd])[:3].tolist()}; valid: 1 positive, 0 negative, "
            "NaN undefined. Rename that layer, or correct it"
        )
        raise InputError(msg)
