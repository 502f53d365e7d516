"""Simulated fields: same seed, same arrays; shapes, dtypes and ids as promised; truth that can be seen."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus_sd._core.errors import InputError
from nimbus_sd.simulation import (
    CELL_TYPES,
    PANEL,
    FieldConfig,
    Marker,
    PlatformConfig,
    SegmentationConfig,
    TissueConfig,
    panel,
    simulate_field,
)

SMALL = FieldConfig(shape=(128, 160), mpp=1.0, markers=panel(("HH3", "CD45", "PanCK")))
DTYPES = {
    "ions": np.uint16,
    "ions_denoised": np.uint8,
    "fluorescence8": np.uint8,
    "fluorescence16": np.uint16,
    "float": np.float32,
}


def test_same_seed_same_arrays_other_seed_other_arrays():
    first, again, other = simulate_field(3, SMALL), simulate_field(3, SMALL), simulate_field(4, SMALL)
    for item in fields(first):
        np.testing.assert_array_equal(getattr(first, item.name), getattr(again, item.name))
    assert not np.array_equal(first.labels, other.labels)


def test_a_marker_does_not_depend_on_the_markers_after_it():
    alone = simulate_field(3, FieldConfig(shape=(128, 160), mpp=1.0, markers=panel(("HH3",))))
    np.testing.assert_array_equal(alone.image[0], simulate_field(3, SMALL).image[0])


@pytest.mark.parametrize(("kind", "dtype"), DTYPES.items())
def test_shapes_dtypes_and_ids(kind, dtype):
    field = simulate_field(
        1, FieldConfig(shape=(96, 130), mpp=1.0, platform=PlatformConfig(kind), markers=PANEL[:3])
    )
    assert field.image.shape == (3, 96, 130)
    assert field.image.dtype == dtype
    assert field.labels.dtype == field.true_labels.dtype == np.uint32
    np.testing.assert_array_equal(np.unique(field.labels)[1:], field.instance_ids)
    assert field.positive.shape == (len(field.instance_ids), 3)
    assert field.cell_types.shape == field.instance_ids.shape
    assert set(np.unique(field.cell_types)) <= {*CELL_TYPES, ""}
    assert np.isin(field.positive[~np.isnan(field.positive)], (0, 1)).all()


@settings(max_examples=8, deadline=None)
@given(
    shape=st.tuples(st.integers(32, 97), st.integers(32, 97)),
    mpp=st.sampled_from([0.325, 0.5, 1.0]),
    kind=st.sampled_from(sorted(DTYPES)),
    seed=st.integers(0, 2**31),
)
def test_any_shape_and_pixel_size(shape, mpp, kind, seed):
    config = FieldConfig(shape=shape, mpp=mpp, platform=PlatformConfig(kind), markers=PANEL[:2])
    field = simulate_field(seed, config)
    assert field.image.shape == (2, *shape)
    assert np.isfinite(field.image).all()
    assert len(field.positive) == len(field.instance_ids) == field.labels.max()


@pytest.mark.parametrize("where", ["membrane", "cytoplasm", "nucleus"])
def test_positive_cells_are_brighter(where):
    marker = Marker("m", dict.fromkeys(CELL_TYPES, 0.4), **{where: 1.0}, level=0.6, spread=0.2, dim=0)
    config = FieldConfig(
        shape=(256, 256),
        mpp=1.0,
        markers=(marker,),
        segmentation=SegmentationConfig(),
        platform=PlatformConfig("fluorescence16", counts=500, blur=0.3),
    )
    field = simulate_field(0, config)
    sums = np.bincount(field.labels.ravel(), weights=field.image[0].ravel())[1:]
    mean = sums / np.bincount(field.labels.ravel())[1:]
    truth = field.positive[:, 0]
    assert 0.2 < np.nanmean(truth) < 0.6
    assert np.median(mean[truth == 1]) > 3 * np.median(mean[truth == 0])


def test_types_follow_their_markers():
    field = simulate_field(2, FieldConfig(shape=(256, 256), mpp=1.0, markers=panel(("CD20", "PanCK"))))
    b_cells, epithelium = field.cell_types == "B", field.cell_types == "epithelial"
    assert np.nanmean(field.positive[b_cells, 0]) > 0.7
    assert np.nanmean(field.positive[epithelium, 1]) > 0.7
    assert np.nanmean(field.positive[epithelium, 0]) < 0.1


def test_cell_diameters():
    field = simulate_field(0, FieldConfig(shape=(384, 384), mpp=1.0, markers=PANEL[:1]))
    area = np.bincount(field.true_labels.ravel())[1:]
    diameter = np.sqrt(4 * area[area > 0] / np.pi)
    assert 5 < np.median(diameter) < 13
    assert np.quantile(diameter, 0.99) < 18


@pytest.mark.parametrize(
    "make",
    [
        lambda: FieldConfig(shape=(16, 100)),
        lambda: FieldConfig(mpp=0),
        lambda: FieldConfig(markers=()),
        lambda: FieldConfig(markers=(PANEL[0], PANEL[0])),
        lambda: TissueConfig(epithelium=0.8, stroma=0.5),
        lambda: TissueConfig(immune_diameter=40),
        lambda: SegmentationConfig(merged=1.5),
        lambda: SegmentationConfig(dilate=-1),
        lambda: PlatformConfig("scanner"),
        lambda: PlatformConfig(counts=0),
        lambda: Marker("m", {"neuron": 1.0}),
        lambda: Marker("m", {"B": 2.0}),
        lambda: Marker("m", level=-1),
        lambda: panel(("CD45", "CD999")),
    ],
)
def test_impossible_requests_are_refused(make):
    with pytest.raises(InputError):
        make()
