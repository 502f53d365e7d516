"""One histogram with its four ranges, which can move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, NullLocator

from nimbus_sd.arrays.gating import RANGES, gate_ranges
from nimbus_sd.pl import _style as style

COLOURS = dict(zip(RANGES, (style.NEGATIVE, style.MISSING, style.POSITIVE, "#CC79A7"), strict=True))
WORDS = dict(zip(RANGES, ("negative", "uncertain", "positive", "over-exposed"), strict=True))
_MARGIN = 0.03  # of the axis, beside the brightest cell and the outermost line
_TOP = 0.62  # of the panel's height, for bars and lines; counts stand above
_TICK_GAP = 0.14  # of the axis


class GatePanel:
    """Histogram of one marker in one section, on an arcsinh axis, with ranges, lines and counts.

    Parameters
    ----------
    ax
        Where.
    values
        ``(n,)`` intensities; NaN is left out.
    limits
        The three thresholds, in order.
    title
        Said above.
    bins
        Number of bars.
    """

    def __init__(
        self, ax: Axes, values: np.ndarray, limits: Sequence[float], *, title: str, bins: int
    ) -> None:
        self.ax = ax
        self.values = values[np.isfinite(values)]
        self.limits = [float(v) for v in limits]
        self._draw_bars(bins)
        ax.set_title(title, fontweight="bold", loc="left")
        whole = ax.get_xaxis_transform()
        self.spans = [
            Rectangle((0, 0), 1, 1, transform=whole, color=COLOURS[r], alpha=0.4, lw=0, zorder=0)
            for r in RANGES
        ]
        for span in self.spans:
            ax.add_patch(span)
        self.lines = [ax.axvline(0, ymax=_TOP, color="0.1", lw=1.1, ls=(0, (3, 1.2))) for _ in self.limits]
        self.texts = self._write_counts()
        self.move()

    def _draw_bars(self, bins: int) -> None:
        ax, v = self.ax, self.values
        known = [x for x in self.limits if np.isfinite(x)]
        # the scale on which background is a hump rather than a line or a comb
        width = float(np.median(np.abs(v))) if v.size else 0.0
        width = width or (float(np.quantile(np.abs(v), 0.97)) / 20 if v.size else 0.0) or 1.0
        ends = np.arcsinh(np.array([*(v.min(initial=np.inf), v.max(initial=-np.inf)), *known]) / width)
        ends = ends[np.isfinite(ends)] if np.isfinite(ends).any() else np.array([0.0, 1.0])
        room = max(float(np.ptp(ends)), 1e-6) * _MARGIN
        low, high = float(ends.min()) - room, float(ends.max()) + room
        edges = np.sinh(np.linspace(low, high, bins + 1)) * width
        counts = np.histogram(v, edges)[0]
        ax.stairs(counts, edges, fill=True, color="0.35", lw=0, baseline=0.5)
        ax.set_xscale("asinh", linear_width=width)
        ax.set_yscale("log")
        top = max(float(counts.max(initial=1)), 10.0)
        # in logarithms: from a bar of one cell, half a decade above the floor, to the tallest
        ax.set(xlim=(edges[0], edges[-1]), ylim=(0.5, 0.5 * (top / 0.5) ** (1 / _TOP)))
        ax.set_yticks([10.0**k for k in range(int(np.log10(top)) + 1)])
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_xticks(_ticks(edges[0], edges[-1], width))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(_decade))
        ax.spines[["top", "right"]].set_visible(False)

    def _write_counts(self) -> list[Text]:
        return [
            self.ax.text(
                0.985, 0.975 - 0.085 * i, "", transform=self.ax.transAxes, ha="right", va="top", fontsize=6.5
            )
            for i in range(len(RANGES))
        ]

    def shown(self) -> list[float]:
        """Where the lines are drawn: at the edge where a threshold lies outside of the axis."""
        low, high = self.ax.get_xlim()
        return [min(max(v, low), high) for v in self.limits]

    def counts(self) -> np.ndarray:
        """Cells in each range, int64 ``(4,)``."""
        found = gate_ranges(self.values[:, None], np.array([self.limits]))
        return np.bincount(found.ravel(), minlength=len(RANGES))

    def move(self) -> None:
        """Bring ranges, lines and counts to where the thresholds are."""
        low, high = self.ax.get_xlim()
        at = self.shown()
        for span, left, right in zip(self.spans, [low, *at], [*at, high], strict=True):
            span.set_x(left)
            span.set_width(right - left)
        for line, x in zip(self.lines, at, strict=True):
            line.set_xdata([x, x])
        n = self.counts()
        for text, name, count in zip(self.texts, RANGES, n, strict=True):
            share = f"{count / n.sum():.1%}" if n.sum() else "–"
            text.set_text(f"{WORDS[name]} {count:,} ({share})")


def _ticks(low: float, high: float, width: float) -> list[float]:
    """Powers of ten that don't run into each other on an arcsinh axis, and 0."""
    start, end = np.arcsinh(low / width), np.arcsinh(high / width)
    top = int(np.floor(np.log10(max(high, 1e-300))))
    out: list[float] = []
    for value in (*(10.0**k for k in range(top, top - 12, -1)), 0.0):
        at = [np.arcsinh(v / width) for v in (value, *out)]
        if low <= value <= high and all(abs(at[0] - a) > _TICK_GAP * (end - start) for a in at[1:]):
            out.append(value)
    return out


def _decade(value: float, _: int) -> str:
    return "0" if value == 0 else f"$10^{{{round(np.log10(value))}}}$"
