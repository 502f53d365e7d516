"""Connecting to a dask scheduler from the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nimbus_sd._core.errors import InputError

if TYPE_CHECKING:
    from distributed import Client


@contextmanager
def connected(address: str | None) -> Iterator[Client | None]:
    """Yield a client of the dask scheduler at `address`; None without one.

    Raises
    ------
    InputError
        If none answers at `address`.
    """
    if address is None:
        yield None
        return
    from distributed import Client

    try:
        client = Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        msg = f"--scheduler {address}: no dask scheduler answers there ({error}); start one: dask scheduler"
        raise InputError(msg) from error
    with client:
        yield client
