"""What one review works on: table, fields, clusters, answers; every change goes to the log first."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from spatialdata import SpatialData
from spatialdata.models import TableModel

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata.cohort import location_of
from nimbus_sd._sdata.truth import check_adata, matrix
from nimbus_sd.app._clusters import Clusters, find_key
from nimbus_sd.app._fields import open_fields
from nimbus_sd.app._gold import SKIP, Gold
from nimbus_sd.app._log import Event, ReviewLog
from nimbus_sd.app._tiles import Tiles

ANSWERS: dict[str, float | str | None] = {"positive": 1.0, "negative": 0.0, "skip": SKIP, "clear": None}
_MAX_NAME = 60


class Session:
    """One table under review.

    Parameters
    ----------
    sdata, table, key, layer, image, threshold, log
        As of :func:`nimbus_sd.app.review`.

    Raises
    ------
    ElementNotFoundError, InputError
        As of :func:`nimbus_sd.app.review`.
    """

    def __init__(
        self,
        sdata: SpatialData,
        *,
        table: str = "nimbus",
        key: str | None = None,
        layer: str | None = None,
        image: str | Mapping[str, str] | None = None,
        threshold: float = 0.5,
        log: str | Path | None = None,
    ) -> None:
        if table not in sdata.tables:
            msg = f"no table {table!r} in the object; it has: {', '.join(sdata.tables) or '(none)'}"
            raise ElementNotFoundError(msg)
        if isinstance(threshold, bool) or not 0 < threshold < 1:
            msg = f"threshold={threshold!r} must lie between 0 and 1"
            raise InputError(msg)
        self.sdata = sdata
        self.table = table
        self.threshold = float(threshold)
        self.adata = check_adata(sdata.tables[table], what=f"table {table!r}")
        self.scores = _scores(self.adata, layer)
        self.fields = open_fields(sdata, self.adata, table=table, image=image)
        self.key = find_key(self.adata, key)
        self.clusters = None if self.key is None else Clusters(self.adata, self.key, self.scores)
        self.markers = [str(name) for name in self.adata.var_names]
        scale = self.adata.var.get("scale", {})
        self.tiles = Tiles(self.fields, {str(k): float(v) for k, v in dict(scale).items()})
        self.place_of = self._places()
        self.gold = Gold(self.adata)
        self.log = ReviewLog(log_path(sdata, table, log))
        self.lock = threading.RLock()
        self.n_unsaved = 0
        self.n_foreign = 0
        events = self.log.new()
        self._take(events)
        if self.clusters is not None:
            self.n_unsaved += self.clusters.replay([e for e in events if e["kind"] == "clusters"])

    @property
    def location(self) -> str | None:
        """Path or URL of the store; None in memory."""
        found = location_of(self.sdata)
        return None if found is None else str(found)

    def answer(self, answers: Sequence[Mapping[str, Any]], who: str) -> None:
        """Write answers to the log, then to ``layers["gold"]``.

        Parameters
        ----------
        answers
            ``{"row", "marker", "answer"}`` each; ``answer`` is ``"positive"``, ``"negative"``,
            ``"skip"`` or ``"clear"``.
        who
            Name of the reviewer.

        Raises
        ------
        ElementNotFoundError, InputError
            If a row, marker, answer or name is none; nothing is written then.
        """
        who = checked_name(who)
        if not isinstance(answers, Sequence) or not answers or isinstance(answers, str):
            msg = "answers: a list of {row, marker, answer} is needed"
            raise InputError(msg)
        with self.lock:
            now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
            self._take(self.log.append([self._event(each, who, now) for each in answers]))

    def edit(self, kind: str, mapping: Mapping[str, Any], who: str) -> None:
        """Merge, name or undo clusters, and log it.

        Raises
        ------
        ElementNotFoundError, InputError
            As the functions in ``nb.tl``, or if there are no clusters; nothing has changed then.
        """
        who = checked_name(who)
        with self.lock:
            if self.clusters is None:
                msg = "the table has no clusters; make some with nb.tl.flowsom"
                raise InputError(msg)
            before = self.clusters.fingerprint
            names = {str(old): str(new).strip() for old, new in mapping.items()}
            self.clusters.apply(kind, names)
            event: Event = {
                "kind": "clusters",
                "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                "who": who,
                "key": self.key,
                "edit": kind,
                "mapping": names,
                "before": before,
                "after": self.clusters.fingerprint,
            }
            self.n_unsaved += 1
            # the event of this edit is not applied again; answers of other processes are
            self._take([e for e in self.log.append([event]) if e["kind"] == "answer"])

    def save(self) -> str:
        """Fold everything into the table in the store; return its name there.

        Raises
        ------
        InputError
            If the object is not backed by a store.
        """
        from nimbus_sd import io

        with self.lock:
            self._take(self.log.new())
            self.adata.uns["review"] = {
                "threshold": self.threshold,
                "reviewers": np.array(list(self.gold.reviewers()), dtype=object),
                "log": "" if self.log.path is None else self.log.path.name,
            }
            name = io.write_table(self.sdata, self.table)
            self.n_unsaved = 0
            return name

    def marker(self, name: object) -> int:
        """Column of a marker.

        Raises
        ------
        ElementNotFoundError
            If there is none of this name.
        """
        if name not in self.markers:
            msg = f"the table has no marker {name!r}; valid: {', '.join(self.markers)}"
            raise ElementNotFoundError(msg)
        return self.markers.index(str(name))

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            if event["kind"] != "answer":
                continue
            place = self._place(event)
            if place is None:  # of cells or markers that this table has no more
                self.n_foreign += 1
                continue
            answer = event.get("answer")
            if answer in ANSWERS:
                changed = self.gold.give(place, str(event["who"]), ANSWERS[answer], str(event["time"]))
                self.n_unsaved += changed

    def _event(self, each: Mapping[str, Any], who: str, now: str) -> Event:
        row, answer = each.get("row"), each.get("answer")
        if answer not in ANSWERS:
            msg = f"answer {answer!r}; valid: {', '.join(ANSWERS)}"
            raise InputError(msg)
        if not isinstance(row, int) or isinstance(row, bool) or row not in self.place_of:
            msg = f"no cell in row {row!r}; valid: rows of the table whose labels are in the object"
            raise ElementNotFoundError(msg)
        marker = self.marker(each.get("marker"))
        field, place = self.place_of[row]
        return {
            "kind": "answer",
            "time": now,
            "who": who,
            "region": self.fields[field].name,
            "cell": int(self.fields[field].ids[place]),
            "marker": self.markers[marker],
            "answer": answer,
            "score": round(float(self.scores[row, marker]), 4),
        }

    def _place(self, event: Event) -> tuple[int, int] | None:
        field = next((f for f in self.fields if f.name == event.get("region")), None)
        if field is None or event.get("marker") not in self.markers or not isinstance(event.get("cell"), int):
            return None
        i = int(np.searchsorted(field.ids, event["cell"]))
        if i >= len(field.ids) or field.ids[i] != event["cell"]:
            return None
        return int(field.rows[i]), self.markers.index(event["marker"])

    def _places(self) -> RowPlaces:
        return RowPlaces([field.rows for field in self.fields], self.adata.n_obs)

    def instances(self) -> tuple[np.ndarray, np.ndarray]:
        """Region and instance id of every row."""
        attrs = self.adata.uns[TableModel.ATTRS_KEY]
        region = self.adata.obs[attrs[TableModel.REGION_KEY_KEY]].astype(str).to_numpy()
        return region, self.adata.obs[attrs[TableModel.INSTANCE_KEY]].to_numpy()


def _scores(adata: ad.AnnData, layer: str | None) -> np.ndarray:
    """float32 ``(n_obs, n_vars)``; the table's own array where it is one, as tables can be large."""
    own = adata.X if layer in (None, "X") else adata.layers.get(layer)
    if isinstance(own, np.ndarray) and own.dtype == np.float32:
        return own
    return matrix(adata, layer).astype(np.float32)


