"""The journal: what was finished is kept, whatever cut the run off, and nobody else's is touched."""

import json
import logging
import multiprocessing
import os
import resource
import signal
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import Partials, merge_partials
from nimbus_sd.arrays.cells import gather_cells
from nimbus_sd.engine.job import Block, Scored
from nimbus_sd.engine.journal import Journal
from nimbus_sd.engine.run_folder import key_of, run_folder

ABOUT = {"weights": "abc", "views": ["identity"], "tile": None}


def scored(tile, n=5, sample=0, seed=0):
    rng = np.random.default_rng((seed, tile))
    ids = np.sort(rng.choice(20, n, replace=False)) + 1
    sums = {"score": rng.random((n, 3)), "position": rng.random((n, 2)), "n_tiles": np.ones((n, 1))}
    return Scored(Block(sample, tile), Partials(ids, rng.integers(1, 9, n), sums), difference=0.01 * tile)


def same(a, b):
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.count, b.count)
    assert a.sums.keys() == b.sums.keys()
    for name in a.sums:
        np.testing.assert_array_equal(a.sums[name], b.sums[name])


def test_blocks_come_back_bit_for_bit_in_the_order_of_the_tiles(tmp_path):
    with Journal(tmp_path / "j", ABOUT) as journal:
        for tile in (3, 0, 2):
            journal.add(scored(tile))
        journal.add(scored(1, sample=1))
        journal.add(Scored(Block(0, 1), None))
        journal.note("normalization", {"scale": [1.5]})
    with Journal(tmp_path / "j", ABOUT) as journal:
        assert len(journal) == 5
        assert Block(0, 1) in journal
        assert Block(0, 4) not in journal
        assert journal.noted("normalization") == {"scale": [1.5]}
        assert journal.difference == pytest.approx(0.03)
        for found, tile in zip(journal.partials(0), (0, 2, 3), strict=True):
            same(found, scored(tile).partials)
        same(next(journal.partials(1)), scored(1).partials)


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_torn_end_is_cut_off_and_written_again(tmp_path, cut):
    path = tmp_path / "j"
    with Journal(path, ABOUT) as journal:
        journal.add(scored(0))
        journal.add(scored(1))
    os.truncate(path, path.stat().st_size - cut)
    with Journal(path, ABOUT) as journal:
        assert len(journal) == 1
        journal.add(scored(1))
        assert [p.ids.size for p in journal.partials(0)] == [5, 5]


@given(where=st.floats(0.3, 1, exclude_max=True))
def test_a_flipped_byte_loses_blocks_but_never_gives_wrong_ones(tmp_path_factory, where):
    path = tmp_path_factory.mktemp("flip") / "j"
    with Journal(path, ABOUT) as journal:
        for tile in range(4):
            journal.add(scored(tile))
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 0xFF
    path.write_bytes(content)
    with Journal(path, ABOUT) as journal:
        assert len(journal) < 4
        for tile, found in enumerate(journal.partials(0)):
            same(found, scored(tile).partials)


def test_another_runs_journal_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "j"
    with Journal(path, ABOUT) as journal:
        journal.add(scored(0))
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"belongs to another run \(different: weights\)"):
        Journal(path, {**ABOUT, "weights": "xyz"})
    assert path.read_bytes() == before
    (tmp_path / "text").write_text("this is something that somebody wrote down\n")
    with pytest.raises(InputError, match="no journal of this version"):
        Journal(tmp_path / "text", ABOUT)
    assert (tmp_path / "text").read_text().startswith("this is")


def _fill_disk(path):
    # the kernel refuses to let files grow, as it does when the disk is full
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    journal = Journal(path, ABOUT)
    try:
        for tile in range(1000):
            journal.add(scored(tile))
    except OSError as error:
        os._exit(7 if "those recorded so far are kept" in str(error) else 1)


def test_a_full_disk_keeps_what_was_recorded(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=_fill_disk, args=(tmp_path / "j",))
    child.start()
    child.join()
    assert child.exitcode == 7
    with Journal(tmp_path / "j", ABOUT) as journal:
        assert len(journal) >= 1
        for tile, found in enumerate(journal.partials(0)):
            same(found, scored(tile).partials)


@given(n_blocks=st.integers(0, 6), n=st.integers(1, 20), seed=st.integers(0, 2**16), shuffle=st.randoms())
def test_cells_are_the_merged_partials_divided(n_blocks, n, seed, shuffle):
    parts = [scored(t, n, seed=seed).partials for t in range(n_blocks)]
    shuffle.shuffle(parts)
    cells, merged = gather_cells(lambda: iter(parts)), merge_partials(parts)
    np.testing.assert_array_equal(cells.ids, merged.ids)
    np.testing.assert_array_equal(cells.count, merged.count)
    if n_blocks:
        np.testing.assert_allclose(
            cells.means["score"], merged.sums["score"] / merged.count[:, None], rtol=1e-6
        )
        np.testing.assert_allclose(
            cells.means["position"], merged.sums["position"] / merged.count[:, None], rtol=1e-12
        )
        np.testing.assert_array_equal(cells.means["n_tiles"], merged.sums["n_tiles"])
        assert cells.means["score"].dtype == np.float32


def leave_unfinished(home, key):
    with suppress(KeyboardInterrupt), run_folder([home], key, resume=True) as folder:
        (folder / "blocks").write_text("x")
        raise KeyboardInterrupt


def test_a_run_folder_goes_after_success_and_stays_after_failure(tmp_path):
    home, key = tmp_path / ".store.nimbus-runs", key_of(ABOUT)
    with run_folder([home], key, resume=True) as folder:
        (folder / "blocks").write_text("x")
    assert not home.exists()
    leave_unfinished(home, key)
    with run_folder([home], key, resume=True) as folder:
        assert (folder / "blocks").read_text() == "x"
    assert not home.exists()


def test_without_resume_a_run_starts_afresh(tmp_path):
    home = tmp_path / "home"
    leave_unfinished(home, "a")
    with run_folder([home], "a", resume=False) as folder:
        assert not (folder / "blocks").exists()


def test_unfinished_runs_of_others_are_named_and_left_alone(tmp_path, caplog):
    home = tmp_path / "home"
    leave_unfinished(home, "stale")
    with caplog.at_level(logging.WARNING, "nimbus_sd"), run_folder([home], "mine", resume=True):
        pass
    assert "left alone: stale" in caplog.text
    assert (home / "stale" / "blocks").read_text() == "x"
    assert not (home / "mine").exists()


def test_a_second_run_is_refused_and_told_who_the_first_is(tmp_path):
    home = tmp_path / "home"
    with run_folder([home], "a", resume=True):
        assert json.loads((home / "owner.json").read_text())["pid"] == os.getpid()
        with (
            pytest.raises(InputError, match=rf"another run works on this store: process {os.getpid()} on"),
            run_folder([home], "b", resume=True),
        ):
            pass
    with run_folder([home], "b", resume=True):
        pass


def test_key_depends_on_everything_and_not_on_the_order():
    assert key_of(ABOUT) == key_of(dict(reversed(ABOUT.items())))
    assert key_of(ABOUT) != key_of({**ABOUT, "tile": 512})
