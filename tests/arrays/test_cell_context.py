"""Context per marker and features per cell, against slow and obvious versions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.filters import threshold_otsu

from nimbus_sd.arrays.cell_context import (
    CONTEXT_NAMES,
    LEVELS,
    N_FEATURES,
    cell_features,
    fit_context,
    nearest_cells,
    neighbour_mean,
    otsu_threshold,
)

unit = st.floats(0, 1, width=32)


def cells(seed=0, n=300):
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.2
    intensity = np.where(positive, rng.gamma(4, 0.1, n), rng.gamma(2, 0.01, n))
    score = np.clip(np.where(positive, 0.8, 0.1) + rng.normal(0, 0.05, n), 0, 1)
    return score, intensity, positive


def features(score, intensity, context, **other):
    given_ = {"neighbours": np.zeros(len(score)), "area": np.full(len(score), 80.0), **other}
    return cell_features(score, intensity, context=context, **given_)


@pytest.mark.parametrize("seed", range(5))
def test_otsu_is_scikit_images(seed):
    values = np.sqrt(cells(seed)[1])
    width = np.ptp(values) / 256
    assert abs(otsu_threshold(values) - threshold_otsu(values)) <= 1.5 * width


def test_otsu_of_equal_values_is_that_value():
    assert otsu_threshold(np.full(5, 0.3)) == 0.3


def test_context_holds_quantiles_of_the_root_and_the_means_of_both_classes():
    score, intensity, positive = cells()
    found = dict(zip(CONTEXT_NAMES, fit_context(score, intensity), strict=True))
    root = np.sqrt(intensity)
    assert found["q0.500"] == pytest.approx(np.median(root), rel=1e-5)
    assert found["q1.000"] == pytest.approx(root.max(), rel=1e-5)
    assert found["mean_positive"] == pytest.approx((score * root).sum() / score.sum(), rel=1e-5)
    assert found["mean_negative"] < found["otsu"] < found["mean_positive"]
    assert found["share"] == pytest.approx(score.mean(), rel=1e-5)
    assert root[positive].mean() > found["otsu"]


def test_context_does_not_depend_on_the_order_of_cells():
    score, intensity, _ = cells()
    order = np.random.default_rng(1).permutation(len(score))
    np.testing.assert_allclose(
        fit_context(score[order], intensity[order]), fit_context(score, intensity), rtol=1e-5
    )


@given(arrays(np.float64, st.integers(1, 40), elements=unit), st.integers(0, 5))
def test_features_are_finite_whatever_the_cells(intensity, seed):
    score = np.random.default_rng(seed).random(len(intensity))
    found = features(score, intensity, fit_context(score, intensity))
    assert found.shape == (len(intensity), N_FEATURES)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_no_cells_give_an_empty_context_and_no_features():
    context = fit_context(np.empty(0), np.empty(0))
    assert context.shape == (len(CONTEXT_NAMES),)
    assert features(np.empty(0), np.empty(0), context).shape == (0, N_FEATURES)


def test_a_cells_features_need_only_itself_and_the_context():
    score, intensity, _ = cells()
    context = fit_context(score, intensity)
    whole = features(score, intensity, context)
    np.testing.assert_array_equal(features(score[7:9], intensity[7:9], context), whole[7:9])


def test_rank_is_the_share_of_dimmer_cells():
    score, intensity, _ = cells(n=2000)
    rank = np.exp(features(score, intensity, fit_context(score, intensity))[:, 6]) - 1e-3
    share = np.argsort(np.argsort(intensity)) / (len(intensity) - 1)
    assert np.abs(rank - share).max() < 0.03
    assert len(LEVELS) + 6 == len(CONTEXT_NAMES)


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 9))
def test_neighbour_mean_is_the_mean_of_the_nearest_others(n, k, seed):
    rng = np.random.default_rng(seed)
    positions, values = rng.random((n, 2)), rng.random((n, 2))
    expected = np.zeros((n, 2))
    for i in range(n):
        others = sorted(
            (j for j in range(n) if j != i), key=lambda j: np.hypot(*(positions[i] - positions[j]))
        )
        if others:
            expected[i] = values[others[:k]].mean(0)
    np.testing.assert_allclose(neighbour_mean(values, nearest_cells(positions, k=k)), expected)


def test_cells_at_one_place_do_not_count_themselves():
    values = np.arange(4.0)[:, None]
    found = neighbour_mean(values, nearest_cells(np.zeros((4, 2)), k=3))
    np.testing.assert_allclose(found[:, 0], (values.sum() - values[:, 0]) / 3)
