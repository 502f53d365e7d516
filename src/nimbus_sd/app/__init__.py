"""Pages in the browser: review clusters and single cells, correct them, go on training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nimbus_sd._core.lazy import lazy_exports

if TYPE_CHECKING:
    from nimbus_sd.app._report import report
    from nimbus_sd.app._review import review
    from nimbus_sd.app._server import ReviewServer
    from nimbus_sd.app._widget import ReviewWidget

__all__ = ["ReviewServer", "ReviewWidget", "report", "review"]

__getattr__, __dir__ = lazy_exports(
    __name__, {"ReviewServer": "_server", "ReviewWidget": "_widget", "report": "_report", "review": "_review"}
)