class RowPlaces:
    """Field and place in it of every row of the table; a mapping without an object per row."""

    def __init__(self, rows: Sequence[np.ndarray], n: int) -> None:
        self._field = np.full(n, -1, dtype=np.int32)
        self._place = np.zeros(n, dtype=np.int64)
        for i, each in enumerate(rows):
            self._field[each] = i
            self._place[each] = np.arange(len(each))

    def __contains__(self, row: int) -> bool:
        return 0 <= row < len(self._field) and bool(self._field[row] >= 0)

    def __getitem__(self, row: int) -> tuple[int, int]:
        return int(self._field[row]), int(self._place[row])

    def known(self) -> np.ndarray:
        """Rows that lie in a field."""
        return np.flatnonzero(self._field >= 0)


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


def log_path(sdata: SpatialData, table: str, log: str | Path | None) -> Path | None:
    """Where the log goes: `log`, else beside the local store; None where there is no such place.

    Raises
    ------
    InputError
        If the folder of `log` does not exist, or it would lie in the store.
    """
    store = location_of(sdata)
    local = store if isinstance(store, Path) else None
    if log is None:
        return None if local is None else local.with_name(f"{local.name}.{table}.review.jsonl")
    path = Path(log).expanduser().absolute()
    if not path.parent.is_dir() or path.is_dir():
        msg = f"log={str(log)!r}: {path.parent} is no folder, or the path is one; pass the path of a file"
        raise InputError(msg)
    if local is not None and local.resolve() in path.resolve().parents:
        msg = f"log={str(log)!r} lies in the store {local}, whose tables are replaced whole; choose another"
        raise InputError(msg)
    return path
