"""What one review works on: table, fields, clusters, answers; every change goes to the log first."""

from __future__ import annotations

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
from nimbus_sd.app._events import ANSWERS, Answers, base_of, checked_name, marker_column, time_now
from nimbus_sd.app._fields import RowPlaces, open_fields
from nimbus_sd.app._gold import Gold
from nimbus_sd.app._log import Event, ReviewLog
from nimbus_sd.app._store import log_path, state_on_disk
from nimbus_sd.app._tiles import Tiles


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
        self._on_disk = state_on_disk(sdata, table)
        self.threshold = float(threshold)
        self.adata = check_adata(sdata.tables[table], what=f"table {table!r}")
        self.scores = _scores(self.adata, layer)
        self.fields = open_fields(sdata, self.adata, table=table, image=image)
        self.key = find_key(self.adata, key)
        self.clusters = None if self.key is None else Clusters(self.adata, self.key, self.scores)
        self.markers = [str(name) for name in self.adata.var_names]
        scale = self.adata.var.get("scale", {})
        self.tiles = Tiles(self.fields, {str(k): float(v) for k, v in dict(scale).items()})
        self.place_of = RowPlaces([field.rows for field in self.fields], self.adata.n_obs)
        self.gold = Gold(self.adata)
        self._answers = Answers(self.fields, self.markers, self.scores, self.gold)
        self.log = ReviewLog(log_path(sdata, table, log))
        self.lock = threading.RLock()
        self.saved_as: str | None = None
        self.n_passed_over = 0
        self._n_edits = 0
        self._waiting: list[Event] = []  # edits of other processes
        self._saved_clusters = None if self.clusters is None else self.clusters.fingerprint
        self._take(self.log.new())
        self.catch_up()

    @property
    def n_unsaved(self) -> int:
        """Changes that are not in the table in the store."""
        return self.gold.n_unsaved + self._n_edits

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
            now = time_now()
            self._take(
                self.log.append([self._answers.event(each, self.place_of, who, now) for each in answers])
            )

    def catch_up(self) -> None:
        """Repeat edits of clusters that are in the log and not in the table."""
        events, self._waiting = self._waiting, []
        if self.clusters is None or not events:
            return
        done, passed_over = self.clusters.replay(events)
        self._count_edits(done)
        self.n_passed_over += passed_over

    def edit(self, kind: str, mapping: Mapping[str, Any], who: str, *, seen: str | None = None) -> None:
        """Merge, name or undo clusters, and log it.

        Parameters
        ----------
        kind
            ``"merge"``, ``"name"`` or ``"undo"``.
        mapping
            Cluster to name.
        who
            Name of the reviewer.
        seen
            Fingerprint of the clusters that the reviewer saw; None leaves that unchecked.

        Raises
        ------
        ElementNotFoundError, InputError
            As the functions in ``nb.tl``, or if there are no clusters, others have changed
            them meanwhile, or the log can't be written; nothing has changed then.
        """
        who = checked_name(who)
        if self.clusters is None:
            msg = "the table has no clusters; make some with nb.tl.flowsom"
            raise InputError(msg)
        with self.lock, self.log.alone():
            self._take(self.log.new())
            before = self.clusters.fingerprint
            if self._waiting or seen not in (None, before):
                self.catch_up()
                msg = "another reviewer changed the clusters: reload the page, then edit what it shows"
                raise InputError(msg)
            names = {str(old): str(new).strip() for old, new in mapping.items()}
            take_back = self.clusters.apply(kind, names)
            event: Event = {
                "kind": "clusters",
                "time": time_now(),
                "who": who,
                "key": self.key,
                "edit": kind,
                "mapping": names,
                "before": before,
                "after": self.clusters.fingerprint,
            }
            try:
                events = self.log.append([event])
            except BaseException:
                take_back()
                raise
            self._count_edits(1)
            self._take([e for e in events if e != event])  # this edit is not applied again

    def save(self) -> str:
        """Fold everything into the table in the store; return its name there.

        Raises
        ------
        InputError
            If the object is not backed by a store, or others have written the table since
            it was read; nothing is written then.
        """
        from nimbus_sd import io

        with self.lock, self.log.alone():
            self._check_unwritten()
            self._take(self.log.new())
            self.catch_up()
            self.adata.uns["review"] = {
                "threshold": self.threshold,
                "reviewers": np.array(list(self.gold.reviewers()), dtype=object),
                "log": "" if self.log.path is None else self.log.path.name,
            }
            self.saved_as = io.write_table(self.sdata, self.table)
            self._on_disk = state_on_disk(self.sdata, self.table)
            self.gold.saved()
            self._n_edits = 0
            self._saved_clusters = None if self.clusters is None else self.clusters.fingerprint
            return self.saved_as

    def marker(self, name: object) -> int:
        """Column of a marker.

        Raises
        ------
        ElementNotFoundError
            If there is none of this name.
        """
        return marker_column(self.markers, name)

    def _check_unwritten(self) -> None:
        if state_on_disk(self.sdata, self.table) == self._on_disk:
            return
        msg = (
            f"table {self.table!r} in {self.location} was written by something else since this review "
            "read it, and saving would undo that; open the store and start the review again: it takes up "
            f"what is in the log {self.log.path}"
        )
        raise InputError(msg)

    def _count_edits(self, n: int) -> None:
        if self.clusters is not None and n:
            back = self.clusters.fingerprint == self._saved_clusters
            self._n_edits = 0 if back else self._n_edits + n

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            if event["kind"] == "clusters" and event.get("key") == self.key:
                self._waiting.append(event)
            if event["kind"] != "answer":
                continue
            place = self._answers.place(event)
            if place is None:  # of cells or markers that this table has no more
                self.n_passed_over += 1
                continue
            answer = event.get("answer")
            if answer in ANSWERS:
                who, when = str(event["who"]), str(event["time"])
                self.gold.give(place, who, ANSWERS[answer], when, base=base_of(event))

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
