"""Quantities as people read them."""

from __future__ import annotations

import math


def si(value: float, unit: str) -> str:
    """Three digits and a prefix: ``1.8 PFLOP``."""
    rounded = float(f"{value:.3g}")  # 999.9 k is 1 M
    power = min(int(math.log10(rounded)) // 3, 6) if rounded >= 1000 else 0
    return f"{rounded / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P', 'E')[power]}{unit}"


def binary(n_bytes: int) -> str:
    """Bytes with one digit: ``3.1 GiB``."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """The two largest units: ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    total = round(seconds)
    for unit, size, smaller, per in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if total >= size:
            return f"{total // size} {unit} {total % size // per} {smaller}"
    return f"{total} s"
