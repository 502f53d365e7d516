"""Markers of one field beside what the network says about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from spatialdata import SpatialData

from nimbus_sd._core.channels import select_channels
from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.resolve import ResolvedSample, resolve_sample
from nimbus_sd._sdata.table import existing_table
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.pl import _image_panels as panels
from nimbus_sd.pl import _style as style
from nimbus_sd.pl._cells import region_and_ids
from nimbus_sd.pl._intensity import check_scale, scaled
from nimbus_sd.pl._table import check_unique, pick_markers, scales, thresholds, values
from nimbus_sd.pl._view import Picture, make_window, one_pair, read_image, read_labels, read_maps

_MAX_MARKERS = 12


def image(
    sdata: SpatialData,
    markers: str | Sequence[str],
    *,
    image: str | None = None,
    labels: str | None = None,
    table: str | None = "nimbus",
    layer: str | None = None,
    scores: bool = True,
    maps: str | None = None,
    crop: Sequence[int] | None = None,
    normalization: Normalization | None = None,
    quantile: float | None = None,
    gamma: float = 0.5,
    threshold: float | Mapping[str, float] = 0.5,
    positive_color: str = style.POSITIVE,
    negative_color: str = style.NEGATIVE,
    cmap: str = "gray",
    score_cmap: str = "viridis",
    mpp: float | None = None,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw markers of one field with cell outlines, and beside each its scores.

    One row per marker. Left: intensity with every cell outlined, positive cells in a
    strong colour and negative ones faintly. Right: cells filled with their score, or
    the network's probability per pixel (`maps`). Only the rectangle is read; over
    1,500 px a side, a coarser level or a stride shrinks it by a power of two, and a
    slide is never held whole.

    Parameters
    ----------
    sdata
        Object with image ``(c, y, x)``, labels ``(y, x)`` and the table of :func:`nimbus_sd.tl.predict`.
    markers
        Channel names, at most 12.
    image, labels
        Names of the elements; they can be left out where only one pair exists.
    table
        Name of the table with the scores; None draws intensity and plain outlines.
    layer
        Layer of the table that holds the scores, such as ``"nimbus"`` after
        ``predict(into=...)``; None takes ``X``.
    scores
        Draw the right column.
    maps
        Base name given to ``predict(maps=...)``: the right column shows pixels instead of cells.
    crop
        ``(y0, y1, x0, x1)`` in px of the finer of the two grids; None shows all.
    normalization
        What intensity counts as 1; None takes ``table.var["scale"]``, else the
        0.999 quantile of the pixels shown.
    quantile
        Take that quantile of the pixels shown as 1 instead.
    gamma
        Exponent of the grey scale; 0.5 makes dim cells visible, 1 is linear.
    threshold
        Cells with a score above it count as positive; one number, or one per marker.
    positive_color, negative_color
        Outline colours.
    cmap, score_cmap
        Colour maps of intensity and score, both from 0 to 1.
    mpp
        µm per px for the scale bar; None takes what the object says, else the bar is in px.
    figsize
        Inches.
    ax
        Draw there; for one marker and one column (``scores=False``) only. The colour bar
        and the legend need a little room at its right and below.
    show
        None shows the figure unless it is saved, returned or drawn on `ax`.
    save
        Path of the file to write.
    return_fig
        Return the figure.

    Returns
    -------
    The figure if `return_fig`; the axes, ``(n_markers, n_columns)`` or the one
    given, if nothing is shown; else None.

    Raises
    ------
    ElementNotFoundError
        If an element, table, layer, map or marker does not exist.
    InputError
        If several fields fit, the crop is not within the image, the table annotates
        other labels, or arguments contradict each other.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))
    >>> nb.tl.predict(sdata, progress=False)
    >>> fig = nb.pl.image(sdata, ["CD3", "CD8"], crop=(0, 100, 0, 128), return_fig=True)
    """
    names = _check(markers, scores or maps is not None, normalization, quantile, gamma, ax)
    style.check_save(save)
    sample = resolve_sample(sdata, one_pair(sdata, image=image, labels=labels), mpp=mpp)
    shape = sample.sample.labels.shape
    window = make_window(shape, crop, where=f"labels {sample.pair.labels!r}")
    channels, _ = select_channels(sample.native_image.channels, names, where=sample.pair.image)
    positions = [sample.native_image.channels.index(c) for c in channels]
    found = None if table is None else _find_scores(sdata, sample, names, table, layer, threshold)
    if found is None and scores and maps is None:
        msg = "table=None leaves no scores to draw; pass scores=False, maps=, or the name of a table"
        raise InputError(msg)
    probabilities = None if maps is None else read_maps(sdata, sample, maps, names, window)
    picture = read_image(sdata, sample, positions, window)
    known = None if found is None else found.scale
    gray = Picture(scaled(picture.pixels, names, known, normalization, quantile), picture.extent)
    cells = read_labels(sdata, sample, window)
    look = panels.Look(positive_color, negative_color, cmap, score_cmap, gamma)
    shown = style.is_shown(show, save=save, return_fig=return_fig, ax=ax)
    columns = 2 if scores or maps is not None else 1

    def build() -> tuple[Figure, Any]:
        size = figsize or panels.default_size(window.y.size / window.x.size, len(names), columns)
        fig: Any = style.new_figure(size, shown=shown) if ax is None else ax.get_figure(root=True)
        axes = np.array([[ax]]) if ax is not None else fig.subplots(len(names), columns, squeeze=False)
        panels.draw(
            axes,
            names,
            gray,
            cells,
            found,
            probabilities,
            window,
            look,
            sample.sample.mpp,
            own_figure=ax is None,
        )
        return fig, axes if ax is None else ax

    fig, axes = style.with_style(build)
    return style.finish(fig, axes, shown=shown, save=save, return_fig=return_fig, ax=ax)


def _check(
    markers: str | Sequence[str],
    two_columns: bool,
    normalization: Normalization | None,
    quantile: float | None,
    gamma: float,
    ax: Axes | None,
) -> list[str]:
    names = check_unique(markers)
    if len(names) > _MAX_MARKERS:
        msg = f"{len(names)} markers don't fit on one figure; pass at most {_MAX_MARKERS} and call again"
        raise InputError(msg)
    if ax is not None and (len(names) > 1 or two_columns):
        msg = "ax= takes one panel: pass one marker and scores=False, or leave ax out"
        raise InputError(msg)
    check_scale(normalization, quantile, gamma)
    return names


def _find_scores(
    sdata: SpatialData,
    sample: ResolvedSample,
    names: list[str],
    table: str,
    layer: str | None,
    threshold: float | Mapping[str, float],
) -> panels.Scores:
    adata = existing_table(sdata, table, [sample.pair.labels])
    where = f"table {table!r}"
    pick_markers(adata, names, where=where)
    region, every = region_and_ids(adata, where=where)
    rows = region == sample.pair.labels
    return panels.Scores(
        ids=pd.Index(every[rows]),
        values=values(adata[rows], names, layer, where=where),
        threshold=thresholds(threshold, names),
        scale=scales(adata, names),
    )
