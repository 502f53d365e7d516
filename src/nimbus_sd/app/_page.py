"""What the page asks for: plain functions from parameters to JSON or bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.app._export import answers_csv, training_set
from nimbus_sd.app._queue import queue
from nimbus_sd.app._session import Session
from nimbus_sd.app._tiles import TILE

_MAX_QUEUE = 500


class Page:
    """Answers to the page's requests.

    Parameters
    ----------
    session
        What is reviewed.
    reviewer
        Suggested name.
    """

    def __init__(self, session: Session, *, reviewer: str) -> None:
        self.session = session
        self.reviewer = reviewer
        area = session.adata.obs.get("area_px")
        typical = 200.0 if area is None else float(np.nanmedian(area.to_numpy(np.float64)))
        # a cell and about its neighbours
        self.crop_side = int(np.clip(2 * round(2.6 * np.sqrt(typical)), 40, 160))

    def overview(self, _: dict[str, str]) -> dict[str, Any]:
        """Names, sizes and settings."""
        s = self.session
        fields = [
            {
                "name": f.name,
                "image": f.sample.pair.image,
                "shape": list(f.shape),
                "mpp": f.sample.sample.mpp,
                "levels": f.n_levels,
                "cells": len(f.ids),
                "channels": list(f.channels),
            }
            for f in s.fields
        ]
        return {
            "store": s.location,
            "table": s.table,
            "cells": s.adata.n_obs,
            "markers": s.markers,
            "key": s.key,
            "threshold": s.threshold,
            "tile": TILE,
            "crop": self.crop_side,
            "fields": fields,
            "reviewer": self.reviewer,
            "log": None if s.log.path is None else str(s.log.path),
            "unsaved": s.n_unsaved,
            "passed_over": s.log.n_broken + s.n_passed_over,
        }

    def clusters(self, _: dict[str, str]) -> dict[str, Any]:
        """The heatmap; ``{"key": None}`` without clusters."""
        with self.session.lock:
            self.session.catch_up()
            found = self.session.clusters
            return {"key": None} if found is None else found.heatmap() | {"unsaved": self.session.n_unsaved}

    def edit(self, given: dict[str, Any]) -> dict[str, Any]:
        """Merge, name or undo, and the heatmap that follows."""
        mapping = given.get("mapping", {})
        if not isinstance(mapping, dict):
            msg = "mapping: {cluster: name} is needed"
            raise InputError(msg)
        seen = given.get("seen")
        seen = seen if seen is None else str(seen)
        self.session.edit(str(given.get("edit")), mapping, given.get("who", ""), seen=seen)
        return self.clusters({})

    def cells(self, field: int) -> bytes:
        """Rows uint32, x and y float32, codes int16 of a field's cells, one after the other."""
        f, clusters = self.session.fields[field], self.session.clusters
        codes = np.full(len(f.rows), -1, dtype="<i2")
        if clusters is not None:
            with self.session.lock:
                codes = clusters.codes[f.rows].astype("<i2")
        parts = (f.rows.astype("<u4"), f.xy[:, 0].astype("<f4"), f.xy[:, 1].astype("<f4"), codes)
        return b"".join(part.tobytes() for part in parts)

    def values(self, field: int, what: str, marker: str) -> bytes:
        """Scores float32, or gold int8 (1, 0, -1), of a field's cells."""
        rows, column = self.session.fields[field].rows, self.session.marker(marker)
        if what == "score":
            return self.session.scores[rows, column].astype("<f4").tobytes()
        with self.session.lock:
            return self.session.gold.column(column)[rows].tobytes()

    def queue(self, given: dict[str, str]) -> dict[str, Any]:
        """Cells to look at next: row, field, place, position, score, answers."""
        s, marker = self.session, self.session.marker(given.get("marker"))
        who = given.get("who", "").strip()
        with self.session.lock:
            field = given.get("field", "")
            known = s.place_of.known()
            if field:
                known = s.fields[self._number(field, len(s.fields), "field")].rows
            rows = queue(
                s.scores[:, marker],
                order=given.get("order", "uncertain"),
                threshold=s.threshold,
                among=known,
                done=s.gold.reviewed(marker, who),
                disputed=s.gold.disputed(marker),
                n=self._number(given.get("n", "60"), _MAX_QUEUE + 1, "n"),
            )
            cells = [self._cell(int(row), marker, who) for row in rows]
        return {"cells": cells, "marker": s.markers[marker]}

    def progress(self, given: dict[str, str]) -> dict[str, Any]:
        """Counts and agreement per marker, opinions per reviewer."""
        s = self.session
        with s.lock:
            s._take(s.log.new())
            asked = [given["marker"]] if "marker" in given else s.markers
            markers = {
                name: s.gold.statistics(i := s.marker(name), s.scores[:, i], s.threshold) for name in asked
            }
            return {"markers": markers, "reviewers": s.gold.reviewers(), "unsaved": s.n_unsaved}

    def answer(self, given: dict[str, Any]) -> dict[str, Any]:
        """Write answers; the statistics of the markers that follow."""
        answers = given.get("answers", [])
        if not isinstance(answers, list) or not all(isinstance(each, dict) for each in answers):
            msg = "answers: a list of {row, marker, answer} is needed"
            raise InputError(msg)
        s = self.session
        s.answer(answers, given.get("who", ""))
        with s.lock:
            named = {str(each["marker"]): s.marker(each["marker"]) for each in answers}
            found = {name: s.gold.statistics(i, s.scores[:, i], s.threshold) for name, i in named.items()}
        return {"markers": found, "unsaved": s.n_unsaved}

    def save(self, _: dict[str, Any]) -> dict[str, Any]:
        """Fold everything into the store."""
        return {"table": self.session.save(), "unsaved": 0}

    def training_set(self, _: dict[str, Any]) -> dict[str, Any]:
        """Write the tiles that ``nb.tl.finetune`` takes."""
        return training_set(self.session)

    def csv(self) -> str:
        """All answers."""
        with self.session.lock:
            return answers_csv(self.session)

    def has_tile(self, field: int, level: int, ty: int, tx: int) -> bool:
        """Whether there is such a tile."""
        return field < len(self.session.fields) and self.session.fields[field].has_tile(level, ty, tx)

    def crop(self, row: int, given: dict[str, str]) -> bytes:
        """PNG of a cell; markers are those of the image."""
        s = self.session
        if row not in s.place_of:
            msg = f"no cell in row {row}"
            raise ElementNotFoundError(msg)
        field, place = s.place_of[row]
        channel = self._channel(field, given.get("marker", ""))
        context = self._channel(field, given["context"]) if given.get("context") else None
        window = s.tiles.contrast(field, channel)
        if "low" in given and "high" in given:
            window = (_byte(given["low"]), _byte(given["high"]))
        return s.tiles.crop(field, place, channel, window=window, context=context, side=self.crop_side)

    def _cell(self, row: int, marker: int, who: str) -> dict[str, Any]:
        s = self.session
        field, place = s.place_of[row]
        where = s.fields[field]
        opinions = s.gold.opinions.get((row, marker), {})
        return {
            "row": row,
            "field": field,
            "place": place,
            "cell": int(where.ids[place]),
            "x": float(where.xy[place, 0]),
            "y": float(where.xy[place, 1]),
            "score": round(float(s.scores[row, marker]), 4),
            "mine": _word(opinions[who][0]) if who in opinions else None,
            "others": {name: _word(a) for name, (a, _) in opinions.items() if name != who},
        }

    def _channel(self, field: int, name: str) -> int:
        channels = self.session.fields[field].channels
        if name not in channels:
            msg = f"image {self.session.fields[field].sample.pair.image!r} has no channel {name!r}"
            raise ElementNotFoundError(msg)
        return channels.index(name)

    @staticmethod
    def _number(text: str, limit: int, what: str) -> int:
        if not text.isdecimal() or not 0 <= int(text) < limit:
            msg = f"{what}={text!r}: a number from 0 to {limit - 1} is needed"
            raise InputError(msg)
        return int(text)


def _word(answer: float | str) -> str:
    return answer if isinstance(answer, str) else ("positive" if answer else "negative")


def _byte(text: str) -> float:
    try:
        return float(np.clip(float(text), 0, 255))
    except ValueError:
        msg = f"contrast {text!r}: numbers from 0 to 255 are needed"
        raise InputError(msg) from None
