"""Metrics with their limits, one row per group, score layers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.arrays.metrics import METRICS
from nimbus_sd.pl import _style as style

_MAX_GROUPS = 80
_CHANCE = ("auroc", "balanced_accuracy")  # what guessing gives is 0.5, however many are positive
_DOTS = (0, (1, 1.5))
_TITLES = {
    "f1": "F1",
    "auroc": "AUROC",
    "ece": "calibration error",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
}


def evaluation(
    frame: pd.DataFrame,
    metrics: str | Sequence[str] = ("f1", "auroc", "balanced_accuracy"),
    *,
    sort: bool = True,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw metrics as dots with their limits as bars, a row per marker (or other group).

    Each score layer has a colour and a shape; the dotted line is its mean over the rows
    that all layers have, the grey one at 0.5 what guessing gives. A dash at the left edge
    stands for an undefined metric (the frame's ``reason`` says why). Rows of several columns,
    such as marker and patient, stay together by the first one, a line between.

    Parameters
    ----------
    frame
        From :func:`nimbus_sd.tl.evaluate`; the columns before ``scores`` name the
        rows. At most 80 groups.
    metrics
        Any of ``precision, recall, specificity, balanced_accuracy, f1, auroc,
        average_precision, ece``, a panel each.
    sort
        Order rows by the first metric of the first score layer, else as in the frame. Of
        several columns, the first one's values by their mean, and rows within them.
    figsize
        Inches.
    show
        None shows the figure unless it is saved or returned.
    save
        Path of the file to write.
    return_fig
        Return the figure.

    Returns
    -------
    The figure if `return_fig`; the axes ``(n_metrics,)`` if it is not shown; else None.

    Raises
    ------
    ElementNotFoundError
        If a metric is not in the frame.
    InputError
        If it is no frame of an evaluation, or has too many groups.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))
    >>> nb.tl.predict(sdata, channels=["CD45", "VIM"], progress=False)
    >>> found = nb.tl.evaluate(sdata["nimbus"], sdata["truth"], markers=["CD45", "VIM"])
    >>> fig = nb.pl.evaluation(found, "f1", return_fig=True)
    """
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    _check(frame, names)
    style.check_save(save)
    by = list(frame.columns[: list(frame.columns).index("scores")])
    group = frame[by].astype(str).agg(" · ".join, axis=1) if by else pd.Series("all cells", index=frame.index)
    wide = frame.assign(_group=group, _block=frame[by[0]].astype(str) if len(by) > 1 else "")
    layers = list(dict.fromkeys(frame["scores"]))
    order = _order(wide, layers[0], names[0] if sort else None)
    shown = style.is_shown(show, save=save, return_fig=return_fig)

    def build() -> tuple[Figure, np.ndarray]:
        height = max(1.6, 0.9 + len(order) * (0.12 + 0.075 * len(layers)))
        fig = style.new_figure(figsize or (1.6 + 2.3 * len(names), height), shown=shown)
        axes = np.atleast_1d(fig.subplots(1, len(names), sharey=True))
        for ax, name in zip(axes, names, strict=True):
            _panel(ax, wide, name, layers, order)
        axes[0].set_yticks(range(len(order)), order)
        axes[0].set_ylim(len(order) - 0.5, -0.5)
        for y in _borders(wide, order):
            for ax in axes:
                ax.axhline(y, color="0.6", lw=0.6, gid="border")
        handles = _handles(axes, with_layers=len(layers) > 1)
        if handles:
            columns = min(len(handles), 1 + len(names))  # as many as fit below the panels
            fig.legend(handles=handles, loc="outside lower center", ncols=columns)
        return fig, axes

    fig, axes = style.with_style(build)
    return style.finish(fig, axes, shown=shown, save=save, return_fig=return_fig)


