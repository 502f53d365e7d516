"""Sizes in bytes, as people write them."""

from __future__ import annotations

from dask.utils import parse_bytes

from nimbus_sd._core.errors import InputError


def bytes_of(size: int | str | None, *, argument: str = "memory") -> int | None:
    """A number of bytes, or such as ``"4 GiB"``; None stays None.

    Raises
    ------
    InputError
        If it is no size; the message names the argument.
    """
    try:
        return None if size is None else int(parse_bytes(size))
    except ValueError as error:
        msg = f'{argument}={size!r} is no size ({error}); valid: a number of bytes, or such as "4 GiB"'
        raise InputError(msg) from error
