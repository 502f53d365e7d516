"""One prediction from request to cells, with its journal: what `nb.tl.predict` wraps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nimbus_sd._sdata.identity import about_run
from nimbus_sd._sdata.map_spools import MapSpools
from nimbus_sd._sdata.progress import progress_bar
from nimbus_sd._sdata.samples import SampleSet, fit_over
from nimbus_sd.arrays.cells import Cells
from nimbus_sd.engine.job import Job
from nimbus_sd.engine.journal import Journal
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.engine.run import Runner, plan_all, run_job
from nimbus_sd.engine.run_folder import key_of, run_folder


@dataclass(frozen=True)
class Request:
    """What to compute.

    Attributes
    ----------
    samples, runner
        Images with labels; where their blocks are computed.
    normalization
        Fitted, or None to fit it by `quantile` and `rule`.
    maps
        Dtype of score maps; None for none.
    """

    samples: SampleSet
    runner: Runner
    normalization: Normalization | None
    quantile: float
    rule: str
    maps: str | None
    progress: bool


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes
    ----------
    cells
        One per sample.
    normalization
        As used.
    difference
        Largest difference of pixel probabilities from float32; None in float32.
    spools
        Where the maps lie.
    """

    cells: list[Cells]
    normalization: Normalization
    difference: float | None
    spools: MapSpools | None

    def map_elements(self) -> list[Any]:
        """One lazy image element per sample, if maps were asked for."""
        return [] if self.spools is None else self.spools.elements()


@contextmanager
def finished(request: Request, homes: Sequence[Path], *, resume: bool) -> Iterator[Outcome]:
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
    about = about_run(
        request.runner,
        request.samples,
        normalization=request.normalization,
        quantile=request.quantile,
        rule=request.rule,
        maps=request.maps,
        inputs=bool(homes),
    )
    key = key_of(about)
    with run_folder(homes, key, resume=resume) as folder, Journal(folder / "blocks", about) as journal:
        normalization = _normalization(request, journal)
        samples, channels = request.samples, request.samples.channels
        plain = [s.sample for s in samples.samples]
        plans = plan_all(request.runner, plain, journal)
        spools = None
        if request.maps is not None:
            spools = MapSpools.make(folder if homes else None, samples, plans, request.maps)
        job = Job(
            tuple(plain),
            plans,
            channels,
            normalization.scale_of(channels),
            request.runner.config,
            sinks=spools.sinks if spools else (),
            key=key,
        )
        total, done = len(job) * len(channels), len(journal) * len(channels)
        try:
            with progress_bar(
                total, description="scores", unit="tile·marker", show=request.progress, done=done
            ) as advance:
                cells = run_job(request.runner, job, journal, on_progress=advance)
            yield Outcome(cells, normalization, journal.difference, spools)
        except BaseException:
            if spools is not None and not homes:
                spools.discard()
            raise


def _normalization(request: Request, journal: Journal) -> Normalization:
    """The one given, the one that the interrupted run had fitted, or a new one."""
    if request.normalization is not None:
        return request.normalization
    noted = journal.noted("normalization")
    if noted is not None:
        return Normalization.from_dict(noted)
    fitted = fit_over(
        request.samples,
        quantile=request.quantile,
        rule=request.rule,
        n_threads=request.runner.config.n_threads,
        progress=request.progress,
        client=request.runner.client,
    )
    journal.note("normalization", fitted.to_dict())
    return fitted