def _handles(axes: np.ndarray, *, with_layers: bool) -> list[Line2D]:
    """What the legend explains: the layers where there are several, and the lines that were drawn."""
    handles = [h for h in axes[0].get_legend_handles_labels()[0] if with_layers]
    drawn = {line.get_gid() for ax in axes for line in ax.lines}
    if "mean" in drawn:
        handles.append(Line2D([], [], color="0.35", lw=0.9, ls=_DOTS, label="mean of the rows"))
    if "chance" in drawn:
        handles.append(Line2D([], [], color="0.6", lw=0.8, label="guessing"))
    return handles


def _check(frame: object, names: list[str]) -> None:
    if not isinstance(frame, pd.DataFrame) or "scores" not in frame or not frame.size:
        msg = "pass a frame of nb.tl.evaluate with at least one row: it has the columns 'scores', 'f1', ..."
        raise InputError(msg)
    missing = [n for n in names if n not in METRICS or n not in frame]
    if missing or not names:
        msg = f"metrics={names}: not in the frame: {missing}; valid: {', '.join(METRICS)}"
        raise ElementNotFoundError(msg)


def _order(frame: pd.DataFrame, layer: str, metric: str | None) -> list[str]:
    groups = list(dict.fromkeys(frame["_group"]))
    if frame.duplicated(["_group", "scores"]).any():
        msg = "the frame has several rows per group and score layer; draw one evaluation at a time"
        raise InputError(msg)
    if len(groups) > _MAX_GROUPS:
        msg = f"{len(groups)} groups don't fit on one figure; filter the frame to at most {_MAX_GROUPS}"
        raise InputError(msg)
    if metric is None:
        return groups
    rows = frame[frame["scores"] == layer].set_index("_group").reindex(groups)
    sign = 1 if metric == "ece" else -1  # the best first
    keys = pd.DataFrame({"row": sign * rows[metric], "block": rows["_block"]})
    keys["mean"] = keys.groupby("block")["row"].transform("mean")
    return list(keys.sort_values(["mean", "block", "row"], kind="stable").index)


def _borders(frame: pd.DataFrame, order: list[str]) -> list[float]:
    """Between rows that differ in the first column."""
    block = frame.drop_duplicates("_group").set_index("_group")["_block"].reindex(order).to_numpy()
    return [i + 0.5 for i in np.flatnonzero(block[1:] != block[:-1])]


def _panel(ax: Axes, frame: pd.DataFrame, metric: str, layers: list[str], order: list[str]) -> None:
    tables = {name: frame[frame["scores"] == name].set_index("_group").reindex(order) for name in layers}
    common = np.all([t[metric].notna() for t in tables.values()], axis=0)
    outside = ax.get_yaxis_transform()
    for i, (name, table) in enumerate(tables.items()):
        colour, marker = style.SERIES[i % len(style.SERIES)]
        y = np.arange(len(order)) + (i - (len(layers) - 1) / 2) * 0.7 / max(len(layers), 2)
        value = table[metric].to_numpy(np.float64)
        if f"{metric}_lower" in table:
            limits = table[[f"{metric}_lower", f"{metric}_upper"]].to_numpy(np.float64)
            ax.hlines(y, limits[:, 0], limits[:, 1], color=colour, lw=1.1, alpha=0.6)
        ax.plot(value, y, marker, ms=3.6, color=colour, label=name, mec="white", mew=0.3)
        gone = np.isnan(value)
        ax.plot(np.full(gone.sum(), 0.015), y[gone], "_", ms=5, mew=1, color=colour, transform=outside)
        if common.sum() > 1:
            ax.axvline(value[common].mean(), color=colour, lw=0.8, ls=_DOTS, zorder=0, gid="mean")
    if metric in _CHANCE:
        ax.axvline(0.5, color="0.6", lw=0.8, zorder=0, gid="chance")
    ax.set(xlabel=_TITLES.get(metric, metric))
    left, right = ax.get_xlim() if frame[metric].notna().any() else (0, 1)
    ax.set_xlim(max(left, 0 - 0.02 * right), min(right, 1 + 0.02 * (1 - left)))  # nothing lies outside [0, 1]
    ax.grid(axis="y", color="0.92", lw=0.5)
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
