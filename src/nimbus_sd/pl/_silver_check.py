"""Silver labels beside intensity: which markers' labels fit their images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.truth import matrix, truth_matrix
from nimbus_sd.arrays.silver import CHECKS, disagreement
from nimbus_sd.pl import _style as style

_POOR = 0.7
_BINS = 40
_MAX_MARKERS = 40


def silver_check(
    adata: ad.AnnData,
    markers: str | Sequence[str] | None = None,
    *,
    key: str = "silver",
    layer: str | None = "integrated_expression",
    n_columns: int = 4,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw the intensities of positive and negative cells, marker by marker.

    Histograms of the square root of the intensity, each class scaled to its own peak, on
    a square-root axis, the worst marker first; the last bar holds what is brighter. Printed: AUROC of the
    intensity for the label (red below 0.7), share of dim positives (below the median
    negative cell) and of bright negatives (above the median positive one).

    Parameters
    ----------
    adata
        Table with silver labels.
    markers
        At most 40; None takes all that have both classes.
    key
        Layer with the labels.
    layer
        Layer with the intensities; None takes ``X``.
    n_columns
        Markers side by side.
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
    The figure if `return_fig`; the axes ``(n_markers,)`` if it is not shown; else None.

    Raises
    ------
    ElementNotFoundError
        If a layer or marker does not exist.
    InputError
        If no marker has both classes, or there are too many.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> truth = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128), channels=["CD3", "VIM"])["truth"]
    >>> assignment = nb.datasets.assignment_matrix("simulated")[["CD3", "VIM"]]
    >>> report = nb.pp.silver_labels(truth, assignment, layer=None)
    >>> fig = nb.pl.silver_check(truth, layer=None, return_fig=True)
    """
    style.check_save(save)
    labels, names = truth_matrix(adata, key, markers=markers)
    intensity = matrix(adata, layer)[:, adata.var_names.get_indexer(names)]
    checks = {n: disagreement(y, x) for n, y, x in zip(names, labels.T, intensity.T, strict=True)}
    drawn = sorted((n for n in names if not np.isnan(checks[n][3])), key=lambda n: checks[n][3])
    if not drawn or len(drawn) > _MAX_MARKERS:
        what = "no marker has" if not drawn else f"{len(drawn)} markers have"
        msg = f"layer {key!r}: {what} positive and negative cells; between 1 and {_MAX_MARKERS} can be drawn"
        raise InputError(msg)
    shown = style.is_shown(show, save=save, return_fig=return_fig)
    columns = min(n_columns, len(drawn))
    rows = -(-len(drawn) // columns)

    def build() -> tuple[Figure, np.ndarray]:
        fig = style.new_figure(figsize or (2.2 * columns, 1.5 * rows + 0.4), shown=shown)
        axes = fig.subplots(rows, columns, squeeze=False).ravel()
        for ax, name in zip(axes, drawn, strict=False):
            at = names.index(name)
            _panel(ax, name, labels[:, at], intensity[:, at], checks[name])
        for ax in axes[len(drawn) :]:
            ax.set_axis_off()
        handles, said = axes[0].get_legend_handles_labels()
        fig.legend(handles, said, loc="outside lower center", ncols=2)
        for ax in axes[max(len(drawn) - columns, 0) : len(drawn)]:
            ax.set_xlabel("√ intensity")
        return fig, axes[: len(drawn)]

    fig, axes = style.with_style(build)
    return style.finish(fig, axes, shown=shown, save=save, return_fig=return_fig)


def _panel(ax: Axes, name: str, labels: np.ndarray, intensity: np.ndarray, check: np.ndarray) -> None:
    root = np.sqrt(np.maximum(intensity, 0))
    known = ~np.isnan(labels) & ~np.isnan(root)
    # both classes must show, however rare one is
    tops = [float(np.quantile(root[known & (labels == value)], 0.98)) for value in (0, 1)]
    edges = np.linspace(0, max(*tops, 1e-6), _BINS + 1)
    for value, colour, said in (
        (0, style.TRUE_NEGATIVE, "labelled negative"),
        (1, style.TRUE_POSITIVE, "labelled positive"),
    ):
        counts = np.histogram(np.minimum(root[known & (labels == value)], edges[-1]), edges)[0]
        # square root, or a tail beside many dark cells would not show
        height = np.sqrt(counts / max(counts.max(), 1))
        ax.stairs(height, edges, color=colour, lw=1, label=said)
        ax.stairs(height, edges, color=colour, fill=True, alpha=0.18, lw=0)
    found = dict(zip(CHECKS, check, strict=True))
    poor = found["auroc"] < _POOR
    ax.set_title(f"{name}, AUROC {found['auroc']:.2f}", color="#B2182B" if poor else "black", pad=3)
    ax.text(
        0.97, 0.95,
f"n⁺ {found['n_positive']:,.0f}\n"
        f"dim⁺ {found['dim_positives']:.0%}\nbright⁻ {found['bright_negatives']:.0%}",
        transform=ax.transAxes, ha="right", va="top", fontsize=6.5,
    )  # fmt: skip
    ax.set(yticks=[], ylim=(0, 1.05), xlim=(0, edges[-1]))
    ax.spines[["top", "right", "left"]].set_visible(False)
