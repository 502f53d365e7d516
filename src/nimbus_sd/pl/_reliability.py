"""Reliability diagram: what scores promise beside what the labels keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.truth import score_matrices, truth_matrix
from nimbus_sd.arrays.reliability import STRATEGIES, reliability_bins
from nimbus_sd.pl import _style as style


def reliability(
    adata: ad.AnnData,
    truth: str | pd.DataFrame | ad.AnnData,
    scores: str | Sequence[str] | None = None,
    *,
    markers: str | Sequence[str] | None = None,
    n_bins: int = 10,
    strategy: str = "width",
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw the share of truly positive cells over the score, and how many cells there are.

    On the diagonal, 80 % of the cells that score 0.8 are positive; below it scores
    promise too much, above it too little. The legend gives the expected calibration
    error of the cells x markers drawn. Whiskers are 95 % Wilson intervals, which take
    cells as independent. The lower axes show the share of cells per bin.

    Parameters
    ----------
    adata
        Table of scores.
    truth
        Labels: layer, frame or table, as in :func:`nimbus_sd.tl.evaluate`.
    scores
        ``"X"`` or a layer in [0, 1], or several, for instance ``["X", "calibrated"]``; None
        takes ``X``.
    markers
        Which, pooled; None takes all that both have.
    n_bins
        Number of bins.
    strategy
        ``"width"`` equal steps of score, ``"mass"`` equally many cells.
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
    The figure if `return_fig`; the axes ``(2,)``, diagram and shares, if it is not
    shown; else None.

    Raises
    ------
    ElementNotFoundError
        If a layer or marker does not exist.
    InputError
        If scores leave [0, 1], no cell has a label and a score, or labels don't fit.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))
    >>> nb.tl.predict(sdata, channels=["CD45", "VIM"], progress=False)
    >>> fig = nb.pl.reliability(
    ...     sdata["nimbus"], sdata["truth"], markers=["CD45", "VIM"], return_fig=True)
    """
    if n_bins < 2 or strategy not in STRATEGIES:
        msg = f"n_bins={n_bins}, strategy={strategy!r}: at least 2; valid: {', '.join(STRATEGIES)}"
        raise InputError(msg)
    style.check_save(save)
    labels, names = truth_matrix(adata, truth, markers=markers)
    binned = {}
    for name, values in score_matrices(adata, scores, names).items():
        found = reliability_bins(labels.ravel(), values.ravel(), n_bins=n_bins, strategy=strategy)
        if not found.count.size:
            msg = f"no cell has both a label and a score in {name!r}; there is nothing to draw"
            raise InputError(msg)
        binned[name] = found
    shown = style.is_shown(show, save=save, return_fig=return_fig)

    def build() -> tuple[Figure, np.ndarray]:
        fig = style.new_figure(figsize or (3.4, 4.2 + 0.15 * len(binned)), shown=shown)
        axes = fig.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
        axes[0].plot([0, 1], [0, 1], color="0.6", lw=0.8, ls=(0, (3, 2)), zorder=0)
        for i, (name, bins) in enumerate(binned.items()):
            _series(axes, name, bins, style.SERIES[i % len(style.SERIES)])
        axes[0].set(xlim=(0, 1), ylim=(-0.01, 1.01), ylabel="share truly positive")
        fig.legend(loc="outside lower center", handlelength=1.2)
        # few cells score between the modes: on a linear axis they would not show
        axes[1].set_yscale("function", functions=(lambda v: np.sqrt(np.maximum(v, 0)), np.square))
        axes[1].set(xlabel="score", ylabel="cells (√)", ylim=(0, 1), yticks=[0.01, 0.1, 0.4, 1])
        axes[1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for ax in axes:
            ax.spines[["top", "right"]].set_visible(False)
            ax.xaxis.set_major_formatter("{x:g}")
        return fig, axes

    fig, axes = style.with_style(build)
    return style.finish(fig, axes, shown=shown, save=save, return_fig=return_fig)


def _series(axes: Sequence[Axes], name: str, bins: Any, look: tuple[str, str]) -> None:
    colour, marker = look
    label = f"{name}, calibration error {bins.expected_calibration_error:.3f}"
    lower, upper = wilson(bins.share_positive, bins.count)
    axes[0].vlines(bins.mean_score, lower, upper, color=colour, lw=1, alpha=0.6)
    axes[0].plot(
        bins.mean_score, bins.share_positive, color=colour, marker=marker, ms=4, lw=1.1, label=label,
        mec="white", mew=0.4, clip_on=False,
    )  # fmt: skip
    edges = np.unique(np.append(bins.lower, bins.upper))
    share = np.zeros(edges.size - 1)
    share[np.searchsorted(edges, bins.lower)] = bins.count / bins.count.sum()
    axes[1].stairs(share, edges, color=colour, lw=1.1)
    axes[1].stairs(share, edges, color=colour, fill=True, alpha=0.15, lw=0)


def wilson(share: np.ndarray, count: np.ndarray, *, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of a share of `count` cells."""
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
