"""``nb.pp.suggest_thresholds``: a first guess of the four ranges, to be looked at and edited."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd._core.hierarchy import MARKERS
from nimbus_sd._sdata.gates import MARKER, SECTION, cell_sections, intensities
from nimbus_sd._sdata.truth import check_adata
from nimbus_sd.arrays.gating import THRESHOLDS, suggest

_COLUMNS = [*THRESHOLDS, "separation", "contrast", "n_cells", "clear"]


def suggest_thresholds(
    adata: ad.AnnData,
    markers: str | Sequence[str] | None = None,
    *,
    layer: str | None = None,
    section: str | None = None,
    confidence: float = 0.99,
    quantile: float = 0.995,
    max_cells: int = 20_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Guess the three thresholds of every marker in every section.

    The guess is cautious, as the ranges are meant: what lies between background and clearly
    positive cells stays uncertain. Draw it with :func:`nimbus_sd.pl.gate`, edit it there or as a
    CSV, and pass it to :func:`nimbus_sd.pp.gate`.

    Parameters
    ----------
    adata
        Cells x markers.
    markers
        Which; None takes those of CD45, CD3e, CD4, CD8a that the table has, or all if it has none.
    layer, section
        As for :func:`nimbus_sd.pp.gate`.
    confidence
        Odds for the one or the other population that a cell must have outside the uncertain range.
    quantile
        The part of the positive cells below this quantile is not over-exposed.
    max_cells
        Drawn from each section for the fit.
    seed
        Decides which.

    Returns
    -------
    Frame indexed by ``marker``, or by ``marker`` and ``section`` where the table knows sections:
    ``negative``, ``positive``, ``overexposed`` in units of the intensities; ``separation``
    (Ashman's D of background and positive cells on the scale of the fit, above 2 they are clearly
    apart) and ``contrast`` (how many times brighter these are); ``n_cells`` of the fit; ``clear``,
    False where no positive population was found: both upper thresholds lie beyond the brightest
    cell there, so that nobody is positive.

    Raises
    ------
    ElementNotFoundError
        If a marker, layer or column does not exist.
    InputError
        If a parameter is out of range, or there are too few cells, or cells that are all alike.

    Warns
    -----
    NimbusWarning
        If a marker has no positive population somewhere.

    Notes
    -----
    Two normal distributions are fitted to ``arcsinh(x / s)``, with `s` the 97th percentile. Negative
    and positive range begin where the odds reach `confidence`; the positive one at least half a
    standard deviation below the upper mean, and above stray light where the upper population
    splits in two. On 4,658 simulated
    cells of 16-bit fluorescence (18 markers with 0.7 to 57 % positive cells) labels agree with the
    truth in .994 of the defined cells (.964 to 1.000 by marker), .93 of the cells labelled positive
    are, two thirds of the positive cells are labelled so, and 77 % of all cells are defined.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import nimbus_sd as nb
    >>> rng = np.random.default_rng(0)
    >>> x = np.append(rng.gamma(4, 25, 900), rng.gamma(9, 300, 100))[:, None]
    >>> adata = ad.AnnData(x, var=pd.DataFrame(index=["CD3e"]))
    >>> found = nb.pp.suggest_thresholds(adata)
    >>> bool(found.clear["CD3e"])
    True
    >>> nb.pp.gate(adata, found)["n_negative"].tolist() > [800]
    True
    """
    check_adata(adata)
    if not 0.5 < confidence < 1 or not 0 < quantile <= 1 or max_cells < 10:
        msg = (
            f"confidence={confidence}, quantile={quantile}, max_cells={max_cells}; valid: in (0.5, 1), in "
            "(0, 1], at least 10"
        )
        raise InputError(msg)
    names = _markers(adata, markers)
    values, source = intensities(adata, layer)
    of_cell, _ = cell_sections(adata, section)
    places = list(dict.fromkeys(of_cell.tolist()))
    rows = {}
    for place in places:
        cells = _sample(np.flatnonzero(of_cell == place), max_cells, seed)
        for name, at in zip(names, adata.var_names.get_indexer(names), strict=True):
            rows[name, place] = _guess(values[cells, at], name, place, source, confidence, quantile)
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=_COLUMNS)
    frame = frame.astype({"n_cells": np.int64, "clear": bool})
    keys = [(m, s) for m in names for s in places]
    frame = frame.set_axis(pd.MultiIndex.from_tuples(rows, names=[MARKER, SECTION])).loc[keys]
    if (of_cell == "").all():
        frame = frame.droplevel(SECTION)
    _warn(frame)
    return frame


def _markers(adata: ad.AnnData, markers: str | Sequence[str] | None) -> list[str]:
    if markers is None:
        return [m for m in MARKERS if m in adata.var_names] or list(map(str, adata.var_names))
    names = [markers] if isinstance(markers, str) else list(dict.fromkeys(markers))
    missing = [m for m in names if m not in adata.var_names]
    if missing:
        msg = f"the table has no marker {', '.join(map(str, missing))}; valid: {', '.join(adata.var_names)}"
        raise ElementNotFoundError(msg)
    return names


def _sample(cells: np.ndarray, n: int, seed: int) -> np.ndarray:
    if cells.size <= n:
        return cells
    return np.sort(np.random.default_rng(seed).choice(cells, n, replace=False))


def _guess(
    values: np.ndarray, name: str, place: str, source: str, confidence: float, quantile: float
) -> tuple[float | bool, ...]:
    known = int(np.isfinite(values).sum())
    found = suggest(values, confidence=confidence, quantile=quantile)
    if found is None:
        where = f" in section {place!r}" if place else ""
        what = "fewer than 10 cells have an intensity" if known < 10 else "all cells are alike"
        msg = (
            f"{name}{where}: {what} in {source!r}, nothing to guess thresholds from; leave it out with "
            "markers=[...], or name the layer with the intensities"
        )
        raise InputError(msg)
    limits = tuple(getattr(found, t) for t in THRESHOLDS)
    return (*limits, found.separation, found.contrast, known, found.clear)


def _warn(frame: pd.DataFrame) -> None:
    lost = [" in ".join(k) if isinstance(k, tuple) else k for k in frame.index[~frame["clear"]]]
    if lost:
        more = f", ... ({len(lost)} in all)" if len(lost) > 8 else ""
        warnings.warn(
            f"no clearly positive cells of {', '.join(lost[:8])}{more}: with these thresholds nobody is "
            "positive there; look at nb.pl.gate and edit them",
            NimbusWarning,
            stacklevel=3,
        )
