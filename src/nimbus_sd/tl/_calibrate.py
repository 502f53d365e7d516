"""Turn scores into probabilities on labelled cells, and say "uncertain" at a stated error rate."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import InputError, NimbusWarning
from nimbus_sd._sdata.truth import check_adata, truth_matrix
from nimbus_sd.arrays.calibration import (
    METHODS,
    Calibrator,
    abstention_limits,
    assign_folds,
    call_cells,
    fit_calibrator,
)
from nimbus_sd.arrays.reliability import expected_calibration_error
from nimbus_sd.tl._apply_calibration import (
    POOLED,
    apply_groups,
    check_keys,
    checked_scores,
    group_codes,
    write_layers,
)

_MIN_CLASS = 5  # cells of either class that a group needs for a fit of its own


@dataclass(frozen=True)
class _Options:
    method: str
    error_rate: float | None
    n_folds: int
    seed: int


def calibrate(
    adata: ad.AnnData,
    truth: str | pd.DataFrame | ad.AnnData,
    *,
    layer: str | None = None,
    markers: str | Sequence[str] | None = None,
    method: str = "temperature",
    by: str = "marker",
    error_rate: float | None = None,
    min_cells: int = 100,
    field_key: str | None = "region",
    n_folds: int = 5,
    n_bins: int = 15,
    key_added: str = "calibrated",
    key_call: str = "call",
    seed: int = 0,
) -> pd.DataFrame:
    """Fit a rising map per marker or platform, so that of cells scored 0.8 some 80 % are positive.

    Parameters
    ----------
    adata
        Table with scores in [0, 1].
    truth
        Labels as in :func:`nimbus_sd.tl.evaluate`, for some of the cells and markers.
    layer
        Layer with the scores; None takes ``X``.
    markers
        Whose labels to fit on; None takes all that both have, and labels of others are an error.
        All of the table's markers are calibrated in any case.
    method
        ``"temperature"`` one number per group: sharper or softer, 0.5 stays; ``"platt"``
        two: also moves the decision; ``"isotonic"`` any rising step map, for thousands
        of labelled cells.
    by
        ``"marker"`` or a column of ``obs`` such as platform. Groups with fewer than
        `min_cells` labelled cells, or 5 of either class, get the fit over all groups,
        counted in a warning.
    error_rate
        Also call cells: per group two limits around 0.5 between which the fewest cells
        are "uncertain", such that of the labelled cells called positive, and of those
        called negative, at most this share is wrong. With ``"temperature"`` 0.5 stays
        where it was; where that is far off, ``"platt"`` leaves fewer cells uncertain.
    min_cells
        Labelled cells that a group needs for a fit of its own.
    field_key
        Column of ``obs``: cells of one field stay in one fold of the cross-fit. None, or
        a single field, splits cells, which flatters the figures.
    n_folds
        Folds of the cross-fit behind the reported figures.
    n_bins
        Bins of equal width of the expected calibration error.
    key_added
        Layer for the calibrated scores.
    key_call
        Layer for the calls.
    seed
        Decides the folds.

    Returns
    -------
    One row per group and one, ``"(all)"``, over everything: ``group``, ``fit`` (``"own"``
    or ``"pooled"``), ``n``, ``n_positive``, ``ece_before`` and ``ece_after`` (expected
    calibration error; after: each fold by a fit on the others), with `error_rate` also
    ``low``, ``high`` (calibrated scores; -1 and 2: nothing may be called on that side),
    ``error`` and ``called`` (shares on the labelled cells) and, by the cross-fit, ``error_cross``,
    ``called_cross``, which are what to expect on other cells. In the row ``"(all)"``,
    ``low``, ``high``, ``error`` and ``called`` are those of the pooled fit. Writes
    ``layers[key_added]`` float32 in [0, 1], ``layers[key_call]`` float32 1 positive, 0
    negative, NaN uncertain, and ``uns["calibration"]`` for
    :func:`nimbus_sd.tl.apply_calibration`. Calls of an earlier fit in the same
    ``layers[key_added]`` are dropped unless they are replaced.

    Raises
    ------
    ElementNotFoundError
        If a layer, marker or column does not exist.
    InputError
        If labels don't fit or all cells are of one class, scores leave [0, 1], a layer would
        replace what it is made of, or a parameter is out of range. Nothing is written then.

    References
    ----------
    Guo et al. (2017), *On calibration of modern neural networks*; Platt (1999), *Probabilistic
    outputs for support vector machines*; Zadrozny and Elkan (2002), *Transforming classifier
    scores into accurate multiclass probability estimates*.

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> sdata = nb.datasets.simulated_tissue(n_fovs=2, shape=(160, 160))
    >>> nb.tl.predict(sdata, channels=["CD45", "VIM"], progress=False)
    >>> truth = sdata["truth"][:, ["CD45", "VIM"]]
    >>> report = nb.tl.calibrate(sdata["nimbus"], truth, min_cells=20, error_rate=0.1)
    >>> report["group"].tolist()
    ['CD45', 'VIM', '(all)']
    """
    if method not in METHODS or n_folds < 2 or min_cells < 0:
        valid = f"{', '.join(METHODS)}; at least 2; at least 0"
        msg = f"method={method!r}, n_folds={n_folds}, min_cells={min_cells}; valid: {valid}"
        raise InputError(msg)
    options = _Options(method, error_rate, n_folds, seed)
    check_adata(adata)
    read = [truth] if isinstance(truth, str) else []
    check_keys(layer, key_added, None if error_rate is None else key_call, *read)
    scores = checked_scores(adata, layer)
    labels = np.full(adata.shape, np.nan)
    found, labelled = truth_matrix(adata, truth, markers=markers)
    labels[:, adata.var_names.get_indexer(labelled)] = found
    labels[np.isnan(scores)] = np.nan
    names, codes = group_codes(adata, by)
    fields = None if field_key not in adata.obs else pd.factorize(adata.obs[field_key])[0]
    known = ~np.isnan(labels)
    y, s, code = labels[known], scores[known], codes[known]
    field = None if fields is None else np.broadcast_to(fields[:, None], adata.shape)[known]
    own = _own(y, code, len(names), min_cells)
    groups = {POOLED: _fit(y, s, options)}
    groups |= {name: _fit(y[code == i], s[code == i], options) for i, name in enumerate(names) if own[i]}
    report = _report(y, s, code, field, names=names, own=own, groups=groups, options=options, n_bins=n_bins)
    calibrated, calls = apply_groups(scores, codes, names, groups)
    _warn_pooled(names, own, by, min_cells)
    # groups without a fit of their own are remembered, so that another table isn't warned about them
    stored = {name: groups.get(name, groups[POOLED]) for name in [*names, POOLED]}
    write_layers(adata, {key_added: calibrated, **({} if calls is None else {key_call: calls})}, key_added)
    adata.uns["calibration"] = {
        "method": method,
        "by": by,
        "layer": layer or "X",
        "key_added": key_added,
        "key_call": "" if calls is None else key_call,
        "error_rate": np.nan if error_rate is None else error_rate,
        "n_labelled": int(y.size),
        "groups": json.dumps(stored),
    }
    return report


def _own(y: np.ndarray, code: np.ndarray, n: int, min_cells: int) -> np.ndarray:
    """Which groups have labels enough."""
    known = code >= 0
    positive = np.bincount(code[known], weights=y[known], minlength=n)
    count = np.bincount(code[known], minlength=n)
    return (count >= min_cells) & (np.minimum(positive, count - positive) >= _MIN_CLASS)


def _fit(y: np.ndarray, s: np.ndarray, options: _Options) -> dict[str, Any]:
    fitted = fit_calibrator(y, s, method=options.method)
    out = fitted.to_dict()
    if options.error_rate is not None:
        out["low"], out["high"] = abstention_limits(y, fitted.apply(s), error_rate=options.error_rate)
    return out


def _report(
    y: np.ndarray,
    s: np.ndarray,
    code: np.ndarray,
    field: np.ndarray | None,
    *,
    names: list[str],
    own: np.ndarray,
    groups: dict[str, dict[str, Any]],
    options: _Options,
    n_bins: int,
) -> pd.DataFrame:
    fold = assign_folds(y, n_folds=options.n_folds, groups=field, seed=options.seed)
    after, calls = np.full(y.shape, np.nan), np.full(y.shape, np.nan)
    for i in [-1, *np.flatnonzero(own)]:
        # a row's own group, or everything for the rows without one
        train = np.ones(y.shape, bool) if i < 0 else code == i
        rows = np.isin(code, np.flatnonzero(~own)) | (code < 0) if i < 0 else train
        after[rows], calls[rows] = _cross_fit(y, s, fold, train=train, rows=rows, options=options)
    out = []
    for i, name in [*enumerate(names), (-1, POOLED)]:
        mask = np.ones(y.shape, bool) if i < 0 else code == i
        fit = groups.get(name, groups[POOLED])
        row: dict[str, Any] = {
            "group": name,
            "fit": "own" if name in groups else "pooled",
            "n": int(mask.sum()),
            "n_positive": int(y[mask].sum()),
            "ece_before": expected_calibration_error(y[mask], s[mask], n_bins=n_bins),
            "ece_after": expected_calibration_error(y[mask], after[mask], n_bins=n_bins),
        }
        if options.error_rate is not None:
            row |= {"low": fit["low"], "high": fit["high"]}
            now = call_cells(Calibrator.from_dict(fit).apply(s[mask]), fit["low"], fit["high"])
            row["error"], row["called"] = _error(y[mask], now)
            row["error_cross"], row["called_cross"] = _error(y[mask], calls[mask])
        out.append(row)
    return pd.DataFrame(out)


def _cross_fit(
    y: np.ndarray, s: np.ndarray, fold: np.ndarray, *, train: np.ndarray, rows: np.ndarray, options: _Options
) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated scores and calls of `rows`, each fold by a fit on the other folds of `train`."""
    after, calls = np.full(y.shape, np.nan), np.full(y.shape, np.nan)
    for k in np.unique(fold[rows]):
        rest, here = train & (fold != k), rows & (fold == k)
        if np.unique(y[rest]).size < 2:
            continue  # one class elsewhere: these cells can't be judged
        fit = _fit(y[rest], s[rest], options)
        after[here] = Calibrator.from_dict(fit).apply(s[here])
        if options.error_rate is not None:
            calls[here] = call_cells(after[here], fit["low"], fit["high"])
    return after[rows], calls[rows]


def _error(y: np.ndarray, calls: np.ndarray) -> tuple[float, float]:
    """Share of wrong cells among the called ones, and share that is called."""
    called = ~np.isnan(calls)
    if not called.any():
        return float("nan"), 0.0 if y.size else float("nan")
    return float((calls[called] != y[called]).mean()), float(called.mean())


def _warn_pooled(names: list[str], own: np.ndarray, by: str, min_cells: int) -> None:
    pooled = [name for name, each in zip(names, own, strict=True) if not each]
    if pooled:
        more = ", ..." if len(pooled) > 8 else ""
        warnings.warn(
            f"{len(pooled)} of {len(names)} groups of {by!r} have fewer than {min_cells} labelled cells, or "
            f"fewer than {_MIN_CLASS} of a class, and get the fit over all: {', '.join(pooled[:8])}{more}",
            NimbusWarning,
            stacklevel=3,
        )
