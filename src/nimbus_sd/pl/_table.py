"""Read markers, layers and groups of a table for plotting; errors list what is there."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning
from nimbus_sd._core.near import did_you_mean
from nimbus_sd._sdata.layer_names import layer_names
from nimbus_sd.pl import _style as style


def check_table(adata: object) -> None:
    """Raise unless it is a table."""
    if not isinstance(adata, ad.AnnData):
        msg = f"expected an AnnData table, got {type(adata).__name__}; pass sdata['nimbus']"
        raise InputError(msg)


def check_unique(markers: Sequence[str]) -> list[str]:
    """A list of markers without repeats."""
    names = [markers] if isinstance(markers, str) else [str(m) for m in markers]
    if not names or len(set(names)) < len(names):
        msg = f"markers={names}: name at least one marker, and each once"
        raise InputError(msg)
    return names


def pick_markers(
    adata: ad.AnnData, markers: str | Sequence[str] | None, *, where: str, limit: int | None = None
) -> list[str]:
    """Markers to draw; None takes all, or the first `limit` with a warning."""
    known = list(map(str, adata.var_names))
    if markers is None:
        if limit is not None and len(known) > limit:
            warnings.warn(
                f"drawing the first {limit} of {len(known)} markers; choose others with markers=[...]",
                NimbusWarning,
                stacklevel=3,
            )
        return known[:limit]
    names = check_unique(markers)
    missing = [m for m in names if m not in known]
    if missing:
        msg = f"{where} has no marker {missing}{did_you_mean(missing, known)}; valid: {', '.join(known)}"
        raise ElementNotFoundError(msg)
    if limit is not None and len(names) > limit:
        msg = (
            f"{len(names)} markers don't fit on one figure; pass at most {limit} and call again for the rest"
        )
        raise InputError(msg)
    return names


def values(adata: ad.AnnData, markers: Sequence[str], layer: str | None, *, where: str) -> np.ndarray:
    """``(n_obs, len(markers))`` float64 of X (None) or a layer; never the whole matrix densified."""
    if layer is not None and layer not in adata.layers:
        known = ", ".join(map(repr, layer_names(adata.layers))) or "none"
        msg = f"{where} has no layer {layer!r}; layers: {known}"
        raise ElementNotFoundError(msg)
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        msg = f"{where} has an empty X; name a layer with layer="
        raise InputError(msg)
    part = matrix[:, adata.var_names.get_indexer(list(markers))]
    return np.asarray(part.toarray() if hasattr(part, "toarray") else part, dtype=np.float64)


def quantity(adata: ad.AnnData, layer: str | None, drawn: np.ndarray) -> tuple[str, bool]:
    """What X or a layer holds, in a word or two, and whether it runs from 0 to 1 as scores do.

    Parameters
    ----------
    adata, layer
        As for :func:`values`.
    drawn
        The values: a table without a record of what it is holds scores if they lie in [0, 1].
    """
    if layer not in (None, "nimbus"):
        return str(layer).replace("_", " "), False
    if layer is None and "nimbus_embedding" in adata.uns:
        return "activation", False
    known = drawn[np.isfinite(drawn)]
    inside = not known.size or bool(known.min() >= 0 and known.max() <= 1)
    return ("score", True) if inside or layer == "nimbus" else ("value", False)


def scales(adata: ad.AnnData, markers: Sequence[str]) -> np.ndarray | None:
    """``var["scale"]`` of the markers, NaN where it is not a positive number; None without the column."""
    if "scale" not in adata.var:
        return None
    scale = adata.var["scale"].reindex(list(markers)).to_numpy(np.float64)
    return np.where(np.isfinite(scale) & (scale > 0), scale, np.nan)


def thresholds(threshold: float | Mapping[str, float], markers: Sequence[str]) -> np.ndarray:
    """``(len(markers),)`` float64: above it a cell is positive."""
    given = dict(threshold) if isinstance(threshold, Mapping) else dict.fromkeys(markers, threshold)
    missing = [n for n in markers if n not in given]
    if missing:
        msg = f"threshold= has no entry for {missing}; give one per marker, or one number"
        raise InputError(msg)
    return np.array([float(given[n]) for n in markers])


def with_calls(adata: ad.AnnData, groupby: str) -> ad.AnnData:
    """The table with a column of a marker's calls, if `groupby` names a marker and there are calls.

    Calls are the layer ``"positive"`` (1, 0, NaN) that :func:`nimbus_sd.tl.predict_subtypes` writes.
    """
    if groupby in adata.obs or groupby not in adata.var_names or "positive" not in adata.layers:
        return adata
    called = values(adata, [groupby], "positive", where="the table")[:, 0]
    names = np.select([called == 1, called == 0], ["positive", "negative"], "undefined")
    colours = {"positive": style.POSITIVE, "negative": style.NEGATIVE, "undefined": style.MISSING}
    there = [name for name in colours if (names == name).any()]
    uns = {key: adata.uns[key] for key in ("spatialdata_attrs",) if key in adata.uns}
    uns[f"{groupby}_colors"] = [colours[name] for name in there]
    obs = adata.obs.assign(**{groupby: pd.Categorical(names, categories=there)})
    obsm = {key: adata.obsm[key] for key in ("spatial",) if key in adata.obsm}
    return ad.AnnData(obs=obs, obsm=obsm, uns=uns)


def groups(adata: ad.AnnData, groupby: str, *, limit: int) -> pd.Categorical:
    """A column of ``obs`` as categories that all have cells; -1 codes where it is missing."""
    if groupby not in adata.obs:
        half = max(1, adata.n_obs // 2)  # ids are no groups
        fitting = [str(c) for c in adata.obs if _groups_well(adata.obs[c], min(limit, half))]
        hint = f"columns that group cells: {', '.join(fitting)}" if fitting else "no column groups cells yet"
        extra = "; run sc.tl.leiden(adata, flavor='igraph') first" if groupby == "leiden" else ""
        if groupby in adata.var_names:
            extra = "; it is a marker: a layer 'positive' (1, 0, NaN) would group cells by it"
        msg = f"obs has no column {groupby!r}; {hint}{extra}"
        raise ElementNotFoundError(msg)
    column = adata.obs[groupby]
    if not _groups_well(column, limit):
        msg = (
            f"obs[{groupby!r}] ({column.dtype}, {column.nunique()} values) does not group cells; use a "
            f"column of at most {limit} categories, or cut it with pandas.cut"
        )
        raise InputError(msg)
    return pd.Categorical(column).remove_unused_categories()


def _groups_well(column: pd.Series, limit: int) -> bool:
    return column.dtype.kind != "f" and 1 <= column.nunique() <= limit
