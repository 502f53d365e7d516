"""Lay labels and scores over a table by name: cells by obs_names, markers by var_names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.channels import NOT_MARKERS
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd._core.near import did_you_mean
from nimbus_sd._sdata.same_cells import SAME_CELLS, check_areas, of_same_elements

Frame: TypeAlias = str | pd.DataFrame | ad.AnnData
GATED = "gated"  # where labels lie unless a call says otherwise
_MAX_NAMES = 8


def check_adata(adata: object, *, what: str = "adata") -> ad.AnnData:
    """Return `adata`.

    Raises
    ------
    InputError
        Unless it is an AnnData table whose cells and markers have unique names.
    """
    if not isinstance(adata, ad.AnnData):
        kind = type(adata).__name__
        msg = f"{what}: expected an AnnData table, got {kind}; pass one of the object's: {_tables_of(adata)}"
        raise InputError(msg)
    for axis, names in (("obs_names", adata.obs_names), ("var_names", adata.var_names)):
        if not names.is_unique:
            twice = names[names.duplicated()][0]
            msg = f"{what}: {axis} are not unique ({twice!r}); call {what}.{axis}_make_unique() first"
            raise InputError(msg)
    return adata


def _tables_of(obj: object) -> str:
    names = list(getattr(obj, "tables", ())) or ["nimbus"]
    return ", ".join(f"sdata[{n!r}]" for n in names[:_MAX_NAMES])


def matrix(adata: ad.AnnData, layer: str | None) -> np.ndarray:
    """``(n_obs, n_vars)`` float64 of a layer, or of X (None or ``"X"``).

    Raises
    ------
    ElementNotFoundError
        If there is no such layer.
    """
    if layer is not None and layer not in adata.layers and layer != "X":
        known = ", ".join(map(repr, ["X", *adata.layers]))
        hint = "; nb.pp.gate writes it" if layer == GATED else ""
        msg = f"the table has no layer {layer!r}; valid: {known}{hint}"
        raise ElementNotFoundError(msg)
    values = adata.layers[layer] if layer in adata.layers else adata.X  # noqa: SIM401
    if values is None:
        msg = "the table has an empty X; name a layer"
        raise ElementNotFoundError(msg)
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=np.float64)


def truth_matrix(
    adata: ad.AnnData,
    truth: Frame,
    *,
    markers: str | Sequence[str] | None = None,
    layer: str | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Labels of the table's cells and the markers that they are for.

    Parameters
    ----------
    adata
        The table.
    truth
        Name of a layer, or a frame or table of cells x markers named as in `adata`;
        cells may be missing or in any order.
    markers
        Which markers; None takes all that both have. DNA and blank channels that only
        `truth` has are passed over.
    layer
        Layer of a `truth` that is a table; None takes its ``X``.

    Returns
    -------
    float64 ``(n_obs, len(markers))`` of 1, 0, NaN; and the names of the markers, in
    the table's order.

    Raises
    ------
    ElementNotFoundError
        If a layer does not exist, or labelled or asked-for markers are not in the table.
    InputError
        If the labels belong to another segmentation or are not 1, 0, NaN.
    """
    check_adata(adata)
    if layer is not None and not isinstance(truth, ad.AnnData):
        msg = f"truth_layer={layer!r} is for a truth that is a table, not a {type(truth).__name__}"
        raise InputError(msg)
    if isinstance(truth, ad.AnnData):
        _check_layer(truth, layer)
    values, names = _lay_over(adata, truth, what="truth", layer=layer)
    wanted = _wanted(adata, names, values, markers, what="truth")
    position = {name: i for i, name in enumerate(names)}
    out = values[:, [position[m] for m in wanted]]
    odd = _no_labels(out)
    if odd.any():
        first = wanted[int(np.flatnonzero(odd.any(0))[0])]
        msg = (
            f"truth of {first!r} holds {np.unique(out[odd])[:5].tolist()}; valid: 1 positive, 0 negative, "
            "NaN undefined"
        )
        if isinstance(truth, ad.AnnData):
            msg += f"; {_where_labels_are(truth)}"
        raise InputError(msg)
    return out, wanted


def label_layers(table: ad.AnnData) -> list[str]:
    """Names of the layers that hold labels: nothing but 1, 0, NaN, and at least one label."""
    values = {name: matrix(table, name) for name in table.layers}
    return [n for n, v in values.items() if not _no_labels(v).any() and not np.isnan(v).all()]


def _no_labels(values: np.ndarray) -> np.ndarray:
    return ~(np.isnan(values) | (values == 0) | (values == 1))


def _check_layer(truth: ad.AnnData, layer: str | None) -> None:
    """Raise unless a layer is there; without one, unless any column of X holds labels."""
    what = f"the truth has no layer {layer!r}; valid: {', '.join(map(repr, ['X', *truth.layers]))}"
    if layer is None:
        if truth.X is not None:
            values = matrix(truth, None)
            odd, there = _no_labels(values).any(axis=0), ~np.isnan(values).all(axis=0)
            if (there & ~odd).any() or not there.any():
                return
        what = "X of the truth holds no labels" if truth.X is not None else "the truth has an empty X"
    elif layer == "X" or layer in truth.layers:
        return
    msg = f"{what}; {_where_labels_are(truth)}"
    raise (ElementNotFoundError if layer else InputError)(msg)


