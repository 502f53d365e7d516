"""``nimbus-sd train-embedding`` and ``embed``, end to end on two small stores."""

import numpy as np
import pytest
import spatialdata as sd

import nimbus_sd as nb
from nimbus_sd.testing import tiny_embedding_model

CHANNELS = ("CD20", "CD3", "PanCK")
QUIET = ("--no-progress", "--device", "cpu")
TINY = ("--architecture", '{"kind": "cim", "width": 2, "embedding": 8}', "--epochs", 1, "--batch-size", 8)


@pytest.fixture
def model(tmp_path):
    """An untrained network."""
    folder = tmp_path / "untrained"
    nb.models.save_embedding(tiny_embedding_model(CHANNELS), folder)
    return folder


def test_train_embedding(scored, nimbus, facts, unchanged):
    stores, out = [scored / "s0.zarr", scored / "s1.zarr"], scored / "model"
    call = ("train-embedding", *stores, "--out", out, "--channels", "CD3,CD20", *TINY, *QUIET)
    for store in stores:
        unchanged(store)
    plan = facts(*call, "--dry-run", "--stop-at", 2)
    assert not out.exists()
    assert (plan["markers"], plan["batch"], plan["step"], plan["end"]) == (["CD3", "CD20"], 8, 0, 2)
    n = sum(sd.read_zarr(s)["nimbus"].n_obs for s in stores)
    assert plan["n_trained"] + plan["n_judged"] == n == sum(s["n_cells"] for s in plan["samples"])
    facts(*call, "--stop-at", 2)
    code, told, _ = nimbus(*call, "--dry-run")
    assert code == 0
    assert "goes on after step 2" in told
    done = facts(*call)
    card = nb.models.load_embedding(out).card
    assert (done["markers"], done["sha256"], done["metrics"]) == (["CD3", "CD20"], card.sha256, card.metrics)
    code, _, err = nimbus(*call, "--seed", 5, "--dry-run")
    assert (code, "another configuration" in err) == (1, True)


def test_embed_writes_a_table_into_each_store(scored, model, nimbus, facts, unchanged):
    stores = [scored / "s0.zarr", scored / "s1.zarr"]
    call = ("embed", *stores, "--model", model, *QUIET)
    plan = facts(*call, "--dry-run")
    assert "embedding" not in sd.read_zarr(stores[0]).tables
    done = facts(*call, "--attribution", "occlusion")
    assert [t["n_cells"] for t in done["tables"]] == [s["n_cells"] for s in plan["samples"]]
    assert set(done["spearman_cells"]) == {"occlusion"}
    objects = [sd.read_zarr(store) for store in stores]
    for sdata in objects:
        del sdata.tables["embedding"]
    nb.tl.embed(objects, model=model, progress=False)
    for sdata, store in zip(objects, stores, strict=True):
        found = sd.read_zarr(store)["embedding"]
        np.testing.assert_array_equal(found.obsm["X_nextchannel"], sdata["embedding"].obsm["X_nextchannel"])
        assert set(found.layers) == {"occlusion"}
    # tables that are there get the other attribution, and are not made anew
    code, told, _ = nimbus(*call, "--attribution", "gradient_x_input", "--dry-run")
    assert (code, "would attribute the embeddings" in told) == (0, True)
    facts(*call, "--attribution", "gradient_x_input")
    assert set(sd.read_zarr(stores[1])["embedding"].layers) == {"occlusion", "gradient_x_input"}
    unchanged(scored)
    for more, said in [
        ((), "pass --overwrite to replace it"),
        (("--attribution", "occlusion"), "has layers ['occlusion'] already"),
    ]:
        for dry in ((), ("--dry-run",)):
            code, out, err = nimbus(*call, *more, *dry)
            assert (code, out, said in err) == (1, "", True), err


@pytest.mark.filterwarnings("ignore:.*annotat:UserWarning")  # what the table annotates is elsewhere
def test_embed_into_stores_of_its_own(scored, model, nimbus, unchanged):
    unchanged(scored / "s0.zarr")
    call = ("embed", scored / "s0.zarr", "--model", model, "--out-dir", scored / "found", *QUIET)
    code, out, err = nimbus(*call, "--key-added", "X_mine", "--attribution", "occlusion")
    assert code == 0, err
    assert str(scored / "found" / "s0.zarr" / "tables" / "embedding") in out
    table = sd.read_zarr(scored / "found" / "s0.zarr")["embedding"]
    assert (set(table.obsm), set(table.layers)) == ({"spatial", "X_mine"}, {"occlusion"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "nothing"), "no embedding model at nothing"),
        (("--attribution", "magic"), "valid: one or both of"),
        (("--image", "he"), "he"),
        (("--centers", "points"), "points"),
        (("--key-added", "a/b"), "can't name the embedding"),
        (("--normalization", "scales.json"), "Normalization.save writes one"),
        (("--memory", "much"), "much"),
        (("--device", "abacus"), "abacus"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_bad_calls_are_one_message(scored, model, nimbus, unchanged, options, said, dry):
    unchanged(scored)
    call = ("embed", scored / "s0.zarr", "--model", model, "--no-progress")
    code, out, err = nimbus(*call, *options, *["--dry-run"] * dry)
    assert (code, out) == (1, "")
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--config", "huge"), "no preset (small, paper, cim)"),
        (("--cache", "some"), 'such as "4 GiB"'),
        (("--channels", "CD99"), "CD99"),
        (("--probe", "type"), "type"),
        (("--batch-size", 1), "batch"),
        (("--architecture", "resnet"), "resnet"),
    ],
)
def test_training_refuses_before_it_reads(scored, nimbus, unchanged, options, said):
    unchanged(scored)
    call = ("train-embedding", scored / "s0.zarr", "--out", scored / "model", "--no-progress", *options)
    for dry in ((), ("--dry-run",)):
        code, out, err = nimbus(*call, *dry)
        assert (code, out, said in err) == (1, "", True), err
