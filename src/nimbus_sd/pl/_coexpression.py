"""Which markers are positive together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage

from nimbus_sd._core.errors import InputError
from nimbus_sd.pl import _style as style
from nimbus_sd.pl._table import check_table, pick_markers, thresholds, values

_MAX_MARKERS = 80
_BLOCK = 1 << 16
#: measure: label, colour map, limits
_MEASURES = {
    "share": ("share of the row's positive cells that are positive for the column", "viridis", (0.0, 1.0)),
    "jaccard": ("positive for both / positive for either", "viridis", (0.0, 1.0)),
    "lift": ("log₂ (both / expected by chance)", "PuOr_r", (-4.0, 4.0)),
    "correlation": ("correlation of scores", "PuOr_r", (-1.0, 1.0)),
}


def coexpression(
    adata: ad.AnnData,
    markers: str | Sequence[str] | None = None,
    *,
    measure: str = "share",
    layer: str | None = None,
    threshold: float | Mapping[str, float] = 0.5,
    cluster_markers: bool = True,
    annotate: bool = False,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw a matrix of which markers are positive in the same cells.

    Grey fields are undefined: the diagonal, and markers without a positive cell.

    Parameters
    ----------
    adata
        Table of :func:`nimbus_sd.tl.predict`.
    markers
        2 to 80; None takes all, or the first 80 with a warning.
    measure
        ``"share"``: of the cells positive for the row's marker, the share positive for the
        column's; ``"jaccard"``: both over either; ``"lift"``: log2 of both over what
        independent markers would have, -4 to 4; ``"correlation"``: Pearson's, of the scores.
    layer
        Layer with the scores; None takes ``X``. Cells where a marker is NaN are left out of
        its pairs.
    threshold
        Above it a cell is positive; one number, or one per marker.
    cluster_markers
        Put markers side by side that go together (average linkage), else the order given.
    annotate
        Write the values into the fields.
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
        If a marker or layer does not exist.
    InputError
        If there are too few or too many markers, or the measure is unknown.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> truth = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))["truth"]
    >>> fig = nb.pl.coexpression(truth, ["CD3", "CD8", "CD20"], return_fig=True)
    """
    check_table(adata)
    style.check_save(save)
    if measure not in _MEASURES:
        msg = f"measure={measure!r}; valid: {', '.join(_MEASURES)}"
        raise InputError(msg)
    names = pick_markers(adata, markers, where="the table", limit=_MAX_MARKERS)
    if len(names) < 2:
        msg = f"markers={names}: at least two"
        raise InputError(msg)
    matrix = pairwise(values(adata, names, layer, where="the table"), thresholds(threshold, names), measure)
    order = _order(matrix) if cluster_markers else np.arange(len(names))
    matrix, names = matrix[np.ix_(order, order)], [names[i] for i in order]
    shown = style.is_shown(show, save=save, return_fig=return_fig, ax=ax)

    def build() -> tuple[Figure, Axes]:
        side = max(2.2, 0.21 * len(names))
        fig: Any = (
            style.new_figure(figsize or (side + 2.0, side + 1.0), shown=shown)
            if ax is None
            else ax.get_figure(root=True)
        )
        one = fig.add_subplot() if ax is None else ax
        _draw(one, matrix, names, measure, annotate=annotate)
        return fig, one

    fig, drawn = style.with_style(build)
    return style.finish(fig, drawn, shown=shown, save=save, return_fig=return_fig, ax=ax)


def pairwise(scores: np.ndarray, threshold: np.ndarray, measure: str) -> np.ndarray:
    """``(k, k)`` of one measure for all pairs of columns of `scores` ``(n, k)``; NaN where undefined.

    Examples
    --------
    >>> scores = np.array([[1, 1], [1, 0], [1, 1], [0, 0.0]])
    >>> pairwise(scores, np.array([0.5, 0.5]), "share").round(2).tolist()
    [[nan, 0.67], [1.0, nan]]
    """
    out = _correlation(scores) if measure == "correlation" else _together(scores, threshold, measure)
    np.fill_diagonal(out, np.nan)
    return out


def _together(scores: np.ndarray, threshold: np.ndarray, measure: str) -> np.ndarray:
    k = scores.shape[1]
    both, mine, known = np.zeros((3, k, k))  # mine: row positive, column known
    for start in range(0, len(scores), _BLOCK):
        part = scores[start : start + _BLOCK]
        positive, finite = (part > threshold).astype(np.float64), np.isfinite(part).astype(np.float64)
        both += positive.T @ positive
        mine += positive.T @ finite
        known += finite.T @ finite
    with np.errstate(divide="ignore", invalid="ignore"):
        if measure == "share":
            out = both / mine
        elif measure == "jaccard":
            out = both / (mine + mine.T - both)
        else:
            # half a cell more in each, or a pair that never meets has no finite lift
            out = np.log2((both + 0.5) * (known + 0.5) / ((mine + 0.5) * (mine.T + 0.5)))
    return np.where((mine > 0) & (mine.T > 0) if measure != "share" else mine > 0, out, np.nan)


def _correlation(scores: np.ndarray) -> np.ndarray:
    """Over the cells that have both; sums about the columns' means, or small spreads drown."""
    finite = np.isfinite(scores)
    count = np.maximum(finite.sum(0), 1)
    x = np.where(finite, scores - np.where(finite, scores, 0).sum(0) / count, 0)
    f = finite.astype(np.float64)
    n = np.maximum(f.T @ f, 1)
    mine, squares = x.T @ f, (x**2).T @ f  # [i, j]: of column i over the cells that have j too
    covariance = x.T @ x / n - (mine / n) * (mine.T / n)
    variance = squares / n - (mine / n) ** 2
    usable = (variance > 1e-12) & (variance.T > 1e-12)
    root = np.sqrt(np.where(usable, variance * variance.T, 1))
    return np.where(usable, np.clip(covariance / root, -1, 1), np.nan)


def _order(matrix: np.ndarray) -> np.ndarray:
    """Leaves of the tree of rows and columns together."""
    both = np.nan_to_num(np.concatenate([matrix, matrix.T], axis=1))
    np.fill_diagonal(both[:, : len(both)], 1)
    return leaves_list(linkage(both, "average", optimal_ordering=True))


def _draw(ax: Axes, matrix: np.ndarray, names: list[str], measure: str, *, annotate: bool) -> None:
    label, cmap, limits = _MEASURES[measure]
    colours = colormaps[cmap].with_extremes(bad=style.MISSING)
    drawn = ax.pcolormesh(
        np.ma.masked_invalid(matrix), cmap=colours, vmin=limits[0], vmax=limits[1],
        edgecolors="white", linewidth=0.3,
    )  # fmt: skip
    ax.set_facecolor(style.MISSING)
    ax.set_xticks(np.arange(len(names)) + 0.5, names, rotation=90)
    ax.set_yticks(np.arange(len(names)) + 0.5, names)
    ax.set(ylim=(len(names), 0), aspect="equal")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if annotate:
        for (i, j), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                dark = np.dot(drawn.cmap(drawn.norm(value))[:3], (0.299, 0.587, 0.114)) < 0.5
                shade = "white" if dark else "black"
                ax.text(j + 0.5, i + 0.5, f"{value:.2f}".replace("0.", ".", 1), ha="center", va="center",
                        fontsize=5.5, color=shade)  # fmt: skip
    fig: Any = ax.get_figure(root=True)
    bar = fig.colorbar(drawn, ax=ax, shrink=0.6, aspect=25)
    bar.set_label(label, fontsize=7.5)
