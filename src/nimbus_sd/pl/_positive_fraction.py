"""Share of positive cells per marker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from nimbus_sd.pl import _style as style
from nimbus_sd.pl._table import check_table, groups, pick_markers, thresholds, values

_MAX_MARKERS = 80
_MAX_GROUPS = 200


def positive_fraction(
    adata: ad.AnnData,
    markers: str | Sequence[str] | None = None,
    *,
    groupby: str | None = None,
    layer: str | None = None,
    threshold: float | Mapping[str, float] = 0.5,
    sort: bool = True,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw the share of positive cells as a bar per marker, with a dot per sample or cluster.

    Parameters
    ----------
    adata
        Table of :func:`nimbus_sd.tl.predict`.
    markers
        At most 80; None takes all, or the first 80 with a warning.
    groupby
        Column of ``obs`` such as ``"region"``, at most 200 groups: each group's share is a
        dot on the bar; up to six groups get a colour and a shape each.
    layer
        Layer with the scores; None takes ``X``. NaN are left out.
    threshold
        Above it a cell is positive; one number, or one per marker.
    sort
        The most frequent marker first, else the order given.
    figsize
        Inches.
    ax
        Draw there.
    show
        None shows the figure unless it is saved, returned or drawn on `ax`.
    save
        Path of the file to write.
    return_fig
        Return the figure.

    Returns
    -------
    The figure if `return_fig`; the axes if it is not shown; else None.

    Raises
    ------
    ElementNotFoundError
        If a marker, layer or column does not exist.
    InputError
        If there are too many markers, the column does not group cells, or a threshold is
        missing.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> truth = nb.datasets.simulated_tissue(n_fovs=2, shape=(128, 128))["truth"]
    >>> fig = nb.pl.positive_fraction(truth, ["CD3", "CD8", "VIM"], groupby="region", return_fig=True)
    """
    check_table(adata)
    style.check_save(save)
    names = pick_markers(adata, markers, where="the table", limit=_MAX_MARKERS)
    scores = values(adata, names, layer, where="the table")
    cut = thresholds(threshold, names)
    share = fractions(scores, cut)
    order = np.argsort(-np.nan_to_num(share, nan=-1.0), kind="stable") if sort else np.arange(len(names))
    parts: dict[str, np.ndarray] = {}
    if groupby is not None:
        column = groups(adata, groupby, limit=_MAX_GROUPS)
        for k, name in enumerate(column.categories):
            parts[str(name)] = fractions(scores[column.codes == k], cut)[order]
    frame = pd.DataFrame(
        {"share": share[order], "n": np.isfinite(scores).sum(0)[order]}, index=[names[i] for i in order]
    )
    shown = style.is_shown(show, save=save, return_fig=return_fig, ax=ax)

    def build() -> tuple[Figure, Axes]:
        size = figsize or (4.6, 0.9 + 0.19 * len(frame))
        fig: Any = style.new_figure(size, shown=shown) if ax is None else ax.get_figure(root=True)
        one = fig.add_subplot() if ax is None else ax
        _bars(one, frame)
        _dots(one, parts)
        top = float(np.nanmax([*frame["share"], *np.ravel(list(parts.values())), 1e-3]))
        one.set_xlim(0, min(top * 1.04, 1.0))
        told = "cells" if groupby is None else f"cells (dots: {groupby.replace('_', ' ')})"
        one.set_xlabel(f"positive {told}")
        return fig, one

    fig, drawn = style.with_style(build)
    return style.finish(fig, drawn, shown=shown, save=save, return_fig=return_fig, ax=ax)


def fractions(scores: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """Share of ``scores > threshold`` per column, NaN left out; NaN where there is none.

    Examples
    --------
    >>> fractions(np.array([[0.9, np.nan], [0.1, np.nan]]), np.array([0.5, 0.5])).tolist()
    [0.5, nan]
    """
    count = np.isfinite(scores).sum(0)
    positive = (scores > threshold).sum(0)
    return np.where(count > 0, positive / np.maximum(count, 1), np.nan)


def _bars(ax: Axes, frame: pd.DataFrame) -> None:
    y = np.arange(len(frame))
    ax.barh(y, frame["share"].fillna(0), height=0.72, color=style.NEGATIVE, alpha=0.75, lw=0)
    edge = ax.get_yaxis_transform()
    for i, share in enumerate(frame["share"]):
        text = "no values" if np.isnan(share) else f"{share:.1%}" if share < 0.995 else f"{share:.0%}"
        ax.text(1.01, i, text, transform=edge, va="center", fontsize=6.5, color="0.25")
    ax.set_yticks(y, list(frame.index))
    ax.set_ylim(len(frame) - 0.4, -0.6)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.grid(axis="x", color="0.9", lw=0.5)
    ax.set_axisbelow(True)


def _dots(ax: Axes, parts: dict[str, np.ndarray]) -> None:
    named = 1 < len(parts) <= len(style.SERIES)
    for k, (name, share) in enumerate(parts.items()):
        colour, marker = style.SERIES[k] if named else ("0.15", "o")
        y = np.arange(share.size) + (0 if not named else (k - (len(parts) - 1) / 2) * 0.5 / len(parts))
        look: dict[str, Any] = {"color": colour, "alpha": 0.9 if named else 0.45, "mew": 0.0}
        ax.plot(share, y, marker, ms=3.2 if named else 2.4, ls="", label=name if named else None, **look)
    if named:
        ax.legend(loc="lower right", handletextpad=0.2, borderaxespad=0.1)
