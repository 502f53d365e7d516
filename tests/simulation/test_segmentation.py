"""Each segmentation error does what its name says, and truth follows it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from nimbus_sd.arrays import interior_mask
from nimbus_sd.simulation.config import SegmentationConfig, TissueConfig
from nimbus_sd.simulation.segmentation import (
    carry_over,
    dilate_labels,
    erode_labels,
    halved_interior,
    interior,
    merge_labels,
    overlap,
    segment,
    shift_labels,
)
from nimbus_sd.simulation.tissue import grow_tissue


@pytest.fixture(scope="module")
def tissue():
    return grow_tissue(np.random.default_rng(0), (192, 192), TissueConfig(epithelium=0.4, aggregate=0.3), 1.0)


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def n_labels(labels):
    return len(np.unique(labels)) - 1


def test_no_error_gives_the_true_cells(tissue, rng):
    labels = segment(rng, tissue, SegmentationConfig())
    assert ((labels > 0) <= (tissue.cells > 0)).all()
    np.testing.assert_array_equal(interior(labels) & (labels > 0), interior(labels))
    assert (labels > 0).sum() > 0.97 * (tissue.cells > 0).sum()


def test_nuclei_lie_inside_their_cells(tissue, rng):
    labels = segment(rng, tissue, SegmentationConfig(nuclei=True))
    assert (tissue.nuclei[labels > 0]).all()
    assert (labels > 0).sum() < 0.8 * (tissue.cells > 0).sum()


def test_dilation_grows_only_into_background(tissue):
    grown = dilate_labels(tissue.cells, 2.0, 1.0)
    np.testing.assert_array_equal(grown[tissue.cells > 0], tissue.cells[tissue.cells > 0])
    reach = ndimage.distance_transform_edt(tissue.cells == 0)
    np.testing.assert_array_equal(grown > 0, reach <= 2)


def test_erosion_removes_the_rim(tissue):
    np.testing.assert_array_equal(erode_labels(tissue.cells, 0.0, 1.0), tissue.cells)
    eroded = erode_labels(tissue.cells, 1.0, 1.0)
    assert 0 < (eroded > 0).sum() < (tissue.cells > 0).sum()
    np.testing.assert_array_equal(eroded > 0, interior(tissue.cells))


def test_merging_fuses_neighbours(tissue, rng):
    merged = merge_labels(rng, tissue.cells, 0.2)
    np.testing.assert_array_equal(merged > 0, tissue.cells > 0)
    before = n_labels(tissue.cells)
    assert 0.8 * before < n_labels(merged) < 0.95 * before


@pytest.mark.parametrize(("error", "sign"), [("split", 1), ("missed", -1), ("merged", -1)])
def test_errors_change_the_count(tissue, rng, error, sign):
    plain = segment(rng, tissue, SegmentationConfig()).max()
    wrong = segment(rng, tissue, SegmentationConfig(**{error: 0.3})).max()
    assert sign * (int(wrong) - int(plain)) > 0.1 * plain


def test_shift_moves_everything(rng):
    labels = np.zeros((40, 40), np.int32)
    labels[15:25, 15:25] = 7
    moved = shift_labels(np.random.default_rng(5), labels, 6.0, 1.0)
    assert (moved == 7).sum() == 100
    assert not np.array_equal(moved, labels)


def test_interior_agrees_with_the_kernel_used_for_prediction(tissue):
    np.testing.assert_array_equal(interior(tissue.cells), interior_mask(tissue.cells))


def test_halved_interior_lies_between_all_and_interior(tissue, rng):
    mask = halved_interior(rng, tissue.cells)
    assert (mask >= interior(tissue.cells)).all()
    assert (mask <= (tissue.cells > 0)).all()
    assert interior(tissue.cells).sum() < mask.sum() < (tissue.cells > 0).sum()


def test_truth_of_merged_split_and_stray_labels():
    cells = np.zeros((8, 40), np.int32)
    cells[:, :10], cells[:, 10:20], cells[:, 20:30] = 1, 2, 3
    truth = np.array([[0, 0], [1, 1], [0, 1], [np.nan, 0]], np.float32)
    labels = np.zeros_like(cells)
    labels[:, :20] = 1  # one positive and one negative cell of equal size
    labels[:, 20:25] = 2  # half of a cell whose first marker is undefined
    labels[:, 28:] = 3  # mostly outside any cell
    expected = np.array([[np.nan, 1], [np.nan, 0], [np.nan, np.nan]], np.float32)
    np.testing.assert_array_equal(carry_over(overlap(labels, cells), truth), expected)


def test_no_labels_no_rows(tissue):
    empty = np.zeros_like(tissue.cells)
    truth = np.zeros((tissue.n_cells + 1, 2), np.float32)
    assert carry_over(overlap(empty, tissue.cells), truth).shape == (0, 2)
