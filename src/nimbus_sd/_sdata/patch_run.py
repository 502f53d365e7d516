"""What runs over the patches of cells share, from centres to cells in their order."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata.centers import CenterSample, CenterSet
from nimbus_sd._sdata.destination import Destination
from nimbus_sd._sdata.progress import progress_bar
from nimbus_sd._sdata.sizes import bytes_of
from nimbus_sd._sdata.target import on_disk
from nimbus_sd.arrays.cells import Cells
from nimbus_sd.engine.journal import Journal
from nimbus_sd.engine.patch_job import PatchConfig, PatchJob
from nimbus_sd.engine.run import run_job
from nimbus_sd.engine.run_folder import key_of, run_folder
from nimbus_sd.engine.work import Runs

J = TypeVar("J", bound=PatchJob)


def patch_config(
    *,
    batch_size: int | None,
    n_threads: int,
    device: str | Sequence[str],
    precision: str,
    memory: int | str | None,
) -> PatchConfig:
    """How to run, as the public functions take it.

    Raises
    ------
    InputError
        If `memory` is no size, or another value is out of range.
    """
    return PatchConfig(
        batch_size=batch_size,
        n_threads=n_threads,
        device=device if isinstance(device, str) else tuple(device),
        precision=precision,
        memory=bytes_of(memory),
    )


def check_stored(target: Destination, sample: CenterSample) -> None:
    """A stored table must annotate something that is stored.

    Raises
    ------
    InputError
        If the centres are in memory only.
    """
    if target.own and sample.region not in on_disk(target.sdata):
        msg = (
            f"write=True: the {sample.kind} {sample.region!r} are in memory only, and the stored table would "
            f"annotate what is not there; call sdata.write_element({sample.region!r}) first"
        )
        raise InputError(msg)


def warn_of_empty(centers: CenterSet) -> None:
    """Name the elements without cells."""
    empty = [f"{s.kind} {s.patches.region!r}" for s in centers.samples if not len(s)]
    if empty:
        warnings.warn(f"no cell in {', '.join(empty)}: no rows for them", NimbusWarning, stacklevel=3)


@contextmanager
def journalled(
    about: Mapping[str, Any], homes: Sequence[Path], *, resume: bool
) -> Iterator[tuple[str, Journal]]:
    """Key and journal of a run; the journal goes when the block ends without an error.

    Parameters
    ----------
    about
        Everything that a cell's values depend on, in JSON's types.
    homes
        Folders for unfinished runs, one per store; none for a temporary one.
    resume
        Use what an interrupted run left there.
    """
    key = key_of(about)
    with run_folder(homes, key, resume=resume) as folder, Journal(folder / "blocks", about) as journal:
        yield key, journal


def cells_in_order(
    runner: Runs[J], job: J, journal: Journal, *, centers: CenterSet, progress: bool
) -> list[Cells]:
    """Compute what the journal lacks: one :class:`Cells` per sample, rows as in the sample."""
    done = sum(job.units(block) for block in job.blocks() if block in journal)
    with progress_bar(len(centers), description="cells", unit="cell", show=progress, done=done) as advance:
        cells = run_job(runner, job, journal, on_progress=advance)
    return [_as_in(s, c) for s, c in zip(centers.samples, cells, strict=True)]


def _as_in(sample: CenterSample, cells: Cells) -> Cells:
    """Cells in the sample's order instead of that of their ids."""
    rows = np.searchsorted(cells.ids, sample.ids)
    if (rows == np.arange(len(cells))).all():
        return cells
    return Cells(cells.ids[rows], cells.count[rows], {k: v[rows] for k, v in cells.means.items()})


def inputs_of(samples: Sequence[CenterSample], channels: Sequence[str] | None) -> list[list[Any]]:
    """What a run reads, in JSON's types, for its journal.

    Beside the pixels' fingerprints stands where each image has the channels (None: all as they
    lie), as a fingerprint knows planes, not what they are called.
    """
    return [
        [
            s.region,
            s.image.fingerprint,
            [s.image.channels.index(c) for c in channels or s.image.channels],
            digest(s.ids, s.centers),
        ]
        for s in samples
    ]


def digest(*arrays: np.ndarray) -> str:
    """Hash of arrays' bytes."""
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
