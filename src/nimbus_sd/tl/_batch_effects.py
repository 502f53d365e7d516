"""Fields of view whose scores or intensities differ from those of the others."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._sdata.truth import check_adata, matrix
from nimbus_sd.arrays.fields import field_quantiles, field_shares, robust_z, share_z

_MIN_FIELDS = 4  # among fewer there is no telling which one is odd
_FLOOR = 0.05  # of the range: smaller differences between fields are common and harmless


def batch_effects(
    adata: ad.AnnData,
    *,
    batch_key: str = "region",
    layer: str | None = None,
    threshold: float | None = 0.5,
    quantiles: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9),
    log: bool = False,
    max_z: float = 3.5,
    min_cells: int = 50,
    key_added: str = "batch_effects",
) -> pd.DataFrame:
    """Compare every field's positive share and distribution with the other fields', per marker.

    A robust z-score is the field's distance from the median over fields in units of their
    median absolute deviation (x 1.4826). Shares are compared on the scale ``arcsin(sqrt)``,
    where the chance of a field of n cells, ``1 / (2 sqrt n)``, is added to the spread
    (squared); for quantiles it is 5 % of the range from the marker's lowest to its 99.9 % value.

    A field that differs need not be wrong: one may hold a tumour and others none. One that is
    odd in most markers, or in ``layer="integrated_expression", log=True, threshold=None``
    by one shift of all quantiles, points to staining or acquisition. Tissues differ: of 26 MIBI
    fields of breast DCIS x 29 markers 22 % are flagged, mostly in 1 to 10 markers per field,
    but two fields in 16 and 19. Look at ``n_flagged`` first.

    Parameters
    ----------
    adata
        Table of several fields.
    batch_key
        Column of ``obs`` with the field, slide or batch.
    layer
        Layer to compare; None takes ``X``.
    threshold
        Cells above it are positive; None compares distributions only.
    quantiles
        In [0, 1].
    log
        Compare logarithms, of values plus 1 % of the marker's 99.9 % value: for intensities,
        where staining multiplies.
    max_z
        Fields beyond it, on either side, are flagged.
    min_cells
        Smaller fields have no part in the comparison and are not in the result.
    key_added
        Key of ``uns``.

    Returns
    -------
    One row per field and marker, the oddest first: ``field``, ``marker``, ``n_cells``,
    ``share_positive`` and ``z_share`` (with a threshold), ``q0.1``, ``z_q0.1``, ...,
    ``worst`` (the statistic farthest out), ``z`` of it and ``flag``. Writes the columns to
    ``uns[key_added]`` (arrays), with ``fields`` and ``n_flagged`` markers per field.

    Raises
    ------
    ElementNotFoundError
        If the column or layer does not exist.
    InputError
        If there are fewer than 4 fields of `min_cells` cells, values are not finite, or a
        parameter is out of range. Nothing is written then.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import nimbus_sd as nb
    >>> scores = np.random.default_rng(0).random((500, 1), dtype="float32")
    >>> scores[400:] /= 2
    >>> obs = pd.DataFrame({"region": np.repeat(list("abcde"), 100)}, index=map(str, range(500)))
    >>> found = nb.tl.batch_effects(ad.AnnData(scores, obs=obs, var=pd.DataFrame(index=["CD3"])))
    >>> found.loc[found["flag"], "field"].tolist()
    ['e']
    """
    check_adata(adata)
    levels = _checked_levels(quantiles, max_z, min_cells)
    names, fields = _fields(adata, batch_key, min_cells)
    if key_added in adata.uns and "n_flagged" not in adata.uns[key_added]:
        msg = f"uns[{key_added!r}] holds something else that would be lost; choose another key_added="
        raise InputError(msg)
    values = _values(adata, layer)
    sizes = np.array([rows.size for rows in fields])
    columns: dict[str, np.ndarray] = {}
    if threshold is not None:
        columns["share_positive"] = field_shares(values > threshold, fields)
        columns["z_share"] = share_z(columns["share_positive"], sizes)
    low, high = values.min(0), np.quantile(values, 0.999, axis=0)
    if log:
        values = _logarithm(values, high)
        low, high = values.min(0), values.max(0)
    unit = np.where(high > low, high - low, 1.0)
    found = field_quantiles(values, fields, levels)
    z = robust_z(found / unit, floor=_FLOOR)
    for i, level in enumerate(levels):
        columns[f"q{level:g}"] = found[:, i]
        columns[f"z_q{level:g}"] = z[:, i]
    frame = _frame(names, sizes, list(map(str, adata.var_names)), columns, max_z)
    flagged = frame[frame["flag"]].groupby("field").size()
    adata.uns[key_added] = {
        "batch_key": batch_key,
        "layer": layer or "X",
        "max_z": float(max_z),
        "fields": np.array(names, dtype=object),
        "n_flagged": flagged.reindex(names, fill_value=0).to_numpy(np.int64),
        "columns": {
            name: column.to_numpy(object if column.dtype.kind not in "biuf" else None)
            for name, column in frame.items()
        },
    }
    return frame


def _frame(
    names: list[str], sizes: np.ndarray, markers: list[str], columns: dict[str, np.ndarray], max_z: float
) -> pd.DataFrame:
    frame = pd.DataFrame({name: values.ravel() for name, values in columns.items()})
    frame.insert(0, "field", np.repeat(names, len(markers)))
    frame.insert(1, "marker", np.tile(markers, len(names)))
    frame.insert(2, "n_cells", np.repeat(sizes, len(markers)))
    statistics = [name for name in columns if name.startswith("z_")]
    z = frame[statistics].to_numpy()
    worst = np.abs(z).argmax(1)
    frame["worst"] = np.array([name.removeprefix("z_") for name in statistics], dtype=object)[worst]
    frame["z"] = z[np.arange(len(z)), worst]
    frame["flag"] = np.abs(frame["z"]) > max_z
    return frame.sort_values("z", key=np.abs, ascending=False, kind="stable", ignore_index=True)


def _logarithm(values: np.ndarray, high: np.ndarray) -> np.ndarray:
    if (values < 0).any():
        msg = f"log=True needs values of at least 0; the lowest is {values.min():.3g}"
        raise InputError(msg)
    return np.log(values + np.where(high > 0, 0.01 * high, 1.0))


def _values(adata: ad.AnnData, layer: str | None) -> np.ndarray:
    values = matrix(adata, layer)
    bad = ~np.isfinite(values)
    if bad.any():
        wrong = [f"{adata.var_names[i]} ({n} cells)" for i, n in enumerate(bad.sum(0)) if n]
        msg = f"{layer or 'X'} is not finite in {', '.join(wrong[:8])}; drop these markers or cells"
        raise InputError(msg)
    return values


def _checked_levels(quantiles: Sequence[float], max_z: float, min_cells: int) -> list[float]:
    levels = sorted({float(q) for q in quantiles})
    if not levels or not (levels[0] >= 0 and levels[-1] <= 1) or not max_z > 0 or min_cells < 1:
        msg = (
            f"quantiles={quantiles}, max_z={max_z}, min_cells={min_cells}; valid: at least one in [0, 1], "
            "above 0, at least 1"
        )
        raise InputError(msg)
    return levels


def _fields(adata: ad.AnnData, batch_key: str, min_cells: int) -> tuple[list[str], list[np.ndarray]]:
    if batch_key not in adata.obs:
        msg = f"obs has no column {batch_key!r}; valid: {', '.join(map(repr, adata.obs))}"
        raise ElementNotFoundError(msg)
    groups = adata.obs.groupby(adata.obs[batch_key].astype(str).to_numpy()).indices
    kept = {str(name): rows for name, rows in groups.items() if rows.size >= min_cells}
    if len(kept) < _MIN_FIELDS:
        msg = (
            f"obs[{batch_key!r}] has {len(kept)} fields of at least {min_cells} cells (of {len(groups)}); at "
            f"least {_MIN_FIELDS} are needed to tell which one is odd; lower min_cells=, or join more tables "
            "with nb.tl.concat_tables"
        )
        raise InputError(msg)
    return list(kept), list(kept.values())
