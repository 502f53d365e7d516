"""Simulated studies: one scale per marker, and silver labels that are wrong as those of clustering are."""

import numpy as np
import pytest

from nimbus_sd._core.errors import InputError
from nimbus_sd.simulation import Marker, simulate_dataset
from nimbus_sd.simulation.silver import cluster_cells, integrated_expression, silver_labels


@pytest.fixture(scope="module")
def study():
    return simulate_dataset(3, n_fields=2, shape=(160, 160), n_channels=4)


def test_fields_share_one_scale_per_marker(study):
    pixels = np.stack([f.images for f in study.fields])
    np.testing.assert_allclose(np.quantile(pixels, 0.9999, axis=(0, 2, 3)), 1, rtol=1e-3)


def test_every_cell_has_truth_and_silver_label_of_its_field(study):
    for field, silver in zip(study.fields, study.silver, strict=True):
        assert field.positive.shape == silver.shape == (field.labels.max(), 4)
        np.testing.assert_array_equal(np.isnan(silver), np.isnan(field.positive))
        assert set(np.unique(silver[~np.isnan(silver)])) <= {0, 1}


def test_the_same_seed_gives_the_same_study(study):
    again = simulate_dataset(3, n_fields=2, shape=(160, 160), n_channels=4)
    for a, b in zip(study.fields, again.fields, strict=True):
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)
    for a, b in zip(study.silver, again.silver, strict=True):
        np.testing.assert_array_equal(a, b)


def test_clustering_gets_some_ten_percent_wrong():
    wrong = total = 0
    for seed in range(6):
        data = simulate_dataset(seed, n_fields=2, shape=(192, 192), n_channels=4)
        for field, silver in zip(data.fields, data.silver, strict=True):
            known = ~np.isnan(silver)
            wrong += (silver != field.positive)[known].sum()
            total += known.sum()
    assert 0.02 < wrong / total < 0.25


def test_silver_labels_are_the_majority_of_each_cluster():
    rng = np.random.default_rng(0)
    expression = rng.gamma(1, 1, (400, 3))
    positive = np.where(rng.random((400, 3)) < 0.1, np.nan, (expression > 1.5).astype(float))
    silver = silver_labels(np.random.default_rng(1), expression, positive, n_clusters=9)
    cluster = cluster_cells(np.random.default_rng(1), expression, 9)
    for c in np.unique(cluster):
        for m in range(3):
            rows = (cluster == c) & ~np.isnan(positive[:, m])
            if rows.any():
                assert (silver[rows, m] == (positive[rows, m].mean() > 0.5)).all()
    assert np.isnan(silver[np.isnan(positive)]).all()


def test_integrated_expression_is_the_mean_per_label():
    rng = np.random.default_rng(0)
    labels, images = rng.integers(0, 6, (20, 20)), rng.random((2, 20, 20))
    expected = [[images[c][labels == i].mean() for c in range(2)] for i in range(1, 6)]
    np.testing.assert_allclose(integrated_expression(images, labels), expected)


def test_faint_cells_are_dimmer_than_positive_ones_and_stay_negative():
    with pytest.raises(InputError, match=r"'faint' must lie in \[0, 1\]"):
        Marker("x", {"B": 0.9}, faint={"B": 2})
    with pytest.raises(InputError, match="unknown cell types"):
        Marker("x", faint={"C": 0.2})


def test_a_study_needs_fields_and_channels():
    with pytest.raises(InputError, match="at least one field"):
        simulate_dataset(0, n_fields=0)
