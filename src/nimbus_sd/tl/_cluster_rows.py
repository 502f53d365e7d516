"""Rows of a table a block at a time: checks, node of each cell, sums per node; never a copy of the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
from threadpoolctl import threadpool_limits

from nimbus_sd._core.errors import ElementNotFoundError, InputError
from nimbus_sd._core.near import did_you_mean
from nimbus_sd._sdata.layer_names import layer_names
from nimbus_sd.arrays.som import add_node_sums, block_rows, nearest_nodes

_CHECKED_ROWS = 1 << 16


@dataclass(frozen=True)
class Rows:
    """Some columns of a matrix, cut out block by block.

    Parameters
    ----------
    values
        ``(n_obs, n_vars)`` array, sparse matrix or backed data set.
    columns
        Places of the columns, ``(k,)``.
    markers
        Their names.
    where
        What to call `values` in errors: ``"X"`` or ``"layer 'name'"``.
    """

    values: Any
    columns: np.ndarray
    markers: tuple[str, ...]
    where: str

    def __len__(self) -> int:
        return int(self.values.shape[0])

    def take(self, rows: slice | np.ndarray) -> np.ndarray:
        """float32 ``(n, k)`` of these rows."""
        found = self.values[rows]
        found = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
        if len(self.columns) < found.shape[1] or (np.diff(self.columns) != 1).any():
            found = found[:, self.columns]
        return np.asarray(found, dtype=np.float32)

    def blocks(self, size: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Slices of at most so many rows, and their values."""
        for start in range(0, len(self), size):
            where = slice(start, min(start + size, len(self)))
            yield where, self.take(where)


def table_rows(adata: ad.AnnData, layer: str | None, channels: str | Sequence[str] | None) -> Rows:
    """Columns of ``X`` (None, ``"X"``) or a layer, all channels or those named.

    Raises
    ------
    ElementNotFoundError
        If there is no such layer or channel.
    InputError
        If a channel is named twice, or none is.
    """
    if layer not in (None, "X", *layer_names(adata.layers)):
        known = ", ".join(map(repr, ["X", *layer_names(adata.layers)]))
        msg = f"the table has no layer {layer!r}; valid: {known}"
        raise ElementNotFoundError(msg)
    named = layer in layer_names(adata.layers)
    values = adata.layers[layer] if named else adata.X
    if values is None:
        msg = "the table has an empty X; name a layer"
        raise ElementNotFoundError(msg)
    names = list(map(str, adata.var_names))
    wanted = names if channels is None else [channels] if isinstance(channels, str) else list(channels)
    missing = [str(name) for name in wanted if name not in names]
    if missing:
        near = did_you_mean(missing, names)
        msg = f"the table has no channel {', '.join(missing)}{near}; valid: {', '.join(names)}"
        raise ElementNotFoundError(msg)
    if not wanted or len(set(wanted)) < len(wanted):
        twice = sorted({name for name in wanted if wanted.count(name) > 1})
        wrong = (
            f"channels= names {', '.join(twice)} twice" if twice else "there are no channels to cluster by"
        )
        msg = f"{wrong}; name each channel once"
        raise InputError(msg)
    where = f"layer {layer!r}" if named else "X"
    return Rows(values, adata.var_names.get_indexer(wanted), tuple(wanted), where)


def check_rows(rows: Rows, *, vary: bool) -> None:
    """Read everything once.

    Raises
    ------
    InputError
        If a value is not finite or, with `vary`, a marker is the same in all cells.
    """
    low, high = np.full(len(rows.columns), np.inf), np.full(len(rows.columns), -np.inf)
    wrong = np.zeros(len(rows.columns), np.int64)
    for _, block in rows.blocks(_CHECKED_ROWS):
        finite = np.isfinite(block)
        wrong += (~finite).sum(0)
        np.minimum(low, np.where(finite, block, np.inf).min(0), out=low)
        np.maximum(high, np.where(finite, block, -np.inf).max(0), out=high)
    if wrong.any():
        bad = [f"{rows.markers[i]} ({wrong[i]} cells)" for i in np.flatnonzero(wrong)]
        msg = (
            f"{rows.where} holds NaN or infinite values: {', '.join(bad)}. Fill them, leave these channels "
            "out with channels=[...], or drop the cells"
        )
        raise InputError(msg)
    constant = [m for m, a, b in zip(rows.markers, low, high, strict=True) if a == b]
    if vary and constant:
        valid = [m for m in rows.markers if m not in constant]
        msg = (
            f"{rows.where}: the same value in all {len(rows)} cells, which can't tell them apart, in "
            f"{', '.join(constant)}; leave out with channels={valid}"
        )
        raise InputError(msg)


def assign_nodes(rows: Rows, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Node of every cell int32 ``(n,)``, sums per node ``(n_nodes, k)``, and mean distance to the node."""
    node = np.empty(len(rows), np.int32)
    sums = np.zeros(codes.shape)
    total = 0.0
    with threadpool_limits(1, user_api="blas"):  # products this small wait longer for threads than they take
        for where, block in rows.blocks(block_rows(len(codes))):
            node[where], distance = nearest_nodes(block, codes)
            add_node_sums(sums, block, node[where])
            total += float(distance.sum())
    return node, sums, total / max(len(rows), 1)
