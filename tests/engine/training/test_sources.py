"""Sources: tiles by index, copies, splits by field, what is refused."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from nimbus_sd._core.errors import InputError
from nimbus_sd.arrays import interior_mask
from nimbus_sd.engine.training.array_source import ArraySource
from nimbus_sd.engine.training.array_write import in_memory, write_npy
from nimbus_sd.engine.training.simulated import SimulatedSource, simulated_dataset
from nimbus_sd.engine.training.sources import (
    ConcatSource,
    Preprocessing,
    RelabelledSource,
    SplitSource,
    TileSource,
    check_disjoint,
    check_tile,
    tile_groups,
)


def assert_same(a, b, *, rtol=0.0):
    for name in ("image", "mask", "labels", "target", "context", "extra"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        if x is not None:
            np.testing.assert_allclose(x, y, rtol=rtol, err_msg=name)
    assert a.name == b.name


def tiles_with_everything(tile):
    """Two places of two markers, context per marker, one extra plane."""
    out = []
    for field in ("f0", "f1"):
        for marker in ("CD3", "CD8"):
            same_place = tile(int(field[1]), field=field)
            out.append(
                replace(
                    same_place,
                    marker=marker,
                    target=same_place.target if marker == "CD3" else 1 - same_place.target,
                    context=np.float32([len(marker), marker == "CD8"]),
                    extra=np.full((1, 32, 32), int(field[1]), np.float32),
                )
            )
    return out


def test_copies_hold_the_same_tiles(tile, list_source, tmp_path):
    source = list_source(tiles_with_everything(tile))
    splits = {("d", "f0"): "train", ("d", "f1"): "validation"}
    copies = [
        in_memory(source, splits=splits),
        write_npy(source, tmp_path / "npy", splits=splits, dtype="float32"),
        ArraySource.open(tmp_path / "npy"),
    ]
    for copy in copies:
        assert isinstance(copy, SplitSource)
        assert (copy.groups, copy.fields, len(copy)) == (source.groups, source.fields, 4)
        assert len(copy.labels) == 2, "the markers of a place share its labels"
        for i in range(4):
            assert_same(copy.tile(i), source.tile(i))
        held = copy.split("validation")
        assert [held.tile(i).name for i in range(len(held))] == [t.name for t in source.tiles[2:]]
        assert held.fields == {("d", "f1")}
        assert tile_groups(copy) == tile_groups(source)
        assert tile_groups(held) == tile_groups(source)[2:]
        with pytest.raises(InputError, match="no tile is in split 'test'; fields per split"):
            copy.split("test")
        with pytest.raises(IndexError):
            copy.tile(4)
    assert isinstance(ArraySource.open(tmp_path / "npy").images, np.memmap)


def test_half_precision_is_what_it_says(tile, list_source, tmp_path):
    source = list_source([tile(i, field=f"f{i}") for i in range(3)])
    copy = write_npy(source, tmp_path / "npy")
    for i in range(3):
        np.testing.assert_allclose(copy.tile(i).image, source.tile(i).image, rtol=2**-11, atol=1e-7)


def test_an_interrupted_write_leaves_nothing_to_open(tile, list_source, tmp_path):
    class Failing(list_source):
        def tile(self, index):
            if index == 1:
                raise KeyboardInterrupt
            return super().tile(index)

    with pytest.raises(KeyboardInterrupt):
        write_npy(Failing([tile(0), tile(1)]), tmp_path / "npy")
    with pytest.raises(InputError, match="holds no finished tile folder"):
        ArraySource.open(tmp_path / "npy")
    assert len(write_npy(list_source([tile(0)]), tmp_path / "npy")) == 1
    with pytest.raises(InputError, match="is not empty"):
        write_npy(list_source([tile(0)]), tmp_path / "npy")
    assert [p.name for p in tmp_path.iterdir()] == ["npy"]


def test_joined_sources_keep_their_tiles(tile, list_source):
    first = list_source([tile(i) for i in range(3)])
    second = list_source([tile(i, dataset="e", marker="CD8") for i in range(2)])
    both = ConcatSource([first, second])
    assert isinstance(both, TileSource)
    assert len(both) == 5
    assert both.groups == (("d", "CD3"), ("e", "CD8"))
    assert both.fields == {("d", "f0"), ("e", "f0")}
    assert tile_groups(both) == [both.groups[0]] * 3 + [both.groups[1]] * 2
    assert [both.tile(i).dataset for i in range(5)] == ["d", "d", "d", "e", "e"]
    assert_same(both.tile(4), second.tile(1))
    with pytest.raises(IndexError):
        both.tile(5)
    with pytest.raises(InputError, match="have no splits: ListSource"):
        both.split("train")
    second.preprocessing = Preprocessing(mpp=0.5)
    with pytest.raises(InputError, match="made differently"):
        ConcatSource([first, second])
    with pytest.raises(InputError, match="at least one"):
        ConcatSource([])


def test_joined_splits_are_split(dataset):
    other = simulated_dataset(
        4, n_fields=2, side=64, markers=("CD3",), platform="ions", splits=("train", "validation")
    )
    both = ConcatSource([dataset.truth, other.truth])
    train, validation = both.split("train"), both.split("validation")
    assert len(train) == 4 * 3 + 1
    assert len(validation) == 2 * 3 + 1
    check_disjoint(train, validation)


def test_a_shared_field_is_an_error(dataset):
    train = dataset.truth.split("train")
    with pytest.raises(InputError, match=r"share 4 field.s.: simulated3/field0, simulated3/field1"):
        check_disjoint(train, dataset.truth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": np.zeros((3, 3))}, "must be one"),
        ({"target": np.zeros(2, np.float32)}, r"one value for each of labels 1\.\.6"),
        ({"target": np.full(6, 2, np.float32)}, "must be 1, 0 or NaN"),
        ({"extra": np.zeros((1, 3, 3))}, r"extra planes \(1, 3, 3\)"),
    ],
)
def test_tiles_that_dont_fit_together_are_named(tile, change, message):
    with pytest.raises(InputError, match="dataset 'd', field 'f0', marker 'CD3': .*" + message):
        check_tile(replace(tile(), **change))


def test_simulated_tiles_depend_on_seed_and_index_alone():
    forth, back = (SimulatedSource(3, seed=5, side=48, n_channels=2) for _ in range(2))
    order = range(len(forth))
    tiles = {i: forth.tile(i) for i in order}
    for i in reversed(order):
        assert_same(back.tile(i), tiles[i])
    assert forth.fields == {("simulated", f"tissue{i}") for i in (5, 6, 7)}
    check_disjoint(forth, SimulatedSource(2, seed=8, side=48))


def test_a_simulated_dataset_has_one_scale_per_marker(dataset):
    truth = dataset.truth
    assert len(truth) == 18
    images = truth.images.reshape(6, 3, -1)
    assert images.max() == 1
    # at most one pixel in 10,000 of a marker, over all fields, is clipped
    assert ((images == 1).mean(axis=(0, 2)) <= 2e-4).all()
    for i in range(len(truth)):
        tile = truth.tile(i)
        check_tile(tile)
        np.testing.assert_array_equal(tile.mask, interior_mask(tile.labels))
        rows = dataset.positive[dataset.field == i // 3, i % 3]
        np.testing.assert_array_equal(tile.target, rows)


def test_relabelled_tiles_change_their_target_only(dataset):
    flipped = RelabelledSource(dataset.truth, lambda i, tile: 1 - tile.target if i else tile.target)
    np.testing.assert_array_equal(flipped.tile(1).target, 1 - dataset.truth.tile(1).target)
    assert_same(flipped.tile(0), dataset.truth.tile(0))


def test_array_sources_travel_to_other_processes(dataset):
    assert_same(pickle.loads(pickle.dumps(dataset.truth)).tile(2), dataset.truth.tile(2))  # noqa: S301


def test_unknown_splits_are_refused(dataset):
    with pytest.raises(InputError, match="unknown names"):
        replace(dataset.truth, splits={("simulated3", "field0"): "trian"})


def test_a_split_that_only_some_sources_have_is_theirs(dataset):
    other = simulated_dataset(4, n_fields=1, side=64, markers=("CD3",), platform="ions", splits=("train",))
    both = ConcatSource([dataset.truth, other.truth])
    assert both.split("validation").fields == dataset.truth.split("validation").fields
    assert set(both.splits.values()) == {"train", "validation"}
    with pytest.raises(InputError, match="no source has a field in split 'test'"):
        both.split("test")
