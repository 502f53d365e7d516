"""Known cell types against those found again, as an annotated matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.pl import _style as style

_MAX_TYPES = 60


def rediscovery(
    data: ad.AnnData | pd.DataFrame,
    *,
    annotate: bool | None = None,
    cmap: str = "Blues",
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw which share of each known type was found as which, in percent of the row.

    The rediscovery rates are framed; the title gives their mean.

    Parameters
    ----------
    data
        What :func:`nimbus_sd.tl.rediscovery` returned, or a table that it was called on.
    annotate
        Write the percentages into the fields; None does up to 30 types.
    cmap
        Colour map.
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
        If the table has no such result.
    InputError
        If the frame is none of rediscovery's, or there are more than 60 types.

    References
    ----------
    Gutwein et al. (2024), *Interpretable embeddings for segmentation-free single-cell analysis
    in multiplex imaging*, figure 4.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import nimbus_sd as nb
    >>> columns = {"cell_type": list("TTTBB"), "phenograph": list("00110")}
    >>> obs = pd.DataFrame(columns, index=list("abcde"), dtype="category")
    >>> adata = ad.AnnData(np.zeros((5, 1), "float32"), obs=obs)
    >>> fig = nb.pl.rediscovery(nb.tl.rediscovery(adata, "cell_type"), return_fig=True)
    """
    frame, cells = _of_table(data) if isinstance(data, ad.AnnData) else _of_frame(data)
    if max(frame.shape) > _MAX_TYPES:
        msg = f"{max(frame.shape)} types don't fit on one figure; at most {_MAX_TYPES}; merge some first"
        raise InputError(msg)
    style.check_save(save)
    written = len(frame) <= 30 if annotate is None else annotate
    shown = style.is_shown(show, save=save, return_fig=return_fig, ax=ax)

    def build() -> tuple[Figure, Axes]:
        size = (1.9 + 0.42 * frame.shape[1], 1.5 + 0.3 * frame.shape[0])
        fig: Any = style.new_figure(figsize or size, shown=shown) if ax is None else ax.get_figure(root=True)
        one = fig.add_subplot() if ax is None else ax
        _draw(one, frame, cells, cmap, annotate=written)
        return fig, one

    fig, drawn = style.with_style(build)
    return style.finish(fig, drawn, shown=shown, save=save, return_fig=return_fig, ax=ax)


def _of_table(adata: ad.AnnData) -> tuple[pd.DataFrame, dict[str, int]]:
    found = adata.uns.get("rediscovery")
    if found is None:
        msg = "the table has no uns['rediscovery']; call nb.tl.rediscovery(adata, reference_key) first"
        raise ElementNotFoundError(msg)
    counts = np.asarray(found["counts"], dtype=np.float64)
    types, assigned = list(map(str, found["reference"])), list(map(str, found["assigned"]))
    frame = pd.DataFrame(
        counts / counts.sum(1, keepdims=True),
        index=pd.Index(types, name=str(found["reference_key"])),
        columns=pd.Index(assigned, name=str(found["key_added"])),
    )
    return frame, dict(zip(types, counts.sum(1).astype(int).tolist(), strict=True))


def _of_frame(frame: object) -> tuple[pd.DataFrame, dict[str, int]]:
    good = isinstance(frame, pd.DataFrame) and frame.size and all(d.kind == "f" for d in frame.dtypes)
    if not isinstance(frame, pd.DataFrame) or not good or not np.allclose(frame.sum(axis=1), 1, atol=1e-3):
        msg = (
            "pass what nb.tl.rediscovery returned (shares whose rows sum to 1), or the table it was called on"
        )
        raise InputError(msg)
    return frame, dict(frame.attrs.get("cells", {}))


def _draw(ax: Axes, frame: pd.DataFrame, cells: dict[str, int], cmap: str, *, annotate: bool) -> None:
    shares = frame.to_numpy()
    drawn = ax.pcolormesh(shares * 100, cmap=colormaps[cmap], vmin=0, vmax=100, edgecolors="white", lw=0.6)
    rows, columns = list(map(str, frame.index)), list(map(str, frame.columns))
    if annotate:
        for (i, j), share in np.ndenumerate(shares):
            dark = np.dot(drawn.cmap(drawn.norm(share * 100))[:3], (0.299, 0.587, 0.114)) < 0.5
            ax.text(j + 0.5, i + 0.5, _percent(share), ha="center", va="center", fontsize=6.5,
                    color="white" if dark else "0.15" if share >= 0.005 else "0.6")  # fmt: skip
    rates = []
    for i, name in enumerate(rows):
        if name in columns:
            j = columns.index(name)
            rates.append(shares[i, j])
            ax.add_patch(Rectangle((j, i), 1, 1, fill=False, ec="0.1", lw=1.1, clip_on=False, zorder=3))
        else:
            rates.append(0.0)
    named = [f"{name}  ({cells[name]:,})" if name in cells else name for name in rows]
    ax.set_yticks(np.arange(len(rows)) + 0.5, named)
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=40, ha="right", rotation_mode="anchor")
    ax.set(ylim=(len(rows), 0), xlabel="found as", aspect="auto")
    ax.set_ylabel(
        f"{str(frame.index.name or 'known type').replace('_', ' ')} (cells)" if cells else "known type"
    )
    ax.set_title(f"mean rediscovery rate {100 * np.mean(rates):.1f} %", loc="left")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    fig: Any = ax.get_figure(root=True)
    bar = fig.colorbar(drawn, ax=ax, shrink=0.7, aspect=22, label="% of the row's cells")
    bar.outline.set_visible(False)


def _percent(share: float) -> str:
    """At most four characters: 100, 92.1, 0.4, 0."""
    value = 100 * share
    return "0" if value < 0.05 else "100" if value > 99.95 else f"{value:.1f}"
