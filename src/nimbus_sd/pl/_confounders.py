"""Mutual information of confounders with being wrong, as a heatmap per score layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd.pl import _style as style

_VALUES = {
    "mutual_information": "mutual information\nwith being wrong (nats)",
    "share": "share of the entropy",
}
_MAX_MARKERS = 80


def confounders(
    frame: pd.DataFrame,
    *,
    value: str = "mutual_information",
    vmax: float | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
    return_fig: bool = False,
) -> Any:
    """Draw how much each confounder tells about being wrong, markers x confounders.

    The pooled row comes first, then markers by their largest value. Grey cells are
    undefined (the frame's ``reason`` says why).

    Parameters
    ----------
    frame
        From :func:`nimbus_sd.tl.confounders`, at most 80 markers.
    value
        ``"mutual_information"`` (nats) or ``"share"`` of the entropy of being wrong.
    vmax
        Where the colours end; None takes the largest value, at least 0.05, so that
        noise does not look like an effect.
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
    The figure if `return_fig`; the axes ``(n_score_layers,)`` if it is not shown; else
    None.

    Raises
    ------
    ElementNotFoundError
        If the value is not in the frame.
    InputError
        If it is no frame of confounders, or has too many markers.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=2, shape=(160, 160))
    >>> nb.tl.predict(sdata, channels=["CD45", "VIM"], progress=False)
    >>> found = nb.tl.confounders(sdata["nimbus"], sdata["truth"], markers=["CD45", "VIM"])
    >>> fig = nb.pl.confounders(found, return_fig=True)
    """
    _check(frame, value)
    style.check_save(save)
    layers = list(dict.fromkeys(frame["scores"]))
    columns = list(dict.fromkeys(frame["confounder"]))
    largest = frame.groupby("marker", sort=False)[value].max().sort_values(ascending=False)
    pooled = [m for m in largest.index if m == "(all)"]
    markers = pooled + [m for m in largest.index if m != "(all)"]
    top = float(np.nanmax([0.05, *frame[value]])) if vmax is None else vmax
    shown = style.is_shown(show, save=save, return_fig=return_fig)

    def build() -> tuple[Figure, np.ndarray]:
        size = figsize or (1.7 + (0.25 + 0.52 * len(columns)) * len(layers), 1.5 + 0.2 * len(markers))
        fig = style.new_figure(size, shown=shown)
        axes = np.atleast_1d(fig.subplots(1, len(layers), sharey=True))
        norm = Normalize(0, top)
        for ax, layer in zip(axes, layers, strict=True):
            part = frame[frame["scores"] == layer].pivot(index="marker", columns="confounder", values=value)
            _heatmap(ax, part.reindex(index=markers, columns=columns).to_numpy(np.float64), norm)
            ax.set_xticks(
                range(len(columns)), [c.replace("_", " ") for c in columns], rotation=40, ha="right",
                rotation_mode="anchor",
            )  # fmt: skip
            ax.set_title(layer)
        axes[0].set_yticks(range(len(markers)), markers)
        colours = ScalarMappable(norm, "cividis")
        fig.colorbar(colours, ax=list(axes), location="right", shrink=0.6, aspect=25, label=_VALUES[value])
        return fig, axes

    fig, axes = style.with_style(build)
    return style.finish(fig, axes, shown=shown, save=save, return_fig=return_fig)


def _check(frame: object, value: str) -> None:
    if not isinstance(frame, pd.DataFrame) or not {"confounder", "marker", "scores"} <= set(frame):
        msg = "pass a frame of nb.tl.confounders: it has the columns 'confounder', 'marker', 'scores', ..."
        raise InputError(msg)
    if value not in _VALUES or value not in frame:
        msg = f"value={value!r} is not in the frame; valid: {', '.join(_VALUES)}"
        raise ElementNotFoundError(msg)
    n = frame["marker"].nunique()
    if not 0 < n <= _MAX_MARKERS or frame.duplicated(["marker", "scores", "confounder"]).any():
        msg = f"{n} markers; filter the frame to at most {_MAX_MARKERS}, each once per score layer"
        raise InputError(msg)


def _heatmap(ax: Axes, values: np.ndarray, norm: Normalize) -> None:
    ax.set_facecolor("0.9")
    ax.imshow(values, aspect="auto", cmap="cividis", norm=norm, interpolation="nearest")
    for (y, x), v in np.ndenumerate(values):
        if not np.isnan(v):
            shade = "white" if norm(v) < 0.6 else "black"
            ax.text(x, y, f"{v:.2f}".lstrip("0"), ha="center", va="center", fontsize=6, color=shade)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
