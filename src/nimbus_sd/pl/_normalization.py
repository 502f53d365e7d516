"""Quality of a normalisation: scales, saturation, flags and histograms of all markers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from spatialdata import SpatialData

from nimbus_sd._core.channels import select_channels
from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.elements import ElementImage, channel_names, get_image
from nimbus_sd._sdata.resolve import resolve_pairs
from nimbus_sd._sdata.table import existing_table
from nimbus_sd.engine.normalization import Normalization
from nimbus_sd.pl import _style as style
from nimbus_sd.pl._pixel_sample import pixel_sample
from nimbus_sd.pl._table import check_unique, pick_markers, scales

_MAX_MARKERS = 60
_EDGES = np.logspace(-3, 1, 81)  # of intensity / scale
_RED = "#B2182B"


def normalization(
    sdata: SpatialData,
    normalization: Normalization | None = None,
    *,
    markers: str | Sequence[str] | None = None,
    image: str | Mapping[str, str] | None = None,
    labels: str | Sequence[str] | None = None,
    table: str = "nimbus",
    seed: int = 0,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw, a row per marker, whether its scale fits its pixels.

    Left: the scale, the intensity that counts as 1, with the marker's flag. Middle: the
    histogram of its pixels in units of the scale (colour: share of pixels per bin), which
    in a good image thins out towards 1; dashes at the median and the 99th percentile of
    the pixels > 0. Right: the share of pixels that are 0, the share above the scale, and how
    many of all pixels are at the full scale of their integer type. Of each
    of at most 16 images two squares of 512 px are read.

    Parameters
    ----------
    sdata
        Object with images ``(c, y, x)`` and labels ``(y, x)``.
    normalization
        From :func:`nimbus_sd.pp.normalization`; None takes what `table` says.
    markers
        At most 60; None takes all that have a scale, or the first 60 with a warning.
    image, labels
        Element names, as in :func:`nimbus_sd.tl.predict`.
    table
        Table of :func:`nimbus_sd.tl.predict`, with ``var["scale"]``.
    seed
        Decides the squares.
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
    The figure if `return_fig`; a dict of axes (``"scale"``, ``"histogram"``, ``"zero"``,
    ``"clipped"``, ``"saturated"``) if it is not shown; else None.

    Raises
    ------
    ElementNotFoundError
        If an element, the table or a marker does not exist.
    InputError
        If there are no scales, or too many markers.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))
    >>> fitted = nb.pp.normalization(sdata, progress=False)
    >>> fig = nb.pl.normalization(sdata, fitted, return_fig=True)
    """
    style.check_save(save)
    frame = _frame(sdata, normalization, markers, table)
    names = [p.image for p in resolve_pairs(sdata, image=image, labels=labels)]
    images = []
    for name in dict.fromkeys(names):
        array = get_image(sdata, name)
        images.append(ElementImage(name, array, channel_names(array)))
        select_channels(images[-1].channels, list(frame.index), where=name)
    pixels = pixel_sample(images, list(frame.index), seed=seed)
    counts = _measure(frame, pixels)
    shown = style.is_shown(show, save=save, return_fig=return_fig)

    def build() -> tuple[Figure, dict[str, Axes]]:
        fig = style.new_figure(figsize or (9.5, 1.0 + 0.2 * len(frame)), shown=shown)
        names = ["scale", "histogram", "zero", "clipped", "saturated"]
        each = fig.subplots(1, 5, sharey=True, width_ratios=[1.6, 4, 1, 1, 1])
        axes = dict(zip(names, each, strict=True))
        _scales(axes["scale"], frame)
        _histogram(axes["histogram"], frame, counts)
        _bars(axes["zero"], frame["zero"], "pixels = 0", top=1.0, form="{:.0%}")
        _bars(axes["clipped"], frame["clipped"], "above scale", top=None, form="{:.2%}")
        _bars(axes["saturated"], frame["saturated"], "px at full scale", top=None, form="{:,.0f}")
        return fig, axes

    fig, axes = style.with_style(build)
    return style.finish(fig, axes, shown=shown, save=save, return_fig=return_fig)


