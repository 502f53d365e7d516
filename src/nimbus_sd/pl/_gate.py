"""Histograms of intensity with the four ranges that three thresholds make."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata.gates import (
    MARKER,
    SECTION,
    cell_sections,
    check_thresholds,
    from_record,
    intensities,
    read_thresholds,
)
from nimbus_sd.pl import _style as style
from nimbus_sd.pl._gate_editor import GateEditor
from nimbus_sd.pl._gate_panel import COLOURS, WORDS, GatePanel
from nimbus_sd.pl._table import check_table, pick_markers

_MAX_PANELS = 24


def gate(
    adata: ad.AnnData,
    markers: str | Sequence[str] | None = None,
    *,
    thresholds: pd.DataFrame | Mapping[Any, Any] | str | Path | None = None,
    sections: str | Sequence[str] | None = None,
    section: str | None = None,
    layer: str | None = None,
    key: str = "gated",
    edit: bool = False,
    bins: int = 80,
    n_columns: int = 4,
    ax: Axes | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw how intensities are distributed and where the four ranges lie.

    One panel per marker, or per marker and section where thresholds are per section: numbers of
    cells on a log axis against intensity on an arcsinh axis (linear below the median, logarithmic
    above), the ranges in colour, the cells in each beside. With `edit` the lines can be dragged::

        editor = nb.pl.gate(adata, thresholds=nb.pp.suggest_thresholds(adata), edit=True)
        nb.pp.gate(adata, editor.thresholds)

    Parameters
    ----------
    adata
        Cells x markers.
    markers
        Which; None takes all with thresholds.
    thresholds
        As for :func:`nimbus_sd.pp.gate`; None takes those of the last call, from ``uns[key]``.
    sections
        Which of the sections that have thresholds; None takes all that the table has.
    section
        Column of ``obs`` with each cell's section, as for :func:`nimbus_sd.pp.gate`.
    layer
        Intensities; None takes those of the last call if its thresholds are drawn, else the layer
        ``"integrated_expression"`` if there is one, else ``X``.
    key
        Name of the record in ``uns``.
    edit
        Return an editor whose lines can be dragged.
    bins
        Number of bars.
    n_columns
        Panels side by side, of thresholds for all sections; with thresholds per section a row
        holds the sections of one marker.
    ax
        Where to draw a single panel.
    figsize
        Inches.
    show
        None shows the figure unless it is saved, returned or drawn on `ax`.
    save
        Path of the file to write.
    return_fig
        Return the figure.

    Returns
    -------
    With `edit` a :class:`~nimbus_sd.pl.GateEditor`: ``.thresholds`` is the edited table, ``.save(path)``
    writes it as a CSV. Else the figure if `return_fig`; the axes ``(n_panels,)`` (or `ax`) if it is
    not shown; else None.

    Raises
    ------
    ElementNotFoundError
        If a marker, section, layer, column or record does not exist.
    InputError
        If thresholds are not as :func:`nimbus_sd.pp.gate` wants them, there are more than 24 panels,
        or more than one for `ax`.

    References
    ----------
    Pochet et al., *Lymphocytes subtyping on H&E slides with automatic labelling through
    same-tissue stained ImmunoFluorescence images*, figure 2.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import nimbus_sd as nb
    >>> x = np.random.default_rng(0).gamma(2, 100, (500, 1))
    >>> adata = ad.AnnData(x, var=pd.DataFrame(index=["CD3e"]))
    >>> fig = nb.pl.gate(adata, "CD3e", thresholds={"CD3e": (300, 500, 1200)}, return_fig=True)
    """
    check_table(adata)
    style.check_save(save)
    if bins < 2 or n_columns < 1:
        msg = f"bins={bins}, n_columns={n_columns}: at least 2 bars and 1 column"
        raise InputError(msg)
    if thresholds is None:
        thresholds, layer, section = _last(adata, key, layer, section)
    frame = read_thresholds(thresholds)
    values, source = intensities(adata, layer)
    of_cell, _ = cell_sections(adata, section)
    check_thresholds(frame, list(adata.var_names), sorted(set(of_cell)))
    rows = _rows(adata, frame, markers, sections, of_cell)
    if ax is not None and len(rows) > 1:
        msg = f"ax= takes one panel, there are {len(rows)}; name one marker (and one of sections=)"
        raise InputError(msg)
    shown = style.is_shown(show, save=save, return_fig=return_fig, ax=ax)

    def build() -> tuple[Figure, np.ndarray, dict[Any, GatePanel]]:
        fig, axes = _axes(rows, frame, n_columns, figsize, shown, ax)
        panels = {}
        for place, row in zip(axes, rows, strict=True):
            name, where = row if isinstance(row, tuple) else (row, None)
            cells = slice(None) if where is None else of_cell == where
            title = name if where is None else f"{name} · {where}"
            x = values[cells, adata.var_names.get_loc(name)]
            panels[row] = GatePanel(place, x, frame.loc[row], title=title, bins=bins)
        _label(fig, axes, source, alone=ax is not None)
        return fig, axes, panels

    fig, axes, panels = style.with_style(build)
    editor = GateEditor(fig, panels, frame) if edit else None
    result = style.finish(
        fig, axes if ax is None else ax, shown=shown, save=save, return_fig=return_fig, ax=ax
    )
    return editor if edit else result


