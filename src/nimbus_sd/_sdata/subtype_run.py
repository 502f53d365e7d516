"""One run that predicts sub-types, with its journal: what `nb.tl.predict_subtypes` wraps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nimbus_sd._core.version import __version__
from nimbus_sd._sdata.centers import CenterSet
from nimbus_sd._sdata.identity import weights_digest
from nimbus_sd._sdata.patch_run import cells_in_order, inputs_of, journalled
from nimbus_sd.arrays.cells import Cells
from nimbus_sd.engine.subtyping.job import SubtypeJob
from nimbus_sd.engine.subtyping.run import SubtypeRunner


@dataclass(frozen=True)
class SubtypeRequest:
    """What to compute.

    Attributes
    ----------
    centers
        Cells with their H&E images, whose pixel sizes are known.
    runner
        Where their blocks are computed.
    """

    centers: CenterSet
    runner: SubtypeRunner
    progress: bool

    def job(self, key: str = "") -> SubtypeJob:
        """The same for the engine."""
        card = self.runner.model.card
        samples = tuple(s.patches for s in self.centers.samples)
        return SubtypeJob(samples=samples, config=self.runner.config, key=key, patch=card.patch, mpp=card.mpp)


@dataclass(frozen=True)
class Predicted:
    """What came of it.

    Attributes
    ----------
    cells
        One per sample, rows as in the sample; means ``probability`` ``(n, k)`` and ``border``.
    difference
        Largest difference of probabilities from float32, by their largest value; None in float32.
    """

    cells: list[Cells]
    difference: float | None


@contextmanager
def predicted(request: SubtypeRequest, homes: Sequence[Path], *, resume: bool) -> Iterator[Predicted]:
    """Compute, and keep the journal until the caller has stored the result.

    Parameters
    ----------
    request
        What to compute.
    homes
        Folders for unfinished runs, one per store; none for a temporary one.
    resume
        Use what an interrupted run left there.
    """
    about = _about(request, inputs=bool(homes))
    with journalled(about, homes, resume=resume) as (key, journal):
        job = request.job(key)
        cells = cells_in_order(
            request.runner, job, journal, centers=request.centers, progress=request.progress
        )
        yield Predicted(cells, journal.difference)


def _about(request: SubtypeRequest, *, inputs: bool) -> dict[str, Any]:
    """Everything that a cell's probabilities depend on; what is read with `inputs` alone."""
    model, samples = request.runner.model, request.centers.samples
    card = model.card
    return {
        "task": "subtypes",
        "version": __version__,
        "weights": weights_digest(model.net),
        "card": {"architecture": dict(card.architecture), "patch": card.patch, "mpp": card.mpp},
        "inputs": inputs_of(samples, None) if inputs else [],
        "mpp": [s.mpp for s in samples],
        "precision": request.runner.config.precision,
    }
