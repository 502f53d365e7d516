"""Scores against labels: precision, recall, balanced accuracy, F1, AUROC and more, with limits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata.cell_columns import cell_columns
from nimbus_sd._sdata.truth import score_matrices, truth_matrix
from nimbus_sd.arrays.evaluation import bootstrap, evaluate_scores
from nimbus_sd.arrays.metrics import METRICS, RATES, confusion

Threshold = float | Mapping[str, float]


def evaluate(
    adata: ad.AnnData,
    truth: str | pd.DataFrame | ad.AnnData,
    scores: str | Sequence[str] | Mapping[str, str | pd.DataFrame | ad.AnnData] | None = None,
    *,
    truth_layer: str | None = None,
    by: str | Sequence[str] = ("marker",),
    threshold: float | Mapping[str, Threshold] | None = None,
    markers: str | Sequence[str] | None = None,
    n_bootstrap: int = 200,
    resample: str | None = None,
    level: float = 0.95,
    n_bins: int = 15,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure scores against labels, group by group, for one or several score layers.

    Cells without a label are left out. A metric that is undefined (a marker with one
    class, no cells) is NaN, and the row says why: without positives only the
    specificity counts, without negatives specificity, AUROC and average precision
    don't.

    Parameters
    ----------
    adata
        Table of :func:`nimbus_sd.tl.predict`, or any table of cells x markers.
    truth
        Labels 1 positive, 0 negative, NaN undefined: name of a layer, a frame (cells
        named as ``obs_names``, markers), or a table such as ``sdata["truth"]``. They
        must be of the same segmentation: two tables that annotate the same elements
        are joined by region and instance id (further elements are left out), any other
        by ``obs_names``. Cells may be missing; labelled markers that `adata` lacks are an
        error unless `markers` chooses (DNA and blank channels are passed over).
    scores
        ``"X"`` or a layer, several of them, or a mapping from a name to a layer, frame
        or table; None takes ``X``. Cells with a NaN score are left out and counted.
    truth_layer
        Layer of a `truth` that is a table, such as ``"gated"``; None takes its ``X``.
    by
        Any of ``"marker"`` and columns of ``obs`` (data set, tissue, cell type,
        region), one row per combination; ``()`` pools everything. Columns that `adata`
        lacks are taken from a `truth` that is a table, cell by cell as the labels are.
    threshold
        Cells above it are called positive: a number, or per name in `scores` a number
        or a mapping from marker to number. None takes for an ``X`` those of its table's
        ``var["threshold"]``, which count as positive themselves, as
        :func:`nimbus_sd.tl.predict_subtypes` wrote them; 0.5 where there are none, and
        for layers and frames. Every cell with a score is called: those
        that are NaN in ``layers["positive"]``, as they contradict the hierarchy, too. To
        leave these out, name ``"positive"`` as the score; AUROC is that of calls then.
    markers
        Which; None takes all that both have.
    n_bootstrap
        Resamples for the limits; 0 gives none.
    resample
        Column of ``obs`` as for `by`, for instance ``"region"`` or ``"patient"``, whose groups are
        drawn as wholes, with replacement and as many as there are; a group drawn twice
        counts twice, and metrics are those of all its cells together. None draws cells,
        which takes cells of one field as independent: limits get too narrow.
    level
        Share of the resamples between the limits.
    n_bins
        Bins of equal width of the expected calibration error (its limits are those
        of the resamples, which scatter more than the sample: they lie a little high).
    seed
        Decides the resamples; they are the same cells for every score layer.

    Returns
    -------
    Tidy frame, one row per group and score layer: the columns of `by`; ``scores``;
    ``n`` cells (of pooled markers: cells x markers) with label and score,
    ``n_positive``, ``n_undefined`` (no label), ``n_unscored`` (label, no score), the
    counts ``tp``, ``fp``, ``tn``, ``fn``; ``precision``, ``recall`` (the rate of true
    positives, TPR), ``specificity`` (that of true negatives, TNR), ``balanced_accuracy``
    (the mean of these two), ``f1``, ``auroc``, ``average_precision``, ``ece`` and for each
    ``<metric>_lower``, ``<metric>_upper``, the percentiles of the resamples; ``reason``, ""
    where every metric is defined.

    Raises
    ------
    ElementNotFoundError
        If a layer or marker does not exist, or neither table has a column.
    InputError
        If labels belong to another segmentation or are not 1, 0, NaN, or a parameter
        is out of range.

    Warns
    -----
    NimbusWarning
        If the labelled cells of a row are of one group of `resample`: its limits are NaN.

    See Also
    --------
    nimbus_sd.tl.average_evaluation : the averages of the paper.
    nimbus_sd.pl.evaluation : draws the frame.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128))
    >>> nb.tl.predict(sdata, channels=["CD45", "VIM"], progress=False)
    >>> found = nb.tl.evaluate(sdata["nimbus"], sdata["truth"], markers=["CD45", "VIM"])
    >>> found[["marker", "scores"]].values.tolist()
    [['CD45', 'X'], ['VIM', 'X']]
    """
    if n_bootstrap < 0 or not 0 < level < 1 or n_bins < 1:
        msg = f"n_bootstrap={n_bootstrap}, level={level}, n_bins={n_bins}: valid: ≥ 0, in (0, 1), ≥ 1"
        raise InputError(msg)
    labels, names = truth_matrix(adata, truth, markers=markers, layer=truth_layer)
    values = score_matrices(adata, scores, names)
    limits = (
        _own_thresholds(adata, scores, names)
        if threshold is None
        else {name: _thresholds(threshold, name, names) for name in values}
    )
    columns = [by] if isinstance(by, str) else list(by)
    drawn = None if resample is None else pd.factorize(cell_columns(adata, truth, [resample])[0][resample])[0]
    rows, lone = [], 0
    for key, cells, which in _groups(adata, truth, columns, names):
        y = labels[np.ix_(cells, which)].ravel()
        units = None if drawn is None else np.repeat(drawn[cells], len(which))
        for name, every in values.items():
            s = every[np.ix_(cells, which)].ravel()
            cut = np.tile(limits[name][which], cells.size)
            row = {**dict(zip(columns, key, strict=True)), "scores": name, **_counts(y, s, cut)}
            row |= _metrics(y, s, cut, units, n_bins=n_bins, n_bootstrap=n_bootstrap, level=level, seed=seed)
            rows.append(row)
            lone += units is not None and len(np.unique(units[~np.isnan(y + s)])) == 1
    if lone and n_bootstrap:
        warnings.warn(
            f"{lone} of {len(rows)} rows have labelled cells of one {resample!r} only: no limits (NaN); add "
            "more, or draw cells with resample=None",
            NimbusWarning,
            stacklevel=2,
        )
    return pd.DataFrame(rows, columns=_all_columns(columns, n_bootstrap))