def _where_labels_are(truth: ad.AnnData) -> str:
    found = ", ".join(map(repr, label_layers(truth)))
    if not found:
        return "none of its layers holds 1, 0, NaN; nb.pp.gate writes one"
    return f"layers that hold 1, 0, NaN: {found}; name one with truth_layer="


def score_matrices(
    adata: ad.AnnData, scores: str | Sequence[str] | Mapping[str, Frame] | None, markers: Sequence[str]
) -> dict[str, np.ndarray]:
    """Scores to compare, ``(n_obs, len(markers))`` float64 each; NaN where there is none.

    Parameters
    ----------
    adata
        The table.
    scores
        ``"X"`` or the name of a layer, several of them, or a mapping from a name to a
        layer, frame or table; None takes ``X``.
    markers
        Columns.

    Raises
    ------
    ElementNotFoundError
        If a layer does not exist.
    InputError
        If there is none, or a frame fits no cell or marker.
    """
    if scores is None or isinstance(scores, str):
        scores = ["X" if scores is None else scores]
    given = dict(scores) if isinstance(scores, Mapping) else {str(name): name for name in scores}
    if not given:
        msg = "scores= is empty; name 'X' or a layer"
        raise InputError(msg)
    out = {}
    for name, source in given.items():
        values, names = _lay_over(adata, source, what=f"scores {name!r}")
        columns = pd.Index(names).get_indexer(list(markers))
        if (columns < 0).all():
            msg = f"scores {name!r} have none of the markers {_some(markers)}; theirs: {_some(names)}"
            raise InputError(msg)
        out[str(name)] = np.where(columns >= 0, values[:, columns], np.nan)
    return out


def _lay_over(
    adata: ad.AnnData, source: Frame, *, what: str, layer: str | None = None
) -> tuple[np.ndarray, list[str]]:
    if isinstance(source, str):
        return matrix(adata, source), list(map(str, adata.var_names))
    if isinstance(source, ad.AnnData):
        source, index = of_same_elements(adata, source)
        check_areas(adata, source, index, what)
        frame = pd.DataFrame(matrix(source, layer), index=index, columns=source.var_names)
    elif isinstance(source, pd.DataFrame):
        frame = source
    else:
        kind = type(source).__name__
        msg = f"{what} is a {kind}; pass the name of a layer, a DataFrame (cells x markers) or a table"
        raise InputError(msg)
    for axis, index in (("rows", frame.index), ("columns", frame.columns)):
        if not index.is_unique:
            msg = f"{what}: {axis} repeat {index[index.duplicated()][0]!r}; name each cell and marker once"
            raise InputError(msg)
    _check_cells(adata, frame.index, what)
    try:
        values = frame.reindex(adata.obs_names).to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        msg = f"{what} holds something else than numbers ({error}); keep only the marker columns"
        raise InputError(msg) from error
    return values, list(map(str, frame.columns))


def _check_cells(adata: ad.AnnData, index: pd.Index, what: str) -> None:
    found = int(index.isin(adata.obs_names).sum())
    if not len(index) or found < SAME_CELLS * len(index):
        example = f" ({index[0]!r}, ...)" if len(index) else ""
        msg = (
            f"{what}: only {found} of {len(index)} cells{example} are in the table ({adata.obs_names[0]!r}, "
            "...): labels of another segmentation, or another index; index them by the table's obs_names"
            if adata.n_obs
            else "the table has no cells"
        )
        raise InputError(msg)
    if found < len(index):
        warnings.warn(
            f"{what}: {len(index) - found} of {len(index)} cells are not in the table and were left out",
            NimbusWarning,
            stacklevel=5,
        )


def _wanted(
    adata: ad.AnnData,
    names: list[str],
    values: np.ndarray,
    markers: str | Sequence[str] | None,
    *,
    what: str,
) -> list[str]:
    table = list(map(str, adata.var_names))
    if markers is not None:
        asked = [markers] if isinstance(markers, str) else list(map(str, markers))
        for where, known in (("the table", table), (what, names)):
            missing = [m for m in asked if m not in known]
            if missing:
                near = did_you_mean(missing, known)
                msg = f"{where} has no marker {_some(missing)}{near}; valid: {', '.join(known)}"
                raise ElementNotFoundError(msg)
        return list(dict.fromkeys(asked))
    labelled = [name for name, column in zip(names, values.T, strict=True) if not np.isnan(column).all()]
    pattern = re.compile(NOT_MARKERS, re.IGNORECASE)
    missing = [m for m in labelled if m not in table and not pattern.fullmatch(m)]
    if missing:
        msg = (
            f"{what} labels {len(missing)} markers that the table lacks: {_some(missing)}; the table has "
            f"{_some(table)}. Rename them, or choose with markers=[...]"
        )
        raise ElementNotFoundError(msg)
    found = [m for m in table if m in names]
    if not found:
        msg = f"{what} has none of the table's markers {_some(table)}; its markers: {_some(names)}"
        raise ElementNotFoundError(msg)
    return found


def _some(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > _MAX_NAMES else ""
    return ", ".join(map(str, names[:_MAX_NAMES])) + more
