"""One colour per group, the same in every plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nimbus_sd.pl import _style as style

# Okabe and Ito's hues, the same darker and lighter, then seven between them
_HUES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_BETWEEN = ("#6A3D9A", "#A6D854", "#8C564B", "#E7298A", "#222222", "#1CD3C2", "#7C7CE0")
#: names of groups that are none
_NO_GROUP = ("-1", "unassigned", "unknown", "nan", "none", "other", "")
#: markers of an overlay, on black: no two of the first three are confused with a common colour blindness
OVERLAY = ("#FF00FF", "#00E000", "#2D8CFF", "#FFD400", "#FF4A1C", "#00E5E5", "#FFFFFF")


def palette(n: int) -> list[str]:
    """`n` colours; after 28 they start again.

    Examples
    --------
    >>> palette(2)
    ['#0072b2', '#e69f00']
    """
    every = [
        *map(to_hex, _HUES),
        *(_mixed(c, "black", 0.5) for c in _HUES),
        *(_mixed(c, "white", 0.55) for c in _HUES),
        *map(to_hex, _BETWEEN),
    ]
    return [every[i % len(every)] for i in range(n)]


def _mixed(colour: str, other: str, share: float) -> str:
    red, green, blue = (1 - share) * np.array(to_rgb(colour)) + share * np.array(to_rgb(other))
    return to_hex((red, green, blue))


def on_dark(colour: str) -> str:
    """The colour, lighter where it would not show on black."""
    return _mixed(colour, "white", 0.4) if np.dot(to_rgb(colour), (0.3, 0.59, 0.11)) < 0.4 else colour


def group_colours(adata: ad.AnnData, groupby: str) -> dict[str, str]:
    """Colour of every category of ``obs[groupby]``.

    ``uns[f"{groupby}_colors"]`` goes first, as in scanpy. Groups such as "unassigned" are
    grey, a number takes the colour of that place, so that a subset keeps its colours, and
    other names take theirs in order.
    """
    names = [str(c) for c in pd.Categorical(adata.obs[groupby]).categories]
    stored = adata.uns.get(f"{groupby}_colors")
    if stored is not None and len(stored) == len(names):
        return dict(zip(names, map(str, stored), strict=True))
    real = [n for n in names if n.lower() not in _NO_GROUP]
    numbers = [int(n) if n.isdecimal() and len(n) < 4 else -1 for n in real]
    places = numbers if min(numbers, default=-1) >= 0 else list(range(len(real)))
    every = palette(max(places, default=0) + 1)
    found = {name: every[place] for name, place in zip(real, places, strict=True)}
    return {name: found.get(name, style.MISSING) for name in names}


def rgba(colours: Sequence[str]) -> np.ndarray:
    """``(n, 4)`` uint8."""
    out = np.full((len(colours), 4), 255, np.uint8)
    out[:, :3] = np.array([to_rgb(c) for c in colours]).reshape(-1, 3) * 255
    return out


def legend(fig: Figure, colours: dict[str, str], *, title: str = "") -> None:
    """Groups and their colours at the right of the figure."""
    right_legend(fig, [Patch(facecolor=c, label=name) for name, c in colours.items()], title=title)


def right_legend(fig: Figure, handles: Sequence[Any], *, title: str) -> None:
    """A legend at the right of the figure, in as many columns as the figure's height asks for."""
    per_column = max(1, int((fig.get_figheight() - 0.4) / 0.19))
    fig.legend(
        handles=list(handles), labels=[_short(h.get_label()) for h in handles], loc="outside right upper",
        title=title, ncols=-(-len(handles) // per_column), handlelength=1.0, columnspacing=1.0,
        alignment="left",
    )  # fmt: skip


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"