def _metrics(
    y: np.ndarray,
    s: np.ndarray,
    cut: np.ndarray,
    units: np.ndarray | None,
    *,
    n_bins: int,
    n_bootstrap: int,
    level: float,
    seed: int,
) -> dict[str, float | str]:
    if units is not None:  # cells that the labels' table lacks are of no group, not of one more
        kept = (units >= 0) | ~np.isnan(y)
        y, s, cut, units = y[kept], s[kept], cut[kept], units[kept]
    threshold = float(cut[0]) if cut.size else 0.5
    runs: list[tuple[np.ndarray, float, tuple[str, ...]]] = [(s, threshold, METRICS)]
    if (
        cut != threshold
    ).any():  # pooled markers with thresholds of their own: rates from calls, ranks from scores
        called = np.where(np.isnan(s), np.nan, (s > cut).astype(np.float64))
        runs = [(s, threshold, METRICS[len(RATES) :]), (called, 0.5, RATES)]
    out: dict[str, float | str] = {}
    reasons = []
    for values, at, which in runs:
        found, reason = evaluate_scores(y, values, threshold=at, n_bins=n_bins)
        out |= {name: found[name] for name in which}
        reasons.append(reason)
        if n_bootstrap:
            limits = bootstrap(
                y, values, threshold=at, n_bins=n_bins, n_resamples=n_bootstrap, groups=units,
                level=level, seed=seed,
            )  # fmt: skip
            for name in which:
                out[f"{name}_lower"], out[f"{name}_upper"] = limits[name]
    out["reason"] = "; ".join(dict.fromkeys(filter(None, reasons)))
    return out


