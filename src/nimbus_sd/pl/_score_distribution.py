"""Distribution of scores beside that of integrated expression."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, PercentFormatter

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.arrays.metrics import auroc
from nimbus_sd.pl import _style as style
from nimbus_sd.pl._density import mirrored_density
from nimbus_sd.pl._table import check_table, pick_markers, scales, values

_MAX_MARKERS = 24
_ETA = "η: 1 two sharp groups, 0.75 evenly spread"
_TICKS = (0.01, 0.1, 0.3, 0.6, 1.0)


def score_distribution(
    adata: ad.AnnData,
    markers: str | Sequence[str] | None = None,
    *,
    layer: str | None = None,
    expression_layer: str | None = "integrated_expression",
    truth: str | pd.DataFrame | None = None,
    threshold: float | str | None = "table",
    kind: str = "hist",
    bins: int = 40,
    n_columns: int = 4,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw, for each marker, how scores and scaled integrated expression are distributed.

    Both lie on [0, 1]: integrated expression is divided by ``var["scale"]`` (its own
    99.9th percentile where that is missing) and clipped. Bars give the share of
    cells, of each class if there is truth, on a square-root axis, so that rare cells
    show. Printed beside: η, the share of the variance between the two classes of
    Otsu's threshold (1 two sharp modes, 0.75 uniform, 0.64 one normal mode), and with
    truth the AUROC.

    Parameters
    ----------
    adata
        Table of :func:`nimbus_sd.tl.predict` or :func:`nimbus_sd.tl.predict_subtypes`.
    markers
        At most 24; None takes all, or the first 24 with a warning.
    layer
        Layer with the scores; None takes ``X``.
    expression_layer
        Layer with the mean intensity per cell; None leaves it out, and so does a table of
        sub-types, whose H&E has none.
    truth
        Layer, or cells x markers frame indexed by ``obs_names``: 1 positive, 0
        negative, NaN undefined. Undefined cells, and markers that it lacks, are grey.
    threshold
        Where to draw a line into the scores; ``"table"`` takes ``var["threshold"]``, 0.5 where
        that is missing; None draws none.
    kind
        ``"hist"`` or ``"kde"``: a Gaussian kernel estimate, mirrored at 0 and 1, of
        Silverman's robust bandwidth; its height is the share of cells per bar's width.
    bins
        Number of bars.
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
    The figure if `return_fig`; the axes, ``(n_markers, 1 or 2)`` with the scores'
    first, if it is not shown; else None.

    Raises
    ------
    ElementNotFoundError
        If a marker or layer does not exist.
    InputError
        If there are too many markers, or truth fits no cell or marker or is not 0, 1, NaN.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))
    >>> nb.tl.predict(sdata, progress=False)
    >>> truth = sdata["truth"].to_df()
    >>> fig = nb.pl.score_distribution(sdata["nimbus"], ["CD3", "CD8"], truth=truth, return_fig=True)
    """
    check_table(adata)
    style.check_save(save)
    if bins < 2 or n_columns < 1:
        msg = f"bins={bins}, n_columns={n_columns}: at least 2 bars and 1 column"
        raise InputError(msg)
    if kind not in ("hist", "kde"):
        msg = f"kind={kind!r}; valid: hist, kde"
        raise InputError(msg)
    names = pick_markers(adata, markers, where="the table", limit=_MAX_MARKERS)
    kinds = [("score", values(adata, names, layer, where="the table"))]
    if "nimbus_subtypes" in adata.uns and expression_layer not in adata.layers:
        expression_layer = None
    if expression_layer is not None:
        kinds.append(("expression", _expression(adata, names, expression_layer)))
    classes = _classes(adata, names, truth)
    lines = _lines(adata, names, threshold)
    shown = style.is_shown(show, save=save, return_fig=return_fig)

    def build() -> tuple[Figure, np.ndarray]:
        columns = min(n_columns, len(names))
        rows = math.ceil(len(names) / columns)
        size = figsize or (max(3.2, columns * 2.3 + 0.5), rows * (0.5 + 0.95 * len(kinds)) + 0.9)
        fig = style.new_figure(size, shown=shown)
        grid = fig.add_gridspec(rows * len(kinds), columns)
        axes = np.empty((len(names), len(kinds)), dtype=object)
        for i, name in enumerate(names):
            row, column = divmod(i, columns)
            for k, (what, every) in enumerate(kinds):
                axes[i, k] = ax = fig.add_subplot(grid[row * len(kinds) + k, column])
                _panel(ax, every[:, i], None if classes is None else classes[:, i], bins, kind)
                if what == "score" and lines is not None:
                    ax.axvline(lines[i], ymax=0.72, color="0.35", lw=0.8, ls=(0, (3, 2)))
                ax.tick_params(labelbottom=k == len(kinds) - 1, labelleft=column == 0)
                if column == 0:
                    ax.set_ylabel(what)
                if k == len(kinds) - 1:
                    ax.set_xlabel("score; expression / scale" if k else what, fontsize=7)
            axes[i, 0].set_title(name, fontweight="bold", loc="left")
        _legend(fig, classes)
        fig.supylabel("share of cells (square-root axis)", fontsize=8.5)
        fig.suptitle(_ETA, x=0.99, ha="right", fontsize=6.5, color="0.25")
        return fig, axes

    fig, axes = style.with_style(build)
    return style.finish(fig, axes, shown=shown, save=save, return_fig=return_fig)


