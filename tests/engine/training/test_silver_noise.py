"""Corrupted labels: the stated rate, whole clusters, nothing undefined becomes defined."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.training.silver_noise import SilverNoise, corrupt


def cells(seed, n=400):
    rng = np.random.default_rng(seed)
    kinds = rng.choice(["B", "T", "mac"], n)
    profile = {"B": [1, 0, 0], "T": [0, 1, 0], "mac": [0, 0, 1]}
    positive = np.array([profile[k] for k in kinds], np.float32)
    positive[rng.random(positive.shape) < 0.1] = np.nan
    return positive, kinds, rng.integers(0, 4, n)


@given(st.integers(0, 99), st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5]), st.sampled_from([0.0, 0.5, 1.0]))
def test_the_rate_is_what_it_says(seed, rate, clustered):
    positive, kinds, fields = cells(seed)
    silver = corrupt(positive, kinds, fields, SilverNoise(rate, clustered, seed=seed))
    np.testing.assert_array_equal(np.isnan(silver), np.isnan(positive))
    defined = ~np.isnan(positive)
    wrong = (silver != positive) & defined
    assert wrong.sum() == round(rate * defined.sum())
    assert set(np.unique(silver[defined])) <= {0, 1}
    again = corrupt(positive, kinds, fields, SilverNoise(rate, clustered, seed=seed))
    np.testing.assert_array_equal(silver, again)


def test_clusters_go_wrong_as_a_whole():
    positive, kinds, fields = cells(0)
    positive = np.nan_to_num(positive, nan=0)
    silver = corrupt(positive, kinds, fields, SilverNoise(0.2, 1.0))
    wrong = (silver != positive).any(1)
    shares = [wrong[(kinds == k) & (fields == f)].mean() for k in np.unique(kinds) for f in range(4)]
    # all right or all wrong, but for the cluster that the rate cuts through
    assert sum(0.1 < s < 0.9 for s in shares) <= 1
    assert any(s > 0.9 for s in shares)


def test_flips_hit_markers_unevenly():
    positive = np.zeros((20000, 2), np.float32)
    one = np.zeros(20000, int)
    shares = np.array(
        [
            (corrupt(positive, one, one, SilverNoise(0.2, 0.0, 0.9, seed=s)) != positive).mean(0)
            for s in range(10)
        ]
    )
    assert np.abs(np.diff(shares, axis=1)).max() > 0.1


@pytest.mark.parametrize("values", [{"rate": 0.6}, {"clustered": -0.1}, {"marker_spread": 2}])
def test_impossible_noise_is_refused(values):
    with pytest.raises(InputError, match=next(iter(values))):
        SilverNoise(**values)
