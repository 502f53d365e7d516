"""``nb.pp.gate``: labels from three thresholds per marker and section."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.gates import (
    INTENSITY,
    MARKER,
    SECTION,
    cell_sections,
    check_thresholds,
    intensities,
    limits,
    read_thresholds,
    to_record,
)
from nimbus_sd._sdata.truth import check_adata
from nimbus_sd.arrays.gating import RANGES, gate_ranges, range_labels


def gate(
    adata: ad.AnnData,
    thresholds: pd.DataFrame | Mapping[Any, Any] | str | Path,
    *,
    layer: str | None = None,
    section: str | None = None,
    key_added: str = "gated",
) -> pd.DataFrame:
    """Label cells by their intensity, and leave those undefined that one can't be sure of.

    Three thresholds make four ranges:

    ============== =================================== =====
    range          intensity `x`                       label
    ============== =================================== =====
    negative       ``x <= negative``                   0
    uncertain      ``negative < x < positive``         NaN
    positive       ``positive <= x < overexposed``     1
    over-exposed   ``x >= overexposed``                NaN
    ============== =================================== =====

    Thresholds may be equal: the range between them is empty then. ``inf`` as the last one calls
    nothing over-exposed.

    Parameters
    ----------
    adata
        Cells x markers.
    thresholds
        Columns ``negative``, ``positive``, ``overexposed``; indexed by marker, or by marker and
        section (or with columns ``marker`` and ``section``): a frame, such as that of
        :func:`nimbus_sd.pp.suggest_thresholds`, or the path of a CSV. A mapping from marker, or
        (marker, section), to three numbers does too. Sections that the table lacks are passed over.
    layer
        Intensities; None takes the layer ``"integrated_expression"`` if there is one, else ``X``.
    section
        Column of ``obs`` with each cell's section; None takes ``"section"`` if there is one, else
        the regions that the table annotates.
    key_added
        Name of the layer and of the record in ``uns``, and the beginning of the names in ``obsm``.

    Returns
    -------
    Cells in each range, int64: ``n_negative``, ``n_uncertain``, ``n_positive``,
    ``n_overexposed``, ``n_missing`` (no intensity), one row per marker with thresholds and, where
    the table knows sections, section. Also writes

    - ``layers[key_added]`` float32 ``(n_obs, n_vars)``: 1, 0, NaN; markers without thresholds are
      NaN;
    - ``obsm[f"{key_added}_uncertain"]``, ``obsm[f"{key_added}_overexposed"]``: bool frames, cells x
      markers with thresholds;
    - ``uns[key_added]``: layer, section column, and the thresholds that were used.

    Raises
    ------
    InputError
        If thresholds are out of order, missing for a section, not numbers, given twice, or for a
        marker that the table lacks. Nothing is written then.
    ElementNotFoundError
        If the layer or column does not exist.

    See Also
    --------
    nimbus_sd.pl.gate : histograms with the four ranges, whose limits can be dragged.
    nimbus_sd.pp.curate_hierarchy : undoes labels that contradict each other.

    References
    ----------
    Pochet et al., *Lymphocytes subtyping on H&E slides with automatic labelling through
    same-tissue stained ImmunoFluorescence images* (cell labelling).

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import nimbus_sd as nb
    >>> adata = ad.AnnData(np.float32([[3], [40], [200], [9000]]), var=pd.DataFrame(index=["CD3e"]))
    >>> counts = nb.pp.gate(adata, {"CD3e": (20, 100, 5000)})
    >>> adata.layers["gated"].ravel().tolist()
    [0.0, nan, 1.0, nan]
    """
    check_adata(adata)
    _check_key(key_added)
    values, source = intensities(adata, layer)
    if key_added == source:
        msg = f"key_added={key_added!r} would replace the intensities; name the labels otherwise"
        raise InputError(msg)
    of_cell, column = cell_sections(adata, section)
    sections, code = np.unique(of_cell, return_inverse=True)
    table = read_thresholds(thresholds)
    check_thresholds(table, list(adata.var_names), list(sections))
    if table.index.nlevels == 2:
        table = table[table.index.get_level_values(SECTION).isin(sections)]
    markers = [m for m in adata.var_names if m in set(table.index.get_level_values(MARKER))]
    at = adata.var_names.get_indexer(markers)
    ranges = gate_ranges(values[:, at], limits(table, markers, list(sections))[code])
    labels = np.full(adata.shape, np.nan, np.float32)
    labels[:, at] = range_labels(ranges)
    masks = {r: pd.DataFrame(ranges == RANGES.index(r), adata.obs_names, markers) for r in RANGES[1::2]}
    adata.layers[key_added] = labels
    for name, mask in masks.items():
        adata.obsm[f"{key_added}_{name}"] = mask
    adata.uns[key_added] = {"layer": source, "section_key": column, **to_record(table)}
    return _counts(ranges, markers, code, sections)


def _check_key(key_added: str) -> None:
    if key_added in ("X", INTENSITY, "nimbus", "") or "/" in key_added:
        msg = f"key_added={key_added!r} is no name, or that of scores or intensities; choose another"
        raise InputError(msg)


def _counts(ranges: np.ndarray, markers: list[str], code: np.ndarray, sections: np.ndarray) -> pd.DataFrame:
    rows = {}
    for i, marker in enumerate(markers):
        for k, section in enumerate(sections.tolist()):
            found = np.bincount(ranges[code == k, i] % 5, minlength=5)  # -1 comes last
            rows[marker if section == "" else (marker, section)] = found
    names = [f"n_{r}" for r in (*RANGES, "missing")]
    out = pd.DataFrame.from_dict(rows, orient="index", columns=names, dtype=np.int64)
    if list(sections) == [""]:
        return out.rename_axis(MARKER)
    return out.set_axis(pd.MultiIndex.from_tuples(rows, names=[MARKER, SECTION]))
