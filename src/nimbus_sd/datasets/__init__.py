"""Simulated tissue with known truth, as SpatialData."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimbus_sd._core.lazy import lazy_exports

if TYPE_CHECKING:
    from nimbus_sd.datasets.simulated_tissue import simulated_tissue

__all__ = ["simulated_tissue"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {"simulated_tissue": "simulated_tissue"},
)
