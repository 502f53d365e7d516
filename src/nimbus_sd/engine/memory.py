"""Memory of the layers on the CPU: freed blocks are used again instead of being mapped anew."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

# names of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MIB = 1 << 20
_DASK_DEFAULT = ("MALLOC_TRIM_THRESHOLD_", "65536")

_lock = Lock()
_users = 0


@contextmanager
def reuse_memory() -> Iterator[None]:
    """Let freed memory stay with the process until the last context is left.

    glibc maps every block over 32 MiB anew and unmaps it when freed, so that each
    layer's output is zeroed by the kernel page by page: a fifth (width 64) to two
    fifths (width 16) of a forward pass over 1024 x 1024 px. Inside the context such
    blocks come from the heap and return to it; leaving it gives free memory back to
    the system and restores the thresholds that glibc itself arrives at.

    Elsewhere than on glibc, or where the environment sets malloc's options, nothing is
    changed. May be nested and used from several threads. Leave it now and then: small
    blocks that stay break up the heap, and with them its peak creeps up.
    """
    global _users  # the options are the process's, and so is the count of who needs them
    libc = _glibc()
    if libc is None:
        yield
        return
    with _lock:
        _users += 1
        if _users == 1:
            libc.mallopt(_MMAP_MAX, 0)
            libc.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                libc.mallopt(_MMAP_MAX, 65_536)
                libc.mallopt(_MMAP_THRESHOLD, 32 * _MIB)
                libc.mallopt(_TRIM_THRESHOLD, 64 * _MIB)
                libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    # dask's nanny gives every worker this value; it is nobody's wish
    environ = [name for name, value in os.environ.items() if (name, value) != _DASK_DEFAULT]
    options = [*environ, *os.environ.get("GLIBC_TUNABLES", "").split(":")]
    tuned = any(
        o.startswith(("MALLOC_MMAP", "MALLOC_TRIM", "glibc.malloc.mmap", "glibc.malloc.trim"))
        for o in options
    )
    if tuned or os.name != "posix":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
