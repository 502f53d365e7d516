"""Simulated tissue with known truth, and assignment matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimbus_sd._core.lazy import lazy_exports

if TYPE_CHECKING:
    from nimbus_sd.datasets._assignment_matrix import assignment_matrix
    from nimbus_sd.datasets._simulated_sections import simulated_sections
    from nimbus_sd.datasets._simulated_tissue import simulated_tissue

__all__ = ["assignment_matrix", "simulated_sections", "simulated_tissue"]

# a file named as its function would shadow it: importing a submodule sets it as the package's attribute
__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "assignment_matrix": "_assignment_matrix",
        "simulated_sections": "_simulated_sections",
        "simulated_tissue": "_simulated_tissue",
    },
)
