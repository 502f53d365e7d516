"""Views against slow oracles: one patch, one px at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.embedding.augment import ViewDraws, centre, draw, make_view, views
from nimbus_sd.engine.embedding.train_config import EmbeddingTrainConfig, ViewConfig

NEUTRAL = ViewConfig(intensity=(1, 1), noise_sd=(0, 0), rotation=(0, 0), scale=(1, 1), flip=0)
STILL = {"seed": 0, "step": 0}


@pytest.fixture
def patches(rng):
    return torch.from_numpy(rng.random((5, 3, 32, 32), dtype=np.float32))


def draws(b, c=1, *, angle=None, scale=None, flip=None, gain=None, noise=None):
    angle = None if angle is None else torch.full((b,), math.radians(angle))
    scale = None if scale is None and angle is None else torch.full((b,), 1.0 if scale is None else scale)
    if scale is not None and angle is None:
        angle = torch.zeros(b)
    return ViewDraws(
        torch.ones(b, c) if gain is None else torch.tensor(gain),
        torch.zeros(b) if noise is None else torch.tensor(noise),
        angle,
        scale,
        torch.tensor([[False, False]] * b if flip is None else [flip] * b),
    )


def look(patch, crop, *, angle=0.0, scale=1.0, flip=(False, False)):
    """Bilinear, px by px, in float64: the oracle of the geometry."""
    size = patch.shape[-1]
    middle = size // 2 - crop // 2 + (crop - 1) / 2
    out = np.zeros((len(patch), crop, crop))
    for i in range(crop):
        for j in range(crop):
            y, x = i - (crop - 1) / 2, j - (crop - 1) / 2
            y, x = (-y if flip[0] else y), (-x if flip[1] else x)
            a = math.radians(angle)
            y, x = math.cos(a) * y + math.sin(a) * x, math.cos(a) * x - math.sin(a) * y
            y, x = y / scale + middle, x / scale + middle
            y0, x0 = math.floor(y), math.floor(x)
            for dy in (0, 1):
                for dx in (0, 1):
                    weight = (1 - abs(y - y0 - dy)) * (1 - abs(x - x0 - dx))
                    out[:, i, j] += weight * patch[:, mirror(y0 + dy, size), mirror(x0 + dx, size)]
    return out


def mirror(i, n):
    i = abs(i) % (2 * (n - 1))
    return min(i, 2 * (n - 1) - i)


def test_neutral_views_are_the_centre_crops_exactly(patches):
    got = views(patches, NEUTRAL, (16, 15, 12, 32), **STILL)
    for crop, view in zip((16, 15, 12, 32), got, strict=True):
        first = 16 - crop // 2
        expected = patches[:, :, first : first + crop, first : first + crop]
        torch.testing.assert_close(view, expected, rtol=0, atol=0)
    assert torch.equal(centre(patches, 1)[..., 0, 0], patches[:, :, 16, 16])


def test_neutral_numbers_through_the_resampling_change_nothing(patches):
    for crop in (16, 15):
        got = make_view(patches, crop, draws(5, angle=0), generator=torch.Generator())
        torch.testing.assert_close(got, centre(patches, crop), rtol=0, atol=1e-5)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("crop", [16, 13])
def test_quarter_turns_are_exact_and_counterclockwise(patches, turns, crop):
    got = make_view(patches, crop, draws(5, angle=90 * turns), generator=torch.Generator())
    expected = np.rot90(centre(patches, crop).numpy(), turns, axes=(2, 3))
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("flip", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("resampled", [False, True])
def test_flips_are_exact(patches, flip, resampled):
    given = draws(5, angle=0 if resampled else None, flip=flip)
    got = make_view(patches, 14, given, generator=torch.Generator())
    axes = [axis + 2 for axis in (0, 1) if flip[axis]]
    expected = np.flip(centre(patches, 14).numpy(), axes)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-5 if resampled else 0)


@pytest.mark.parametrize(
    ("size", "crop", "angle", "scale", "flip"),
    [
        (32, 16, 30.0, 1.0, (False, False)),
        (32, 12, 0.0, 0.9, (False, False)),
        (32, 14, 217.0, 1.1, (True, False)),
        (17, 16, 45.0, 0.9, (False, True)),  # looks beyond the patch: mirrored
        (12, 12, 61.0, 0.5, (True, True)),
    ],
)
def test_turning_and_scaling_equal_the_oracle(patches, size, crop, angle, scale, flip):
    small = centre(patches, size)
    given = draws(5, angle=angle, scale=scale, flip=flip)
    got = make_view(small, crop, given, generator=torch.Generator())
    for patch, view in zip(small.numpy(), got.numpy(), strict=True):
        np.testing.assert_allclose(view, look(patch, crop, angle=angle, scale=scale, flip=flip), atol=1e-5)


def test_intensity_is_scaled_per_patch_or_per_marker(patches):
    config = replace(NEUTRAL, intensity=(0.5, 2.0))
    (got,) = views(patches, config, (16,), **STILL)
    factor = got / centre(patches, 16)
    per_patch = factor.flatten(1).mean(1)
    torch.testing.assert_close(factor, per_patch[:, None, None, None].expand_as(factor), rtol=1e-4, atol=0)
    assert len(per_patch.unique()) == 5
    (got,) = views(patches, replace(config, per_marker=True), (16,), **STILL)
    factor = (got / centre(patches, 16)).flatten(2)
    assert float(factor.std(2).max()) < 1e-4
    assert len(factor.mean(2).unique()) == 15


def test_noise_has_the_drawn_spread_and_no_mean():
    empty = torch.zeros(40, 6, 32, 32)
    noise = torch.linspace(0, 0.1, 40)
    got = make_view(empty, 32, draws(40, noise=noise.tolist()), generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(got.flatten(1).std(1).numpy(), noise.numpy(), rtol=0.05, atol=1e-6)
    assert float(got.flatten(1).mean(1).abs().max()) < 0.006
    assert float(got.min()) < 0, "nothing is clipped"


def test_draws_fill_their_ranges_and_no_more():
    given = draw(ViewConfig(), (4000, 2), torch.Generator().manual_seed(0))
    for values, low, high in (
        (given.gain.log(), math.log(0.5), math.log(2)),
        (given.noise_sd, 0, 0.1),
        (given.angle, 0, 2 * math.pi),
        (given.scale, 0.9, 1.1),
    ):
        assert low - 1e-6 <= float(values.min()) <= low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) <= float(values.max()) <= high + 1e-6
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.03 * (high - low))
    assert given.gain.shape == (4000, 1)
    assert given.flip.double().mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.04)


def test_views_differ_by_crop_seed_step_and_process_and_by_nothing_else(patches):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = views(patches, ViewConfig(), (16, 16), **STILL)
    assert torch.equal(before, torch.random.get_rng_state())
    again = views(patches, ViewConfig(), (16, 16), **STILL)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(*first)
    for other in ({"seed": 1, "step": 0}, {"seed": 0, "step": 1}, {"seed": 0, "step": 0, "part": 1}):
        assert not torch.equal(first[0], views(patches, ViewConfig(), (16, 16), **other)[0])


@pytest.mark.parametrize("config", [EmbeddingTrainConfig.paper(), EmbeddingTrainConfig.cim()])
def test_what_lies_beyond_the_reach_is_never_seen(patches, config):
    config = replace(config, views=replace(config.views, noise_sd=(0, 0)))
    spoiled = patches.clone()
    inner = centre(spoiled, config.reach).clone()
    spoiled[:] = torch.nan
    first = 16 - config.reach // 2
    spoiled[:, :, first : first + config.reach, first : first + config.reach] = inner
    for step in range(20):
        for of_all, of_part in zip(
            views(spoiled, config.views, config.crops, seed=0, step=step),
            views(inner, config.views, config.crops, seed=0, step=step),
            strict=True,
        ):
            torch.testing.assert_close(of_all, of_part, rtol=0, atol=2e-5)
    assert EmbeddingTrainConfig.paper().reach == 28
    assert replace(EmbeddingTrainConfig.paper(), views=NEUTRAL).reach == 16


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"intensity": (2.0, 0.5)}, r"ViewConfig.intensity must be \(low, high\)"),
        ({"intensity": (0.0, 1.0)}, "ViewConfig.intensity"),
        ({"noise_sd": (-0.1, 0.1)}, "ViewConfig.noise_sd"),
        ({"scale": (0.0, 1.0)}, "ViewConfig.scale"),
        ({"flip": 1.5}, r"ViewConfig.flip must lie in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_ranges_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        ViewConfig(**wrong)
