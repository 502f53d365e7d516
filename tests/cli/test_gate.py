"""``nimbus-sd gate``: a CSV of thresholds to edit, and labels by it."""

import shutil

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import nimbus_sd as nb

pytestmark = pytest.mark.filterwarnings("ignore::nimbus_sd._core.errors.NimbusWarning")


@pytest.fixture(scope="module")
def sections():
    return nb.datasets.simulated_sections(n_patients=2, shape=(256, 256), immune=0.5)


@pytest.fixture
def store(sections, tmp_path):
    path = tmp_path / "tissue.zarr"
    sections.write(path)
    return path


def test_suggest_edit_gate(store, sections, tmp_path, nimbus, facts, unchanged):
    csv, png = tmp_path / "gates.csv", tmp_path / "gates.png"
    unchanged(store)  # until the next test's store; suggestions and dry runs leave it alone
    plan = facts("gate", store, "--out", csv, "--plot", png, "--dry-run")
    assert not csv.exists()
    assert not png.exists()
    code, out, err = nimbus("gate", store, "--out", csv, "--plot", png, "--markers", "CD45,CD3e")
    assert code == 0, err
    assert f"next: nimbus-sd gate STORE --thresholds {csv}" in out
    assert png.read_bytes()[:4] == b"\x89PNG"
    written = pd.read_csv(csv)
    assert set(written["marker"]) == {"CD45", "CD3e"} < {r["marker"] for r in plan["thresholds"]}
    expected = nb.pp.suggest_thresholds(sections["table"], ["CD45", "CD3e"])
    np.testing.assert_allclose(written["positive"], expected["positive"], rtol=1e-5)
    told = facts("gate", store, "--thresholds", csv, "--dry-run")
    assert {c["marker"] for c in told["counts"]} == {"CD45", "CD3e"}
    for more, said in [
        (("--out", csv), "leave one of them out"),
        (("--plot", tmp_path / "x.txt"), "valid endings"),
        (("--table", "cells"), "has no table 'cells'"),
        (("--layer", "counts"), "counts"),
        (("--section", "slide"), "slide"),
        (("--tree", "CD3e>CD45"), "valid: name=value"),
        (("--tree", "CD3e=CD99"), "CD99"),
        (("--markers", "CD20"), "has no thresholds for CD20"),
        (("--key-added", "nimbus"), "nimbus"),
        (("--key-added", "my labels"), "can't be stored"),
        (("--plot", tmp_path / "y.png", "--sections", "p9s9"), "p9s9"),
        (("--plot", tmp_path / "y.png", "--sections", "p9s9", "--dry-run"), "p9s9"),
    ]:
        code, out, err = nimbus("gate", store, "--thresholds", csv, *more)
        assert (code, out, said in err) == (1, "", True), err


def test_labels_and_hierarchy_are_written(store, sections, tmp_path, nimbus, facts):
    csv = tmp_path / "gates.csv"
    facts("gate", store, "--out", csv)
    edited = pd.read_csv(csv)
    edited.loc[edited["marker"] == "CD45", ["negative", "positive"]] = 4000  # nobody is uncertain
    edited.to_csv(csv, index=False)
    told = facts("gate", store, "--thresholds", csv)
    table = sections["table"].copy()
    counts = nb.pp.gate(table, csv)
    nb.pp.curate_hierarchy(table)
    assert [c["n_positive"] for c in told["counts"]] == counts["n_positive"].tolist()
    found = sd.read_zarr(store)["table"]
    np.testing.assert_array_equal(found.layers["gated"], table.layers["gated"])
    assert found.uns["gated_hierarchy"]["tree"] == table.uns["gated_hierarchy"]["tree"]
    code, _, err = nimbus("gate", store, "--thresholds", csv)
    assert (code, "has a layer 'gated' already; pass --overwrite" in err) == (1, True)
    code, out, _ = nimbus("gate", store, "--thresholds", csv, "--overwrite", "--tree", "none")
    assert (code, "contradict" in out) == (0, False)
    again = sd.read_zarr(store)["table"]
    assert "gated_hierarchy" not in again.uns
    assert np.isnan(again.layers["gated"]).sum() <= np.isnan(table.layers["gated"]).sum()


def test_a_cohort_is_gated_by_one_file(store, sections, tmp_path, nimbus, facts):
    code, _, err = nimbus("gate", store, store, "--out", tmp_path / "g.csv")
    assert (code, "comes twice" in err) == (1, True)
    facts("gate", store, "--out", tmp_path / "one.csv")
    shutil.copytree(store, tmp_path / "again.zarr")
    for more in (("--out", tmp_path / "g.csv"), ("--thresholds", tmp_path / "one.csv")):
        code, out, err = nimbus("gate", store, tmp_path / "again.zarr", *more)
        assert (code, out, "section 'p0s0' is in" in err) == (1, "", True)
    assert "gated" not in sd.read_zarr(store)["table"].layers
    other = sd.read_zarr(store)
    other["table"].obs["section"] = "q" + other["table"].obs["section"].astype(str)
    other.write(tmp_path / "other.zarr")
    stores = (store, tmp_path / "other.zarr")
    found = facts("gate", *stores, "--out", tmp_path / "g.csv", "--plot", tmp_path / "g.pdf")
    names = {r["section"] for r in found["thresholds"]}
    assert names == {"p0s0", "p1s0", "qp0s0", "qp1s0"}
    facts("gate", *stores, "--thresholds", tmp_path / "g.csv", "--key-added", "mine")
    for path in stores:
        assert "mine" in sd.read_zarr(path)["table"].layers
