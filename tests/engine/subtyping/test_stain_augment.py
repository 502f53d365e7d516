"""Changed patches: colours follow Beer and Lambert, the eight symmetries, draws by seed and step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.color import hed2rgb, rgb2hed

from nimbus_sd._core.errors import InputError
from nimbus_sd.engine.subtyping.augment import (
    StainConfig,
    StainDraws,
    augment,
    blurred,
    draw,
    moved,
    restained,
)


def patches(n=5, side=16, seed=0):
    """Colours that haematoxylin, eosin and DAB can make: other ones scikit-image clips."""
    hed = np.random.default_rng(seed).uniform(0.01, 0.06, (n, side, side, 3))
    rgb = hed2rgb(hed)
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(0, 3, 1, 2))), hed


def test_stains_change_as_scikit_image_separates_them():
    x, hed = patches()
    config = StainConfig(gain=(0.7, 1.4), shift=(0.0, 0.01), light=(0.9, 0.98))
    draws = draw(config, len(x), seed=3, step=7)
    got = restained(x, draws).numpy().transpose(0, 2, 3, 1)
    for i in range(len(x)):
        np.testing.assert_allclose(rgb2hed(x[i].numpy().transpose(1, 2, 0)), hed[i], atol=1e-6)
        changed = hed[i] * draws.gain[i].numpy() + draws.shift[i].numpy()
        slow = hed2rgb(changed) * float(draws.light[i])
        np.testing.assert_allclose(got[i], slow, atol=1e-6)


def test_ones_and_zeros_change_nothing_and_white_and_black_stay_in_range():
    x = torch.rand(4, 3, 9, 9)
    x[0], x[1] = 0, 1
    nothing = StainDraws(
        torch.zeros(4, 3, dtype=torch.bool),
        torch.ones(4, 3),
        torch.zeros(4, 3),
        torch.ones(4),
        torch.zeros(4),
    )
    torch.testing.assert_close(restained(x, nothing), x, atol=2e-6, rtol=0)
    strong = StainConfig(gain=(0.2, 5), shift=(-0.2, 0.2), light=(0.3, 3))
    out = augment(x, strong, draw(strong, 4, seed=0, step=0))
    assert bool(torch.isfinite(out).all())
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    assert torch.equal(augment(x, StainConfig.off(), draw(StainConfig.off(), 4, seed=0, step=0)), x)


def test_more_haematoxylin_is_bluer_and_darker():
    x, _ = patches(1)
    d = draw(StainConfig(), 1, seed=0, step=0)
    more = replace(d, gain=torch.tensor([[2.0, 1, 1]]), shift=torch.zeros(1, 3), light=torch.ones(1))
    change = (restained(x, more) - x).mean(dim=(0, 2, 3))
    assert float(change.max()) < 0
    assert int(change.abs().argmin()) == 2, "blue changes least"


def test_all_eight_symmetries_come_equally_often_and_move_px_exactly():
    x = torch.arange(9.0).reshape(1, 1, 3, 3).expand(400, 3, 3, 3)
    draws = draw(StainConfig(), 400, seed=0, step=0)
    got = moved(x, draws.symmetry)[:, 0].numpy()
    square = np.arange(9.0).reshape(3, 3)
    views = [np.rot90(m, k) for m in (square, square.T) for k in range(4)]
    counts = [sum(np.array_equal(g, v) for g in got) for v in views]
    assert sum(counts) == 400
    assert min(counts) > 25
    swap, down, across = (torch.tensor([[i == k for k in range(3)]]) for i in range(3))
    assert torch.equal(moved(x[:1], swap)[0, 0], x[0, 0].T)
    assert torch.equal(moved(x[:1], down)[0, 0], x[0, 0].flip(0))
    assert torch.equal(moved(x[:1], across)[0, 0], x[0, 0].flip(1))


def test_seed_and_step_decide_and_a_share_is_part_of_the_whole():
    state = torch.random.get_rng_state()
    one = draw(StainConfig(blur=0.5), 12, seed=1, step=2)
    assert torch.equal(state, torch.random.get_rng_state())
    again = draw(StainConfig(blur=0.5), 12, seed=1, step=2)
    for name in ("symmetry", "gain", "shift", "light", "blur_sd"):
        assert torch.equal(getattr(one, name), getattr(again, name))
        assert torch.equal(getattr(one, name)[4:8], getattr(one[4:8], name))
    assert not torch.equal(one.gain, draw(StainConfig(), 12, seed=1, step=3).gain)
    assert not torch.equal(one.gain, draw(StainConfig(), 12, seed=2, step=2).gain)
    x, config = torch.rand(12, 3, 8, 8), StainConfig(blur=0.5)
    whole = augment(x, config, one)
    parts = torch.cat([augment(x[:5], config, one[:5]), augment(x[5:], config, one[5:])])
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-6)


def test_blur_is_gaussian_and_each_patch_has_its_own():
    x = torch.rand(3, 3, 20, 20, dtype=torch.float64)
    out = blurred(x, torch.tensor([0.0, 0.5, 0.9]))
    torch.testing.assert_close(out[0], x[0])
    for i, sd in ((1, 0.5), (2, 0.9)):
        slow = ndimage.gaussian_filter(x[i].numpy(), (0, sd, sd), mode="mirror", radius=(0, 3, 3))
        np.testing.assert_allclose(out[i].numpy(), slow, atol=1e-9)


def test_what_can_not_be_meant_is_refused():
    for values, message in [
        ({"flip": 1.5}, r"StainConfig.flip must lie in \[0, 1\]"),
        ({"gain": (0, 1)}, "StainConfig.gain must be"),
        ({"shift": (0.1, 0.0)}, "StainConfig.shift must be"),
    ]:
        with pytest.raises(InputError, match=message):
            StainConfig(**values)
