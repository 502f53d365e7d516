"""Preprocessing: normalisation, integrated expression, labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimbus_sd._core.lazy import lazy_exports

if TYPE_CHECKING:
    from nimbus_sd.pp.expand_labels import expand_labels
    from nimbus_sd.pp.integrated_expression import integrated_expression
    from nimbus_sd.pp.normalization import Normalization, normalization

__all__ = ["Normalization", "expand_labels", "integrated_expression", "normalization"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Normalization": "normalization",
        "expand_labels": "expand_labels",
        "integrated_expression": "integrated_expression",
        "normalization": "normalization",
    },
)
