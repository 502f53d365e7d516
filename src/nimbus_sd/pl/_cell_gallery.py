"""Crops of cells, marker by marker or cluster by cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from spatialdata import SpatialData

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata.table import existing_table
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.pl import _style as style
from nimbus_sd.pl._colours import OVERLAY
from nimbus_sd.pl._gallery_cells import (
    GROUP_PICKS,
    PICKS,
    group_margin,
    pick_by_certainty,
    pick_by_score,
    pick_nearest_to_mean,
)
from nimbus_sd.pl._gallery_crops import crop_side, read_crops
from nimbus_sd.pl._gallery_panels import Row, caption, tiles, write
from nimbus_sd.pl._intensity import check_scale
from nimbus_sd.pl._table import groups, pick_markers, quantity, scales, thresholds, values

_MAX_ROWS = 40
_MAX_CROPS = 30
_CROP_PX = 96  # px a side at least, so that outlines are thin


def cell_gallery(
    sdata: SpatialData,
    markers: str | Sequence[str] | None = None,
    *,
    groupby: str | None = None,
    group: str | Sequence[str] | None = None,
    pick: str = "random",
    n: int = 10,
    size: int | None = None,
    certainty: str | None = None,
    use_rep: str | None = None,
    image: str | Mapping[str, str] | None = None,
    table: str = "nimbus",
    layer: str | None = None,
    threshold: float | Mapping[str, float] = 0.5,
    normalization: Normalization | None = None,
    quantile: float | None = None,
    gamma: float = 0.5,
    seed: int = 0,
    figsize: tuple[float, float] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw crops of cells, a row per marker or per cluster, with the cell's outline.

    Without `groupby` each row is a marker in grey, with the cells' scores; with it each row
    is a group of cells, in which up to seven markers are laid over each other. Only the
    crops are read, whatever the size of the image.

    Parameters
    ----------
    sdata
        Object with images ``(c, y, x)``, labels ``(y, x)``, points or shapes, and a table of
        these. Cells that are points or shapes are drawn without outlines.
    markers
        Channels of the table, at most 40, or seven with `groupby`. None takes all (the
        first 40 with a warning), or with `groupby` the three whose means differ most
        between groups.
    groupby
        Column of ``obs``.
    group
        Groups to draw; None takes all, at most 40.
    pick
        ``"random"``, ``"least_certain"`` (scores nearest to the threshold), ``"most_certain"``
        (half the highest, half the lowest), ``"high"`` or ``"low"``. Of groups the first
        three, by `certainty`, or ``"representative"``: nearest to the group's mean in `use_rep`.
    n
        Crops per row, at most 30.
    size
        px a side; None takes about three diameters of the median cell, or, in a table of
        embeddings without areas, twice the side of the patches embedded.
    certainty
        Column of ``obs``, a number per cell, for groups; None takes how much nearer the
        cell's scores are to its group's mean than to any other group's.
    use_rep
        Entry of ``obsm`` that ``"representative"`` measures in, ``"X"`` for the scores; None
        takes ``"X_nextchannel"`` if the table has it, else the scores.
    image
        Name of the image, or ``{labels: image}``; can be left out where one image fits, or where
        the table records it.
    table
        Name of the table.
    layer
        Layer with the scores; None takes ``X``.
    threshold
        Above it a cell is positive; one number, or one per marker. Activations of an embedding
        have none: they are written as they are, and can't be picked by certainty.
    normalization
        What intensity counts as 1; None takes ``table.var["scale"]``, else the 0.999
        quantile of the row's crops.
    quantile
        Take that quantile of the row's crops as 1 instead.
    gamma
        Exponent of the intensity; 0.5 makes dim cells visible, 1 is linear.
    seed
        Decides the random cells.
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
        If the table, a marker, a column, a group or `use_rep` does not exist.
    InputError
        If there are too many rows or crops, the table has no coordinates or other ones, or
        an option is unknown.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))
    >>> nb.tl.predict(sdata, channels=["CD45", "VIM"], progress=False)
    >>> fig = nb.pl.cell_gallery(sdata, pick="least_certain", n=6, return_fig=True)
    """
    _check(pick, n, groupby, group)
    check_scale(normalization, quantile, gamma)
    style.check_save(save)
    adata = existing_table(sdata, table, [])
    if groupby is None:
        names = pick_markers(adata, markers, where=f"table {table!r}", limit=_MAX_ROWS)
        cut = thresholds(threshold, names)
        rows = _marker_rows(adata, names, layer, cut, pick, n, seed)
    else:
        rows = _group_rows(adata, markers, groupby, group, layer, certainty, use_rep, pick, n, seed)
    side = crop_side(adata, size)
    cells = np.concatenate([r.cells for r in rows])
    wanted = [r.channels for r in rows for _ in r.cells]
    flat = iter(read_crops(sdata, adata, cells, wanted, side=side, image=image))
    crops = [list(islice(flat, r.cells.size)) for r in rows]
    colours = ["#FFFFFF"] if groupby is None else list(OVERLAY[: len(rows[0].channels)])
    times = max(1, -(-_CROP_PX // side))
    pitch = side * times + max(2, side * times // 24)
    canvas = np.ones((len(rows) * pitch, n * pitch, 3), np.float32)
    for i, (row, found) in enumerate(zip(rows, crops, strict=True)):
        known = scales(adata, row.channels)
        for k, tile in enumerate(tiles(row, found, known, normalization, quantile, gamma, colours, times)):
            canvas[i * pitch : i * pitch + side * times, k * pitch : k * pitch + side * times] = tile
    shown = style.is_shown(show, save=save, return_fig=return_fig, ax=ax)
    mpp = next((c.mpp for found in crops for c in found), None)

    def build() -> tuple[Figure, Axes]:
        inches = float(np.clip(10.0 / n, 0.5, 0.85))
        size_in = figsize or (n * inches + 1.4, len(rows) * inches + 0.6)
        fig: Any = style.new_figure(size_in, shown=shown) if ax is None else ax.get_figure(root=True)
        one = fig.add_subplot() if ax is None else ax
        one.imshow(canvas, extent=(0, n * pitch, len(rows) * pitch, 0), interpolation="antialiased")
        write(one, rows, pitch)
        caption(one, rows, side, mpp, times, pitch, colours if groupby else None)
        return fig, one

    fig, drawn = style.with_style(build)
    return style.finish(fig, drawn, shown=shown, save=save, return_fig=return_fig, ax=ax)


def _check(pick: str, n: int, groupby: str | None, group: object) -> None:
    valid = PICKS if groupby is None else GROUP_PICKS
    if pick not in valid:
        msg = f"pick={pick!r}; valid{'' if groupby is None else ' for groups'}: {', '.join(valid)}"
        raise InputError(msg)
    if not 1 <= n <= _MAX_CROPS:
        msg = f"n={n} crops per row; valid: 1 to {_MAX_CROPS}"
        raise InputError(msg)
    if group is not None and groupby is None:
        msg = f"group={group!r} needs groupby=, the column that it is a value of"
        raise InputError(msg)


def _marker_rows(
    adata: ad.AnnData, names: list[str], layer: str | None, cut: np.ndarray, pick: str, n: int, seed: int
) -> list[Row]:
    scores = values(adata, names, layer, where="the table")
    judged = layer is not None or quantity(adata, layer, scores)[1]
    if not judged and "certain" in pick:
        msg = f"pick={pick!r} asks for scores, and these are activations; valid: random, high, low"
        raise InputError(msg)
    rows = []
    for name, score, threshold in zip(names, scores.T, cut, strict=True):
        cells = pick_by_score(score, threshold, pick=pick, n=n, seed=seed)
        texts = [f"{score[c]:.2f}" for c in cells]
        sides = [style.POSITIVE if score[c] > threshold else style.NEGATIVE for c in cells]
        marks = sides if judged else ["white"] * cells.size
        rows.append(Row(name, [name], cells, texts, marks))
    return rows


def _group_rows(
    adata: ad.AnnData,
    markers: str | Sequence[str] | None,
    groupby: str,
    group: str | Sequence[str] | None,
    layer: str | None,
    certainty: str | None,
    use_rep: str | None,
    pick: str,
    n: int,
    seed: int,
) -> list[Row]:
    column = groups(adata, groupby, limit=200)
    known = list(map(str, column.categories))
    chosen = known if group is None else [group] if isinstance(group, str) else list(map(str, group))
    missing = [g for g in chosen if g not in known]
    if missing or not chosen:
        msg = f"group={chosen}: obs[{groupby!r}] has no {missing}; valid: {', '.join(known)}"
        raise ElementNotFoundError(msg)
    if len(chosen) > _MAX_ROWS:
        msg = f"{len(chosen)} groups don't fit on one figure; pass at most {_MAX_ROWS} with group=[...]"
        raise InputError(msg)
    every = values(adata, list(map(str, adata.var_names)), layer, where="the table")
    channels = _telling(adata, every, column.codes, len(known)) if markers is None else None
    channels = channels or pick_markers(adata, markers, where="the table", limit=len(OVERLAY))
    if certainty is not None and (certainty not in adata.obs or adata.obs[certainty].dtype.kind not in "iuf"):
        numbers = [str(c) for c in adata.obs if adata.obs[c].dtype.kind == "f"]
        msg = (
            f"certainty={certainty!r} is no column of numbers in obs; columns: {', '.join(numbers) or 'none'}"
        )
        raise ElementNotFoundError(msg)
    sure = (
        group_margin(every, column.codes, len(known))
        if certainty is None
        else adata.obs[certainty].to_numpy(np.float64)
    )
    nearest = _representation(adata, every, use_rep) if pick == "representative" else None
    rows = []
    for name in chosen:
        members = np.flatnonzero(column.codes == known.index(name))
        if nearest is not None:
            cells = pick_nearest_to_mean(nearest, members, n=n)
            texts = [""] * cells.size
        else:
            cells = pick_by_certainty(sure, members, pick=pick, n=n, seed=seed)
            texts = [f"{sure[c] + 0.0:.2f}".replace("-0.00", "0.00") for c in cells]
        rows.append(Row(name, channels, cells, texts, ["white"] * cells.size))
    return rows


def _representation(adata: ad.AnnData, every: np.ndarray, use_rep: str | None) -> np.ndarray:
    """``(n_obs, d)`` where a group's mean is looked for."""
    if use_rep == "X" or (use_rep is None and "X_nextchannel" not in adata.obsm):
        return every
    key = "X_nextchannel" if use_rep is None else use_rep
    if key not in adata.obsm:
        known = ", ".join(map(repr, ["X", *adata.obsm]))
        msg = f"use_rep={key!r}: the table has no such entry in obsm; valid: {known}"
        raise ElementNotFoundError(msg)
    return np.asarray(adata.obsm[key], dtype=np.float32)


def _telling(adata: ad.AnnData, every: np.ndarray, codes: np.ndarray, n_groups: int) -> list[str]:
    """The three markers whose means differ most between groups."""
    filled = np.nan_to_num(every)
    means = np.array([filled[codes == k].mean(0) for k in range(n_groups)])
    order = np.argsort(-means.std(0), kind="stable")[:3]
    return [str(adata.var_names[i]) for i in np.sort(order)]
