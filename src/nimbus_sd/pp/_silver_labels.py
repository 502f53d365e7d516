"""``nb.pp.silver_labels``: positivity labels from cell types, or from thresholds on intensity."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd._sdata.csv_table import read_csv
from nimbus_sd._sdata.truth import check_adata, matrix
from nimbus_sd.arrays.silver import CHECKS, assign_labels, disagreement, threshold_labels

_FLAG_BELOW = 0.7
_COUNTS = CHECKS[:3]


def silver_labels(
    adata: ad.AnnData,
    assignment: pd.DataFrame | str | Path | None = None,
    *,
    cell_type_key: str = "cell_type",
    thresholds: Mapping[str, float] | pd.Series | str | Path | None = None,
    layer: str | None = "integrated_expression",
    exclude: Sequence[str] = (),
    strict: bool = False,
    key_added: str = "silver",
) -> pd.DataFrame:
    """Derive labels from named cell types, or from thresholds on integrated expression.

    The labels are as good as the clustering or gating behind them: look at the report,
    or at :func:`nimbus_sd.pl.silver_check`, and exclude markers whose labels don't fit
    their images.

    Parameters
    ----------
    adata
        Cells x markers, such as the table of :func:`nimbus_sd.tl.predict`.
    assignment
        Frame, or CSV whose first column is the cell type: cell types x markers, 1
        positive, 0 negative, empty undefined (see :func:`nimbus_sd.datasets.assignment_matrix`).
    cell_type_key
        Column of ``obs`` with the cell types.
    thresholds
        Instead of `assignment`: marker to the intensity (units of `layer`) above which a
        cell is positive; mapping, series, or CSV with columns ``marker, threshold``.
    layer
        Layer with the intensities: the thresholds are for it, and the report compares
        with it; None takes ``X``.
    exclude
        Markers to leave undefined.
    strict
        Raise if cells have a type that the matrix lacks, or none.
    key_added
        Name of the layer, and of the record in ``uns``.

    Returns
    -------
    The report, one row per labelled marker: ``n_positive``, ``n_negative``,
    ``n_undefined``; ``auroc`` of the intensity for the label; ``dim_positives``, share of
    positive cells below the median negative one; ``bright_negatives``, share of negative
    cells above the median positive one; ``flag``: ``"poor"`` where the AUROC is below
    0.7, ``"one class"``, ``"no intensity"`` (name its layer), or ``""``. Labels from
    thresholds on the same intensities have an AUROC of 1, which says nothing. Also writes

    - ``layers[key_added]`` float32 ``(n_obs, n_vars)``: 1, 0, NaN; markers that no one
      assigns are NaN;
    - ``uns[key_added]``: the route, what was assigned, and the report.

    Raises
    ------
    InputError
        If both or neither of the routes are given, a marker is unknown, values are not 1,
        0 or empty, names repeat, or (with `strict`) a cell type is not in the matrix.
        Nothing is written then.
    ElementNotFoundError
        If the column or layer does not exist.

    References
    ----------
    Rumberger, Greenwald et al. (2025), *Automated classification of cellular expression in
    multiplexed imaging data with Nimbus* (automatic creation of silver standard labels).

    Examples
    --------
    >>> import nimbus_sd as nb
    >>> truth = nb.datasets.simulated_tissue(n_fovs=1, shape=(128, 128), channels=["CD3", "CD8"])["truth"]
    >>> assignment = nb.datasets.assignment_matrix("simulated")[["CD3", "CD8"]]
    >>> report = nb.pp.silver_labels(truth, assignment, layer=None)
    >>> truth.layers["silver"].dtype
    dtype('float32')
    """
    check_adata(adata)
    if (assignment is None) == (thresholds is None):
        msg = "give an assignment matrix or thresholds, one of the two"
        raise InputError(msg)
    if isinstance(exclude, str):
        exclude = [exclude]
    if key_added in ("X", "integrated_expression", "nimbus") or key_added == layer:
        msg = f"key_added={key_added!r} is taken by scores or intensities; name the labels otherwise"
        raise InputError(msg)
    unknown = [m for m in exclude if m not in adata.var_names]
    if unknown:
        msg = f"exclude: no markers {unknown}; valid: {', '.join(adata.var_names)}"
        raise InputError(msg)
    intensity = _intensity(adata, layer, needed=thresholds is not None)
    if assignment is not None:
        table = _read_matrix(assignment)
        _check_markers(table.columns, adata, "the assignment matrix")
        found = _by_type(adata, table, cell_type_key, strict=strict)
        record: dict[str, Any] = {"route": "assignment", "cell_type_key": cell_type_key}
        record["cell_types"] = np.array(table.index, dtype=str)
        record["assignment"] = table.to_numpy(np.float32)
        names = list(table.columns)
    else:
        limits = _read_thresholds(thresholds)
        _check_markers(limits.index, adata, "thresholds")
        names = list(limits.index)
        values = intensity[:, adata.var_names.get_indexer(names)]
        found = threshold_labels(values, limits.to_numpy())
        record = {"route": "thresholds", "layer": layer or "X", "thresholds": limits.to_numpy()}
    found[:, [m in set(exclude) for m in names]] = np.nan
    report = _report(found, intensity[:, adata.var_names.get_indexer(names)], names)
    labels = np.full(adata.shape, np.nan, np.float32)
    labels[:, adata.var_names.get_indexer(names)] = found
    record |= {"markers": np.array(names, dtype=str), "exclude": np.array(list(exclude), dtype=str)}
    record["report"] = {column: report[column].to_numpy() for column in report}
    adata.layers[key_added] = labels
    adata.uns[key_added] = record
    return report


def _intensity(adata: ad.AnnData, layer: str | None, *, needed: bool) -> np.ndarray:
    """Intensities; NaN where the table holds none and only the report would use them."""
    if not needed and layer == "integrated_expression" and layer not in adata.layers:
        return np.full(adata.shape, np.nan)
    return matrix(adata, layer)


def _read_matrix(assignment: pd.DataFrame | str | Path) -> pd.DataFrame:
    where = "the assignment matrix"
    if not isinstance(assignment, pd.DataFrame):
        where = f"the assignment matrix {assignment}"
        # names such as "NA" are names; only values may be missing
        assignment = read_csv(assignment, index_col=0, keep_default_na=False, na_values={"": [""]}, dtype=str)
        assignment = assignment.replace({"": np.nan})
    if assignment.empty:
        msg = f"{where}: no cell types or no markers; is it comma-separated, with cell types first?"
        raise InputError(msg)
    for axis, names in (("cell types", assignment.index.astype(str)), ("markers", assignment.columns)):
        if not names.is_unique:
            msg = f"{where}: {axis} repeat: {sorted({str(n) for n in names[names.duplicated()]})}"
            raise InputError(msg)
    try:
        table = assignment.astype(np.float64)
    except (TypeError, ValueError) as error:
        msg = f"{where}: values must be 1, 0 or empty ({error})"
        raise InputError(msg) from error
    wrong = table.notna() & ~table.isin([0, 1])
    if wrong.to_numpy().any():
        row, column = (int(i[0]) for i in np.nonzero(wrong.to_numpy()))
        msg = (
            f"{where}: {table.iat[row, column]:g} for {table.index[row]!r} and {table.columns[column]!r}; "
            "valid: 1 positive, 0 negative, empty undefined"
        )
        raise InputError(msg)
    table.index = table.index.astype(str)
    return table


def _read_thresholds(thresholds: Any) -> pd.Series:
    if isinstance(thresholds, str | Path):
        frame = read_csv(thresholds)
        if not {"marker", "threshold"} <= set(frame.columns):
            msg = f"{thresholds}: columns marker and threshold are needed, there are {list(frame.columns)}"
            raise InputError(msg)
        thresholds = frame.set_index("marker")["threshold"]
    try:
        found = pd.Series(thresholds, dtype=np.float64)
    except (TypeError, ValueError) as error:
        msg = f"thresholds: marker to number is needed ({error})"
        raise InputError(msg) from error
    if not np.isfinite(found).all():
        msg = f"thresholds: {found.index[~np.isfinite(found)].tolist()} have none that is finite"
        raise InputError(msg)
    if not found.index.is_unique or found.empty:
        what = "markers repeat" if len(found) else "there are none"
        msg = f"thresholds: {what}; give one number per marker"
        raise InputError(msg)
    return found


def _check_markers(names: pd.Index, adata: ad.AnnData, where: str) -> None:
    unknown = [n for n in names if n not in adata.var_names]
    if unknown:
        msg = f"{where}: no markers {unknown} in the table; valid: {', '.join(adata.var_names)}"
        raise InputError(msg)


def _by_type(adata: ad.AnnData, table: pd.DataFrame, key: str, *, strict: bool) -> np.ndarray:
    if key not in adata.obs:
        msg = f"obs has no column {key!r}; valid: {', '.join(adata.obs.columns)}; name it with cell_type_key="
        raise ElementNotFoundError(msg)
    types = adata.obs[key].astype(object)
    named = types.where(types.notna(), "").astype(str)
    codes = table.index.get_indexer(named)
    if (codes < 0).any():
        lost = named[codes < 0].value_counts()
        shown = ", ".join(f"{name or '(none)'} ({n})" for name, n in lost.items())
        msg = f"{int(lost.sum())} of {len(types)} cells have a type that the matrix lacks: {shown}"
        if strict:
            msg += f"; it has {', '.join(table.index)}"
            raise InputError(msg)
        warnings.warn(f"{msg}; they are undefined", NimbusWarning, stacklevel=3)
    return assign_labels(codes, table.to_numpy())


def _report(labels: np.ndarray, intensity: np.ndarray, names: list[str]) -> pd.DataFrame:
    rows = [disagreement(y, x) for y, x in zip(labels.T.astype(np.float64), intensity.T, strict=True)]
    report = pd.DataFrame(rows, index=pd.Index(names, name="marker"), columns=list(CHECKS))
    report = report.astype(dict.fromkeys(_COUNTS, np.int64))
    one = (report.n_positive == 0) | (report.n_negative == 0)
    poor = np.where(report.auroc.isna(), "no intensity", np.where(report.auroc < _FLAG_BELOW, "poor", ""))
    report["flag"] = np.where(one, "one class", poor)
    return report
