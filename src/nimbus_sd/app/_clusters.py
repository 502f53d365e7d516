"""The column of clusters under review: its heatmap, its edits, and how they survive a crash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import anndata as ad
import numpy as np
from scipy import sparse
from scipy.cluster.hierarchy import leaves_list, linkage

from nimbus_sd import tl
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusError
from nimbus_sd._sdata.cluster_edits import apply_edit, clusters_before, edits_of, labels_of

#: Columns that are looked for, the first wins.
USUAL = ("metacluster", "leiden", "phenotype", "cell_type")
_MAX_CLUSTERS = 400  # a heatmap with more rows than px shows nothing
_ROWS = 200_000  # that are averaged at once
# Okabe and Ito's, then lighter and darker ones of other hues; grey and white mean something else here
_PALETTE = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#3D7FD9", "#D55E00", "#CC79A7", "#8DD35F",
    "#B07CE8", "#00C2C7", "#FF9DA7", "#9C755F", "#A0CBE8", "#FFBE7D", "#59A14F", "#D37295",
    "#B6992D", "#499894", "#E15759", "#79706E", "#86BCB6", "#F1CE63", "#D4A6C8", "#8CD17D",
    "#FABFD2", "#BAB0AC", "#4E79A7", "#B07AA1", "#F28E2B", "#76B7B2",
)  # fmt: skip


def find_key(adata: ad.AnnData, key: str | None) -> str | None:
    """The column to review; without `key` the first usual one that can be clusters, None if there is none.

    Raises
    ------
    ElementNotFoundError
        If `key` is no column of ``obs``.
    InputError
        If it has too many values to be one of clusters.
    """
    if key is None:
        return next((n for n in USUAL if n in adata.obs and adata.obs[n].nunique() <= _MAX_CLUSTERS), None)
    if key not in adata.obs:
        msg = f"obs has no column {key!r}; valid: {', '.join(map(repr, adata.obs))}"
        raise ElementNotFoundError(msg)
    n = int(adata.obs[key].nunique())
    if n > _MAX_CLUSTERS:
        msg = f"obs[{key!r}] has {n} different values; a column of clusters has at most {_MAX_CLUSTERS}"
        raise InputError(msg)
    return key


class Clusters:
    """The clusters in ``obs[key]``.

    Parameters
    ----------
    adata
        The table.
    key
        Column.
    values
        ``(n_obs, n_vars)`` scores to average.
    """

    def __init__(self, adata: ad.AnnData, key: str, values: np.ndarray) -> None:
        self.adata = adata
        self.key = key
        self.values = values
        self._colors: dict[str, str] = {}
        self._order: list[int] | None = None
        self._atoms: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    @property
    def names(self) -> list[str]:
        """Clusters that have cells, in the column's order."""
        labels = labels_of(self.adata, self.key)
        sizes = np.bincount(labels.codes[labels.codes >= 0], minlength=len(labels.categories))
        return [str(name) for name, n in zip(labels.categories, sizes, strict=True) if n]

    @property
    def codes(self) -> np.ndarray:
        """int16 ``(n_obs,)``: position in :attr:`names`, -1 without a cluster."""
        labels = labels_of(self.adata, self.key)
        place = {name: i for i, name in enumerate(self.names)}
        table = np.array([place.get(str(name), -1) for name in labels.categories] + [-1], dtype=np.int16)
        return table[labels.codes]

    @property
    def fingerprint(self) -> str:
        """Hash of which cell is in which cluster."""
        digest = hashlib.blake2b("\0".join(self.names).encode(), digest_size=8)
        digest.update(self.codes.tobytes())
        return digest.hexdigest()

    def heatmap(self) -> dict[str, Any]:
        """Names, sizes, colours, mean score per marker, and an order of the markers that groups like ones."""
        names, codes = self.names, self.codes
        means = self._means(codes, len(names))
        if self._order is None:
            self._order = similar(means.T)
        return {
            "key": self.key,
            "state": self.fingerprint,
            "names": names,
            "sizes": np.bincount(codes[codes >= 0], minlength=len(names)).tolist(),
            "colors": [self._color(name) for name in names],
            "means": np.round(means, 4).tolist(),
            "markers": list(map(str, self.adata.var_names)),
            "marker_order": self._order,
            "order": similar(means),
            "edits": [{"kind": e.kind, "mapping": e.mapping} for e in edits_of(self.adata, self.key)],
        }

    def apply(self, kind: str, mapping: dict[str, str]) -> Callable[[], None]:
        """Merge, name or undo; return what takes that back.

        Raises
        ------
        ElementNotFoundError, InputError
            As the functions in ``nb.tl``; nothing has changed then.
        """
        self.heatmap_colors()
        known = edits_of(self.adata, self.key)
        if kind == "merge":
            tl.merge_clusters(self.adata, mapping, self.key)
        elif kind == "name":
            tl.name_clusters(self.adata, mapping, self.key)
            for old, new in mapping.items():
                self._colors[new] = self._colors.get(old, self._color(new))
        elif kind == "undo":
            tl.undo_clusters(self.adata, self.key)
            return lambda: apply_edit(self.adata, self.key, known[-1])
        else:
            msg = f"edit {kind!r}; valid: merge, name, undo"
            raise InputError(msg)
        return lambda: tl.undo_clusters(self.adata, self.key)

    def replay(self, events: Sequence[dict[str, Any]]) -> tuple[int, int]:
        """Repeat logged edits that the table doesn't know yet; return how many, and how many don't fit.

        An edit carries the fingerprints before and after it, so that edits are never applied
        to other clusters than those they were made on, nor twice.
        """
        mine = [e for e in events if e.get("key") == self.key]
        now = self.fingerprint
        if not mine or mine[-1].get("after") == now:
            return 0, 0
        known = max((i + 1 for i, e in enumerate(mine) if e.get("after") == now), default=0)
        start = max((i for i, e in enumerate(mine) if e.get("before") == now), default=known)
        done = 0
        for event in mine[start:]:
            if event.get("before") != now:
                break
            try:
                self.apply(str(event["edit"]), dict(event["mapping"]))
            except (NimbusError, KeyError, TypeError):
                break
            now = self.fingerprint
            done += 1
        return done, len(mine) - start - done

    def heatmap_colors(self) -> None:
        """Settle the colours of all clusters there are, so that an edit changes none of them."""
        for name in self.names:
            self._color(name)

    def _means(self, codes: np.ndarray, n: int) -> np.ndarray:
        """Mean per cluster and marker, float64 ``(n, n_vars)``.

        Edits only join clusters of before the first edit: those are summed up once.
        """
        if self._atoms is None or self._joined(self._atoms[0], codes) is None:
            atoms = clusters_before(self.adata, self.key).codes
            if self._joined(atoms, codes) is None:
                atoms = codes
            self._atoms = (atoms, *cluster_sums(self.values, atoms, int(atoms.max(initial=-1)) + 1))
        atoms, total, count = self._atoms
        target = self._joined(atoms, codes)
        sums, known = np.zeros((n, total.shape[1])), np.zeros((n, total.shape[1]))
        if target is not None:
            used = target >= 0
            np.add.at(sums, target[used], total[used])
            np.add.at(known, target[used], count[used])
        return np.divide(sums, known, out=np.zeros_like(sums), where=known > 0)

    @staticmethod
    def _joined(atoms: np.ndarray, codes: np.ndarray) -> np.ndarray | None:
        """Cluster of each atom; None if an atom is in several."""
        target = np.full(int(atoms.max(initial=-1)) + 2, -1, dtype=np.int64)
        target[atoms] = codes  # -1, no atom, is the last
        return target[:-1] if np.array_equal(target[atoms], codes) else None

    def _color(self, name: str) -> str:
        if name not in self._colors:
            categories = list(labels_of(self.adata, self.key).categories)
            given = self.adata.uns.get(f"{self.key}_colors", ())
            if len(given) == len(categories):
                return str(given[categories.index(name)])[:7]
            free = [c for c in _PALETTE if c not in self._colors.values()]
            self._colors[name] = free[0] if free else _PALETTE[len(self._colors) % len(_PALETTE)]
        return self._colors[name]


def cluster_sums(values: np.ndarray, codes: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of known values per cluster and marker, float64 ``(n, n_vars)`` each.

    Parameters
    ----------
    values
        ``(n_obs, n_vars)``, NaN is left out.
    codes
        ``(n_obs,)`` cluster of each row, -1 none.
    n
        Number of clusters.
    """
    total, count = np.zeros((n, values.shape[1])), np.zeros((n, values.shape[1]))
    for start in range(0, len(codes), _ROWS):
        block = np.asarray(values[start : start + _ROWS], dtype=np.float64)
        which = codes[start : start + _ROWS]
        inside = np.flatnonzero(which >= 0)
        # sparse: a product of dense matrices takes a hundred times as long
        member = sparse.csr_matrix((np.ones(len(inside)), (which[inside], inside)), shape=(n, len(which)))
        known = ~np.isnan(block)
        total += member @ (block if known.all() else np.where(known, block, 0))
        count += member @ known.astype(np.float64)
    return total, count


def similar(rows: np.ndarray) -> list[int]:
    """An order of the rows that puts like ones side by side."""
    if len(rows) < 3:
        return list(range(len(rows)))
    return [int(i) for i in leaves_list(linkage(rows, method="average", optimal_ordering=len(rows) <= 100))]
