"""What a review must not lose: older gold values, edits of others, the table that others wrote, answers."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd

from nimbus_sd import io
from nimbus_sd._core.errors import InputError
from nimbus_sd._sdata import remote
from nimbus_sd.app import _browser
from nimbus_sd.app._clusters import find_key
from nimbus_sd.app._log import ReviewLog
from nimbus_sd.app._session import Session
from nimbus_sd.cli.review import _say_what_is_left

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")  # spatialdata's and zarr's own


def say(session, who, row, answer, marker="CD3"):
    session.answer([{"row": row, "marker": marker, "answer": answer}], who)


def gold(sdata):
    return sdata["nimbus"].layers["gold"]


def names(session):
    return session.clusters.names


@pytest.fixture
def truth(stored, tmp_path):
    """Expert labels in the store: rows 0 to 4 are positive for every marker."""
    layer = np.full(stored["nimbus"].shape, np.nan, np.float32)
    layer[:5] = 1
    stored["nimbus"].layers["gold"] = layer
    io.write_table(stored)
    return sd.read_zarr(tmp_path / "t.zarr")


def test_a_skip_leaves_and_a_clear_restores_what_experts_said(truth):
    session = Session(truth)
    say(session, "a", 2, "skip")
    assert gold(truth)[2, 0] == 1
    assert session.n_unsaved == 0
    for answer, wanted in [("negative", 0), ("skip", 1), ("negative", 0), ("clear", 1)]:
        say(session, "a", 2, answer)
        assert gold(truth)[2, 0] == wanted
    say(session, "a", 3, "positive")
    say(session, "b", 3, "negative")
    assert np.isnan(gold(truth)[3, 0])  # they differ: undefined, whatever it was
    say(session, "a", 7, "positive")
    say(session, "a", 7, "clear")
    assert np.isnan(gold(truth)[7, 0])


def test_a_review_after_save_still_knows_what_was_there_before(truth, tmp_path):
    session = Session(truth)
    say(session, "a", 2, "negative")
    say(session, "a", 7, "positive")
    session.save()
    again = Session(sd.read_zarr(tmp_path / "t.zarr"))
    assert gold(again.sdata)[[2, 7], 0].tolist() == [0, 1]
    for row in (2, 7):
        say(again, "a", row, "clear")
    np.testing.assert_array_equal(gold(again.sdata)[[2, 7], 0], [1, np.nan])


def test_statistics_count_votes_and_not_what_was_there(truth):
    session = Session(truth)
    say(session, "a", 2, "skip")
    found = session.gold.statistics(0, session.scores[:, 0], 0.5)
    assert (found["reviewed"], found["positive"], found["skipped"], found["agreement"]) == (1, 0, 1, None)


def test_unsaved_is_what_differs_from_the_store_not_how_often_it_changed(stored, tmp_path):
    session = Session(stored)
    for answer, wanted in [("positive", 1), ("negative", 1), ("clear", 0), ("skip", 0), ("positive", 1)]:
        say(session, "a", 3, answer)
        assert session.n_unsaved == wanted
    session.save()
    assert session.n_unsaved == 0
    say(session, "a", 3, "negative")
    say(session, "a", 3, "positive")
    assert session.n_unsaved == 0
    # the log goes through other values on its way to the one that is saved
    assert Session(sd.read_zarr(tmp_path / "t.zarr")).n_unsaved == 0
    session.edit("merge", {"1": "3"}, "a")
    assert session.n_unsaved == 1
    session.edit("undo", {}, "a")
    assert session.n_unsaved == 0


def test_save_refuses_to_undo_what_others_wrote(stored, tmp_path):
    session, other = Session(stored), sd.read_zarr(tmp_path / "t.zarr")
    say(session, "a", 3, "positive")
    other["nimbus"].obs["later"] = 1.0
    io.write_table(other)
    with pytest.raises(InputError, match="written by something else since"):
        session.save()
    assert session.n_unsaved == 1
    found = sd.read_zarr(tmp_path / "t.zarr")
    assert "later" in found["nimbus"].obs
    again = Session(found)
    assert again.save() == again.save() == again.saved_as == "nimbus"  # its own are no others'
    found = sd.read_zarr(tmp_path / "t.zarr")
    assert "later" in found["nimbus"].obs
    assert gold(found)[3, 0] == 1


@pytest.mark.parametrize("kind", ["merge", "undo"])
def test_an_edit_or_answer_that_can_not_be_logged_is_taken_back(stored, monkeypatch, kind):
    session = Session(stored)
    if kind == "undo":
        session.edit("name", {"1": "T"}, "a")
    before, edits = stored["nimbus"].obs["metacluster"].tolist(), session.clusters.heatmap()["edits"]
    size = session.log.path.stat().st_size if session.log.path.exists() else 0

    def full(handle, text):
        os.write(handle, text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nimbus_sd.app._log._write_all", full)
    with pytest.raises(InputError, match="No space left on device"):
        session.edit(kind, {} if kind == "undo" else {"1": "3"}, "a")
    with pytest.raises(InputError, match="so nothing was changed"):
        say(session, "a", 3, "positive")
    monkeypatch.undo()
    assert stored["nimbus"].obs["metacluster"].tolist() == before
    assert session.clusters.heatmap()["edits"] == edits
    assert "gold" not in stored["nimbus"].layers
    assert session.log.path.stat().st_size == size
    session.edit(kind, {} if kind == "undo" else {"1": "3"}, "a")
    assert Session(stored).n_passed_over == 0


def test_an_edit_of_clusters_that_others_have_changed_is_refused(stored, tmp_path):
    one, two = Session(stored), Session(sd.read_zarr(tmp_path / "t.zarr"))
    one.edit("merge", {"1": "3"}, "a")
    say(two, "b", 4, "negative")  # which reads the log, and leaves the clusters that are shown alone
    assert names(two) == list("01234")
    with pytest.raises(InputError, match="another reviewer changed the clusters: reload"):
        two.edit("merge", {"3": "4"}, "b")
    assert names(two) == names(one) == list("0234")
    seen = two.clusters.fingerprint
    two.edit("merge", {"3": "4"}, "b", seen=seen)
    with pytest.raises(InputError, match="reload"):
        two.edit("name", {"4": "T"}, "c", seen=seen)  # another page of the same server
    with pytest.raises(InputError, match="reload"):
        one.edit("name", {"3": "T"}, "a")
    third = Session(sd.read_zarr(tmp_path / "t.zarr"))
    assert names(third) == names(two) == names(one) == list("024")
    assert third.n_passed_over == 0


def test_edits_that_do_not_fit_are_counted(stored, tmp_path):
    session = Session(stored)
    session.edit("merge", {"1": "3"}, "a")
    session.edit("name", {"3": "T"}, "a")
    other = sd.read_zarr(tmp_path / "t.zarr")
    other["nimbus"].obs["metacluster"] = np.roll(other["nimbus"].obs["metacluster"], 1)
    found = Session(other)
    assert (found.n_passed_over, found.n_unsaved) == (2, 0)
    assert Session(sd.read_zarr(tmp_path / "t.zarr")).n_passed_over == 0


def test_processes_that_append_wait_for_one_that_is_alone(tmp_path):
    log = ReviewLog(tmp_path / "log.jsonl")
    code = f"""
