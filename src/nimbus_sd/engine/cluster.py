"""Run blocks on the workers of a dask cluster: one model per worker, only partials travel back."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from typing import Any

import torch
from distributed import Client, Future, as_completed, get_worker
from distributed.scheduler import KilledWorker

from nimbus_sd._core.errors import ClusterError, OutOfMemoryError
from nimbus_sd.engine.cluster_tools import known_workers, share, workers_of
from nimbus_sd.engine.device import free_memory, resolve_devices, resolve_precision
from nimbus_sd.engine.work import Block, Scored, Scorer, Work

log = logging.getLogger("nimbus_sd")

_KILLED = "the workers that computed it died one by one, most likely for want of memory"
_NO_MEMORY = "no worker has the memory for it"
_AHEAD = 2  # blocks in flight per slot: one computes, the next waits on the worker


@dataclass(frozen=True)
class Workers:
    """What a cluster offers.

    Attributes
    ----------
    addresses
        Of the workers.
    slots
        Blocks that can be computed at once.
    memory
        Bytes free for activations on the smallest of them.
    precision
        Of every worker, when ``"auto"`` is asked for: bfloat16 where all have it.
    resources
        What each block asks for: a GPU where workers declare them.
    """

    addresses: tuple[str, ...]
    slots: int
    memory: int
    precision: str
    resources: dict[str, float]

    def described(self, device: str | tuple[str, ...]) -> str:
        """How many, and the device that each is asked for: for the record of a run."""
        return f"{len(self.addresses)} workers ({device if isinstance(device, str) else ','.join(device)})"


def survey(client: Client, device: str | tuple[str, ...], precision: str) -> Workers:
    """Ask the workers what they have.

    Raises
    ------
    ClusterError
        If there are none.
    """
    known = workers_of(client)
    with_gpu = {a: w["resources"]["GPU"] for a, w in known.items() if w.get("resources", {}).get("GPU")}
    addresses = tuple(with_gpu or known)
    hosts = [known[a]["host"] for a in addresses]
    answers = client.run(_offer, device, precision, workers=list(addresses))
    memory = min(answers[a][0] // hosts.count(h) for a, h in zip(addresses, hosts, strict=True))
    limits = [known[a]["memory_limit"] // 2 for a in addresses if known[a]["memory_limit"]]
    all_half = all(answers[a][1] == "bfloat16" for a in addresses)
    return Workers(
        addresses,
        int(sum(with_gpu.values())) or len(addresses),
        min([memory, *limits]),
        "bfloat16" if all_half else "float32",
        {"GPU": 1.0} if with_gpu else {},
    )


def _offer(device: str | tuple[str, ...], precision: str) -> tuple[int, str]:
    """Run on a worker: bytes free and the precision it would take."""
    found = resolve_devices(device)[0]
    return free_memory(found), resolve_precision(precision, found)


def run_on_cluster(job: Work, blocks: Iterable[Block], client: Client, workers: Workers) -> Iterator[Scored]:
    """Score blocks on a cluster's workers.

    Parameters
    ----------
    job
        What to compute; its model is a name or path that every worker can load, and its images
        lie where every worker can read them.
    blocks
        Consumed lazily: a few per worker are in flight, so that neither the scheduler nor the
        client grows with the slide.
    client, workers
        The cluster, and what :func:`survey` found there.

    Yields
    ------
    Blocks as they are finished.

    Raises
    ------
    ClusterError
        If a block takes down one worker after the other, or none has the memory for it.
    """
    todo = iter(blocks)
    shared = share(job, client, f"nimbus-job-{job.key}-{os.urandom(4).hex()}", expected=job.n_bytes)
    refused: dict[Block, set[str]] = {}
    of: dict[Any, Block] = {}

    def submit(block: Block) -> Future:
        # free to go anywhere, unless some have no memory for it: a worker that died comes back elsewhere
        left = _others(client, refused[block]) if block in refused else None
        future = client.submit(
            _score_block, shared, block, pure=False, workers=left, resources=workers.resources or None
        )
        of[future.key] = block
        return future

    first = [submit(b) for b in islice(todo, workers.slots * _AHEAD)]
    running = as_completed(first, loop=client.loop)
    del first
    try:
        for future in running:
            block = of.pop(future.key)
            try:
                result = future.result()
            except KilledWorker as error:
                raise ClusterError(_failed(job, block, _KILLED)) from error
            except OutOfMemoryError as error:
                refused.setdefault(block, set()).add(str(error.args[-1]))
                if not _others(client, refused[block]):
                    raise ClusterError(_failed(job, block, _NO_MEMORY)) from error
                log.warning("%s: no memory on %s; another worker tries it", job.named(block), error.args[-1])
                running.add(submit(block))
                continue
            for following in islice(todo, 1):
                running.add(submit(following))
            del future  # the worker may forget it now
            yield result
    finally:
        client.cancel(list(running.futures), force=True)


def _others(client: Client, refused: set[str]) -> list[str]:
    """Addresses of the workers that are there now, without those that refused."""
    return [a for a in known_workers(client) if a not in refused]


_lock = Lock()
_scorers: dict[tuple[str, Hashable], Scorer[Any]] = {}


def _scorer(job: Work) -> Scorer[Any]:
    """The worker's one model, loaded from its card when the first block comes."""
    with _lock:
        which = job.key, job.config  # the key leaves out what can't change the result, such as memory
        if which not in _scorers:
            worker = get_worker()
            if worker.nanny is not None:  # a process of its own: its threads are the worker's
                torch.set_num_threads(max(worker.state.nthreads, 1))
            _scorers.clear()
            _scorers[which] = job.scorer()
        return _scorers[which]


def _score_block(job: Work, block: Block) -> Scored:
    """Run on a worker."""
    try:
        (scored,) = _scorer(job).score(job, [block])
    except MemoryError as error:
        raise OutOfMemoryError(*error.args, get_worker().address) from error
    return scored


def _failed(job: Work, block: Block, why: str) -> str:
    return f"{job.named(block)}: {why}; {job.advice(block)}"
