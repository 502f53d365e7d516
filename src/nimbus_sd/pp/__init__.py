"""Preprocessing: normalisation, integrated expression, labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimbus_sd._core.lazy import lazy_exports

if TYPE_CHECKING:
    from nimbus_sd.pp._expand_labels import expand_labels
    from nimbus_sd.pp._integrated_expression import integrated_expression
    from nimbus_sd.pp._normalization import Normalization, normalization

__all__ = ["Normalization", "expand_labels", "integrated_expression", "normalization"]

# a file named as its function would shadow it: importing a submodule sets it as the package's attribute
__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Normalization": "_normalization",
        "expand_labels": "_expand_labels",
        "integrated_expression": "_integrated_expression",
        "normalization": "_normalization",
    },
)
