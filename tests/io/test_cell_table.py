"""write_cell_table and read_cell_table: each other's inverse, and the published tool's own CSV."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse
from spatialdata.models import TableModel

import nimbus_sd as nb
from nimbus_sd._core.errors import InputError, NimbusWarning

RESERVED = {"label", "fov", "area_px", "area_um2", "x", "y"}


def table(
    scores: np.ndarray, cells: list[tuple[str, int]], channels: list[str], *, extras: bool = True
) -> ad.AnnData:
    regions = [f"{fov}_labels" for fov, _ in cells]
    ids = np.array([label for _, label in cells], dtype=np.int64)
    obs = pd.DataFrame(
        {"region": pd.Categorical(regions), "instance_id": ids},
        index=[f"{region}_{label}" for region, label in zip(regions, ids, strict=True)],
    )
    adata = ad.AnnData(
        scores.astype(np.float32), obs=obs, var=pd.DataFrame(index=pd.Index(channels, dtype=object))
    )
    if extras:
        adata.obs["area_px"] = np.arange(len(cells), dtype=np.int64) + 1
        adata.obs["area_um2"] = (np.arange(len(cells)) + 1) * 0.488**2
        adata.obsm["spatial"] = np.linspace(0, 1 / 3, 2 * len(cells)).reshape(-1, 2)
    return TableModel.parse(
        adata, region=list(dict.fromkeys(regions)), region_key="region", instance_key="instance_id"
    )


@pytest.fixture
def small() -> ad.AnnData:
    cells = [("fov1", 1), ("fov1", 4_000_000_000), ("fov2", 1)]
    return table(np.array([[0.1, 1], [0, np.nan], [1 / 3, 0.5]]), cells, ["CD3", "CD8"])


def assert_same(found: ad.AnnData, wanted: ad.AnnData) -> None:
    np.testing.assert_array_equal(found.X, wanted.X)
    assert found.X.dtype == np.float32
    assert found.obs_names.tolist() == wanted.obs_names.tolist()
    assert found.var_names.tolist() == wanted.var_names.tolist()
    assert found.obs.columns.tolist() == wanted.obs.columns.tolist()
    for name in wanted.obs:
        np.testing.assert_array_equal(found.obs[name].to_numpy(), wanted.obs[name].to_numpy())
    assert found.obs["instance_id"].dtype == np.int64
    assert isinstance(found.obs["region"].dtype, pd.CategoricalDtype)
    assert set(found.obsm) == set(wanted.obsm)
    for name in wanted.obsm:
        np.testing.assert_array_equal(found.obsm[name], wanted.obsm[name])
    assert found.uns[TableModel.ATTRS_KEY] == wanted.uns[TableModel.ATTRS_KEY]


name = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")) | st.sampled_from(' ,"\n;\t#'),
    min_size=1,
    max_size=8,
)
fov_name = st.text("abcXYZ0123456789_-.", min_size=1, max_size=6).filter(lambda fov: not fov.startswith("__"))


@st.composite
def tables(draw: st.DrawFn) -> ad.AnnData:
    fovs = draw(
        st.lists(
            fov_name | st.sampled_from(["NA", "nan", "007", "1e5", "None"]),
            min_size=1,
            max_size=3,
            unique_by=str.casefold,
        )
    )
    cell = st.tuples(st.sampled_from(fovs), st.integers(1, 2**32 - 1) | st.integers(1, 2**63 - 1))
    cells = draw(st.lists(cell, min_size=1, max_size=6, unique=True))
    channels = draw(st.lists(name.filter(lambda text: text not in RESERVED), max_size=4, unique=True))
    scores = draw(hnp.arrays(np.float32, (len(cells), len(channels)), elements=st.floats(width=32)))
    return table(scores, cells, channels, extras=draw(st.booleans()))


@settings(max_examples=60, deadline=None)
@given(tables())
def test_reading_undoes_writing(adata):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cells.csv"
        nb.io.write_cell_table(adata, file)
        assert_same(nb.io.read_cell_table(file), adata)
        assert [entry.name for entry in Path(folder).iterdir()] == ["cells.csv"]


def test_columns_on_disk(small, tmp_path):
    nb.io.write_cell_table(small, tmp_path / "cells.csv")
    with (tmp_path / "cells.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["label", "fov", "CD3", "CD8", "area_px", "area_um2", "x", "y"]
    assert [(row["label"], row["fov"], row["CD3"]) for row in rows] == [
        ("1", "fov1", "0.1"),
        ("4000000000", "fov1", "0.0"),
        ("1", "fov2", "0.33333334"),
    ]


def test_layers_sparse_and_other_keys(small, tmp_path):
    small.layers["twice"] = sparse.csr_matrix(np.nan_to_num(small.X) * 2)
    nb.io.write_cell_table(small, tmp_path / "cells.csv", layer="twice")
    np.testing.assert_array_equal(
        nb.io.read_cell_table(tmp_path / "cells.csv").X, small.layers["twice"].toarray()
    )
    other = small.copy()
    other.obs = other.obs.rename(columns={"region": "sample", "instance_id": "cell"})
    other.uns[TableModel.ATTRS_KEY].update(region_key="sample", instance_key="cell")
    nb.io.write_cell_table(other, tmp_path / "other.csv")
    assert_same(nb.io.read_cell_table(tmp_path / "other.csv"), small)


@pytest.mark.parametrize("index", [True, False])
def test_the_published_tools_csv(tmp_path, index):
    frame = pd.DataFrame({"label": [1.0, 2.0], "fov": ["1", "2"], "CD3": [0, 1], "x1": [0.5, 0.25]})
    frame.to_csv(tmp_path / "nimbus_cell_table.csv", index=index)
    adata = nb.io.read_cell_table(tmp_path / "nimbus_cell_table.csv")
    assert adata.var_names.tolist() == ["CD3", "x1"]
    assert adata.obs["instance_id"].tolist() == [1, 2]
    assert adata.obs["region"].tolist() == ["1_labels", "2_labels"]
    assert adata.uns[TableModel.ATTRS_KEY]["region"] == ["1_labels", "2_labels"]
    assert not adata.obsm


def test_table_fits_what_read_fovs_makes(tmp_path):
    import spatialdata as sd
    import tifffile

    (tmp_path / "images" / "fov 1").mkdir(parents=True)
    (tmp_path / "masks").mkdir()
    tifffile.imwrite(tmp_path / "images" / "fov 1" / "CD3.tif", np.zeros((20, 20), "uint8"))
    tifffile.imwrite(tmp_path / "masks" / "fov 1.tif", np.ones((20, 20), "uint16"))
    (tmp_path / "cells.csv").write_text("label,fov,CD3\n1,fov 1,0.5\n", encoding="utf-8")
    with pytest.warns(NimbusWarning, match="'fov 1' → 'fov_1'"):
        sdata = nb.io.read_fovs(tmp_path / "images", labels="masks", mpp=1)
    with pytest.warns(NimbusWarning, match="'fov 1' → 'fov_1'"):
        sdata["nimbus"] = nb.io.read_cell_table(tmp_path / "cells.csv")
    labels, matched = sd.join_spatialelement_table(
        sdata=sdata, spatial_element_names="fov_1_labels", table_name="nimbus"
    )
    assert list(labels) == ["fov_1_labels"]
    assert matched.n_obs == 1


def test_text_columns_go_to_obs_when_channels_are_given(tmp_path):
    (tmp_path / "cells.csv").write_text("label,fov,CD3,type,batch\n1,a,0.5,T cell,7\n", encoding="utf-8")
    with pytest.raises(
        InputError, match=r"columns type hold text, not scores.*channels=\[…\].*CD3, type, batch"
    ):
        nb.io.read_cell_table(tmp_path / "cells.csv")
    adata = nb.io.read_cell_table(tmp_path / "cells.csv", channels=["CD3"])
    assert adata.var_names.tolist() == ["CD3"]
    assert adata.obs[["type", "batch"]].iloc[0].tolist() == ["T cell", 7]
    with pytest.raises(InputError, match=r"channels: CD9 not in .*it has: CD3, type, batch"):
        nb.io.read_cell_table(tmp_path / "cells.csv", channels=["CD9"])
    with pytest.raises(InputError, match="is one string"):
        nb.io.read_cell_table(tmp_path / "cells.csv", channels="CD3")
    with pytest.raises(InputError, match="column 'type' does not hold numbers"):
        nb.io.read_cell_table(tmp_path / "cells.csv", channels=["type"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read as CSV"),
        ("", "lacks the columns label, fov; it has: \\(none\\)"),
        ("label,CD3\n1,0.5\n", "lacks the columns fov; it has: label, CD3"),
        ("label,fov,CD3\n", "has no rows"),
        ("label,fov,CD3,CD3\n1,a,0,1\n", "the columns CD3 are there twice"),
        ("label,fov,,CD3\n1,a,0,1\n", "there twice or have no name"),
        ("label,fov,CD3\n1,a,0\n1,a,1\n", "more than one row for a_labels_1"),
        ("label,fov,CD3\n1.5,a,0\n", "column 'label' holds values that are not whole"),
        ("label,fov,CD3\n,a,0\n", "column 'label' holds values that are not whole"),
        ("label,fov,CD3\nx,a,0\n", "column 'label' does not hold numbers"),
        ("label,fov,CD3\n1,a,0\n2,,0\n", "1 rows have no fov, the first in line 3"),
        ("label,fov,CD3\n1,a,0\n2,a,0,7,8\n", "can't be read as CSV"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    file = tmp_path / "cells.csv"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        nb.io.read_cell_table(file)
    assert "cells.csv" in str(caught.value)


def test_existing_file_is_kept(small, tmp_path, monkeypatch):
    file = tmp_path / "cells.csv"
    file.write_text("precious", encoding="utf-8")
    with pytest.raises(InputError, match="overwrite=True"):
        nb.io.write_cell_table(small, file)

    def full(self, target, *args, **kwargs):
        Path(target).write_text("half", encoding="utf-8")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(pd.DataFrame, "to_csv", full)
        with pytest.raises(OSError, match="No space left"):
            nb.io.write_cell_table(small, file, overwrite=True)
    assert file.read_text(encoding="utf-8") == "precious"
    assert len(list(tmp_path.iterdir())) == 1
    nb.io.write_cell_table(small, file, overwrite=True)
    assert_same(nb.io.read_cell_table(file), small)
    with pytest.raises(InputError, match="is not a folder"):
        nb.io.write_cell_table(small, tmp_path / "nowhere" / "cells.csv")


def test_tables_that_cannot_be_written(small, tmp_path):
    def fails(adata: ad.AnnData, message: str, **options: object) -> None:
        with pytest.raises(InputError, match=message):
            nb.io.write_cell_table(adata, tmp_path / "cells.csv", **options)
        assert not list(tmp_path.iterdir())

    fails(small, r"layer='raw' is not in the table; it has: \(none\)", layer="raw")
    fails(ad.AnnData(np.zeros((2, 2))), "obs lacks region, instance_id")
    clash = small.copy()
    clash.var_names = ["x", "CD8"]
    fails(clash, "channels named 'x'")
    text = small.copy()
    text.obs["instance_id"] = ["a", "b", "c"]
    fails(text, "valid: integer label ids")
    twice = small.copy()
    twice.obs["region"] = ["fov1_labels", "fov1_labels", "fov1"]
    fails(twice, "1 rows name a cell that another row names")
    fails(ad.AnnData(obs=small.obs), "the table's X is empty")
