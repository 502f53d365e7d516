"""What everything that runs on a dask cluster needs: its workers, and one copy of an object for all."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

from distributed import Client, Future

from nimbus_sd._core.errors import ClusterError, NimbusWarning

_LARGE = 8 << 20


def known_workers(client: Client) -> dict[str, Any]:
    """What the scheduler knows of its workers now; nothing if it is gone."""
    return client.scheduler_info(n_workers=-1).get("workers", {})


def workers_of(client: Client) -> dict[str, Any]:
    """What the scheduler knows of its workers, by address.

    Raises
    ------
    ClusterError
        If there are none.
    """
    known = known_workers(client)
    if not known:
        msg = (
            f"the cluster of {client} has no workers (yet); start some, or wait with "
            "client.wait_for_workers(1), or run in this process with client=False"
        )
        raise ClusterError(msg)
    return known


def share(thing: object, client: Client, key: str, *, expected: int = 0) -> Future:
    """Put an object on the cluster as a task: a worker that comes back can make it again.

    Parameters
    ----------
    thing
        Pickled once.
    client
        Of the cluster.
    key
        Of the task.
    expected
        Bytes it holds that are no pixels; a warning says when much more than these is sent.
    """
    packed = pickle.dumps(thing)
    if len(packed) > _LARGE + expected:
        warnings.warn(
            f"{len(packed) >> 20} MiB of pixels in memory are sent to the workers; write the object to zarr "
            "and read it back, and they read what they need themselves",
            NimbusWarning,
            stacklevel=4,
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sending large graph")
        return client.submit(pickle.loads, packed, key=key)
