"""The log, the answers and edits it brings back, and what can't be reviewed."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

from nimbus_sd import app
from nimbus_sd._core.errors import ElementNotFoundError, InputError, MissingExtraError, NimbusWarning
from nimbus_sd.app._clusters import Clusters, cluster_sums
from nimbus_sd.app._export import training_set
from nimbus_sd.app._log import ReviewLog
from nimbus_sd.app._queue import queue
from nimbus_sd.app._session import Session
from nimbus_sd.app._tiles import ByteCache

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")  # spatialdata's and zarr's own


def say(session, who, row, answer, marker="CD3"):
    session.answer([{"row": row, "marker": marker, "answer": answer}], who)


def test_the_majority_decides_and_the_last_word_of_each_counts(small):
    session = Session(small)
    for who, answer, wanted in [
        ("a", "positive", 1),
        ("b", "negative", np.nan),
        ("c", "negative", 0),
        ("c", "skip", np.nan),
        ("b", "positive", 1),
        ("a", "clear", 1),
        ("b", "clear", np.nan),
    ]:
        say(session, who, 7, answer)
        np.testing.assert_array_equal(small["nimbus"].layers["gold"][7, 0], wanted)
    assert small["nimbus"].layers["gold"].dtype == np.float32


def test_a_layer_that_was_there_stays_but_for_reviewed_cells(small):
    before = np.full(small["nimbus"].shape, np.nan, np.float32)
    before[:5] = 1
    small["nimbus"].layers["gold"] = before.copy()
    session = Session(small)
    say(session, "a", 2, "negative")
    before[2, 0] = 0
    np.testing.assert_array_equal(small["nimbus"].layers["gold"], before)
    small["nimbus"].layers["gold"] = before + 1
    with pytest.raises(InputError, match="valid: 1 positive"):
        Session(small)


def test_a_new_session_reads_the_log_by_cell_not_by_row(stored, tmp_path):
    session = Session(stored)
    assert session.log.path == tmp_path / "t.zarr.nimbus.review.jsonl"
    say(session, "a", 3, "positive")
    say(session, "b", 50, "negative", "PanCK")
    session.edit("merge", {"1": "3"}, "a")
    again = sd.read_zarr(tmp_path / "t.zarr")
    names = stored["nimbus"].obs_names
    del again.tables["nimbus"]
    again["nimbus"] = stored["nimbus"][::-1].copy()
    again["nimbus"].layers.pop("gold")
    Session(again)
    gold = pd.DataFrame(again["nimbus"].layers["gold"], again["nimbus"].obs_names, again["nimbus"].var_names)
    assert gold.loc[names[3], "CD3"] == 1
    assert gold.loc[names[50], "PanCK"] == 0
    assert int((~gold.isna()).sum().sum()) == 2


def test_edits_come_back_once_and_never_to_other_clusters(stored, tmp_path):
    session = Session(stored)
    session.edit("merge", {"1": "3"}, "a")
    session.edit("name", {"3": "T"}, "a")
    session.edit("undo", {}, "a")
    now = stored["nimbus"].obs["metacluster"].astype(str).tolist()
    unsaved = Session(sd.read_zarr(tmp_path / "t.zarr"))
    assert unsaved.adata.obs["metacluster"].astype(str).tolist() == now
    assert unsaved.n_unsaved == 3
    session.save()
    saved = Session(sd.read_zarr(tmp_path / "t.zarr"))
    assert (saved.n_unsaved, saved.adata.obs["metacluster"].astype(str).tolist()) == (0, now)
    saved.edit("undo", {}, "a")
    assert set(saved.clusters.names) == set("01234")
    other = sd.read_zarr(tmp_path / "t.zarr")
    other["nimbus"].obs["metacluster"] = pd.Categorical(np.roll(now, 1))
    assert Session(other).adata.obs["metacluster"].tolist() == np.roll(now, 1).tolist()


def test_saved_answers_are_not_counted_again(stored, tmp_path):
    session = Session(stored)
    say(session, "a", 3, "positive")
    assert session.n_unsaved == 1
    assert session.save() == "nimbus"
    again = Session(sd.read_zarr(tmp_path / "t.zarr"))
    assert again.n_unsaved == 0
    assert again.adata.layers["gold"][3, 0] == 1
    assert list(again.adata.uns["review"]["reviewers"]) == ["a"]


def test_two_processes_share_a_log(small, reviewed, tmp_path):
    one, two = (Session(each, log=tmp_path / "log.jsonl") for each in (small, reviewed()))
    say(one, "a", 3, "positive")
    say(two, "b", 4, "negative")
    np.testing.assert_array_equal(two.adata.layers["gold"][[3, 4], 0], [1, 0])
    say(one, "a", 5, "positive")
    two._take(two.log.new())
    np.testing.assert_array_equal(one.adata.layers["gold"], two.adata.layers["gold"])


def test_half_a_line_is_passed_over_and_the_next_one_is_whole(tmp_path):
    path = tmp_path / "log.jsonl"
    log = ReviewLog(path)
    log.append([{"kind": "answer", "n": 1}, {"kind": "answer", "n": 2}])
    with path.open("ab") as file:
        file.write(b'{"kind": "answer", "n": 3, "cel')
    again = ReviewLog(path)
    assert [e["n"] for e in again.new()] == [1, 2]
    with pytest.warns(NimbusWarning, match="1 lines can't be read"):
        assert [e["n"] for e in again.append([{"kind": "answer", "n": 4}])] == [4]
    assert again.n_broken == 1
    assert [json.loads(line)["n"] for line in path.read_text().splitlines() if line.endswith("}")] == [
        1,
        2,
        4,
    ]


def test_answers_survive_a_killed_server(tmp_path, stored):
    code = f"""
