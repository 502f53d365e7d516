"""Cells of one field as drawn: which rows of the table they are, fills and outlines as RGBA."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd

from nimbus_sd._sdata.table import link_keys
from nimbus_sd.pl import _style as style


def region_and_ids(adata: ad.AnnData, *, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Region (str) and label id (int64) of every row.

    Raises
    ------
    InputError
        If the table annotates nothing.
    """
    region, instance = link_keys(adata, where=where)
    return adata.obs[region].astype(str).to_numpy(), adata.obs[instance].to_numpy().astype(np.int64)


def fill(labels: np.ndarray, ids: np.ndarray, colours: np.ndarray, *, missing: np.ndarray) -> np.ndarray:
    """Cells filled with the colour of their row.

    Parameters
    ----------
    labels
        ``(y, x)`` ids, 0 = background, which stays transparent.
    ids
        ``(n,)`` label ids of the rows.
    colours
        ``(n, 4)`` uint8, RGBA.
    missing
        ``(4,)`` uint8: cells without a row.

    Returns
    -------
    ``(y, x, 4)`` uint8.
    """
    present, where = np.unique(labels, return_inverse=True)
    row = pd.Index(ids).get_indexer(present.astype(np.int64))
    colours = colours if len(ids) else missing[None]
    table = np.where((row >= 0)[:, None], colours[row], missing).astype(np.uint8)
    table[present == 0] = 0
    return table[where.reshape(labels.shape)]


def outlined(filled: np.ndarray, labels: np.ndarray, *, width: int = 1) -> np.ndarray:
    """Keep of filled cells only their borders; all else turns transparent."""
    return filled * style.outline(labels, width=width)[..., None]


def diameter(labels: np.ndarray) -> float:
    """Diameter of a circle as large as the mean cell, px; 0 without cells."""
    n = np.unique(labels).size - int((labels == 0).any())
    return float(np.sqrt((labels > 0).sum() / n * 4 / np.pi)) if n else 0.0
