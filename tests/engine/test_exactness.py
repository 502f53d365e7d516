"""Scores equal one forward pass over the whole padded image, however the work is cut."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nimbus_sd.arrays import VIEWS
from nimbus_sd.arrays.rescale import scale_factor
from nimbus_sd.engine.predict import PredictConfig, Predictor
from nimbus_sd.engine.source import ArrayImage, ArrayLabels, Sample
from nimbus_sd.testing import (
    directional_model,
    random_image,
    random_labels,
    strategies,
    tiny_unet_model,
    whole_image_scores,
)

CHANNELS = ("a", "b", "c")
SCALE = np.array([700.0, 300.0, 1000.0])
FAKE = directional_model()
MPPS = {0.5: 2.0, 1.0: 1.0, 2.0: 0.5, 1 / 1.5: 1.5, 1 / 3: 3.0}


def sample(shape, *, seed=0, mpp=1.0, dtype="uint16", **labels):
    image = random_image((3, *shape), seed=seed, dtype=dtype)
    return Sample(
        "cells", ArrayImage("i", image, CHANNELS), ArrayLabels("l", random_labels(shape, **labels)), mpp
    )


def run(model, sample, *, on_device=None, **config):
    config = {"device": "cpu", "precision": "float32", "tile": 512} | config
    return Predictor(model, PredictConfig(**config), on_device=on_device).run(sample, CHANNELS, SCALE)


def mean(partials, name="score"):
    return partials.sums[name] / partials.count.reshape(-1, *[1] * (partials.sums[name].ndim - 1))


def oracle(model, sample, **options):
    return whole_image_scores(
        sample.image.array,
        sample.labels.array,
        model.net,
        scale=SCALE,
        factor=scale_factor(sample.mpp, model.card.mpp),
        transform=model.card.transform,
        stride=model.card.stride,
        **options,
    )


@settings(max_examples=40)
@given(
    shape=strategies.shapes(1, 100),
    mpp=st.sampled_from(list(MPPS)),
    tile=st.sampled_from([16, 32, 48, 512]),
    batch_size=st.sampled_from([None, 1, 2, 16]),
    n_threads=st.sampled_from([0, 1, 3]),
    transform=st.sampled_from(["identity", "sqrt"]),
    on_device=st.booleans(),
    seed=st.integers(0, 99),
)
@example((1, 1), 1.0, 16, None, 0, "identity", False, 0)
@example((1, 1), 1.0, 16, None, 0, "identity", True, 0)
@example((15, 17), 1.0, 16, 1, 2, "identity", True, 1)
@example((16, 31), 0.5, 16, None, 2, "sqrt", False, 2)
@example((97, 64), 1 / 1.5, 32, 2, 1, "identity", True, 3)
@example((33, 65), 2.0, 16, None, 0, "identity", False, 4)
def test_any_cut_of_the_work_gives_the_whole_image_answer(
    shape, mpp, tile, batch_size, n_threads, transform, on_device, seed
):
    model = directional_model(transform=transform)
    field = sample(shape, seed=seed, mpp=mpp, n=20)
    ids, expected = oracle(model, field)
    got = run(model, field, tile=tile, batch_size=batch_size, n_threads=n_threads, on_device=on_device)
    assert got.ids.tolist() == ids.tolist()
    np.testing.assert_allclose(mean(got), expected[..., 0], atol=1e-5)


@settings(max_examples=6)
@given(shape=strategies.shapes(60, 150), seed=st.integers(0, 99), mpp=st.sampled_from([0.5, 1.0]))
@example((150, 141), 0, 1.0)
def test_a_deep_network_in_small_tiles(shape, seed, mpp):
    model = tiny_unet_model(width=2, depth=5, seed=seed)
    field = sample(shape, seed=seed, mpp=mpp, n=30)
    _, expected = oracle(model, field)
    assert expected.std() > 1e-4
    for tile in (16, 64):
        np.testing.assert_allclose(mean(run(model, field, tile=tile)), expected[..., 0], atol=1e-5)


def test_the_halo_is_needed():
    """The fake is able to fail: with too small a halo the answer moves."""
    field = sample((100, 90), n=40)
    _, expected = oracle(FAKE, field)
    narrow = mean(run(directional_model(halo=0), field, tile=16))
    assert np.abs(narrow - expected[..., 0]).max() > 1e-2
    assert expected.std() > 0.05


@pytest.mark.parametrize(("mpp", "factor"), MPPS.items())
def test_pixel_sizes(mpp, factor):
    assert scale_factor(mpp, 1.0) == pytest.approx(factor)
    field = sample((61, 75), mpp=mpp, n=25)
    model = tiny_unet_model(width=2, depth=3)
    _, expected = oracle(model, field)
    for tile in (16, 512):
        np.testing.assert_allclose(mean(run(model, field, tile=tile)), expected[..., 0], atol=1e-5)


@pytest.mark.parametrize("model", [FAKE, tiny_unet_model(width=3, depth=4, seed=3)], ids=lambda m: m.name)
def test_eight_views_average_to_the_mean_and_spread_of_the_oracle(model):
    field = sample((45, 67), n=15)
    views = tuple(VIEWS)
    _, expected = oracle(model, field, views=views)
    got = run(model, field, views=views, per_view=True, tile=32 if model is FAKE else 512)
    np.testing.assert_allclose(mean(got, "score_view"), expected, atol=1e-5)
    np.testing.assert_allclose(mean(got), expected.mean(-1), atol=1e-5)
    assert expected.std(-1).max() > 1e-3


@pytest.mark.parametrize("view", VIEWS)
def test_each_view_in_tiles(view):
    field = sample((50, 37), n=15)
    _, expected = oracle(FAKE, field, views=[view])
    np.testing.assert_allclose(mean(run(FAKE, field, views=(view,), tile=16)), expected[..., 0], atol=1e-5)


@pytest.mark.parametrize("tile", [16, 64, 512])
def test_bfloat16_stays_within_a_thousandth_of_its_own_whole_image(tile):
    field = sample((120, 90), n=30)
    model = tiny_unet_model(width=4, depth=4)
    expected = mean(run(model, field, precision="bfloat16"))
    got = mean(run(model, field, precision="bfloat16", tile=tile, batch_size=1))
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_a_run_in_bfloat16_leaves_the_model_as_it_was():
    field = sample((40, 40))
    model = directional_model()
    before = mean(run(model, field))
    run(model, field, precision="bfloat16")
    np.testing.assert_array_equal(mean(run(model, field)), before)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "uint64", "float16", "float32", "float64"])
def test_pixels_of_any_real_dtype(dtype):
    field = sample((40, 33), dtype="uint8", n=9)
    cast = Sample("cells", ArrayImage("i", field.image.array.astype(dtype), CHANNELS), field.labels, 1.0)
    np.testing.assert_allclose(mean(run(FAKE, cast)), mean(run(FAKE, field)), atol=1e-6)
    np.testing.assert_allclose(run(FAKE, cast).sums["intensity"], run(FAKE, field).sums["intensity"])


def test_areas_positions_intensities_and_tiles_of_cells_on_borders():
    field = sample((100, 83), n=40)
    labels, image = field.labels.array, field.image.array
    got = run(FAKE, field, tile=16)
    y, x = np.mgrid[: labels.shape[0], : labels.shape[1]]
    for row, i in enumerate(got.ids):
        inside = labels == i
        assert got.count[row] == inside.sum()
        np.testing.assert_allclose(got.sums["position"][row], [y[inside].sum(), x[inside].sum()])
        np.testing.assert_allclose(got.sums["intensity"][row], image[:, inside].sum(1))
        tiles = {(a // 16, b // 16) for a, b in zip(y[inside], x[inside], strict=True)}
        assert got.sums["n_tiles"][row, 0] == len(tiles)
    assert got.sums["n_tiles"].max() > 3
