"""Sub-types over the H&E that they were predicted from, and over fluorescence where there is some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from spatialdata import SpatialData

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata import elements as el
from nimbus_sd._sdata.center_elements import find_element
from nimbus_sd._sdata.table import existing_table
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.pl import _style as style
from nimbus_sd.pl import _subtype_panels as panels
from nimbus_sd.pl._intensity import check_scale, scaled
from nimbus_sd.pl._overlay import blend
from nimbus_sd.pl._subtype_cells import (
    Channels,
    answers_of,
    cells_in_view,
    channels_of,
    he_grid,
    with_answers,
)
from nimbus_sd.pl._table import pick_markers
from nimbus_sd.pl._view import Picture, make_window

_MAX_MARKERS = 12
_MARKER, _NUCLEI = "#FFE000", "#3060FF"


def subtypes(
    sdata: SpatialData,
    markers: str | Sequence[str] | None = None,
    *,
    table: str = "subtypes",
    layer: str = "positive",
    centers: str | None = None,
    image: str | None = None,
    if_image: str | None = None,
    channels: Mapping[str, str] | None = None,
    nuclear: str | None = None,
    crop: Sequence[int] | None = None,
    show_he: bool = True,
    fill: float = 0.0,
    normalization: Normalization | None = None,
    quantile: float | None = None,
    gamma: float = 0.7,
    positive_color: str = "#FF2A2A",
    negative_color: str = "#22C522",
    undefined_color: str = "#A0A0A0",
    mpp: float | None = None,
    n_columns: int = 5,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw an H&E, and for each marker which cells have it, over the fluorescence of the same section.

    At the left the H&E alone; then, marker by marker, its fluorescence in yellow and that of
    the nuclei in blue with every cell's outline: positive ones in red and thick, negative ones in
    green and thin, undefined ones in grey and broken. Cells of a few px of the figure are filled
    instead. Without `if_image` the outlines lie over the H&E, with a white rim. Cells that are
    points or shapes are circles. All is drawn on the H&E's grid; of each element only the
    rectangle is read, at the level or stride that fits the figure.

    Red and green are the paper's. For readers who can't tell them apart, pass for instance
    ``positive_color="magenta", negative_color="cyan"`` over fluorescence, and
    ``positive_color="#D55E00", negative_color="#0072B2"`` over H&E.

    Parameters
    ----------
    sdata
        Object with the table of :func:`nimbus_sd.tl.predict_subtypes`, and what it was made from.
    markers
        At most 12; None takes those of the table that have a label, 1 or 0, for any cell.
    table, layer
        The answers: 1 positive, 0 negative, NaN undefined. Those of a gated table
        (``table="table", layer="gated"``) can be drawn as well.
    centers
        Name of the labels, points or shapes that the table annotates; it can be left out where
        there is but one.
    image
        Name of the H&E; None takes the one that the table was predicted from, else the one that
        overlaps the cells.
    if_image
        Name of the fluorescence image of the same section, registered to the H&E.
    channels
        ``{marker: its channel in the fluorescence image}`` where the names differ.
    nuclear
        Channel of the nuclei there; None takes the first whose name looks like one.
    crop
        ``(y0, y1, x0, x1)`` in px of the H&E; None shows all.
    show_he
        Draw the H&E alone at the left.
    fill
        How strongly cells are filled with their colour, 0 to 1.
    normalization
        What intensity of the fluorescence counts as 1; None takes the 0.999 quantile of the
        pixels shown.
    quantile
        Take that quantile of the pixels shown as 1 instead.
    gamma
        Exponent of the fluorescence; less than 1 makes dim cells visible.
    positive_color, negative_color, undefined_color
        Of the outlines.
    mpp
        µm per px of the H&E for the scale bar; None takes what the object says, else the bar is in px.
    n_columns
        Panels side by side.
    figsize
        Inches.
    ax
        Draw there; for one marker and ``show_he=False`` only.
    show
        None shows the figure unless it is saved, returned or drawn on `ax`.
    save
        Path of the file to write.
    return_fig
        Return the figure.

    Returns
    -------
    The figure if `return_fig`; the axes, ``(n_panels,)`` or the one given, if nothing is shown;
    else None.

    Raises
    ------
    ElementNotFoundError
        If an element, table, layer, marker or channel does not exist.
    InputError
        If several elements fit, the image is no H&E, elements don't overlap (such as fluorescence
        of another section), the crop is not within the H&E, or arguments contradict each other.

    References
    ----------
    Pochet et al., *Lymphocytes subtyping on H&E slides with automatic labelling through
    same-tissue stained ImmunoFluorescence images*, figure 4.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_sections(shape=(128, 128))
    >>> sdata["truth"].layers["positive"] = sdata["truth"].X
    >>> fig = nb.pl.subtypes(sdata, table="truth", if_image="p0s0_if", return_fig=True)
    """
    look = panels.Look(positive_color, negative_color, undefined_color, fill)
    check_scale(normalization, quantile, gamma)
    style.check_save(save)
    adata = existing_table(sdata, table, [])
    offered = adata if markers is not None else with_answers(adata, layer, table=table)
    names = pick_markers(offered, markers, where=f"table {table!r}", limit=_MAX_MARKERS)
    if ax is not None and (len(names) > 1 or show_he):
        msg = "ax= takes one panel: pass one marker and show_he=False, or leave ax out"
        raise InputError(msg)
    if type(n_columns) is not int or n_columns < 1:
        msg = f"n_columns={n_columns!r} must be a whole number, at least 1"
        raise InputError(msg)
    answers = answers_of(adata, names, table=table, layer=layer, centers=centers)
    element = find_element(sdata, answers.region)
    grid = he_grid(sdata, adata, element, image, beside=if_image)
    window = make_window(grid.shape, crop, where=f"image {grid.name!r}")
    mpp = el.mpp_of(sdata, "images", grid.name) if mpp is None else mpp
    which = None
    if if_image is not None:
        which = channels_of(sdata, if_image, names, channels=channels or {}, nuclear=nuclear)
    cells = cells_in_view(sdata, element, grid, answers, window=window, mpp=mpp)
    picture = grid.read_image(sdata, grid.name, [0, 1, 2], window)
    he = Picture(np.clip(picture.pixels.transpose(1, 2, 0) / 255, 0, 1), picture.extent)
    backgrounds = [he] * len(names)
    if if_image is not None and which is not None:
        lit = grid.read_image(sdata, if_image, which.positions, window)
        light = scaled(lit.pixels, which.names, None, normalization, quantile) ** gamma
        backgrounds = [Picture(pixels, lit.extent) for pixels in _composites(light, len(names))]
    shown = style.is_shown(show, save=save, return_fig=return_fig, ax=ax)

    def build() -> tuple[Figure, Any]:
        n = len(names) + show_he
        columns = min(n, n_columns)
        rows = -(-n // columns)
        size = figsize or panels.default_size(window.y.size / window.x.size, rows, columns)
        fig: Any = style.new_figure(size, shown=shown) if ax is None else ax.get_figure(root=True)
        every = [ax] if ax is not None else list(fig.subplots(rows, columns, squeeze=False).flat)
        for unused in every[n:]:
            unused.set_axis_off()
        title = "H&E" if show_he else None
        panels.draw(
            every[:n], he, backgrounds, cells, names=names, title=title, window=window, look=look, mpp=mpp,
            halo=if_image is None,
        )  # fmt: skip
        panels.legend(fig, cells, look, lights=_lights(which), ax=ax)
        return fig, np.array(every[:n]) if ax is None else ax

    fig, axes = style.with_style(build)
    return style.finish(fig, axes, shown=shown, save=save, return_fig=return_fig, ax=ax)


def _composites(light: np.ndarray, n_markers: int) -> list[np.ndarray]:
    """Each marker with the nuclei, which come last if they are there: ``(y, x, 3)``."""
    nuclei = list(range(n_markers, len(light)))
    return [blend(light[[i, *nuclei]], (_MARKER, _NUCLEI)[: 1 + len(nuclei)]) for i in range(n_markers)]


def _lights(which: Channels | None) -> dict[str, str]:
    """Colours of the fluorescence, for the legend."""
    if which is None:
        return {}
    return {"marker": _MARKER} | ({which.nuclear: _NUCLEI} if which.nuclear else {})
