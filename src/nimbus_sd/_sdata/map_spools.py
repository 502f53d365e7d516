"""Where the maps of a run lie while it computes, and the elements made of them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nimbus_sd._sdata.maps import MapSink, keep_alive, map_element
from nimbus_sd._sdata.samples import SampleSet
from nimbus_sd.arrays import TilePlan


@dataclass(frozen=True)
class MapSpools:
    """One sink per sample, in one folder.

    Attributes
    ----------
    sinks
        What the engine writes to.
    folder
        Where they lie; a temporary one goes when the last element that reads it does.
    """

    samples: SampleSet
    plans: tuple[TilePlan, ...]
    sinks: tuple[MapSink, ...]
    folder: Path
    temporary: bool

    @classmethod
    def make(
        cls, folder: Path | None, samples: SampleSet, plans: Sequence[TilePlan], dtype: str
    ) -> MapSpools:
        """Make or reopen the arrays in `folder`, or in a temporary one."""
        home = folder or Path(tempfile.mkdtemp(prefix="nimbus-sd-maps-"))
        sinks = tuple(
            MapSink.create(home / f"map{i}", plan, len(samples.channels), dtype)
            for i, plan in enumerate(plans)
        )
        return cls(samples, tuple(plans), sinks, home, folder is None)

    def elements(self) -> list[Any]:
        """One lazy image element per sample."""
        found = [
            map_element(sink, plan, sample, self.samples.channels)
            for sink, plan, sample in zip(self.sinks, self.plans, self.samples.samples, strict=True)
        ]
        if self.temporary:
            for element in found:
                keep_alive(element, self.folder)
        return found

    def discard(self) -> None:
        """Remove the files, when the run failed."""
        shutil.rmtree(self.folder, ignore_errors=True)