def _lines(adata: ad.AnnData, names: list[str], threshold: float | str | None) -> np.ndarray | None:
    if threshold is None:
        return None
    if isinstance(threshold, str):
        if threshold != "table":
            msg = f"threshold={threshold!r}; valid: a number, 'table' or None"
            raise InputError(msg)
        if "threshold" not in adata.var:
            return np.full(len(names), 0.5)
        return adata.var["threshold"].reindex(names).astype(float).fillna(0.5).to_numpy()
    return np.full(len(names), float(threshold))


def _expression(adata: ad.AnnData, names: list[str], layer: str) -> np.ndarray:
    raw = values(adata, names, layer, where="the table")
    own = np.array([_tail(column) for column in raw.T])
    known = scales(adata, names)
    scale = own if known is None else np.where(np.isnan(known), own, known)
    return np.clip(raw / scale, 0, 1)


def _tail(column: np.ndarray) -> float:
    finite = column[np.isfinite(column)]
    top = float(np.quantile(finite, 0.999)) if finite.size else 0.0
    return top if top > 0 else max(float(finite.max(initial=0)), 1e-12)


def _classes(adata: ad.AnnData, names: list[str], truth: str | pd.DataFrame | None) -> np.ndarray | None:
    """``(n_obs, n_markers)`` of 1, 0, NaN; None without truth."""
    if truth is None:
        return None
    if isinstance(truth, str):
        out = values(adata, names, truth, where="the table")
    elif isinstance(truth, pd.DataFrame):
        columns = [n for n in names if n in truth.columns]
        if not columns:
            msg = (
                f"truth has none of the markers {', '.join(names)}; its columns: {', '.join(map(str, truth))}"
            )
            raise ElementNotFoundError(msg)
        if not truth.index.isin(adata.obs_names).any():
            msg = (
                f"truth's index ({truth.index[0]!r}, ...) names none of the cells ({adata.obs_names[0]!r}, "
                "...); index it by obs_names"
            )
            raise InputError(msg)
        out = truth.reindex(index=adata.obs_names, columns=names).to_numpy(np.float64, na_value=np.nan)
    else:
        msg = f"truth is a {type(truth).__name__}; pass the name of a layer, or a DataFrame (cells x markers)"
        raise InputError(msg)
    odd = np.unique(out[~np.isnan(out) & (out != 0) & (out != 1)])
    if odd.size:
        msg = f"truth holds {odd[:5].tolist()}; valid: 1 positive, 0 negative, NaN undefined"
        raise InputError(msg)
    return out


def _panel(ax: Axes, column: np.ndarray, truth: np.ndarray | None, bins: int, kind: str) -> None:
    finite = np.isfinite(column)
    parts: list[tuple[np.ndarray, str]] = [(finite, style.NEUTRAL)]
    text = f"η {separation(column[finite]):.2f}" if finite.any() else "no values"
    if truth is not None and not np.isnan(truth[finite]).all():
        parts = [(finite & (truth == 0), style.TRUE_NEGATIVE), (finite & (truth == 1), style.TRUE_POSITIVE)]
        if all(mask.any() for mask, _ in parts):
            both = parts[0][0] | parts[1][0]
            text += f"\nAUROC {auroc(parts[1][0][both].astype(np.float64), column[both]):.2f}"
    for mask, colour in parts:
        _draw(ax, column[mask], colour, bins, kind)
    ax.set_yscale("function", functions=(_root, np.square))
    ax.set(xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.5, 1])
    ax.yaxis.set_major_locator(FixedLocator(_TICKS))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.text(0.99, 0.98, text, transform=ax.transAxes, ha="right", va="top", fontsize=6.5, color="0.25")


def _draw(ax: Axes, column: np.ndarray, colour: str, bins: int, kind: str) -> None:
    if kind == "kde":
        at, density = mirrored_density(column)
        ax.fill_between(at, density / bins, color=colour, alpha=0.45, lw=0)
        ax.plot(at, density / bins, color=colour, lw=1.0)
        return
    edges = np.linspace(0, 1, bins + 1)
    share = np.histogram(column, edges)[0] / max(1, column.size)
    ax.stairs(share, edges, fill=True, color=colour, alpha=0.45, lw=0)
    ax.stairs(share, edges, color=colour, lw=1.0)


def _root(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(x, 0))


def separation(column: np.ndarray) -> float:
    """Otsu's η: the largest share of the variance that lies between two classes, NaN if all are equal."""
    x = np.sort(column)
    if x.size < 2 or x[0] == x[-1]:
        return float("nan")
    n = np.arange(1, x.size)
    total, left = x.sum(), np.cumsum(x)[:-1]
    gap = left / n - (total - left) / (x.size - n)
    return float((n * (x.size - n) * gap**2).max() / x.size**2 / x.var())


def _legend(fig: Figure, classes: np.ndarray | None) -> None:
    if classes is None:
        return
    pairs = [(style.TRUE_POSITIVE, "truly positive"), (style.TRUE_NEGATIVE, "truly negative")]
    if np.isnan(classes).all(0).any():
        pairs.append((style.NEUTRAL, "no truth"))
    handles = [Patch(facecolor=c, alpha=0.6, label=text) for c, text in pairs]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles))
