"""From cells to tables and maps, and from there to where every object keeps them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._core.near import did_you_mean
from nimbus_sd._sdata.destination import Destination
from nimbus_sd._sdata.maps import map_name
from nimbus_sd._sdata.run import Outcome
from nimbus_sd._sdata.samples import SampleSet, resolve_samples
from nimbus_sd._sdata.table import existing_table, join_layer
from nimbus_sd.arrays.cells import Cells
from nimbus_sd.engine.run import Runner
from nimbus_sd.tl._predict_table import keep, provenance_of, table_of_scores


@dataclass(frozen=True)
class Results:
    """What one object gets, and under which names.

    Attributes
    ----------
    target
        Where it goes.
    samples, which
        The object's samples, and where they are among those of the run.
    maps, table, into
        As of :func:`nimbus_sd.tl.predict`.
    """

    target: Destination
    samples: SampleSet
    which: slice
    maps: str | None
    table: str
    into: str | None

    @property
    def regions(self) -> list[str]:
        """Names of the labels."""
        return [s.pair.labels for s in self.samples.samples]

    @property
    def map_names(self) -> list[str]:
        """Names of the score maps, one per sample."""
        samples = self.samples.samples
        return [] if self.maps is None else [map_name(self.maps, s, len(samples)) for s in samples]

    def check(self, *, overwrite: bool) -> None:
        """Raise unless everything can be stored; nothing is written."""
        if self.into is not None:
            known = existing_table(self.target.sdata, self.into, self.regions).var_names
            unknown = [c for c in self.samples.channels if c not in known]
            if unknown:
                msg = (
                    f"table {self.into!r} has no marker {unknown}{did_you_mean(unknown, known)}; valid: "
                    f"{', '.join(known)}; choose with channels="
                )
                raise InputError(msg)
        self.target.check_maps(self.map_names, self.table, self.into, overwrite=overwrite)

    def made(self, runner: Runner, outcome: Outcome, context: np.ndarray | None, *, intensity: bool) -> Any:
        """The table, or the layer of an existing one."""
        cells = outcome.cells[self.which]
        scores = [_scores(c) for c in cells]
        if self.into is not None:
            table = existing_table(self.target.sdata, self.into, self.regions)
            return join_layer(table, "nimbus", self.regions, cells, scores, self.samples.channels)
        return table_of_scores(
            self.samples,
            cells,
            scores,
            outcome.normalization,
            provenance_of(runner, self.samples, outcome, context),
            runner.config,
            intensity=intensity,
        )

    def keep(self, result: Any, provenance: dict[str, Any], elements: Mapping[str, Any]) -> None:
        """Put table and maps into the object, and into the store they are for."""
        keep(self.target, self.table, self.into, result, provenance, elements)


def store_results(
    results: Sequence[Results],
    runner: Runner,
    outcome: Outcome,
    *,
    context: np.ndarray | None,
    intensity: bool,
) -> None:
    """Make all tables, then store one object's after the other's.

    Raises
    ------
    InputError
        If there is not one cell in all of them. Nothing is stored then.
    """
    empty = [r for r in results if not any(map(len, outcome.cells[r.which]))]
    if empty and len(empty) < len(results):
        names = ", ".join(repr(r.samples.samples[0].of) for r in empty)
        warnings.warn(f"no labelled pixel in {names}: no table for them", NimbusWarning, stacklevel=3)
        results = [r for r in results if r not in empty]
    made = [r.made(runner, outcome, context, intensity=intensity) for r in results]
    elements = outcome.map_elements()
    for each, result in zip(results, made, strict=True):
        maps = dict(zip(each.map_names, elements[each.which], strict=True))
        each.keep(result, provenance_of(runner, each.samples, outcome, context), maps)


def channels_of_tables(
    objects: Mapping[str, SpatialData],
    into: str,
    image: str | Mapping[str, str] | None,
    labels: str | Sequence[str] | None,
    coordinate_system: str | None,
) -> list[str]:
    """Channels of the images that are markers of the table `into` of every object.

    Raises
    ------
    InputError
        If there is none.
    """
    found = resolve_samples(
        objects,
        image=image,
        labels=labels,
        channels="all",
        coordinate_system=coordinate_system,
        need_mpp=False,
    )
    common = list(found.channels)
    for each in objects.values():
        names = list(each.tables[into].var_names)
        common = [c for c in common if c in names]
        if not common:
            msg = (
                f"table {into!r} and the image have no marker in common (table: {names[:5]}..., image: "
                f"{list(found.channels)[:5]}...); rename one of them, or write a new table with table="
            )
            raise InputError(msg)
    return common


def _scores(cells: Cells) -> np.ndarray:
    return cells.means["score"] if len(cells) else np.empty((0, 0))
