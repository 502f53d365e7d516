"""Thresholds that can be dragged: lines of histograms follow the mouse and keep their order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays.gating import THRESHOLDS
from nimbus_sd.pl._gate_panel import GatePanel

if TYPE_CHECKING:
    from matplotlib.backend_bases import Event, MouseEvent

_REACH = 8.0  # px of the screen


class GateEditor:
    """What :func:`nimbus_sd.pl.gate` returns with ``edit=True``.

    Drag a line to move a threshold; it stops at its neighbours. Counts follow. In a notebook this
    needs a live figure (``%matplotlib ipympl``), in a script a window.

    Parameters
    ----------
    figure
        Figure with the panels.
    panels
        Row of the table to its panel.
    frame
        The thresholds, with those that are not drawn.

    Attributes
    ----------
    figure
        The figure.
    panels
        Row of the table to its panel.
    """

    def __init__(self, figure: Figure, panels: dict[object, GatePanel], frame: pd.DataFrame) -> None:
        self.figure = figure
        self.panels = panels
        self._frame = frame.copy()
        self._held: tuple[GatePanel, list[int]] | None = None
        # matplotlib forgets bound methods of objects that nobody keeps; the figure keeps these
        figure.canvas.mpl_connect("button_press_event", lambda e: self._press(e))
        figure.canvas.mpl_connect("motion_notify_event", lambda e: self._move(e))
        figure.canvas.mpl_connect("button_release_event", lambda e: self._release(e))

    @property
    def thresholds(self) -> pd.DataFrame:
        """The thresholds as they are now, for :func:`nimbus_sd.pp.gate`."""
        out = self._frame.copy()
        for row, panel in self.panels.items():
            out.loc[row, list(THRESHOLDS)] = panel.limits
        return out

    def save(self, path: str | Path) -> None:
        """Write the thresholds as a CSV, which :func:`nimbus_sd.pp.gate` reads.

        Raises
        ------
        InputError
            If the folder does not exist.
        """
        path = Path(path).expanduser()
        if not path.parent.is_dir():
            msg = f"{str(path)!r}: the folder {path.parent} does not exist; create it first"
            raise InputError(msg)
        self.thresholds.to_csv(path)

    def _press(self, event: Event) -> None:
        toolbar = getattr(self.figure.canvas, "toolbar", None)
        busy = toolbar is not None and str(getattr(toolbar, "mode", "")) != ""  # panning or zooming
        panel = next((p for p in self.panels.values() if p.ax is getattr(event, "inaxes", None)), None)
        if panel is not None and not busy and getattr(event, "button", None) == 1:
            self._held = _grabbed(panel, event)  # type: ignore[arg-type]

    def _move(self, event: Event) -> None:
        if self._held is None or getattr(event, "inaxes", None) is not self._held[0].ax:
            return
        panel, lines = self._held
        x = float(event.xdata)  # type: ignore[attr-defined]
        # of several lines in one place, the one that can go there
        i = lines[0] if x < panel.shown()[lines[0]] else lines[-1]
        self._held = panel, [i]
        below = panel.limits[i - 1] if i else -float("inf")
        above = panel.limits[i + 1] if i + 1 < len(panel.limits) else float("inf")
        panel.limits[i] = min(max(x, below), above)
        panel.move()
        self.figure.canvas.draw_idle()

    def _release(self, event: Event) -> None:
        self._held = None


def _grabbed(panel: GatePanel, event: MouseEvent) -> tuple[GatePanel, list[int]] | None:
    """The lines under the mouse; several if they lie in one place."""
    at = [float(panel.ax.transData.transform((x, 1.0))[0]) for x in panel.shown()]
    nearest = min(abs(event.x - x) for x in at)
    if nearest > _REACH:
        return None
    return panel, [i for i, x in enumerate(at) if abs(event.x - x) <= nearest + 0.5]
