"""The network: parity with the published implementation, folding, and the halo that its tiles need."""

import importlib.util

import numpy as np
import pytest
import torch

from nimbus_sd import models as m
from nimbus_sd._core.errors import InputError
from nimbus_sd.testing import tiny_unet_model


@pytest.fixture(scope="module")
def published(parity):
    """The published network's layout, filled with the reference weights."""
    spec = importlib.util.spec_from_file_location("make_state_dict", parity / "make_state_dict.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    net = m.UNet(m.UNetConfig())
    net.load_state_dict(recipe.fill(net.state_dict()))
    return net.eval()


def test_parity_with_the_published_implementation(parity, published):
    with np.load(parity / "unet_reference.npz") as reference, torch.inference_mode():
        x, expected = torch.from_numpy(reference["x"]), reference["y"]
        assert expected.std() > 0.01
        plain, folded = (net(x).sigmoid().numpy() for net in (published, published.folded()))
    np.testing.assert_allclose(plain, expected, atol=1e-5)
    np.testing.assert_allclose(folded, expected, atol=1e-5)


def test_a_published_checkpoint_loads_strictly_from_a_bare_file(parity, published, tmp_path):
    torch.save(published.state_dict(), tmp_path / "V1.pt")
    loaded = m.load(tmp_path / "V1.pt")
    assert loaded.net.config == m.UNetConfig()
    assert (loaded.card.stride, loaded.card.halo) == (16, 96)
    assert torch.equal(loaded.net.bottle_neck.bn_2.running_var, published.bottle_neck.bn_2.running_var)


def test_the_published_names_and_size():
    net = m.UNet()
    names = set(net.state_dict())
    for layer in ("contracting_layers.6", "bottle_neck", "expanding_layers.11"):
        for part in ("conv2d_0", "conv2d_1", "conv2d_2", "bn_1", "bn_2"):
            assert f"{layer}.{part}.weight" in names
    assert {"expanding_layers.0.upconv.weight", "expanding_layers.9.upconv.bias", "final_conv.bias"} <= names
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(35.6e6, rel=0.005)


def test_folding_changes_neither_the_answer_nor_the_network():
    net = tiny_unet_model(width=4, depth=4).net.double()
    x = torch.rand(2, 2, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        before = net(x)
        folded = net.folded()
        torch.testing.assert_close(folded(x), before, atol=1e-10, rtol=1e-10)
        assert torch.equal(net(x), before)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in folded.modules())
    assert before.std() > 0.01


def test_gradients_flow_through_every_weight():
    net = m.UNet(m.UNetConfig(width=2, depth=3))
    net(torch.rand(2, 2, 16, 16)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("depth", [1, 3, 5])
def test_sides_in_multiples_of_the_stride_come_back(depth, padding):
    config = m.UNetConfig(width=2, depth=depth, padding=padding)
    y, x = 2 * config.stride, 3 * config.stride
    with torch.no_grad():
        assert m.UNet(config).eval()(torch.rand(1, 2, max(y, 4), max(x, 4))).shape == (
            1,
            1,
            max(y, 4),
            max(x, 4),
        )


def _reach(depth, distance, side):
    """Largest change inside an aligned core when everything further than `distance` from it changes."""
    core = 2 ** (depth - 1) * 2
    start = side // 2 // core * core
    worst = 0.0
    for seed in range(3):
        net = tiny_unet_model(width=2, depth=depth, seed=seed).net.double()
        x = torch.rand(1, 2, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        low, high = start - distance, start + core + distance
        assert low > 0
        assert high < side
        changed = 10 * torch.rand_like(x)
        changed[..., low:high, low:high] = x[..., low:high, low:high]
        with torch.no_grad():
            difference = (net(x) - net(changed))[..., start : start + core, start : start + core]
        worst = max(worst, float(difference.abs().max()))
    return worst


@pytest.mark.parametrize(("depth", "side"), [(2, 64), (3, 96), (5, 320)])
def test_nothing_beyond_the_halo_reaches_a_tile(depth, side):
    halo = m.UNetConfig(depth=depth).halo
    assert _reach(depth, halo, side) == 0


@pytest.mark.parametrize(("depth", "side"), [(2, 64), (3, 96), (5, 320)])
def test_the_halo_is_not_wider_than_it_must_be(depth, side):
    config = m.UNetConfig(depth=depth)
    assert _reach(depth, config.halo - config.stride, side) > 0


def test_the_published_halo_is_as_measured():
    config = m.UNetConfig(depth=5)
    assert (config.stride, config.halo) == (16, 96)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"depth": 0}, "depth must be a positive int, got 0"),
        ({"width": 2.5}, "width must be a positive int, got 2.5"),
        ({"padding": "circular"}, "'reflect' or 'zeros', got 'circular'"),
    ],
)
def test_configs_are_checked(arguments, said):
    with pytest.raises(InputError, match=said):
        m.UNetConfig(**arguments)
