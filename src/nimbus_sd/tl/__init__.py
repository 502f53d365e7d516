"""Tools: score every cell and marker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimbus_sd._core.lazy import lazy_exports

if TYPE_CHECKING:
    from nimbus_sd.tl.predict import predict

__all__ = ["predict"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {"predict": "predict"},
)
