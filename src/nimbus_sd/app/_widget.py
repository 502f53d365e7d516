"""The review page inside a notebook."""

from __future__ import annotations

from typing import Any

from spatialdata import SpatialData

from nimbus_sd._core.lazy import require
from nimbus_sd.app._review import review
from nimbus_sd.app._server import ReviewServer

_AnyWidget: Any = require("anywidget", extra="review").AnyWidget
_traitlets = require("traitlets", extra="review")

_ESM = """
function render({ model, el }) {
  const frame = document.createElement("iframe");
  frame.title = "Review";
  frame.style.cssText = "width:100%;border:0;border-radius:6px;display:block";
  const size = () => { frame.style.height = `${model.get("height")}px`; };
  const load = () => { frame.src = model.get("address"); };
  model.on("change:height", size);
  model.on("change:address", load);
  size();
  load();
  el.append(frame);
}
export default { render };
"""


class ReviewWidget(_AnyWidget):
    """The page of :func:`nimbus_sd.app.review` in a notebook's cell.

    It is a frame on a server that runs in the notebook's kernel and ends with it, or with
    :meth:`close`. The browser has to run on the kernel's machine, or that machine's port has to be
    forwarded under the same number.

    Parameters
    ----------
    sdata
        As of :func:`nimbus_sd.app.review`.
    height
        px.
    options
        Other arguments of :func:`nimbus_sd.app.review`.

    Attributes
    ----------
    server
        The running :class:`ReviewServer`.
    """

    _esm = _ESM
    address = _traitlets.Unicode("").tag(sync=True)
    height = _traitlets.Int(760).tag(sync=True)

    def __init__(self, sdata: SpatialData, *, height: int = 760, **options: Any) -> None:
        self.server: ReviewServer = review(sdata, **options)
        super().__init__(address=self.server.frame_url, height=height)

    def close(self) -> None:
        """Stop the server and remove the widget."""
        self.server.stop()
        super().close()
