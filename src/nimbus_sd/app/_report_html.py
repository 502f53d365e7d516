"""Pieces of HTML and SVG: tables, bars, histograms; all text is escaped here."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from nimbus_sd.app._report_words import percent

_WIDTH, _HEIGHT = 200.0, 72.0
_COLUMNS = 30


def section(name: str, heading: str, *parts: str) -> str:
    """A section with an anchor."""
    inside = "\n".join(p for p in parts if p)
    return f'<section id="{escape(name)}">\n<h2>{escape(heading)}</h2>\n{inside}\n</section>'


def paragraph(text: str, *, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str, kind: str = "") -> str:
    """A table of ready cells (``<td>…``), the first of each row its heading (plain text)."""
    top = "".join(f'<th scope="col"><span>{escape(h)}</span></th>' for h in head)
    body = "\n".join(f'<tr><th scope="row">{escape(row[0])}</th>{"".join(row[1:])}</tr>' for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}">\n<caption>{escape(caption)}</caption>\n'
        f"<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def cell(text: str, *, kind: str = "") -> str:
    """A cell of text."""
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def bar(share: float, text: str) -> str:
    """A cell with a bar from 0 to 1 behind its text."""
    width = float(np.clip(np.nan_to_num(share), 0, 1))
    return f'<td class="bar" style="--v:{width:.3f}">{escape(text)}</td>'


def heat(share: float, *, most: float = 1.0) -> str:
    """A cell shaded by its share; whole per cents, empty for none."""
    if not np.isfinite(share):
        return '<td class="none">–</td>'
    text = "0" if share == 0 else "<1" if share < 0.005 else f"{100 * share:.0f}"
    shade = float(np.clip(share / max(most, 1e-9), 0, 1))
    return f'<td class="heat" style="--v:{shade:.2f}">{escape(text)}</td>'


def heat_table(frame: pd.DataFrame, whole: pd.Series, *, caption: str, corner: str) -> str:
    """Shares as shaded tables that fit a screen and a sheet, with a first column about all cells."""
    if frame.shape[1] == 1:
        rows: list[list[str]] = [[str(n), bar(v, percent(v))] for n, v in whole.items()]
        return table([corner, "all cells"], rows, caption=caption, kind="narrow")
    parts = []
    for start in range(0, frame.shape[1], _COLUMNS):
        part = frame.iloc[:, start : start + _COLUMNS]
        rows = [
            [str(name), bar(whole[name], percent(whole[name])), *(heat(v) for v in row)]
            for name, row in zip(part.index, part.to_numpy(), strict=True)
        ]
        last = min(start + _COLUMNS, frame.shape[1])
        which = f" Columns {start + 1} to {last} of {frame.shape[1]}." if frame.shape[1] > _COLUMNS else ""
        parts.append(table([corner, "all", *map(str, part)], rows, caption=caption + which, kind="matrix"))
    return "\n".join(parts)


def swatch(colour: str, text: str) -> str:
    """A cell with a coloured square before its text."""
    return f'<td><i class="swatch" style="background:{escape(colour)}"></i>{escape(text)}</td>'


def histogram(
    name: str, scores: np.ndarray, expression: np.ndarray | None, *, threshold: float, text: str
) -> str:
    """A small figure: shares of cells per bin, on a square-root axis, expression as a line over scores."""
    shapes = [f'<path class="scores" d="{_steps(scores, closed=True)}"/>']
    if expression is not None:
        shapes.append(f'<path class="expression" d="{_steps(expression, closed=False)}"/>')
    x = threshold * _WIDTH
    shapes.append(f'<line class="cut" x1="{x:g}" x2="{x:g}" y1="0" y2="{_HEIGHT:g}"/>')
    shapes.append(f'<line class="axis" x1="0" x2="{_WIDTH:g}" y1="{_HEIGHT:g}" y2="{_HEIGHT:g}"/>')
    for at, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        shapes.append(f'<text x="{at * _WIDTH:g}" y="{_HEIGHT + 11:g}" text-anchor="{anchor}">{at:g}</text>')
    label = escape(f"{name}: {text}", quote=True)
    return (
        f'<figure class="histogram"><figcaption><b>{escape(name)}</b> {escape(text)}</figcaption>'
        f'<svg role="img" aria-label="{label}" viewBox="-2 -2 {_WIDTH + 4:g} {_HEIGHT + 16:g}">'
        f"{''.join(shapes)}</svg></figure>"
    )


def _steps(shares: np.ndarray, *, closed: bool) -> str:
    width = _WIDTH / len(shares)
    y = _HEIGHT * (1 - np.sqrt(np.clip(shares, 0, 1)))
    path = [f"M0 {_HEIGHT:g}"] if closed else [f"M0 {y[0]:.1f}"]
    path += [f"V{v:.1f}H{(i + 1) * width:g}" for i, v in enumerate(y)]
    return "".join(path) + (f"V{_HEIGHT:g}Z" if closed else "")


def picture(fig: Figure, *, alt: str, caption: str, kind: str = "", dpi: int = 120) -> str:
    """A matplotlib figure as PNG inside the page."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=dpi, facecolor=fig.get_facecolor(), bbox_inches="tight")
    image = Image.open(buffer).convert("RGB")
    if "photo" not in kind:  # a drawing needs few colours and a third of the bytes
        image = image.quantize(256, dither=Image.Dither.NONE)
    small = io.BytesIO()
    image.save(small, format="png", optimize=True)
    data, width = base64.b64encode(small.getvalue()).decode("ascii"), image.width
    return (
        f'<figure class="{kind or "plate"}"><img alt="{escape(alt, quote=True)}" '
        f'style="width:{width / dpi * 96:.0f}px" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
