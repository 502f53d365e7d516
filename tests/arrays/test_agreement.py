"""Rank correlations against SciPy's, one pair at a time."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from nimbus_sd.arrays.agreement import spearman_columns, spearman_rows


@pytest.fixture
def pair(rng):
    a = rng.integers(0, 9, (40, 6)).astype(np.float32)  # with ties
    return a, a + rng.normal(0, 3, a.shape).astype(np.float32)


def test_columns_and_rows_equal_scipy(pair):
    a, b = pair
    columns = [spearmanr(a[:, i], b[:, i]).statistic for i in range(6)]
    rows = [spearmanr(a[i], b[i]).statistic for i in range(40)]
    np.testing.assert_allclose(spearman_columns(a, b), columns)
    np.testing.assert_allclose(spearman_rows(a, b), rows)


def test_constants_have_no_correlation(pair):
    a, b = pair
    a[:, 2] = 1
    b[7] = 0
    assert np.isnan(spearman_columns(a, b)[2])
    assert np.isnan(spearman_rows(a, b)[7])
    assert np.isnan(spearman_columns(a[:1], b[:1])).all()
    assert spearman_rows(a[:0], b[:0]).shape == (0,)
    assert np.isnan(spearman_rows(a[:, :1], b[:, :1])).all()
