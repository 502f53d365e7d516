"""Take edits of clusters back."""

from __future__ import annotations

import anndata as ad

from nimbus_sd._sdata import cluster_edits
from nimbus_sd._sdata.truth import check_adata


def undo_clusters(adata: ad.AnnData, key: str = "metacluster", *, steps: int = 1) -> None:
    """Take the last merges and names of clusters back.

    The history is in the table, so that it survives being written and read, and cells
    being dropped.

    Parameters
    ----------
    adata
        Table with the clusters.
    key
        Column of ``obs`` with the clusters.
    steps
        How many edits to take back.

    Returns
    -------
    None; writes the slots that :func:`nimbus_sd.tl.merge_clusters` does. With nothing
    left to undo, ``obs[key]`` is what it was, data type included, and the history is gone.

    Raises
    ------
    ElementNotFoundError
        If the column does not exist.
    InputError
        If there are fewer edits, or something else changed the column since.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> import nimbus_sd as nb
    >>> obs = pd.DataFrame({"leiden": pd.Categorical(["0", "1", "0"])}, index=list("abc"))
    >>> adata = ad.AnnData(np.zeros((3, 1), "float32"), obs=obs)
    >>> nb.tl.name_clusters(adata, {"0": "T cell"}, key="leiden")
    >>> nb.tl.undo_clusters(adata, key="leiden")
    >>> adata.obs["leiden"].tolist(), list(adata.uns)
    (['0', '1', '0'], [])
    """
    check_adata(adata)
    cluster_edits.undo(adata, key, steps)
