"""Marker positivity for every cell of a SpatialData object, read from the pixels.

Importing the package loads neither torch nor spatialdata: the rooms ``pp``,
``tl``, ``pl``, ``io``, ``datasets``, ``models`` and ``app`` are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nimbus_sd._core.version import __version__

if TYPE_CHECKING:
    from nimbus_sd import app, datasets, io, models, pl, pp, tl

__all__ = ["__version__", "app", "datasets", "io", "models", "pl", "pp", "tl"]

_ROOMS = frozenset(__all__) - {"__version__"}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"nimbus_sd.{name}")
    msg = f"module 'nimbus_sd' has no attribute {name!r}; valid: {', '.join(sorted(__all__))}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)