def _frame(
    sdata: SpatialData, fitted: Normalization | None, markers: str | Sequence[str] | None, table: str
) -> pd.DataFrame:
    """Scale, flag and count of saturated pixels per marker."""
    if fitted is not None:
        names = list(fitted.channels) if markers is None else check_unique(markers)
        if len(names) > _MAX_MARKERS:
            msg = f"{len(names)} markers don't fit on one figure; choose at most {_MAX_MARKERS} with markers="
            raise InputError(msg)
        saturated = np.array(fitted.column("n_saturated", names), dtype=np.float64)
        flags = fitted.column("flags", names)
        return pd.DataFrame(
            {"scale": fitted.scale_of(names), "flag": flags, "saturated": saturated}, index=names
        )
    adata = existing_table(sdata, table, [])
    names = pick_markers(adata, markers, where=f"table {table!r}", limit=_MAX_MARKERS)
    scale = scales(adata, names)
    if scale is None or np.isnan(scale).any():
        without = names if scale is None else [n for n, s in zip(names, scale, strict=True) if np.isnan(s)]
        msg = f"table {table!r} has no scale for {without}; pass a normalisation of nb.pp.normalization"
        raise InputError(msg)
    var = adata.var.reindex(names)
    flag = var["qc"].fillna("").astype(str) if "qc" in var else ""
    counted = var["n_saturated"].to_numpy(np.float64) if "n_saturated" in var else np.nan
    return pd.DataFrame({"scale": scale, "flag": flag, "saturated": counted}, index=names)


def _measure(frame: pd.DataFrame, pixels: np.ndarray) -> np.ndarray:
    """``(n_markers, n_bins)`` share of pixels per bin of intensity / scale; adds columns to `frame`."""
    ratio = pixels / frame["scale"].to_numpy(np.float32)[:, None]
    frame["zero"] = (pixels <= 0).mean(1)
    frame["clipped"] = (ratio > 1).mean(1)
    positive = [r[r > 0] for r in ratio]
    frame["middle"], frame["high"] = (
        [float(np.quantile(p, q)) if p.size else np.nan for p in positive] for q in (0.5, 0.99)
    )
    low, high = _EDGES[0] * 1.001, _EDGES[-1] * 0.999
    return np.array([np.histogram(np.clip(p, low, high), _EDGES)[0] for p in positive]) / pixels.shape[1]


def _scales(ax: Axes, frame: pd.DataFrame) -> None:
    y = np.arange(len(frame))
    flagged = (frame["flag"] != "").to_numpy()
    ax.hlines(y, 0, frame["scale"], color="0.85", lw=0.8)
    ax.scatter(frame["scale"], y, s=14, c=[_RED if f else "#0072B2" for f in flagged], zorder=2)
    ax.set_xscale("log")
    low, high = frame["scale"].min(), frame["scale"].max()
    ax.set_xlim(low / 2, high * 3)
    names = [f"{n} ({f})" if f else n for n, f in zip(frame.index, frame["flag"], strict=True)]
    ax.set_yticks(y, names)
    for text, flag in zip(ax.get_yticklabels(), flagged, strict=True):
        text.set_color(_RED if flag else "black")
    ax.set_ylim(len(frame) - 0.4, -0.6)
    ax.set_xlabel("scale (image units)")
    ax.minorticks_off()
    _bare(ax)


def _histogram(ax: Axes, frame: pd.DataFrame, counts: np.ndarray) -> None:
    y = np.arange(len(frame) + 1) - 0.5
    drawn = ax.pcolormesh(
        _EDGES, y, np.ma.masked_equal(counts, 0), cmap="cividis_r", norm=LogNorm(1e-6, 1e-1), rasterized=True
    )
    middle = np.arange(len(frame))
    for column in ("middle", "high"):
        ax.vlines(frame[column], middle - 0.38, middle + 0.38, color="black", lw=1.0)
    ax.axvline(1, color=_RED, lw=0.9)
    ax.set_xscale("log")
    ax.minorticks_off()
    ax.set_xlabel("pixel / scale")
    fig: Any = ax.get_figure(root=True)
    fig.colorbar(drawn, ax=ax, label="share of pixels", shrink=0.6, aspect=25, pad=0.01)
    _bare(ax)


def _bars(ax: Axes, values: pd.Series, title: str, *, top: float | None, form: str) -> None:
    known = values.to_numpy(np.float64)
    most = float(np.nanmax(known, initial=0)) if top is None else top
    ax.barh(np.arange(known.size), np.nan_to_num(known), height=0.7, color=style.NEUTRAL)
    ax.set_xlim(0, most * 1.05 or 1.0)
    ax.set_xticks([0, most] if most else [0], ["0", form.format(most)] if most else ["0"])
    if np.isnan(known).all():
        ax.text(0.5, 0.5, "not known", transform=ax.transAxes, ha="center", fontsize=6.5, color="0.4")
    ax.set_title(title, fontsize=7.5)
    _bare(ax)


def _bare(ax: Axes) -> None:
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
