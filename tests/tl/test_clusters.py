"""Merging, naming, undoing clusters, and the files that say how."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from hypothesis import given
from hypothesis import strategies as st

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError

PIXIE = "cell_som_cluster,cell_meta_cluster,cell_meta_cluster_rename"


def make(n=240, *, seed=0):
    """Twelve nodes in four clusters, without a map."""
    rng = np.random.default_rng(seed)
    node = np.r_[np.arange(12), rng.integers(0, 12, n - 12)].astype(np.int32)
    names = pd.Categorical.from_codes(node % 4, categories=["0", "1", "2", "3"])
    obs = pd.DataFrame({"som_node": node, "metacluster": names}, index=[f"c{i}" for i in range(n)])
    values = rng.random((n, 2), dtype=np.float32)
    return ad.AnnData(values, obs=obs, var=pd.DataFrame(index=["CD3", "CD8"]))


@pytest.fixture
def adata():
    return make()


@pytest.fixture
def trained():
    """The same cells after nb.tl.flowsom, one empty node among the 16."""
    adata = make()
    nb.tl.flowsom(adata, n_nodes=16, n_metaclusters=4)
    return adata


def test_merging_by_cluster_or_by_new_name(adata):
    other, before = adata.copy(), adata.obs.metacluster.astype(str)
    nb.tl.merge_clusters(adata, {3: 1, "2": "1"})
    nb.tl.merge_clusters(other, {"1": ["3", "2"]})
    expected = before.replace({"2": "1", "3": "1"})
    assert adata.obs.metacluster.tolist() == other.obs.metacluster.tolist() == expected.tolist()
    assert adata.obs.metacluster.cat.categories.tolist() == ["0", "1"]


def test_a_merged_cluster_may_take_a_new_name_in_the_place_of_the_first(adata):
    nb.tl.merge_clusters(adata, {"T": ["1", "3"]})
    assert adata.obs.metacluster.cat.categories.tolist() == ["0", "T", "2"]


def test_names_may_be_swapped(adata):
    before = adata.obs.metacluster.astype(str)
    nb.tl.name_clusters(adata, {"0": "1", "1": "0"})
    assert adata.obs.metacluster.tolist() == before.replace({"0": "1", "1": "0"}).tolist()


def test_any_column_of_any_type_can_be_edited_and_comes_back_as_it_was(adata):
    adata.obs["leiden"] = pd.Categorical(adata.obs.som_node % 3)
    adata.obs["text"] = np.where(adata.obs.som_node % 2, "odd", "even")
    adata.obs["number"] = adata.obs.som_node % 5
    before, uns = adata.obs.copy(), dict(adata.uns)
    for key, mapping in (("leiden", {0: "a"}), ("text", {"odd": "even"}), ("number", {4: 3, 2: "x"})):
        nb.tl.merge_clusters(adata, mapping, key)
        assert not adata.obs[key].isna().any()
        assert adata.obs[key].tolist() != before[key].tolist()
    for key in ("leiden", "text", "number"):
        nb.tl.undo_clusters(adata, key)
    pd.testing.assert_frame_equal(adata.obs, before, check_like=True)
    assert dict(adata.uns) == uns


def test_cells_without_cluster_stay_without(adata):
    adata.obs.loc["c3", "metacluster"] = np.nan
    nb.tl.merge_clusters(adata, {"2": "1"})
    assert adata.obs.metacluster.isna().tolist() == [i == 3 for i in range(240)]


_NAMES = st.sampled_from(["0", "1", "2", "3", "T", "B"])


@given(st.lists(st.tuples(st.dictionaries(_NAMES, _NAMES, max_size=4), st.booleans()), max_size=6))
def test_every_step_back_is_where_one_was(steps):
    """Any sequence of edits, refused ones left out, against a list of names."""
    adata = make(20)
    adata.uns["metacluster_colors"] = ["#000000", "#111111", "#222222", "#333333"]
    seen = [(adata.obs.metacluster.copy(), list(adata.uns["metacluster_colors"]))]
    for mapping, merge in steps:
        names = adata.obs.metacluster.cat.categories
        mapping = {k: v for k, v in mapping.items() if k in names}
        after = [mapping.get(name, name) for name in names]
        if not mapping or (not merge and len(set(after)) < len(after)):
            continue
        expected = [mapping.get(name, name) for name in adata.obs.metacluster]
        (nb.tl.merge_clusters if merge else nb.tl.name_clusters)(adata, mapping)
        assert adata.obs.metacluster.tolist() == expected
        colors = list(adata.uns["metacluster_colors"])
        assert len(colors) == len(adata.obs.metacluster.cat.categories)
        seen.append((adata.obs.metacluster.copy(), colors))
    for labels, colors in seen[-2::-1]:
        nb.tl.undo_clusters(adata)
        pd.testing.assert_series_equal(adata.obs.metacluster, labels)
        assert list(adata.uns["metacluster_colors"]) == colors
    with pytest.raises(InputError, match="no edits of 'metacluster' to undo"):
        nb.tl.undo_clusters(adata)


def test_several_steps_back_at_once(adata):
    before = adata.obs.copy()
    nb.tl.merge_clusters(adata, {"3": "2"})
    nb.tl.name_clusters(adata, {"2": "T"})
    with pytest.raises(InputError, match="has 2 edits to undo, steps=3"):
        nb.tl.undo_clusters(adata, steps=3)
    with pytest.raises(InputError, match="steps=0"):
        nb.tl.undo_clusters(adata, steps=0)
    nb.tl.undo_clusters(adata, steps=2)
    pd.testing.assert_frame_equal(adata.obs, before, check_like=True)


def test_colours_go_with_the_clusters(adata):
    adata.uns["metacluster_colors"] = ["#000000", "#111111", "#222222", "#333333"]
    nb.tl.merge_clusters(adata, {"0": "2"})
    assert list(adata.uns["metacluster_colors"]) == ["#111111", "#222222", "#333333"]
    nb.tl.name_clusters(adata, {"1": "T"})
    assert list(adata.uns["metacluster_colors"]) == ["#111111", "#222222", "#333333"]


def test_history_survives_dropped_cells_and_the_disk(adata, tmp_path):
    before = adata.obs.metacluster.astype(str)
    nb.tl.merge_clusters(adata, {"3": "1"})
    nb.tl.name_clusters(adata, {"1": "T / NK"})
    sdata = sd.SpatialData(tables={"nimbus": adata[::2].copy()})
    sdata.write(tmp_path / "data.zarr")
    sdata["nimbus"].obs["extra"] = 1
    nb.io.write_table(sdata)
    read = sd.read_zarr(tmp_path / "data.zarr")["nimbus"]
    assert read.obs.metacluster.tolist() == adata.obs.metacluster[::2].tolist()
    nb.tl.undo_clusters(read)
    nb.tl.undo_clusters(read)
    assert read.obs.metacluster.tolist() == before[::2].tolist()


def test_a_column_that_others_changed_is_not_undone_and_starts_anew(adata):
    nb.tl.merge_clusters(adata, {"3": "1"})
    column = adata.obs.metacluster.cat.add_categories("mine")
    column.iloc[0] = "mine"
    adata.obs["metacluster"] = column
    with pytest.raises(InputError, match="changed by something else"):
        nb.tl.undo_clusters(adata)
    nb.tl.merge_clusters(adata, {"2": "1"})
    nb.tl.undo_clusters(adata)
    assert adata.obs.metacluster.tolist() == column.tolist()
    with pytest.raises(InputError, match="no edits"):
        nb.tl.undo_clusters(adata)


# --- nodes and files -----------------------------------------------------------------------------


def test_the_nodes_of_the_map_follow(trained):
    found = trained.uns["flowsom"]["node_metacluster"].tolist()
    nb.tl.merge_clusters(trained, {"3": "0"})
    nb.tl.name_clusters(trained, {"0": "T"})
    now = trained.uns["flowsom"]["node_metacluster"]
    assert now.tolist() == ["T" if name in ("0", "3") else name for name in found]
    assert trained.obs.metacluster.tolist() == now[trained.obs.som_node].tolist()
    nb.tl.undo_clusters(trained, steps=2)
    assert trained.uns["flowsom"]["node_metacluster"].tolist() == found


@pytest.mark.parametrize("suffix", [".csv", ".json"])
@pytest.mark.parametrize("node_key", ["som_node", None])
def test_what_is_written_can_be_read_into_another_table(trained, tmp_path, suffix, node_key):
    other, before = trained.copy(), trained.obs.metacluster.copy()
    nb.tl.merge_clusters(trained, {"3": "0"})
    nb.tl.name_clusters(trained, {"0": 'T, "helper"', "1": "Ä / B"})
    file = tmp_path / f"mapping{suffix}"
    nb.io.write_cluster_mapping(trained, file, node_key=node_key)
    nb.tl.merge_clusters(other, file)
    assert other.obs.metacluster.tolist() == trained.obs.metacluster.tolist()
    np.testing.assert_array_equal(
        other.uns["flowsom"]["node_metacluster"], trained.uns["flowsom"]["node_metacluster"]
    )
    nb.tl.undo_clusters(other)
    pd.testing.assert_series_equal(other.obs.metacluster, before)
    with pytest.raises(InputError, match="exists"):
        nb.io.write_cluster_mapping(trained, file)
    nb.io.write_cluster_mapping(trained, file, overwrite=True)


def test_the_file_for_nodes_is_pixies(trained, tmp_path):
    nb.tl.merge_clusters(trained, {"3": "0"})
    nb.io.write_cluster_mapping(trained, tmp_path / "m.csv")
    frame = pd.read_csv(tmp_path / "m.csv")
    assert ",".join(frame) == PIXIE
    assert frame.cell_som_cluster.tolist() == list(range(16))  # nodes without cells too
    assert frame.cell_meta_cluster.dtype == frame.cell_som_cluster.dtype == np.int64
    assert frame.groupby("cell_meta_cluster").cell_meta_cluster_rename.nunique().eq(1).all()


@pytest.mark.parametrize(
    ("header", "row"),
    [
        (PIXIE, "{node},{meta},{name}"),
        (PIXIE.replace("cell", "pixel"), "{node},{meta},{name}"),
        ("cell_meta_cluster_rename,cell_som_cluster,cell_meta_cluster", "{name},{node}.0,{meta}"),
        ("cluster,metacluster,mc_name", "{node},{meta},{name}"),
    ],
)
def test_pixies_files_group_the_nodes_anew(adata, tmp_path, header, row):
    adata.obs["cell_som_cluster"] = adata.obs.som_node + 1  # Pixie counts from 1
    names = {1: "T", 2: "B", 3: "T"}
    rows = [row.format(node=i + 1, meta=i % 3 + 1, name=names[i % 3 + 1]) for i in range(12)]
    (tmp_path / "m.csv").write_text("\ufeff" + "\r\n".join([header, *rows]) + "\r\n", encoding="utf-8")
    other, before = adata.copy(), adata.obs.metacluster.copy()
    nb.tl.merge_clusters(adata, tmp_path / "m.csv", node_key="cell_som_cluster")
    assert adata.obs.metacluster.tolist() == [names[i % 3 + 1] for i in adata.obs.som_node]
    nb.tl.undo_clusters(adata)
    pd.testing.assert_series_equal(adata.obs.metacluster, before)
    with pytest.raises(ElementNotFoundError, match="names 12, which are not among the nodes of 'som_node'"):
        nb.tl.merge_clusters(other, tmp_path / "m.csv")


def test_without_names_pixies_numbers_are_the_clusters(adata, tmp_path):
    rows = "\n".join(f"{i},{i % 2 + 1}" for i in range(12))
    (tmp_path / "m.csv").write_text(f"cell_som_cluster,cell_meta_cluster\n{rows}\n")
    nb.tl.merge_clusters(adata, tmp_path / "m.csv")
    assert adata.obs.metacluster.tolist() == [str(i % 2 + 1) for i in adata.obs.som_node]
    with pytest.raises(InputError, match=r"no names to clusters; use nb\.tl\.merge_clusters"):
        nb.tl.name_clusters(adata, tmp_path / "m.csv")


def test_names_from_pixies_file(adata, tmp_path):
    names = {"0": "T", "1": "B", "2": "M", "3": "tumour"}
    rows = "\n".join(f"{i},{i % 4},{names[str(i % 4)]}" for i in range(12))
    (tmp_path / "m.csv").write_text(f"{PIXIE}\n{rows}\n")
    before = adata.obs.metacluster.astype(str)
    nb.tl.name_clusters(adata, str(tmp_path / "m.csv"))
    assert adata.obs.metacluster.tolist() == before.map(names).tolist()


def test_a_node_in_two_clusters_cannot_be_written(adata, tmp_path):
    adata.obs["metacluster"] = pd.Categorical(np.arange(240) % 2).rename_categories(["a", "b"])
    with pytest.raises(InputError, match=r"node of 'som_node'.*several"):
        nb.io.write_cluster_mapping(adata, tmp_path / "m.csv")
    nb.io.write_cluster_mapping(adata, tmp_path / "m.csv", node_key=None)
    assert (tmp_path / "m.csv").read_text() == "cluster,name\na,a\nb,b\n"
    for name, match in (("m.txt", "suffix '.txt'"), ("no/m.csv", "not a folder")):
        with pytest.raises(InputError, match=match):
            nb.io.write_cluster_mapping(adata, tmp_path / name)


# --- bad input -----------------------------------------------------------------------------------

FULL = [f"{i},{i % 2},x{i % 2}" for i in range(12)]
FILES = {
    "missing.csv": (None, "can't be read"),
    "m.txt": ("cluster,name\n0,T\n", "unknown suffix '.txt'"),
    "empty.csv": ("", "no rows"),
    "bare.csv": ("cluster,name\n", "no rows"),
    "wide.csv": ("a,b,c\n0,1,2\n", "the columns are a, b, c; valid"),
    "ragged.csv": ("cluster,name\n0,T\n1\n", "line 3 has another number"),
    "twice.csv": ("cluster,name\n0,T\n0,B\n", "'0' gets two names, 'T' and 'B'"),
    "empty_name.csv": ("cluster,name\n0,\n", "empty name"),
    "nodes.csv": ("\n".join([PIXIE, *FULL[:-1]]), "leaves out nodes of 'som_node' that have cells: 11"),
    "strange.csv": ("\n".join([PIXIE, *FULL, "77,1,x1"]), "names 77"),
    "nameless.csv": ("\n".join([PIXIE, *FULL[:-1], "11,1,"]), "line 13 names no cluster or"),
    "two_names.csv": ("\n".join([PIXIE, *FULL[:-1], "11,1,y"]), "'1' gets two names"),
    "no_meta.csv": ("cell_som_cluster,x,y\n0,1,2\n", "lacks the column 'cell_meta_cluster'"),
    "broken.json": ("{", "no JSON"),
    "list.json": ("[1]", "holds a list"),
    "null.json": ('{"0": null}', "maps to None"),
    "deep.json": ('{"0": {"a": 1}}', "give {cluster: name}"),
    "strange.json": ('{"9": "T"}', "names 9, which are not among the clusters of 'metacluster'; valid: 0, 1"),
}


def assert_refused(adata, call, match):
    obs, uns = adata.obs.copy(), dict(adata.uns)
    with pytest.raises((InputError, ElementNotFoundError), match=match):
        call()
    pd.testing.assert_frame_equal(adata.obs, obs)
    assert dict(adata.uns) == uns


@pytest.mark.parametrize("name", FILES)
def test_bad_files_change_nothing(adata, tmp_path, name):
    text, match = FILES[name]
    if text is not None:
        (tmp_path / name).write_text(text)
    assert_refused(adata, lambda: nb.tl.merge_clusters(adata, tmp_path / name), match)


@pytest.mark.parametrize(
    ("mapping", "options", "match"),
    [
        ({}, {}, "the mapping is empty"),
        ({"0": " "}, {}, "empty name"),
        ({"7": "1", "8": "1", "0": "1"}, {}, "names 7, 8, which are not among the clusters"),
        ({"T": ["0", "1"], "B": ["1"]}, {}, "'1' gets two names, 'T' and 'B'"),
        ({"0": "1"}, {"key": "leiden"}, "no column 'leiden'; valid: 'som_node', 'metacluster'"),
        (3, {}, "a dict or the path of a file, not int"),
    ],
)
def test_bad_mappings_change_nothing(adata, mapping, options, match):
    assert_refused(adata, lambda: nb.tl.merge_clusters(adata, mapping, **options), match)
    assert_refused(adata, lambda: nb.tl.name_clusters(adata, mapping, **options), match)


def test_names_are_not_shared(adata):
    for names in ({"0": "T", "1": "T"}, {"0": "1"}):
        assert_refused(adata, lambda n=names: nb.tl.name_clusters(adata, n), r"both be named.*merge_clusters")
    assert_refused(adata, lambda: nb.tl.undo_clusters(adata, "leiden"), "no column 'leiden'")


def test_nodes_of_another_column_are_refused_where_a_map_is(trained, tmp_path):
    trained.obs["cell_som_cluster"] = trained.obs.som_node
    (tmp_path / "m.json").write_text(json.dumps({"nodes": {str(i): "x" for i in range(16)}}))
    call = lambda: nb.tl.merge_clusters(trained, tmp_path / "m.json", node_key="cell_som_cluster")  # noqa: E731
    assert_refused(trained, call, "pass node_key='som_node'")
    nb.tl.merge_clusters(trained, tmp_path / "m.json")
    assert set(trained.obs.metacluster) == {"x"}
