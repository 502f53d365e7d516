"""Read a CSV of scores, the published tool's or our own, as an annotating table."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata.models import TableModel

from nimbus_sd._core.errors import InputError
from nimbus_sd.io._cell_columns import (
    AREA_PX,
    AREA_UM2,
    FOV,
    LABEL,
    POSITION,
    RESERVED,
    SUFFIX,
    floats,
    integers,
    read_csv,
)
from nimbus_sd.io._names import duplicates, element_names, listing


def read_cell_table(path: str | PathLike[str], *, channels: Sequence[str] | None = None) -> AnnData:
    r"""Read a CSV with one row per cell as a table that annotates labels.

    Columns are ``label, fov, <channel>…``, and ``area_px, area_um2, x, y`` where
    they are there.

    Parameters
    ----------
    path
        The CSV file. An unnamed first column (an index) is ignored.
    channels
        Columns that hold scores; all others become columns of ``obs``. None takes
        every column that is none of those above.

    Returns
    -------
    Table that annotates ``<fov>_labels``, as :func:`nimbus_sd.io.read_fovs` names
    them: ``X`` float32 ``(n_cells, n_channels)``; ``obs`` with ``region``
    (categorical), ``instance_id`` (int64), ``area_px`` (int64, px²), ``area_um2``
    (float64, µm²); ``obsm["spatial"]`` float64 ``(x, y)``; index
    ``<region>_<instance_id>``.

    Raises
    ------
    InputError
        If the file is missing or empty, lacks ``label`` or ``fov``, has a column
        twice, text where scores should be, or names a cell twice.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import nimbus_sd as nb
    >>> file = Path(tempfile.mkdtemp()) / "nimbus_cell_table.csv"
    >>> _ = file.write_text("label,fov,CD3,CD8\n1,fov1,0.9,0.1\n7,fov1,0.25,0.75\n")
    >>> adata = nb.io.read_cell_table(file)
    >>> adata.shape, adata.obs_names.tolist()
    ((2, 2), ['fov1_labels_1', 'fov1_labels_7'])
    """
    source = Path(path)
    frame = _load(source)
    chosen = _channels(frame, channels, source)
    labels = integers(frame[LABEL], LABEL, source)
    names = element_names(list(dict.fromkeys(frame[FOV])), what=str(source))
    regions = [f"{names[fov]}{SUFFIX}" for fov in frame[FOV]]
    index = pd.Index([f"{region}_{label}" for region, label in zip(regions, labels, strict=True)])
    if index.has_duplicates:
        msg = f"{source}: more than one row for {listing(index[index.duplicated()].unique())}. Remove them."
        raise InputError(msg)
    obs = pd.DataFrame({"region": pd.Categorical(regions), "instance_id": labels}, index=index)
    if AREA_PX in frame:
        obs[AREA_PX] = integers(frame[AREA_PX], AREA_PX, source)
    if AREA_UM2 in frame:
        obs[AREA_UM2] = floats(frame[AREA_UM2], source)
    for name in frame.columns:
        if name not in RESERVED and name not in chosen:
            obs[name] = frame[name].to_numpy()
    scores = np.empty((len(frame), len(chosen)), dtype=np.float32)
    for place, name in enumerate(chosen):
        scores[:, place] = floats(frame[name], source)
    adata = AnnData(scores, obs=obs, var=pd.DataFrame(index=pd.Index(chosen, dtype=object)))
    if all(name in frame for name in POSITION):
        adata.obsm["spatial"] = np.stack([floats(frame[name], source) for name in POSITION], axis=1)
    return TableModel.parse(
        adata, region=list(dict.fromkeys(regions)), region_key="region", instance_key="instance_id"
    )


def _load(source: Path) -> pd.DataFrame:
    frame = read_csv(source, (LABEL, FOV), why="Both name the cells.", text=(FOV,))
    nameless = frame.index[frame[FOV].str.strip() == ""]
    if len(nameless):
        msg = (
            f"{source}: {len(nameless)} rows have no fov, the first in line {nameless[0] + 2}. Fill them in."
        )
        raise InputError(msg)
    return frame


def _channels(frame: pd.DataFrame, channels: Sequence[str] | None, source: Path) -> list[str]:
    there = [name for name in frame.columns if name not in RESERVED]
    if channels is None:
        text = [name for name in there if not pd.api.types.is_numeric_dtype(frame[name])]
        if text:
            msg = (
                f"{source}: the columns {listing(text)} hold text, not scores. "
                f"Give the channels as channels=[…]; the others then go to obs. There are: {listing(there)}."
            )
            raise InputError(msg)
        return there
    if isinstance(channels, str):
        msg = (
            f"channels={channels!r} is one string; give a list of names, for example channels=[{channels!r}]."
        )
        raise InputError(msg)
    missing = [name for name in channels if name not in there]
    if missing or duplicates(channels):
        wrong = listing(missing or duplicates(channels))
        msg = f"channels: {wrong} not in {source}, or given twice; it has: {listing(there, limit=80)}."
        raise InputError(msg)
    return list(channels)
