"""Simulated tissue with known truth, as SpatialData."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimbus_sd._core.lazy import lazy_exports

if TYPE_CHECKING:
    from nimbus_sd.datasets._simulated_tissue import simulated_tissue

__all__ = ["simulated_tissue"]

# a file named as its function would shadow it: importing a submodule sets it as the package's attribute
__getattr__, __dir__ = lazy_exports(
    __name__,
    {"simulated_tissue": "_simulated_tissue"},
)
