"""Answers of reviewers as lines of the log, by cell and marker, and back to places in the table."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.app._fields import Field, RowPlaces
from nimbus_sd.app._gold import SKIP, Gold
from nimbus_sd.app._log import Event

ANSWERS: dict[str, float | str | None] = {"positive": 1.0, "negative": 0.0, "skip": SKIP, "clear": None}
_MAX_NAME = 60


class Answers:
    """Answers on the cells of a table.

    Parameters
    ----------
    fields
        Under review.
    markers
        Columns of the table.
    scores
        ``(n_obs, n_vars)``.
    gold
        What holds so far.
    """

    def __init__(
        self, fields: Sequence[Field], markers: Sequence[str], scores: np.ndarray, gold: Gold
    ) -> None:
        self.fields = fields
        self.markers = list(markers)
        self.scores = scores
        self.gold = gold

    def event(self, each: Mapping[str, Any], places: RowPlaces, who: str, now: str) -> Event:
        """A line of the log.

        Raises
        ------
        ElementNotFoundError, InputError
            If the row, marker or answer is none.
        """
        row, answer, marker = each.get("row"), each.get("answer"), each.get("marker")
        if not isinstance(answer, str) or answer not in ANSWERS:
            msg = f"answer {answer!r}; valid: {', '.join(ANSWERS)}"
            raise InputError(msg)
        if not isinstance(row, int) or isinstance(row, bool) or row not in places:
            msg = f"no cell in row {row!r}; valid: rows of the table whose labels are in the object"
            raise ElementNotFoundError(msg)
        column = marker_column(self.markers, marker)
        field, place = places[row]
        event = {
            "kind": "answer",
            "time": now,
            "who": who,
            "region": self.fields[field].name,
            "cell": int(self.fields[field].ids[place]),
            "marker": self.markers[column],
            "answer": answer,
            "score": round(float(self.scores[row, column]), 4),
        }
        if (row, column) not in self.gold.base:
            # after Save the layer holds the answers, and no more what was there before
            before = self.gold.now((row, column))
            event["base"] = None if np.isnan(before) else before
        return event

    def place(self, event: Event) -> tuple[int, int] | None:
        """Row and column that an event is about; None if the table has no such cell or marker."""
        field = next((f for f in self.fields if f.name == event.get("region")), None)
        if field is None or event.get("marker") not in self.markers or not isinstance(event.get("cell"), int):
            return None
        i = int(np.searchsorted(field.ids, event["cell"]))
        if i >= len(field.ids) or field.ids[i] != event["cell"]:
            return None
        return int(field.rows[i]), self.markers.index(event["marker"])


def marker_column(markers: Sequence[str], name: object) -> int:
    """Column of a marker.

    Raises
    ------
    ElementNotFoundError
        If there is none of this name.
    """
    if name not in markers:
        msg = f"the table has no marker {name!r}; valid: {', '.join(markers)}"
        raise ElementNotFoundError(msg)
    return markers.index(str(name))


def base_of(event: Event) -> float | None:
    """What held before the first opinion, as logged; None if the layer tells."""
    if "base" in event:
        return float(event["base"]) if event["base"] in (0, 1) else float("nan")
    # a later answer, or a log of before bases were noted, where the layer may hold the answer itself
    return float("nan") if event["answer"] in ("positive", "negative") else None


def time_now() -> str:
    """To the second, with the time zone."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def checked_name(who: object) -> str:
    """A reviewer's name.

    Raises
    ------
    InputError
        If it is empty or long.
    """
    name = who.strip() if isinstance(who, str) else ""
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        msg = f"reviewer {who!r}: give a name of 1 to {_MAX_NAME} characters"
        raise InputError(msg)
    return name
