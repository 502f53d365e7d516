"""Checks and plain forms that the configurations share."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from nimbus_sd._core.errors import InputError


def within(owner: object, low: float, high: float, *names: str) -> None:
    """Raise :class:`InputError` unless the named numbers lie within limits."""
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            msg = f"{type(owner).__name__}.{name} must lie in [{low:g}, {high:g}], got {value!r}"
            raise InputError(msg)


def ranges(owner: object, low: float, *names: str) -> None:
    """Turn the named pairs into tuples; raise :class:`InputError` unless they are ordered."""
    for name in names:
        value = getattr(owner, name)
        # TOML has lists only, and a frozen object should not hold one
        object.__setattr__(owner, name, tuple(value))
        if len(value) != 2 or not low <= value[0] <= value[1] < math.inf:
            where = f"{type(owner).__name__}.{name}"
            msg = f"{where} must be (low, high) with {low:g} <= low <= high, got {value!r}"
            raise InputError(msg)


def check_keys(kind: type, values: object, where: str) -> None:
    """Raise :class:`InputError` unless `values` is a table of fields of `kind`."""
    if not isinstance(values, Mapping):
        msg = f"{where} must be a table, got {values!r}"
        raise InputError(msg)
    known = [f.name for f in fields(kind)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        msg = f"unknown keys in {where}: {', '.join(unknown)}; valid: {', '.join(known)}"
        raise InputError(msg)


def plain(value: Any) -> Any:
    """Tuples as lists, mappings as dicts."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, tuple | list) else value


def toml(value: Any) -> str:
    """One TOML value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        return "[" + ", ".join(toml(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }"
    return repr(value)
