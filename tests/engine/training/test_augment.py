"""Augmentation: geometry alike for all planes, against kornia, deterministic, nothing global."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from nimbus_sd.engine.training.augment import (
    affine_positions,
    augment,
    elastic_displacement,
    gaussian_blur,
    sample_linear,
    sample_nearest,
    thin,
)
from nimbus_sd.engine.training.batch import GroupIndex, collate
from nimbus_sd.engine.training.config import AugmentConfig

OFF = AugmentConfig.off()


@pytest.fixture
def batch(tile, list_source):
    tiles = [replace(tile(i), extra=tile(i).labels[None].astype(np.float32)) for i in range(6)]
    return collate(tiles, GroupIndex(list_source(tiles).groups), step=3)


def test_off_changes_nothing(batch):
    out = augment(batch, OFF, seed=0)
    for name in ("planes", "mask", "labels", "target"):
        torch.testing.assert_close(getattr(out, name), getattr(batch, name), rtol=0, atol=0, equal_nan=True)


def test_the_same_seed_and_step_give_the_same_and_the_global_generator_is_left_alone(batch):
    config = AugmentConfig(thinning=0.5, gain=0.5)
    state = torch.random.get_rng_state()
    first = augment(batch, config, seed=1)
    torch.rand(7)
    torch.random.set_rng_state(state)
    again = augment(batch, config, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.planes, again.planes)
    assert torch.equal(first.labels, again.labels)
    for other in (
        augment(batch, config, seed=2),
        augment(replace(batch, step=4), config, seed=1),
        augment(replace(batch, part=1), config, seed=1),
    ):
        assert not torch.equal(first.planes, other.planes)


def test_flips_and_turns_give_the_eight_views_of_the_square(batch):
    seen = set()
    for seed in range(40):
        out = augment(batch, replace(OFF, flip=0.5, rotate=0.5), seed=seed)
        for before, after in zip(batch.labels, out.labels, strict=True):
            views = [torch.rot90(v, k, (0, 1)) for v in (before, before.flip(0)) for k in range(4)]
            matching = [k for k, v in enumerate(views) if torch.equal(v, after)]
            assert matching
            seen.update(matching)
    assert seen == set(range(8))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kinds", [("flip", "rotate"), ("affine",), ("elastic",), ("affine", "elastic")])
def test_labels_mask_and_planes_move_alike(batch, kinds, seed):
    config = replace(OFF, **dict.fromkeys(kinds, 1.0))
    out = augment(batch, config, seed=seed)
    assert not torch.equal(out.labels, batch.labels)
    # mask = labels > 0 before; it must be so after
    assert torch.equal(out.mask.bool(), out.labels > 0)
    # the extra plane holds the tile's own label numbers: away from edges it must agree with the labels
    own = torch.where(out.labels > 0, out.labels - _offsets(batch)[:, None, None], 0)
    exact = torch.isclose(out.planes[:, 1], out.planes[:, 1].round(), atol=1e-4)
    agree = (out.planes[:, 1].round().long() == own)[exact]
    assert exact.float().mean() > 0.15
    assert agree.float().mean() > 0.97
    assert set(out.labels.unique().tolist()) <= set(batch.labels.unique().tolist())


def _offsets(batch):
    """Labels of tile k are counted on from those of the tiles before: six per tile."""
    return torch.arange(len(batch.labels)) * 6


@pytest.mark.parametrize("kind", ["blur", "noise", "contrast", "thinning", "gain"])
def test_intensity_changes_touch_the_marker_alone(batch, kind):
    out = augment(batch, replace(OFF, **{kind: 1.0}), seed=0)
    assert not torch.equal(out.planes[:, 0], batch.planes[:, 0])
    assert torch.equal(out.planes[:, 1:], batch.planes[:, 1:])
    assert torch.equal(out.labels, batch.labels)
    ratio = out.planes[:, 0].mean((1, 2)) / batch.planes[:, 0].mean((1, 2))
    low, high = {"contrast": (0.8, 1.2), "gain": (0.06, 1.5)}.get(kind, (0.8, 1.2))
    assert ((ratio > low - 0.01) & (ratio < high + 0.01)).all()


def test_how_often_things_happen(batch):
    hits = [
        (augment(batch, replace(OFF, contrast=0.25), seed=s).planes != batch.planes).flatten(1).any(1)
        for s in range(200)
    ]
    share = torch.stack(hits).float().mean()
    assert 0.2 < share < 0.3


def test_contrast_and_blur_are_kornias(batch):
    kornia = pytest.importorskip("kornia")
    x = batch.planes[:, :1]
    sigma = torch.linspace(0.3, 1.0, len(x))
    theirs = kornia.filters.gaussian_blur2d(x, (7, 7), sigma[:, None].expand(-1, 2), border_type="reflect")
    torch.testing.assert_close(gaussian_blur(x, sigma, radius=3), theirs, rtol=1e-5, atol=1e-6)
    out = augment(batch, replace(OFF, contrast=1.0, contrast_factor=(1.1, 1.1)), seed=0)
    theirs = kornia.enhance.adjust_contrast(x, 1.1, clip_output=True)
    torch.testing.assert_close(out.planes[:, :1].clamp(0, 1), theirs, rtol=1e-5, atol=1e-6)


def test_the_affine_map_is_kornias(batch):
    kornia = pytest.importorskip("kornia")
    x, n = batch.planes[:, :1], len(batch.planes)
    rng = torch.Generator().manual_seed(0)
    scale = 0.8 + 0.4 * torch.rand(n, generator=rng)
    shear = 20 * torch.rand(n, 2, generator=rng) - 10
    mine = sample_linear(x, affine_positions(scale, shear, x.shape[-2:]))
    tan = torch.tan(torch.deg2rad(shear))
    matrix = torch.zeros(n, 2, 3)  # (x, y) order, forward
    matrix[:, 0, 0] = matrix[:, 1, 1] = scale
    matrix[:, 0, 1], matrix[:, 1, 0] = scale * tan[:, 1], scale * tan[:, 0]
    centre = torch.tensor([(x.shape[-1] - 1) / 2, (x.shape[-2] - 1) / 2])
    matrix[:, :, 2] = centre - matrix[:, :, :2] @ centre
    theirs = kornia.geometry.transform.warp_affine(
        x, matrix, dsize=x.shape[-2:], padding_mode="reflection", align_corners=True
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_the_elastic_map_is_kornias():
    kornia = pytest.importorskip("kornia")
    rng = torch.Generator().manual_seed(0)
    x = torch.rand((2, 1, 48, 48), generator=rng)
    noise = 2 * torch.rand((2, 2, 48, 48), generator=rng) - 1
    moved = elastic_displacement(noise, alpha=10.0, sigma=4.0)
    grid = torch.stack(torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij"))
    mine = sample_linear(x, grid + moved)
    # theirs counts in half image sides, (x, y), and pads its noise with zeros: compare well inside
    theirs = kornia.geometry.transform.elastic_transform2d(
        x,
        noise.flip(1),
        kernel_size=(33, 33),
        sigma=(4.0, 4.0),
        alpha=(2 * 10 / 47, 2 * 10 / 47),
        align_corners=True,
        padding_mode="reflection",
    )
    inside = (..., slice(17, 31), slice(17, 31))
    torch.testing.assert_close(mine[inside], theirs[inside], rtol=1e-3, atol=1e-3)


def test_elastic_displacement_is_scipys_filter():
    noise = 2 * torch.rand((1, 2, 40, 40), generator=torch.Generator().manual_seed(1)) - 1
    slow = [10 * ndimage.gaussian_filter(n, 4.0, mode="mirror") for n in noise[0].numpy()]
    np.testing.assert_allclose(elastic_displacement(noise, alpha=10.0, sigma=4.0)[0], slow, atol=1e-4)


def test_nearest_and_linear_agree_on_whole_pixels_also_outside():
    x = torch.arange(30.0).reshape(1, 5, 6)
    at = torch.stack(torch.meshgrid(torch.arange(-9, 14), torch.arange(-11, 17), indexing="ij"))[None].float()
    nearest = sample_nearest(x, at)
    padded = np.pad(x[0].numpy(), ((9, 9), (11, 11)), mode="reflect")
    np.testing.assert_array_equal(nearest[0], padded[:23, :28])
    torch.testing.assert_close(sample_linear(x[:, None], at)[:, 0], nearest, rtol=0, atol=1e-4)


def test_thinning_keeps_the_mean_and_has_poisson_noise():
    x = torch.full((1, 1, 200, 200), 0.3)
    out = thin(x, torch.tensor(20.0), torch.Generator().manual_seed(0))
    assert float(out.mean()) == pytest.approx(0.3, rel=0.02)
    assert float(out.var()) == pytest.approx(0.3 / 20, rel=0.05)
    torch.testing.assert_close(out * 20, (out * 20).round())
