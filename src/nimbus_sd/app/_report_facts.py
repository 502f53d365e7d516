"""The numbers of a report, one marker at a time: a table of millions of cells is never copied."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from spatialdata.models import TableModel

from nimbus_sd._core.errors import InputError
from nimbus_sd.pl._table import pick_markers, scales, values

BINS = 40
#: scores between these are unsure
UNSURE = (0.3, 0.7)
_MAX_MARKERS, _USUAL_MARKERS = 8, 6
_DRAWN = 20_000  # cells that decide which markers are drawn
_ALIKE = 0.6


@dataclass(frozen=True)
class Facts:
    """What a report says in numbers.

    Attributes
    ----------
    layer
        Of the scores; None is ``X``.
    threshold
        Scores above it are positive.
    sample
        Sample of each cell: codes into `samples`, ``(n_cells,)``.
    samples
        One row per sample: ``cells``, ``area`` (median, µm² or px).
    area_unit
        ``"µm²"`` or ``"px"``.
    markers
        One row per marker: ``positive``, ``unsure``, ``missing`` shares of cells;
        ``scale``, ``maximum``, ``n_saturated``, ``n_pixels``, ``flag`` of the
        normalisation, NaN or ``""`` where unknown; ``bright``, the cells' 99th
        percentile of mean intensity as a share of the scale.
    fractions
        Markers x samples, shares of positive cells; NaN where none has a score.
    scores, expression
        ``(n_markers, 40)`` shares of cells per bin of [0, 1]; `expression` is None
        without mean intensities.
    drawn
        Markers for maps.
    run
        ``uns["nimbus"]``, empty if there is none; ``normalization`` is parsed.
    """

    layer: str | None
    threshold: float
    sample: np.ndarray
    samples: pd.DataFrame
    area_unit: str
    markers: pd.DataFrame
    fractions: pd.DataFrame
    scores: np.ndarray
    expression: np.ndarray | None
    drawn: list[str]
    run: dict[str, Any]


def collect(
    adata: ad.AnnData,
    *,
    layer: str | None,
    threshold: float | None,
    markers: str | Sequence[str] | None,
) -> Facts:
    """Count everything.

    Raises
    ------
    ElementNotFoundError
        If the layer or a marker does not exist.
    InputError
        If values are no scores, or an argument is out of range.
    """
    run = _run(adata)
    cut = float(run.get("threshold", 0.5)) if threshold is None else threshold
    if not 0 < cut < 1:
        msg = f"threshold={cut}; scores lie in [0, 1], so take a number between"
        raise InputError(msg)
    if markers is not None:
        pick_markers(adata, markers, where="the table", limit=_MAX_MARKERS)
    sample, samples, unit = _samples(adata)
    names = [str(v) for v in adata.var_names]
    rows, fractions, scores = [], [], []
    for name in names:
        column = _scores(adata, name, layer)
        known = np.isfinite(column)
        positive = known & (column > cut)
        unsure = known & (column > UNSURE[0]) & (column < UNSURE[1])
        n = max(1, int(known.sum()))
        rows.append((positive.sum() / n, unsure.sum() / n, 1 - known.mean()))
        fractions.append(_shares(positive, known, sample, len(samples)))
        scores.append(np.histogram(column[known], BINS, (0, 1))[0] / n)
    frame = pd.DataFrame(rows, index=names, columns=["positive", "unsure", "missing"])
    frame, expression = _intensities(adata, frame, run)
    return Facts(
        layer=layer,
        threshold=cut,
        sample=sample,
        samples=samples,
        area_unit=unit,
        markers=frame,
        fractions=pd.DataFrame(fractions, index=names, columns=samples.index),
        scores=np.array(scores),
        expression=expression,
        drawn=_telling(adata, layer, cut)
        if markers is None
        else pick_markers(adata, markers, where="the table"),
        run=run,
    )


def _scores(adata: ad.AnnData, name: str, layer: str | None) -> np.ndarray:
    """float64 ``(n,)``, NaN where missing."""
    column = values(adata, [name], layer, where="the table")[:, 0]
    if np.isinf(column).any() or np.nanmin(column, initial=0) < 0 or np.nanmax(column, initial=0) > 1:
        where = "X" if layer is None else f"layer {layer!r}"
        msg = (
            f"{where}, marker {name!r}: values from {np.nanmin(column):g} to {np.nanmax(column):g} are no "
            "scores in [0, 1]; choose the layer with the scores (layer=), or run nb.tl.predict"
        )
        raise InputError(msg)
    return column


def _run(adata: ad.AnnData) -> dict[str, Any]:
    run = dict(adata.uns.get("nimbus", {}))
    if isinstance(run.get("normalization"), str):
        run["normalization"] = json.loads(run["normalization"])
    return run


def _samples(adata: ad.AnnData) -> tuple[np.ndarray, pd.DataFrame, str]:
    attrs = adata.uns.get(TableModel.ATTRS_KEY, {})
    key = attrs.get(TableModel.REGION_KEY_KEY, "region")
    region = adata.obs[key].astype(str) if key in adata.obs else pd.Series("all cells", adata.obs_names)
    found = sorted(region.unique())
    code = pd.Categorical(region, categories=found).codes.astype(np.int64)
    column, unit = ("area_um2", "µm²") if "area_um2" in adata.obs else ("area_px", "px")
    area = adata.obs[column].to_numpy(np.float64) if column in adata.obs else np.full(adata.n_obs, np.nan)
    frame = pd.DataFrame(
        {
            "cells": np.bincount(code, minlength=len(found)),
            "area": pd.Series(area).groupby(code).median().reindex(range(len(found))).to_numpy(),
            "region": found,
        },
        index=_short(found),
    )
    return code, frame, unit


def _short(names: list[str]) -> list[str]:
    """Without what all names end in, where that leaves them apart."""
    cut = [n.removesuffix("_labels") for n in names]
    return cut if all(cut) and len(set(cut)) == len(cut) else names


def _shares(positive: np.ndarray, known: np.ndarray, sample: np.ndarray, n: int) -> np.ndarray:
    total = np.bincount(sample[known], minlength=n)
    found = np.bincount(sample[positive], minlength=n)
    return np.where(total > 0, found / np.maximum(total, 1), np.nan)


def _intensities(
    adata: ad.AnnData, frame: pd.DataFrame, run: dict[str, Any]
) -> tuple[pd.DataFrame, np.ndarray | None]:
    """Columns of the normalisation, and the distribution of scaled mean intensities."""
    names = list(frame.index)
    fitted = run.get("normalization", {})
    for column, source in (("scale", "scale"), ("maximum", "maximum"), ("n_pixels", "n_pixels"),
                           ("n_saturated", "n_saturated"), ("flag", "flags")):  # fmt: skip
        noted = dict(zip(fitted.get("channels", ()), fitted.get(source, ()), strict=False))
        empty: Any = "" if column == "flag" else np.nan
        frame[column] = [noted.get(n, empty) for n in names]
    for column, source in (("n_saturated", "n_saturated"), ("flag", "qc")):
        if source in adata.var:
            frame[column] = adata.var[source].to_numpy()
    known = scales(adata, names)
    if known is not None:
        frame["scale"] = known
    frame["bright"] = np.nan
    if "integrated_expression" not in adata.layers:
        return frame, None
    counts = []
    for i, name in enumerate(names):
        raw = values(adata, [name], "integrated_expression", where="the table")[:, 0]
        raw = raw[np.isfinite(raw)]
        if not raw.size:
            counts.append(np.zeros(BINS))
            continue
        scale = frame["scale"].iloc[i]
        scale = scale if np.isfinite(scale) and scale > 0 else max(float(np.quantile(raw, 0.999)), 1e-12)
        frame.loc[name, "bright"] = float(np.quantile(raw, 0.99)) / scale
        counts.append(np.histogram(np.clip(raw / scale, 0, 1), BINS, (0, 1))[0] / raw.size)
    return frame, np.array(counts)


def _telling(adata: ad.AnnData, layer: str | None, cut: float) -> list[str]:
    """Markers whose calls vary most, none much like another."""
    step = -(-adata.n_obs // _DRAWN)
    names = list(map(str, adata.var_names))
    calls = values(adata[::step], names, layer, where="the table") > cut
    spread = calls.std(0)
    chosen: list[int] = []
    for j in np.argsort(-spread, kind="stable"):
        if spread[j] == 0 or len(chosen) == _USUAL_MARKERS:
            break
        if all(abs(np.corrcoef(calls[:, j], calls[:, i])[0, 1]) < _ALIKE for i in chosen):
            chosen.append(int(j))
    return [names[j] for j in sorted(chosen)] or names[:1]
