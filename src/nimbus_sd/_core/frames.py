"""Where in the user's code a call came from."""

from __future__ import annotations

import sys

_OURS = ("nimbus_sd", "contextlib")


def user_stacklevel() -> int:
    """Level for :func:`warnings.warn`, called where this is called, that names the user's line.

    Counting by hand fails as soon as a context manager or a further call lies between.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
        level, frame = level + 1, frame.f_back
    return level