def _counts(y: np.ndarray, s: np.ndarray, cut: np.ndarray) -> dict[str, int]:
    labelled, scored = ~np.isnan(y), ~np.isnan(s)
    used = np.where(scored, y, np.nan)
    counts = confusion(used, s > cut)
    return {
        "n": int((labelled & scored).sum()),
        "n_positive": int((used == 1).sum()),
        "n_undefined": int((~labelled).sum()),
        "n_unscored": int((labelled & ~scored).sum()),
        "tp": int(counts.tp),
        "fp": int(counts.fp),
        "tn": int(counts.tn),
        "fn": int(counts.fn),
    }


def _all_columns(by: list[str], n_bootstrap: int) -> list[str]:
    counts = ["n", "n_positive", "n_undefined", "n_unscored", "tp", "fp", "tn", "fn"]
    limits = ("", "_lower", "_upper") if n_bootstrap else ("",)
    return [*by, "scores", *counts, *(f"{m}{limit}" for m in METRICS for limit in limits), "reason"]


def _groups(
    adata: ad.AnnData, truth: str | pd.DataFrame | ad.AnnData, by: list[str], names: list[str]
) -> Iterator[tuple[tuple, np.ndarray, np.ndarray]]:
    """(values of `by`, rows, columns) of every group that has cells."""
    if len(set(by)) < len(by):
        msg = f"by={by}: name each once"
        raise InputError(msg)
    columns = [c for c in by if c != "marker"]
    every = np.arange(len(names))
    if columns:
        frame, known = cell_columns(adata, truth, columns)
        lost = int((frame.isna().any(axis=1) & known).sum())
        if lost:
            warnings.warn(
                f"{lost} cells have no value in {', '.join(columns)} and were left out",
                NimbusWarning,
                stacklevel=4,
            )
        cells = [
            (key, np.asarray(rows)) for key, rows in frame.groupby(columns, observed=True).indices.items()
        ]
    else:
        cells = [((), np.arange(adata.n_obs))]
    for marker in every if "marker" in by else [None]:
        for key, rows in cells:
            values = dict(zip(columns, key if isinstance(key, tuple) else (key,), strict=True))
            if marker is not None:
                values["marker"] = names[marker]
            yield tuple(values[c] for c in by), rows, every if marker is None else every[[marker]]


def _own_thresholds(
    adata: ad.AnnData,
    scores: str | Sequence[str] | Mapping[str, str | pd.DataFrame | ad.AnnData] | None,
    markers: list[str],
) -> dict[str, np.ndarray]:
    """By score, one per marker: those that stand beside an X, just below which a cell is negative."""
    if not isinstance(scores, Mapping):
        scores = {
            s: s for s in (["X"] if scores is None else [scores] if isinstance(scores, str) else scores)
        }
    out = {}
    for name, source in scores.items():
        table = adata if isinstance(source, str) and source == "X" else source
        if not isinstance(table, ad.AnnData) or "threshold" not in table.var:
            out[str(name)] = np.full(len(markers), 0.5)
            continue
        theirs = table.var["threshold"]
        found = _thresholds({str(name): {m: theirs.get(m, 0.5) for m in markers}}, str(name), markers)
        out[str(name)] = np.nextafter(found, -np.inf)
    return out


def _thresholds(threshold: float | Mapping[str, Threshold], name: str, markers: list[str]) -> np.ndarray:
    """One per marker, float64."""
    if isinstance(threshold, Mapping):
        if name not in threshold:
            msg = f"threshold= has none for scores {name!r}; it names {', '.join(map(repr, threshold))}"
            raise InputError(msg)
        threshold = threshold[name]
    if isinstance(threshold, Mapping | pd.Series):
        missing = [m for m in markers if m not in threshold]
        if missing:
            msg = f"threshold of {name!r} lacks the markers {', '.join(missing)}; give each a number"
            raise InputError(msg)
        out = np.array([threshold[m] for m in markers], dtype=np.float64)
    else:
        out = np.full(len(markers), float(threshold))
    if not np.isfinite(out).all():
        msg = f"threshold of {name!r} must be finite numbers, got {out.tolist()}"
        raise InputError(msg)
    return out
