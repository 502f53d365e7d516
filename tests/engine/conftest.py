"""Small dask clusters for tests of runners."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import pytest
from distributed import Client, LocalCluster


@contextmanager
def local_cluster(n: int) -> Iterator[Client]:
    options = {"threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with warnings.catch_warnings(), LocalCluster(n_workers=n, **options) as made, Client(made) as client:
        warnings.simplefilter("ignore")
        client.wait_for_workers(n, timeout=60)
        yield client


@pytest.fixture(scope="module")
def clusters() -> Iterator[Callable[[int], Client]]:
    """Clusters by their number of workers, started when they are asked for."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as path:
        path.syspath_prepend(Path(__file__).parents[2])  # workers import the images of test files
        yield cache(lambda n: stack.enter_context(local_cluster(n)))