import os, signal, warnings
warnings.simplefilter("ignore")
import spatialdata as sd
from nimbus_sd.app._session import Session
session = Session(sd.read_zarr({str(tmp_path / "t.zarr")!r}))
session.answer([{{"row": 3, "marker": "CD20", "answer": "positive"}}], "anna")
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert Session(stored).adata.layers["gold"][3, 1] == 1


def test_the_training_set_is_what_finetune_takes(stored, tmp_path):
    from nimbus_sd.pp import TileStore

    session = Session(stored)
    with pytest.raises(InputError, match="no cell is positive or negative"):
        training_set(session)
    say(session, "a", 3, "positive")
    say(session, "a", 50, "negative")
    say(session, "a", 51, "skip")
    made = training_set(session)
    assert made["path"] == str(tmp_path / "t.zarr.nimbus.gold_tiles.zarr")
    assert made["answers"] == 2
    tiles = TileStore.open(made["path"])
    assert set(tiles.splits.values()) == {"train"}
    targets = np.concatenate([tiles.tile(i).target for i in range(len(tiles))])
    assert sorted(targets[~np.isnan(targets)].tolist()) == [0, 1]
    assert training_set(session)["tiles"] == made["tiles"]  # once more, over the old one


@pytest.mark.parametrize("order", ["uncertain", "positive", "negative", "disputed", "reviewed", "random"])
def test_the_queue_against_a_plain_sort(rng, order):
    scores = rng.random(400).astype(np.float32)
    among, done, disputed = np.arange(10, 390), np.arange(0, 60), np.arange(30, 50)
    found = queue(scores, order=order, threshold=0.5, among=among, done=done, disputed=disputed, n=20)
    chosen = {"disputed": disputed, "reviewed": done}.get(order, np.arange(60, 400))
    rows = [r for r in range(400) if r in set(among) & set(chosen)]
    if order == "random":
        assert len(set(found)) == 20
        assert set(found) <= set(rows)
        again = queue(
            scores,
            order=order,
            threshold=0.5,
            among=among,
            done=np.append(done, found[0]),
            disputed=disputed,
            n=19,
        )
        assert again.tolist() == found[1:].tolist()
        return
    rank = {"positive": lambda r: -scores[r], "negative": lambda r: scores[r]}.get(
        order, lambda r: abs(scores[r] - np.float32(0.5))
    )
    assert found.tolist() == sorted(rows, key=lambda r: (rank(r), r))[:20]


