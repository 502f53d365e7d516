"""Write a table of scores as CSV, in the layout of the published tool plus area and position."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from spatialdata.models import TableModel

from nimbus_sd._core.errors import InputError
from nimbus_sd._core.files import whole_file
from nimbus_sd._sdata.layer_names import layer_names
from nimbus_sd.io._cell_columns import AREA_PX, AREA_UM2, FOV, LABEL, POSITION, RESERVED, SUFFIX
from nimbus_sd.io._names import duplicates, listing


def write_cell_table(
    adata: AnnData, path: str | PathLike[str], *, layer: str | None = None, overwrite: bool = False
) -> None:
    """Write one row per cell: ``label, fov, <channel>…, area_px, area_um2, x, y``.

    The last four are left out where the table lacks them. The file appears whole
    or not at all.

    Parameters
    ----------
    adata
        Table ``(n_cells, n_channels)`` that annotates labels, as
        :func:`nimbus_sd.tl.predict` makes it: ``obs`` holds the region and the label
        id, ``obsm["spatial"]`` the centroid ``(x, y)``.
    path
        The CSV file. ``fov`` is the region without a trailing ``_labels``.
    layer
        Layer to write instead of ``X``.
    overwrite
        Replace a file that exists.

    Raises
    ------
    InputError
        If the file exists, the layer or the columns that name the cells are missing,
        a channel is named like another column, or two rows name the same cell.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import nimbus_sd as nb
    >>> obs = pd.DataFrame({"region": ["fov1_labels"] * 2, "instance_id": [1, 7]}, index=["a", "b"])
    >>> adata = ad.AnnData(np.float32([[0.9], [0.25]]), obs=obs, var=pd.DataFrame(index=["CD3"]))
    >>> file = Path(tempfile.mkdtemp()) / "nimbus_cell_table.csv"
    >>> nb.io.write_cell_table(adata, file)
    >>> file.read_text().split()
    ['label,fov,CD3', '1,fov1,0.9', '7,fov1,0.25']
    """
    target = Path(path)
    if target.exists() and not overwrite:
        msg = f"{target} exists. Give overwrite=True to replace it, or another path."
        raise InputError(msg)
    if not target.parent.is_dir():
        msg = f"{target.parent} is not a folder. Make it first, or give another path."
        raise InputError(msg)
    frame = _frame(adata, layer)
    with whole_file(target) as partial:
        frame.to_csv(partial, index=False, encoding="utf-8", lineterminator="\n")


def _frame(adata: AnnData, layer: str | None) -> pd.DataFrame:
    attrs = adata.uns.get(TableModel.ATTRS_KEY, {})
    region_key, instance_key = attrs.get("region_key") or "region", attrs.get("instance_key") or "instance_id"
    missing = [key for key in (region_key, instance_key) if key not in adata.obs]
    if missing:
        msg = (
            f"the table's obs lacks {listing(missing)}; it has: {listing(adata.obs)}. Give one that "
            "annotates labels, with a region and an integer instance_id per row."
        )
        raise InputError(msg)
    if layer is not None and layer not in adata.layers:
        known = listing(layer_names(adata.layers))
        msg = f"layer={layer!r} is not in the table; it has: {known}. None writes X."
        raise InputError(msg)
    channels = adata.var_names.astype(str).tolist()
    clashing = [*(name for name in channels if name in RESERVED or not name), *duplicates(channels)]
    if clashing:
        msg = (
            f"channels named {listing(repr(name) for name in clashing)}: they must differ from each other "
            f"and from the columns {listing(RESERVED)}. Rename them in adata.var_names."
        )
        raise InputError(msg)
    regions = adata.obs[region_key].astype(str)
    fovs = [name.removesuffix(SUFFIX) or name for name in regions]
    frame = pd.DataFrame({LABEL: adata.obs[instance_key].to_numpy(), FOV: fovs})
    if not pd.api.types.is_integer_dtype(frame[LABEL]):
        msg = f"obs[{instance_key!r}] is {frame[LABEL].dtype}; valid: integer label ids. Convert it to int64."
        raise InputError(msg)
    twice = frame[frame.duplicated()]
    if len(twice):
        msg = (
            f"{len(twice)} rows name a cell that another row names, the first {twice.iloc[0].tolist()}. "
            f"Regions must differ in more than a trailing {SUFFIX!r}, ids in a region must be unique."
        )
        raise InputError(msg)
    values = adata.X if layer is None else adata.layers[layer]
    if values is None:
        msg = "the table's X is empty (None). Give layer=, the name of the values to write."
        raise InputError(msg)
    dense = values.toarray() if sparse.issparse(values) else np.asarray(values)
    columns: list[pd.DataFrame] = [frame, pd.DataFrame(dense, columns=channels)]
    columns += [
        pd.DataFrame({key: adata.obs[key].to_numpy()}) for key in (AREA_PX, AREA_UM2) if key in adata.obs
    ]
    if "spatial" in adata.obsm:
        columns.append(pd.DataFrame(np.asarray(adata.obsm["spatial"])[:, :2], columns=list(POSITION)))
    return pd.concat(columns, axis=1)
