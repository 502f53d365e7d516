"""``nimbus-sd cluster`` over a cohort changes what it wrote, and dry runs find what a run would."""

import pytest
import spatialdata as sd

import nimbus_sd as nb

SMALL_MAP = ("--method", "flowsom", "--n-nodes", 16, "--n-metaclusters", 4)


def table(store):
    return sd.read_zarr(store)["nimbus"]


def test_other_clusterings_of_a_store_stay(facts, scored):
    one, other = scored / "s0.zarr", scored / "s1.zarr"
    (scored / "names.csv").write_text("cluster,name\n0,big\n1,rest\n")
    facts("cluster", one, *SMALL_MAP, "--mapping", scored / "names.csv")
    facts("cluster", one, "--method", "phenograph", "--k", 10, "--min-cells", 5)
    before = table(one)
    facts("cluster", one, other, "--k", 5)
    after = table(one)
    for column in ("metacluster", "som_node", "metacluster_before_edits", "phenograph"):
        assert after.obs[column].tolist() == before.obs[column].tolist()
    assert set(after.uns["phenograph"]) == {"phenograph"}
    assert "phenograph_connectivities" in after.obsp
    nb.tl.undo_clusters(after, "metacluster")
    assert set(after.obs["metacluster"]) == {"0", "1", "2", "3"}
    assert "leiden" in after.obs
    assert not {"som_node", "metacluster", "phenograph"} & set(table(other).obs)


def test_a_joint_rename_adds_to_the_edits_of_each_store(facts, nimbus, scored):
    one, other = scored / "s0.zarr", scored / "s1.zarr"
    (scored / "first.csv").write_text("cluster,name\n0,big\n")
    (scored / "then.csv").write_text("cluster,name\n1,second\nbig,huge\n")
    for store, more in ((one, ("--mapping", scored / "first.csv")), (other, ())):
        facts("cluster", store, *SMALL_MAP, *more)
    facts("cluster", one, other, "--method", "keep", "--mapping", scored / "then.csv")
    assert {"huge", "second"} <= set(table(one).obs["metacluster"])
    assert {"0", "second"} <= set(table(other).obs["metacluster"])
    undone = table(one)
    nb.tl.undo_clusters(undone, "metacluster", steps=2)
    assert set(undone.obs["metacluster"]) == {"0", "1", "2", "3"}
    facts("cluster", one, other, "--method", "phenograph", "--k", 10, "--min-cells", 5)
    assert "connectivities_key" not in table(one).uns["phenograph"]["phenograph"]
    assert "flowsom" in table(one).uns


def test_what_a_run_refuses_a_dry_run_does(nimbus, scored, monkeypatch, unchanged):
    (scored / "names.csv").write_text("cluster,name\n99,big\n")
    (scored / "broken.json").write_text("[")
    monkeypatch.chdir(scored)
    unchanged(scored)
    for options, said in [
        (("--k", 1000), "--k 1000"),
        (("--resolution", -1), "a number above 0"),
        (("--use-rep", "spatial", "--layer", "integrated_expression"), "takes the place of"),
        (("--method", "flowsom", "--n-nodes", 3), "--n-nodes"),
        (("--method", "flowsom", "--n-nodes", 9999), "are fewer than"),
        ((*SMALL_MAP, "--mapping", "names.csv"), "names 99; valid: the metaclusters 0 to 3"),
        ((*SMALL_MAP, "--mapping", "broken.json"), "no JSON"),
        ((*SMALL_MAP, "--key-node", "area_px"), "can't be the name of a new column"),
        (("--method", "phenograph", "--metric", "foo"), "'euclidean', 'cosine'"),
        (("--method", "phenograph", "--communities", "foo"), "'leiden', 'louvain'"),
        (("--method", "phenograph", "--k", 5000), "--k 5000"),
        (("--method", "keep", "--key-added", "region", "--mapping", "names.csv"), "the mapping names 99"),
        (("--plot", "x.foo"), "valid endings"),
        (("--key-added", "area_px", "--overwrite"), "can't be the name of a new column"),
        (("--key-added", "area_um2", "--overwrite"), "can't be the name of a new column"),
        (("--key-added", "my clusters"), "can't be stored"),
        (("--key-added", "Area_PX"), "doesn't tell them apart"),
    ]:
        code, out, err = nimbus("cluster", "s0.zarr", *options, "--dry-run")
        assert (code, out) == (1, ""), (options, out, err)
        assert said in err


@pytest.mark.filterwarnings("ignore::nimbus_sd._core.errors.NimbusWarning")
def test_gated_stores_are_clustered_and_measured_together(facts, scored):
    stores = [scored / "s0.zarr", scored / "s1.zarr"]
    for store in stores:
        facts("gate", store, "--table", "nimbus", "--out", scored / "g.csv", "--overwrite")
        facts("gate", store, "--table", "nimbus", "--thresholds", scored / "g.csv")
    assert facts("cluster", *stores, "--k", 5)["n_cells"] == sum(table(s).n_obs for s in stores)
    assert facts("evaluate", *stores, "--truth", "truth", "--n-bootstrap", 0)["rows"]
