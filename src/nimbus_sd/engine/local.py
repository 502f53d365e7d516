"""Run blocks in this process: one device with read-ahead, or a thread per device over one queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from nimbus_sd.engine.work import Block, Scored, Scorer, Work

W = TypeVar("W", bound=Work)


def run_local(job: W, blocks: Iterable[Block], scorers: Sequence[Scorer[W]]) -> Iterator[Scored]:
    """Score blocks; with several devices each takes the next block when it has time.

    Parameters
    ----------
    job
        What to compute.
    blocks
        Consumed lazily.
    scorers
        One per device.

    Yields
    ------
    Blocks as they are finished; in the given order with one device.
    """
    if len(scorers) == 1:
        yield from scorers[0].score(job, blocks)
        return
    shared = _Shared(blocks)
    done: queue.Queue[Scored | BaseException | None] = queue.Queue(maxsize=2 * len(scorers))

    def work(scorer: Scorer[W]) -> None:
        try:
            for scored in scorer.score(job, shared):
                done.put(scored)
        except BaseException as error:  # noqa: BLE001  the caller's thread raises it
            done.put(error)
        finally:
            done.put(None)

    threads = [threading.Thread(target=work, args=(s,), name=f"nimbus-{s.device}") for s in scorers]
    for thread in threads:
        thread.start()
    running, failed = len(threads), None
    try:
        while running:
            item = done.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                failed = failed or item
                shared.stop()
            elif failed is None:
                yield item
    finally:
        shared.stop()
        while running:
            running -= done.get() is None
        for thread in threads:
            thread.join()
    if failed is not None:
        raise failed


class _Shared:
    """An iterator that several threads take from."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks, self._lock, self._stopped = iter(blocks), threading.Lock(), False

    def stop(self) -> None:
        """Give nothing any more."""
        self._stopped = True

    def __iter__(self) -> Iterator[Block]:
        return self

    def __next__(self) -> Block:
        with self._lock:
            if self._stopped:
                raise StopIteration
            return next(self._blocks)
