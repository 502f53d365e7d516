"""Choose the cells that a sub-typing network is trained, validated and tested on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata import labelled_sections as cells
from nimbus_sd._sdata.labelled_markers import markers_of
from nimbus_sd.engine.subtyping.sampling import PARTS, split_patients


def sample_cells(
    adata: ad.AnnData | Sequence[ad.AnnData] | Mapping[str, ad.AnnData],
    *,
    layer: str = "gated",
    n_cells: int = 20_000,
    markers: str | Sequence[str] | None = None,
    patient: str = "patient",
    section: str | None = None,
    split: Sequence[float] | Mapping[str, str] = (25, 7, 9),
    seed: int = 0,
) -> pd.DataFrame:
    """Divide patients into training, validation and test, and draw cells of each section.

    For training and validation half of a section's sample is negative for every marker, and the
    other half positive for at least one. At least a quarter of that half is positive for each
    marker, where a cell that is positive for several counts for each: rare markers are served
    first. More than four markers get as much of it as there is room for (a warning says how much). A
    section with too few positive cells gives all of them and as many negative ones; one
    without any is left out; a warning counts what is missing. For tests cells are drawn as they
    come, of those with a defined label, so that ratios are those of the tissue.

    Parameters
    ----------
    adata
        Table with labels 1, 0, NaN in a layer, as :func:`nimbus_sd.pp.gate` writes them; several,
        as a list or by name, are divided together.
    layer
        The layer.
    n_cells
        Cells per section.
    markers
        Which of the table's; None takes CD45, CD3e, CD4 and CD8a, or those of them that have labels.
    patient
        Column of ``obs``, in which 1, 1.0 and "1" are the same. Where no table has a ``"patient"``,
        every section is of a patient of its own.
    section
        Column of ``obs``; None takes ``"section"`` if there is one, else the elements that the
        table annotates, else each table is one section.
    split
        Patients for training, validation and test: numbers, proportions (largest remainder; none
        is empty as long as there are enough patients), or ``{patient: "train", …}``.
    seed
        Decides who and which. The draw of a section depends on its name, not on other sections.

    Returns
    -------
    One row per section: ``section``, ``patient``, ``split``, ``n_cells``, ``n_usable`` (not badly
    registered), ``n_sampled``, ``n_negative`` (for every marker), ``n_positive`` (for any), and of the
    sample by marker ``n_<marker>`` positive cells and their ``ratio_<marker>`` to negative ones; and
    what is ``missing``. Writes ``obs["split"]`` (categorical: ``"train"``, ``"validation"``,
    ``"test"``), ``obs["sampled"]`` (bool) and ``uns["sample_cells"]`` with the parameters. Cells
    whose ``obs["registered"]`` is False are never sampled.

    Raises
    ------
    ElementNotFoundError
        If a layer, column or marker does not exist.
    InputError
        If labels are not 1, 0, NaN; a marker has none; a section is of several patients; some tables have
        the column of patients and others do not; the split is none; or there is nothing to train on.
        Nothing is written then.

    References
    ----------
    Pochet et al., *Lymphocytes subtyping on H&E slides with automatic labelling through
    same-tissue stained ImmunoFluorescence images*: 25, 7 and 9 sections, 20,000 cells of each.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import nimbus_sd as nb
    >>> rng = np.random.default_rng(0)
    >>> obs = pd.DataFrame({"patient": np.repeat(["a", "b", "c"], 400)}, index=np.arange(1200).astype(str))
    >>> obs["section"] = obs["patient"]
    >>> adata = ad.AnnData(obs=obs, var=pd.DataFrame(index=["CD45", "CD3e"]))
    >>> cd45 = rng.random(1200) < 0.3
    >>> adata.layers["gated"] = np.stack([cd45, cd45 & (rng.random(1200) < 0.5)], 1).astype("float32")
    >>> report = nb.pp.sample_cells(adata, n_cells=100, split=(1, 1, 1))
    >>> report[["n_sampled", "n_negative", "n_positive"]][report["split"] == "train"].values.tolist()
    [[100, 50, 50]]
    >>> int(adata.obs["sampled"].sum())
    300
    """
    tables = _tables(adata)
    names = markers_of(tables, markers, layer=layer)
    sections = cells.sections_in(tables, names, layer=layer, patient=patient, section=section)
    parts = split_patients([s.patient for s in sections], split, seed=seed)
    drawn = cells.draw_sections(sections, parts, n_cells=n_cells, seed=seed)
    report = cells.report_of(sections, drawn, parts, names)
    cells.warn_of_missing(report, n_cells=n_cells)
    cells.warn_of_crowded(drawn, names)
    record = {
        "layer": layer,
        "n_cells": n_cells,
        "markers": np.array(names),
        "seed": seed,
        "patient": patient,
    }
    for of, table in tables.items():
        sampled, part = np.zeros(table.n_obs, bool), np.zeros(table.n_obs, np.int8)
        for each, sample in zip(sections, drawn, strict=True):
            if each.of == of:
                part[each.rows] = PARTS.index(parts[each.patient])
                sampled[each.rows[sample.rows]] = True
        table.obs[cells.SPLIT] = pd.Categorical.from_codes(part, categories=list(PARTS))
        table.obs[cells.SAMPLED] = sampled
        table.uns[cells.DRAWN] = dict(record)
    return report


def _tables(adata: object) -> dict[str, ad.AnnData]:
    """Tables by name; one alone has none."""
    if isinstance(adata, ad.AnnData):
        return {"": adata}
    if isinstance(adata, Mapping):
        found = {str(k): v for k, v in adata.items()}
    elif isinstance(adata, Sequence) and not isinstance(adata, str):
        found = {f"table{i}": v for i, v in enumerate(adata)}
    else:
        found = {}
    if not found or not all(isinstance(t, ad.AnnData) for t in found.values()):
        msg = (
            f"adata is {type(adata).__name__}; pass a table with labels (AnnData), a list of them or "
            "{name: table}"
        )
        raise InputError(msg)
    if len({id(t) for t in found.values()}) < len(found):
        msg = "a table comes twice; give each once"
        raise InputError(msg)
    return found