def _last(
    adata: ad.AnnData, key: str, layer: str | None, section: str | None
) -> tuple[pd.DataFrame, str | None, str | None]:
    record = adata.uns.get(key)
    if not isinstance(record, Mapping) or "overexposed" not in record:
        msg = f"uns[{key!r}] holds no thresholds; pass thresholds=, or run nb.pp.gate first"
        raise ElementNotFoundError(msg)
    column = record["section_key"] or None
    return from_record(record), layer or str(record["layer"]), section or column


def _rows(
    adata: ad.AnnData,
    frame: pd.DataFrame,
    markers: str | Sequence[str] | None,
    sections: str | Sequence[str] | None,
    of_cell: np.ndarray,
) -> list[Any]:
    """Rows of the thresholds to draw, markers in the order asked for."""
    have = list(dict.fromkeys(frame.index.get_level_values(MARKER)))
    names = have if markers is None else pick_markers(adata, markers, where="the table")
    missing = [m for m in names if m not in have]
    if missing:
        msg = f"no thresholds for {', '.join(missing)}; there are some for {', '.join(have)}"
        raise ElementNotFoundError(msg)
    rows: list[Any] = names
    if frame.index.nlevels == 2:
        known = [s for s in frame.index.unique(SECTION) if s in set(of_cell)]
        asked = [sections] if isinstance(sections, str) else known if sections is None else list(sections)
        gone = [s for s in asked if s not in known]
        if gone:
            msg = f"sections={gone}: not in the table; valid: {', '.join(known)}"
            raise ElementNotFoundError(msg)
        rows = [(m, s) for m in names for s in asked]
    elif sections is not None:
        msg = "sections= is for thresholds per section, and these are the same for all; leave it out"
        raise InputError(msg)
    if not 0 < len(rows) <= _MAX_PANELS:
        msg = f"{len(rows)} panels; between 1 and {_MAX_PANELS} fit: choose with markers and sections=[...]"
        raise InputError(msg)
    return rows


def _axes(
    rows: list[Any],
    frame: pd.DataFrame,
    n_columns: int,
    figsize: tuple[float, float] | None,
    shown: bool,
    ax: Axes | None,
) -> tuple[Figure, np.ndarray]:
    if ax is not None:
        return ax.get_figure(root=True), np.array([ax])  # type: ignore[return-value]
    columns = min(n_columns, len(rows))
    if frame.index.nlevels == 2:
        columns = min(max(len(dict.fromkeys(s for _, s in rows)), 1), 6)
    lines = math.ceil(len(rows) / columns)
    fig = style.new_figure(figsize or (max(3.4, 2.5 * columns), 2.0 * lines + 0.6), shown=shown)
    axes = fig.subplots(lines, columns, squeeze=False).ravel()
    for unused in axes[len(rows) :]:
        unused.set_axis_off()
    return fig, axes[: len(rows)]


def _label(fig: Figure, axes: np.ndarray, source: str, *, alone: bool) -> None:
    what = "intensity" if source == "X" else source.replace("_", " ")
    if alone:
        axes[0].set(xlabel=what, ylabel="cells")
        return
    below = axes[0].get_subplotspec().get_gridspec().ncols
    for ax in axes[-below:]:  # a label of the whole figure would run into the legend
        ax.set_xlabel(what)
    for ax in axes[::below]:
        ax.set_ylabel("cells")
    handles = [Patch(facecolor=COLOURS[r], alpha=0.5, label=WORDS[r]) for r in WORDS]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles))