def test_cluster_means_against_pandas(small, rng):
    adata = small["nimbus"]
    adata.X[rng.random(adata.shape) < 0.1] = np.nan
    clusters = Clusters(adata, "metacluster", adata.X)
    total, count = cluster_sums(adata.X, clusters.codes, 5)
    frame = adata.to_df().groupby(adata.obs["metacluster"], observed=True)
    np.testing.assert_allclose(total, frame.sum().to_numpy(), rtol=1e-5)
    np.testing.assert_array_equal(count, frame.count().to_numpy())
    np.testing.assert_allclose(clusters.heatmap()["means"], frame.mean().to_numpy(), atol=1e-4)


def test_the_cache_forgets_what_was_used_longest_ago():
    cache = ByteCache(30)
    for key in "abc":
        cache.put((key,), b"0123456789")
    cache.get(("a",))
    cache.put(("d",), b"0123456789")
    assert [cache.get((key,)) is not None for key in "abcd"] == [True, False, True, True]
    assert cache.size == 30
    cache.put(("e",), b"x" * 31)
    assert cache.size <= 30


def test_what_can_not_be_reviewed_is_refused_and_unchanged(small, unchanged, tmp_path):
    adata = small["nimbus"]
    with unchanged(small):
        for wrong, error, message in [
            ({"table": "cells"}, ElementNotFoundError, "no table 'cells'"),
            ({"key": "leiden"}, ElementNotFoundError, "obs has no column 'leiden'"),
            ({"layer": "nimbus"}, ElementNotFoundError, "no layer 'nimbus'"),
            ({"image": "fov7_image"}, ElementNotFoundError, "no image 'fov7_image'"),
            ({"image": {"fov7_labels": "fov0_image"}}, ElementNotFoundError, "does not annotate"),
            ({"threshold": 1.5}, InputError, "threshold=1.5"),
            ({"log": tmp_path / "no" / "log"}, InputError, "is no folder"),
        ]:
            with pytest.raises(error, match=message):
                Session(small, **wrong)
    coordinates = adata.obsm.pop("spatial")
    with pytest.raises(InputError, match="no coordinates"):
        Session(small)
    adata.obsm["spatial"] = coordinates
    attrs = adata.uns.pop("spatialdata_attrs")
    with pytest.raises(InputError, match="annotates no labels"):
        Session(small)
    adata.uns["spatialdata_attrs"] = attrs
    adata.obs["instance_id"] = 5
    with pytest.raises(InputError, match="has two rows"):
        Session(small)


def test_the_log_may_not_lie_in_the_store(stored, tmp_path):
    with pytest.raises(InputError, match="lies in the store"):
        Session(stored, log=tmp_path / "t.zarr" / "log.jsonl")


def test_a_table_without_clusters_can_be_reviewed(small):
    del small["nimbus"].obs["metacluster"]
    session = Session(small)
    assert session.clusters is None
    with pytest.raises(InputError, match="no clusters"):
        session.edit("undo", {}, "a")


def test_without_the_extra_the_install_line_is_said(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match=r'pip install -c constraints\.txt "nimbus-sd\[review\]"'):
        app.review(small)


def test_the_command_prints_the_address_and_ends_with_ctrl_c(stored, tmp_path):
    del stored
    command = [
        sys.executable,
        "-c",
        # a shell's background jobs, and so their children, ignore Ctrl-C
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from nimbus_sd.cli import main; main()",
        "review",
        str(tmp_path / "t.zarr"),
    ]
    with subprocess.Popen(
        [*command, "--no-open"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(3)]
            assert said[1].startswith("http://127.0.0.1:"), said
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()