from pathlib import Path
from nimbus_sd.app._log import ReviewLog
log = ReviewLog(Path({str(log.path)!r}))
input()
log.append([{{"kind": "answer", "n": 1}}])
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True) as process:
        with log.alone():
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(3)  # to be started, and to wait
            assert [e["n"] for e in log.append([{"kind": "answer", "n": 0}])] == [0]
        assert process.wait(60) == 0
    assert [e["n"] for e in log.new()] == [1]


def test_a_store_behind_a_url_has_its_log_in_the_cache(small, tmp_path, monkeypatch):
    monkeypatch.setenv("NIMBUS_SD_CACHE", str(tmp_path / "cache"))
    # as after nb.io.open_store(url); nothing is asked of the server, which is none
    monkeypatch.setitem(remote._opened, small, remote.remote_store("http://127.0.0.1:9/bucket/t.zarr"))
    session = Session(small)
    assert session.log.path.parent == tmp_path / "cache" / "reviews"
    say(session, "a", 3, "positive")
    assert len(session.log.path.read_text().splitlines()) == 1
    assert Session(small).gold.opinions.keys() == {(3, 0)}


def test_the_command_says_truly_where_changes_are(small, stored, capsys):
    kept, lost = Session(stored), Session(small)
    for session in (kept, lost):
        say(session, "a", 3, "positive")
        _say_what_is_left(session)
    said = capsys.readouterr().out
    assert f"1 changes are in {kept.log.path}" in said
    assert "1 changes were in memory only and are lost" in said
    assert "None" not in said
    kept.save()
    _say_what_is_left(kept)
    assert "Save wrote the table 'nimbus'" in capsys.readouterr().out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have a screen")
def test_no_browser_takes_the_terminal(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    assert not _browser.open_page("http://127.0.0.1:1/")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(
        _browser.webbrowser, "get", lambda: _browser.webbrowser.GenericBrowser("/usr/bin/w3m")
    )
    assert not _browser.open_page("http://127.0.0.1:1/")


def test_the_page_is_opened_in_a_thread(monkeypatch, tmp_path):
    # a browser that stays in the foreground must not keep the server's command from going on
    script, done = tmp_path / "slow", tmp_path / "done"
    script.write_text(f"#!/bin/sh\nsleep 0.5\necho $1 > {done}\n")
    script.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(script))
    monkeypatch.setattr(
        _browser.webbrowser, "get", lambda: _browser.webbrowser.GenericBrowser([str(script), "%s"])
    )
    assert _browser.open_page("http://127.0.0.1:1/")
    assert not done.exists()
    for _ in range(100):
        if done.exists() and done.read_text():
            break
        time.sleep(0.05)
    assert Path(done).read_text().strip() == "http://127.0.0.1:1/"


def test_a_usual_column_with_too_many_values_is_not_taken_for_clusters(reviewed):
    adata = reviewed(1, side=360)["nimbus"]
    assert adata.n_obs > 400
    adata.obs["leiden"] = adata.obs.pop("metacluster")
    adata.obs["metacluster"] = np.arange(adata.n_obs).astype(str)
    assert find_key(adata, None) == "leiden"
    del adata.obs["leiden"]
    assert find_key(adata, None) is None
    with pytest.raises(InputError, match="at most 400"):
        find_key(adata, "metacluster")
