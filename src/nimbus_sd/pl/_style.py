"""What the plots share: colours, showing and saving, cell outlines, the scale bar."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import interior_mask

# Okabe and Ito's palette: told apart with every common colour blindness
POSITIVE, NEGATIVE, NEUTRAL = "#E69F00", "#56B4E9", "#7F7F7F"
MISSING = "#BDBDBD"
# darker ones of the same palette, for white ground
TRUE_POSITIVE, TRUE_NEGATIVE = "#D55E00", "#0072B2"
# of one plot's series: colour and shape, so that neither has to carry it alone
SERIES = (
    ("#0072B2", "o"),
    ("#D55E00", "D"),
    ("#009E73", "s"),
    ("#CC79A7", "^"),
    ("#56B4E9", "v"),
    ("#7F7F7F", "P"),
)
RC: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "axes.grid": False,
}
_DPI = 150


def is_shown(show: bool | None, *, save: str | Path | None, return_fig: bool, ax: Axes | None = None) -> bool:
    """What ``show=None`` means: shown unless it is saved, returned or drawn on given axes."""
    return (save is None and not return_fig and ax is None) if show is None else show


def check_save(save: str | Path | None) -> None:
    """Raise before the work if the figure can't be written there."""
    if save is None:
        return
    if not Path(save).expanduser().parent.is_dir():
        msg = f"save={str(save)!r}: the folder {Path(save).parent} does not exist; create it first"
        raise InputError(msg)
    valid = FigureCanvasBase.get_supported_filetypes()
    ending = Path(save).suffix[1:].lower()
    if ending and ending not in valid:  # without one, matplotlib adds its own
        msg = f"save={str(save)!r}: no figures end in {ending!r}; valid: {', '.join(valid)}"
        raise InputError(msg)


def new_figure(figsize: tuple[float, float], *, shown: bool) -> Figure:
    """A figure that pyplot knows of only if it is to be shown."""
    if shown:
        from matplotlib import pyplot as plt  # choosing a backend is for those who show something

        return plt.figure(figsize=figsize, dpi=_DPI, layout="constrained")
    return Figure(figsize=figsize, dpi=_DPI, layout="constrained")


def finish(
    fig: Figure,
    result: Any,
    *,
    shown: bool,
    save: str | Path | None,
    return_fig: bool,
    ax: Axes | None = None,
) -> Any:
    """Save and show; return the figure, else the axes if they were not shown, else None."""
    if save is not None:
        fig.savefig(Path(save).expanduser(), dpi=_DPI, bbox_inches="tight")
    if shown:
        from matplotlib import pyplot as plt

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*non-interactive.*")
            plt.show()
        # an interactive window outlives the call; anything else would pile up in pyplot
        if ax is None and not mpl.is_interactive():
            plt.close(fig)
    if return_fig:
        return fig
    return None if shown else result


def with_style(build: Callable[[], Any]) -> Any:
    """Run `build` under the shared settings and leave the user's as they were."""
    with mpl.rc_context(RC):
        return build()


def outline(labels: np.ndarray, *, width: int = 1) -> np.ndarray:
    """Pixels within `width` px of the inner border of their cell.

    Parameters
    ----------
    labels
        ``(y, x)`` integers, 0 = background.
    width
        Thickness, px.

    Returns
    -------
    ``(y, x)`` bool.
    """
    inside = labels > 0
    remaining = labels
    for _ in range(width):
        remaining = np.where(interior_mask(remaining), remaining, 0)
    return inside & (remaining == 0)


def enlarge(labels: np.ndarray, *, side: int) -> np.ndarray:
    """Repeat pixels so that the longer side is at least about `side` px: outlines get thin."""
    times = max(1, side // max(labels.shape))
    return labels.repeat(times, 0).repeat(times, 1)


def nice_length(limit: float) -> float:
    """The largest 1, 2 or 5 x 10^n that is at most `limit`."""
    power = 10.0 ** np.floor(np.log10(limit))
    return float(max(m for m in (1, 2, 5) if m <= limit / power * (1 + 1e-9)) * power)


def scale_bar(ax: Axes, *, width: float, mpp: float | None) -> str:
    """Draw a bar of a round length at the lower right of an image drawn in px.

    Parameters
    ----------
    ax
        Where.
    width
        Width of the image, px.
    mpp
        µm per px; None gives a bar in px.

    Returns
    -------
    The bar's text.
    """
    unit = 1.0 if mpp is None else mpp
    length = nice_length(0.25 * width * unit)
    text = f"{length:g} {'px' if mpp is None else 'µm'}"
    share = length / unit / width
    halo = [patheffects.withStroke(linewidth=2.6, foreground="black")]
    thick = [patheffects.withStroke(linewidth=4.6, foreground="black")]
    where = ax.transAxes
    ax.plot(
        [0.96 - share, 0.96], [0.05, 0.05], color="white", lw=2.4, transform=where, path_effects=thick,
        solid_capstyle="butt", gid="scale_bar", scalex=False, scaley=False,
    )  # fmt: skip
    ax.text(
        0.96 - share / 2, 0.066, text, color="white", ha="center", va="bottom", fontsize=7.5,
        transform=where, path_effects=halo,
    )  # fmt: skip
    return text
