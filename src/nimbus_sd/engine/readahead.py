"""Read ahead: a bounded window of jobs on threads, results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(
    function: Callable[[T], R], jobs: Iterable[T], *, n_threads: int, window: int | None = None
) -> Iterator[R]:
    """Yield ``function(job)`` in the order of `jobs`, computed on threads.

    Parameters
    ----------
    function
        Called once per job, from any thread.
    jobs
        Consumed lazily.
    n_threads
        Reader threads; 0 computes in the caller's thread.
    window
        Results that may wait or be in flight, `n_threads` + 1 by default: this
        bounds memory.
    """
    if n_threads == 0:
        yield from map(function, jobs)
        return
    window = n_threads + 1 if window is None else window
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(n_threads, thread_name_prefix="nimbus-read") as pool:
        try:
            for job in jobs:
                pending.append(pool.submit(function, job))
                if len(pending) >= window:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
