"""Tools: score every cell and marker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimbus_sd._core.lazy import lazy_exports

if TYPE_CHECKING:
    from nimbus_sd.tl._predict import predict

__all__ = ["predict"]

# a file named as its function would shadow it: importing a submodule sets it as the package's attribute
__getattr__, __dir__ = lazy_exports(
    __name__,
    {"predict": "_predict"},
)
