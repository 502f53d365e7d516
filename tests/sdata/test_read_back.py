"""A table that came back from the disk with one thing changed is noticed, whatever the thing."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata.read_back import compare_tables


def table():
    rng = np.random.default_rng(0)
    found = ad.AnnData(
        rng.random((5, 2)).astype("float32"),
        obs=pd.DataFrame({"type": pd.Categorical(list("aabbc"))}, index=list("vwxyz")),
        var=pd.DataFrame({"scale": [1.0, np.nan]}, index=["CD3", "CD20"]),
        layers={"gold": np.array([[1, np.nan]] * 5, "float32")},
        obsm={"spatial": rng.random((5, 2))},
        varm={"loadings": rng.random((2, 3))},
        obsp={"distances": sparse.csr_matrix(rng.random((5, 5)))},
        uns={
            "nimbus": {"views": np.array(["identity"]), "mpp": {"cells": 0.5}, "threshold": 0.5},
            "edits": "[1, 2]",
            "ranks": np.array([(1.0, "a")], dtype=[("score", "f8"), ("name", "U1")]),
        },
    )
    found.raw = found.copy()
    return found


CHANGES = {
    "X": lambda t: t.X.__setitem__((0, 0), 9),
    "obs": lambda t: t.obs.__setitem__("type", pd.Categorical(list("aabba"))),
    "layers": lambda t: t.layers["gold"].__setitem__((0, 1), 0),
    "obsm": lambda t: t.obsm["spatial"].__setitem__((0, 0), 9),
    "varm": lambda t: t.varm["loadings"].__setitem__((0, 0), 9),
    "obsp": lambda t: t.obsp["distances"].data.__setitem__(0, 9),
    "uns": lambda t: t.uns["nimbus"]["mpp"].__setitem__("cells", 0.25),
    "uns: text": lambda t: t.uns.__setitem__("edits", "[1]"),
    "uns: records": lambda t: t.uns["ranks"].__setitem__(0, (2.0, "a")),
    "uns: keys": lambda t: t.uns["nimbus"].pop("threshold"),
    "raw": lambda t: t.raw.X.__setitem__((0, 0), 9),
}


def test_what_was_written_is_what_is_read(tmp_path):
    wanted = table()
    wanted.write_h5ad(tmp_path / "t.h5ad")
    compare_tables(wanted, ad.read_h5ad(tmp_path / "t.h5ad"), "table")


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_named(change):
    found = table()
    CHANGES[change](found)
    with pytest.raises(InputError, match=rf"table: {change.split(':')[0]} read back differently"):
        compare_tables(table(), found, "table")
