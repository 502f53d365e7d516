"""Which cells are chosen: patients apart, sections balanced, tests as they come, nothing badly registered."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData, read_zarr
from spatialdata.models import PointsModel, TableModel

import nimbus_sd as nb
from nimbus_sd._core.errors import ElementNotFoundError, InputError, NimbusWarning

MARKERS = ["CD45", "CD3e", "CD4", "CD8a"]


def gated(n_sections=6, n=3000, *, seed=0, patients=None, positive=0.3):
    """A table of several sections, one per patient, with another marker that is no sub-type."""
    rng = np.random.default_rng(seed)
    section = np.repeat([f"s{i}" for i in range(n_sections)], n)
    total = len(section)
    cd45 = rng.random(total) < positive
    cd3e = cd45 & (rng.random(total) < 0.6)
    cd4 = cd3e & (rng.random(total) < 0.4)
    cd8a = cd3e & ~cd4 & (rng.random(total) < 0.5)
    labels = np.stack([cd8a, cd45, cd3e, rng.random(total) < 0.5, cd4], axis=1).astype(np.float32)
    labels[rng.random(labels.shape) < 0.05] = np.nan
    obs = pd.DataFrame({"section": section}, index=[f"c{i}" for i in range(total)])
    obs["patient"] = obs["section"].str.replace("s", "p") if patients is None else np.repeat(patients, n)
    var = pd.DataFrame(index=["CD8a", "CD45", "CD3e", "Ki67", "CD4"])
    return ad.AnnData(obs=obs, var=var, layers={"gated": labels})


def labels_of(table, markers=MARKERS):
    return np.asarray(table[:, markers].layers["gated"])


def test_every_section_is_balanced_and_patients_are_apart():
    table = gated()
    report = nb.pp.sample_cells(table, n_cells=400, split=(3, 2, 1), seed=4)
    assert list(table.obs["split"].cat.categories) == ["train", "validation", "test"]
    assert table.obs["sampled"].dtype == bool
    per_patient = table.obs.groupby("patient", observed=True)["split"].agg(lambda s: set(s))
    assert all(len(s) == 1 for s in per_patient), "all cells have a part, sampled or not"
    assert sorted(next(iter(s)) for s in per_patient) == ["test"] + ["train"] * 3 + ["validation"] * 2
    labels, sampled = labels_of(table), table.obs["sampled"].to_numpy()
    for row in report.itertuples():
        mine = labels[sampled & (table.obs["section"] == row.section)]
        assert len(mine) == row.n_sampled == 400
        positive = (mine == 1).any(axis=1)
        if row.split != "test":
            assert (positive.sum(), (mine == 0).all(axis=1).sum()) == (200, 200)
            assert ((mine == 1).sum(axis=0) >= 50).all()
        assert [getattr(row, f"n_{m}") for m in MARKERS] == (mine == 1).sum(axis=0).tolist()
        assert row.ratio_CD45 == pytest.approx((mine[:, 0] == 1).sum() / (mine[:, 0] == 0).sum())
        assert row.missing == ""
    test = report[report["split"] == "test"].iloc[0]
    assert test["ratio_CD4"] < 0.12, "as they come"
    assert table.uns["sample_cells"]["n_cells"] == 400


def test_one_seed_one_choice_whatever_the_order():
    table, other = gated(), gated()
    nb.pp.sample_cells(table, n_cells=200, seed=1)
    shuffled = other[np.random.default_rng(0).permutation(other.n_obs)].copy()
    nb.pp.sample_cells(shuffled, n_cells=200, seed=1)
    again = shuffled[table.obs_names]
    assert (again.obs["split"].astype(str) == table.obs["split"].astype(str)).all()
    nb.pp.sample_cells(other, n_cells=200, seed=2)
    assert (other.obs["sampled"] != table.obs["sampled"]).any()


def test_badly_registered_cells_and_those_without_labels_are_never_taken():
    table = gated(3)
    table.obs["registered"] = np.random.default_rng(0).random(table.n_obs) < 0.5
    table.layers["gated"][::7] = np.nan
    report = nb.pp.sample_cells(table, n_cells=300, split={"p0": "train", "p1": "test", "p2": "test"})
    taken = table[table.obs["sampled"]]
    assert taken.obs["registered"].all()
    assert not np.isnan(labels_of(taken)).all(axis=1).any()
    assert (report["n_usable"] < 0.6 * report["n_cells"]).all()
    table.obs["registered"] = table.obs["registered"].astype(str)
    with pytest.raises(InputError, match=r"obs\['registered'\] has dtype .*; it must be True or False"):
        nb.pp.sample_cells(table)


def test_what_is_missing_is_counted_in_one_warning():
    table = gated(4, 500)
    table.layers["gated"][table.obs["section"] == "s1"] = 0
    parts = dict.fromkeys(["p0", "p1", "p2"], "train") | {"p3": "test"}
    with pytest.warns(NimbusWarning, match="3 of 4 sections have too few cells") as caught:
        report = nb.pp.sample_cells(table, n_cells=800, split=parts)
    (warning,) = [w for w in caught if issubclass(w.category, NimbusWarning)]
    assert "1 of them has no positive cell and is left out" in str(warning.message)
    by_section = report.set_index("section")
    assert by_section.loc["s1", "n_sampled"] == 0
    assert by_section.loc["s1", "missing"] == "400 negative, 400 positive"
    row = by_section.loc["s0"]
    assert row["n_negative"] == row["n_positive"], "still half and half"
    assert f"{400 - row['n_positive']} positive" in row["missing"]
    assert by_section.loc["s3", "missing"] == ""


def test_several_tables_are_divided_together_and_sections_of_one_patient_stay_together():
    tables = {"a": gated(2, 800, patients=["x", "y"]), "b": gated(2, 800, seed=1, patients=["y", "z"])}
    report = nb.pp.sample_cells(tables, n_cells=100, split=(1, 1, 1))
    assert report["section"].tolist() == ["a/s0", "a/s1", "b/s0", "b/s1"]
    assert report.groupby("patient")["split"].nunique().max() == 1
    assert set(report["split"]) == {"train", "validation", "test"}
    for table in tables.values():
        assert table.obs["sampled"].sum() == 200
    listed = nb.pp.sample_cells([gated(1, 800, patients=["x"]), gated(1, 800, patients=["x"])], n_cells=100)
    assert listed["split"].tolist() == ["train", "train"]


def test_sections_are_found_and_without_patients_each_is_its_own():
    table = gated(3, 800)
    del table.obs["patient"]
    report = nb.pp.sample_cells(table, n_cells=100)
    assert report["patient"].tolist() == ["s0", "s1", "s2"]
    table.obs["region"] = pd.Categorical(np.where(table.obs["section"] == "s0", "left", "right"))
    table.obs["instance_id"] = np.arange(table.n_obs)
    del table.obs["section"]
    parsed = TableModel.parse(
        table.copy(), region=["left", "right"], region_key="region", instance_key="instance_id"
    )
    assert nb.pp.sample_cells(parsed, n_cells=100)["section"].tolist() == ["left", "right"]
    assert nb.pp.sample_cells(table.copy(), n_cells=100)["section"].tolist() == ["section"]
    named = nb.pp.sample_cells(table, n_cells=100, section="region", patient="region")
    assert named["patient"].tolist() == ["left", "right"]


def test_what_is_written_survives_a_store(tmp_path):
    table = gated(3, 300)
    table.obs["region"] = pd.Categorical(["cells"] * table.n_obs)
    table.obs["instance_id"] = np.arange(table.n_obs)
    table = TableModel.parse(table, region="cells", region_key="region", instance_key="instance_id")
    nb.pp.sample_cells(table, n_cells=40)
    points = PointsModel.parse(np.zeros((table.n_obs, 2)))
    SpatialData(points={"cells": points}, tables={"table": table}).write(tmp_path / "x.zarr")
    back = read_zarr(tmp_path / "x.zarr")["table"]
    for name in ("split", "sampled"):
        pd.testing.assert_series_equal(back.obs[name], table.obs[name])
    assert back.uns["sample_cells"]["markers"].tolist() == MARKERS


def test_bad_input_changes_nothing():
    table = gated(3, 300)
    before = table.copy()

    def refused(message, error=InputError, given=None, **options):
        with pytest.raises(error, match=message):
            nb.pp.sample_cells(table if given is None else given, **options)
        pd.testing.assert_frame_equal(table.obs, before.obs)
        assert table.uns.keys() == before.uns.keys()

    refused("no layer 'labels'", ElementNotFoundError, layer="labels")
    refused(r"no marker \['CD99'\]", ElementNotFoundError, markers=["CD45", "CD99"])
    refused("name at least one, and each once", markers=["CD45", "CD45"])
    refused(r"no obs\['who'\]", ElementNotFoundError, patient="who")
    refused(r"no obs\['slide'\]", ElementNotFoundError, section="slide")
    refused("n_cells=1 must be", n_cells=1)
    refused(r"leaves out \['p0', 'p1', 'p2'\]", split={})
    refused("adata is str", given="table")
    refused("adata is list", given=[])
    refused("a table comes twice", given=[table, table])
    table.obs["half"] = np.where(np.arange(table.n_obs) % 2, "a", "b")
    before = table.copy()
    refused("section 's0' has cells of several patients .*a, b", patient="half")
    table.obs.loc["c0", "patient"] = None
    before = table.copy()
    refused(r"obs\['patient'\] is missing for 1 of 900 cells")
    table.obs["patient"] = "p"
    table.layers["gated"][0, 1] = 0.5
    before = table.copy()
    refused(r"labels hold \[0.5\]")
    table.layers["gated"][:] = 0
    refused("no cell to train on: .*s0 .300 of 300 usable.*check the thresholds")
    other = ad.AnnData(np.zeros((2, 1)), var=pd.DataFrame(index=["Ki67"]))
    refused("the table has none of CD45, CD3e, CD4, CD8a; name its markers", given=other)


def test_markers_without_labels_are_left_out_or_refused(caplog):
    table = gated(3)
    expected = nb.pp.sample_cells(table[:, ["CD45", "CD3e"]].copy(), n_cells=300)
    at = table.var_names.get_indexer(["CD4", "CD8a", "Ki67"])
    table.layers["gated"][:, at] = np.nan
    report = nb.pp.sample_cells(table, n_cells=300)
    pd.testing.assert_frame_equal(report, expected)
    assert table.uns["sample_cells"]["markers"].tolist() == ["CD45", "CD3e"]
    told = [r.message for r in caplog.records if "without labels" in r.message]
    assert told == ["markers: CD45, CD3e; without labels in layer 'gated': CD4, CD8a"]
    with pytest.raises(InputError, match=r"^CD4: no cell has a label in layer 'gated'.*nb\.pp\.gate"):
        nb.pp.sample_cells(table, n_cells=300, markers=["CD45", "CD4"])
    table.layers["gated"][:] = np.nan
    with pytest.raises(InputError, match=r"no cell has a label for CD45, CD3e, CD4, CD8a in layer 'gated'"):
        nb.pp.sample_cells(table)


def test_a_marker_that_a_table_lacks_is_not_read_from_another_column():
    tables = {"a": gated(2, 800, patients=["x", "y"]), "b": gated(2, 800, seed=1, patients=["u", "v"])}
    tables["b"] = tables["b"][:, ["CD3e", "CD45", "Ki67"]].copy()
    nb.pp.sample_cells(tables, n_cells=100)
    assert tables["a"].uns["sample_cells"]["markers"].tolist() == ["CD45", "CD3e"]
    with pytest.raises(ElementNotFoundError, match=r"the table of 'b' has no marker \['CD4'\]"):
        nb.pp.sample_cells(tables, n_cells=100, markers=["CD45", "CD4"])


def test_nothing_registered_is_told_as_that():
    table = gated(3, 300)
    table.obs["registered"] = False
    with pytest.raises(
        InputError, match=r"s\d \(0 of 300 usable\), obs\['registered'\] is False for every cell"
    ) as e:
        nb.pp.sample_cells(table, n_cells=40)
    assert "gates" not in str(e.value)


def test_one_small_section_is_told_in_plain_words():
    with pytest.warns(NimbusWarning) as caught:
        report = nb.pp.sample_cells(gated(1, 200), n_cells=2000)
    (told,) = [str(w.message) for w in caught if issubclass(w.category, NimbusWarning)]
    n = report["n_sampled"][0]
    assert told.startswith("1 of 1 sections has too few cells for n_cells=2000: all that fit are taken")
    assert f"({n} instead of 2000)" in told
    assert f"s0: {report['missing'][0]} too few" in told
