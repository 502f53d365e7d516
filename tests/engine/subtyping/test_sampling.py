"""Sampling: halves and quarters, nothing twice, what is missing is said; patients are kept apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.subtyping.sampling import (
    PARTS,
    check_leaks,
    sample_balanced,
    sample_natural,
    split_patients,
)

labels_of = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 80), st.integers(1, 5)),
    elements=st.sampled_from([0.0, 0.0, 0.0, 1.0, np.nan]),
)


def section(n=20_000, seed=0):
    """About the paper's ratios; T cells are CD45 positive."""
    rng = np.random.default_rng(seed)
    cd45 = rng.random(n) < 0.2
    cd3e = cd45 & (rng.random(n) < 0.3)
    cd4 = cd3e & (rng.random(n) < 0.15)
    cd8a = cd3e & ~cd4 & (rng.random(n) < 0.15)
    labels = np.stack([cd45, cd3e, cd4, cd8a], axis=1).astype(np.float32)
    labels[rng.random(labels.shape) < 0.03] = np.nan
    return labels


@given(labels_of, st.integers(2, 60), st.integers(0, 9))
def test_halves_and_quarters_hold_or_what_is_missing_is_said(labels, n_cells, seed):
    found = sample_balanced(labels, n_cells=n_cells, rng=np.random.default_rng(seed))
    rows = found.rows
    assert len(np.unique(rows)) == len(rows)
    assert (np.diff(rows) > 0).all()
    chosen = labels[rows]
    positive = (chosen == 1).any(axis=1)
    negative = (chosen == 0).all(axis=1)
    assert (positive | negative).all(), "a cell is positive for a marker or negative for all"
    assert (int(positive.sum()), int(negative.sum())) == (found.positive, found.negative)
    np.testing.assert_array_equal((chosen == 1).sum(0), found.per_marker)
    # positive cells are never turned away for want of others
    available = int((labels == 1).any(axis=1).sum())
    assert found.positive == min(n_cells // 2, available)
    spare = int((labels == 0).all(axis=1).sum())
    half = n_cells - n_cells // 2 if found.positive == n_cells // 2 else found.positive
    assert found.negative == min(half, spare)
    assert found.short_positive == n_cells // 2 - found.positive
    assert found.short_negative == n_cells - n_cells // 2 - found.negative
    least = math.floor(found.positive / max(labels.shape[1], 4))
    total = (labels == 1).sum(axis=0)
    assert (found.per_marker >= np.minimum(total, least)).all(), "a quarter, or as much as all can have"
    quarter = found.positive / 4
    gone = total <= found.per_marker
    np.testing.assert_array_equal(
        found.short_marker, np.where(gone, np.maximum(math.ceil(quarter) - found.per_marker, 0), 0)
    )
    np.testing.assert_array_equal(
        found.crowded, np.where(gone, 0, np.maximum(math.floor(quarter) - found.per_marker, 0))
    )


@given(labels_of, st.integers(2, 60), st.integers(0, 9))
def test_a_marker_lacks_cells_only_if_its_cells_are_used_up(labels, n_cells, seed):
    found = sample_balanced(labels, n_cells=n_cells, rng=np.random.default_rng(seed))
    total = (labels == 1).sum(axis=0)
    short = found.short_marker > 0
    np.testing.assert_array_equal(found.per_marker[short], total[short])
    assert labels.shape[1] > 4 or not found.crowded.any(), "four quarters have room"


def disjoint(*counts, negative=5000):
    """Every positive cell is positive for one marker alone."""
    labels = np.zeros((sum(counts) + negative, len(counts)), np.float32)
    labels[np.arange(sum(counts)), np.repeat(np.arange(len(counts)), counts)] = 1
    return labels


def test_a_quarter_that_does_not_come_out_even_is_not_called_too_few():
    found = sample_balanced(disjoint(5000, 5000, 5000, 5000), n_cells=20, rng=np.random.default_rng(0))
    assert sorted(found.per_marker.tolist()) == [2, 2, 3, 3]
    assert found.satisfied


def test_more_markers_than_there_is_room_for_are_told():
    six = disjoint(*[2000] * 6)
    found = sample_balanced(six, n_cells=1200, rng=np.random.default_rng(0))
    assert found.per_marker.min() >= 100, "as much for each as all can have"
    assert not found.short_marker.any(), "there are plenty"
    np.testing.assert_array_equal(found.crowded, np.maximum(150 - found.per_marker, 0))
    assert not found.satisfied
    # cells that count for several leave room for a quarter
    nested = (np.arange(20_000)[:, None] < 4000 - 500 * np.arange(6)).astype(np.float32)
    found = sample_balanced(nested, n_cells=1200, rng=np.random.default_rng(0))
    assert found.per_marker.min() >= 150
    assert found.satisfied


def test_of_many_markers_a_rare_one_still_gives_all_it_has():
    found = sample_balanced(disjoint(20, *[2000] * 5), n_cells=1200, rng=np.random.default_rng(0))
    assert (found.per_marker[0], found.short_marker[0], found.crowded[0]) == (20, 130, 0)


@given(labels_of, st.integers(2, 60), st.integers(0, 9))
def test_a_natural_sample_is_any_of_the_labelled_cells(labels, n_cells, seed):
    found = sample_natural(labels, n_cells=n_cells, rng=np.random.default_rng(seed))
    known = ~np.isnan(labels).all(axis=1)
    assert len(found.rows) == len(np.unique(found.rows)) == min(n_cells, known.sum())
    assert known[found.rows].all()
    assert found.satisfied


def test_a_large_section_gives_what_the_paper_asks_for():
    labels = section()
    found = sample_balanced(labels, n_cells=800, rng=np.random.default_rng(1))
    assert found.satisfied
    assert (found.negative, found.positive) == (400, 400)
    assert found.per_marker.min() >= 100
    assert found.per_marker[2] == 100, "the rare ones get their quarter and no more, by chance or few"
    again = sample_balanced(labels, n_cells=800, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(found.rows, again.rows)
    other = sample_balanced(labels, n_cells=800, rng=np.random.default_rng(2))
    assert found.rows.tolist() != other.rows.tolist()


def test_a_section_with_too_few_gives_all_it_has_and_stays_half_negative():
    labels = section(2000)
    n_positive = int((labels == 1).any(axis=1).sum())
    found = sample_balanced(labels, n_cells=20_000, rng=np.random.default_rng(0))
    assert (found.positive, found.negative) == (n_positive, n_positive)
    assert found.short_positive == found.short_negative == 10_000 - n_positive
    np.testing.assert_array_equal(found.per_marker, (labels == 1).sum(axis=0))
    assert found.short_marker[0] == 0
    assert (found.short_marker[2:] > 0).all()
    empty = sample_balanced(np.zeros((50, 2)), n_cells=20, rng=np.random.default_rng(0))
    assert (len(empty.rows), empty.short_positive, empty.short_negative) == (0, 10, 10)


def test_every_cell_of_a_kind_is_as_likely():
    labels = np.zeros((60, 1))
    labels[:20] = 1
    counts = np.zeros(60)
    for seed in range(400):
        counts[sample_balanced(labels, n_cells=20, rng=np.random.default_rng(seed)).rows] += 1
    assert counts[:20].mean() == 200
    assert np.abs(counts[:20] - 200).max() < 50, "five standard deviations"
    assert np.abs(counts[20:] - 100).max() < 45


def test_tests_have_the_ratios_of_the_tissue():
    labels = section(40_000)
    found = sample_natural(labels, n_cells=20_000, rng=np.random.default_rng(0))
    for sampled, whole in zip(labels[found.rows].T, labels.T, strict=True):
        ratio = (sampled == 1).sum() / (sampled == 0).sum()
        assert ratio == pytest.approx((whole == 1).sum() / (whole == 0).sum(), rel=0.1)


@pytest.mark.parametrize(
    ("labels", "n", "message"),
    [
        (np.full((3, 2), 2.0), 4, r"labels hold \[2.0\]; valid: 1 positive"),
        (np.zeros(3), 4, r"shape \(3,\)"),
        (np.zeros((3, 2)), 1, "n_cells=1 must be a whole number from 2"),
        (np.zeros((3, 2)), True, "n_cells=True must be a whole number"),
    ],
)
def test_bad_input_is_refused(labels, n, message):
    for draw in (sample_balanced, sample_natural):
        with pytest.raises(InputError, match=message):
            draw(labels, n_cells=n, rng=np.random.default_rng(0))


weights = st.tuples(st.integers(1, 30), st.integers(0, 30), st.integers(0, 30))


@given(st.integers(1, 60), weights, st.integers(0, 5), st.randoms())
def test_patients_are_split_as_asked_and_whole(n, split, seed, random):
    names = [f"p{i}" for i in range(n)]
    found = split_patients(names, split, seed=seed)
    assert set(found) == set(names)
    counts = [list(found.values()).count(p) for p in PARTS]
    wanted = [w > 0 for w in split]
    exact = np.array(split) / sum(split) * n
    for count, share, want in zip(counts, exact, wanted, strict=True):
        assert want or not count
        if n >= 3 * max(split):  # no part had to borrow
            assert abs(count - share) <= 1
    if n >= sum(wanted):
        assert all(c > 0 for c, want in zip(counts, wanted, strict=True) if want)
    else:
        assert counts[0] == 1, "training goes first"
    if sum(split) == n and all(split):
        assert counts == list(split)
    shuffled = names + names[:3]
    random.shuffle(shuffled)
    assert split_patients(shuffled, split, seed=seed) == found, "neither order nor repetition matters"


def test_splits_that_are_given_and_those_that_are_none():
    assert split_patients(["b", "a"], {"a": "test", "b": "train"}) == {"a": "test", "b": "train"}
    assert list(split_patients(list("abcdefghij"), (0.7, 0.2, 0.1)).values()).count("train") == 7
    for split, message in [
        ({"a": "train"}, r"leaves out \['b'\]"),
        ({"a": "train", "b": "test", "c": "test"}, r"names \['c'\], who have no section"),
        ({"a": "train", "b": "tset"}, "valid parts: train, validation, test"),
        ((1, 2), "three numbers ≥ 0"),
        ((1, -1, 1), "three numbers ≥ 0"),
        ((0, 1, 1), "training above 0"),
        ((1, float("nan"), 1), "three numbers ≥ 0"),
        ("abc", "three numbers ≥ 0"),
    ]:
        with pytest.raises(InputError, match=message):
            split_patients(["a", "b"], split)


def test_a_patient_in_two_parts_is_found():
    check_leaks(["a", "a", "b", "b"], ["train", "train", "test", ""])
    with pytest.raises(InputError, match=r"\{'a': \['test', 'train'\]\}.*would be too good"):
        check_leaks(["a", "a", "b"], ["train", "test", "test"])
