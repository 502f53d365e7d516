"""Occlusion and gradient times input against what they are defined as."""

import pytest
import torch
from torch import nn

from nimbus_sd.engine.embedding.attribution import gradient_x_input, occlusion, occlusion_by_passes
from nimbus_sd.testing import tiny_embedding_model

MARKERS = ("a", "b", "c", "d")


@pytest.fixture
def x():
    x = torch.rand(5, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    x[1, 2] = 0
    x[4] = 0
    return x


@pytest.fixture(params=["next_channel", "cim"])
def net(request):
    return tiny_embedding_model(MARKERS, kind=request.param).net.requires_grad_(False)


def test_the_short_way_equals_a_pass_for_each_channel(net, x):
    found = occlusion(net.double(), x.double())
    expected = occlusion_by_passes(net, x.double())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert found.shape == (5, 4)
    assert found[0].min() > 1e-3


def test_occlusion_of_nothing_is_nothing(net, x):
    found = occlusion(net, x)
    assert float(found[1, 2]) < 1e-5
    assert float(found[4].max()) < 1e-5


def test_any_network_can_be_asked(x):
    net = nn.Sequential(nn.Flatten(), nn.Linear(4 * 256, 6), nn.Tanh()).eval()
    with torch.no_grad():
        torch.testing.assert_close(occlusion(net, x), occlusion_by_passes(net, x))
    assert gradient_x_input(net, x).shape == (5, 4)


def test_gradient_times_input_by_autograd_of_each_patch_alone(net, x):
    net, x = net.double(), x.double()
    found = gradient_x_input(net, x)
    empty = net(torch.zeros_like(x[:1]))
    for i in range(4):
        one = x[i : i + 1].clone().requires_grad_()
        distance = (net(one) - empty).norm()
        (gradient,) = torch.autograd.grad(distance, one)
        expected = (one * gradient).abs().sum(dim=(-2, -1))[0].detach()
        torch.testing.assert_close(found[i].double(), expected, atol=1e-6, rtol=1e-4)
    assert found[0].min() > 0


def test_gradient_times_input_by_finite_differences(x):
    net = tiny_embedding_model(MARKERS).net.double()
    x = x.double()
    empty = net(torch.zeros_like(x[:1]))
    step, pixel = 1e-6, (0, 1, 5, 9)

    def distance(shift):
        moved = x.clone()
        moved[pixel] += shift
        with torch.no_grad():
            return float((net(moved[:1]) - empty).norm())

    slope = (distance(step) - distance(-step)) / (2 * step)
    alone = x.clone()
    one = alone[:1].requires_grad_()
    (gradient,) = torch.autograd.grad((net(one) - empty).norm(), one)
    assert float(gradient[pixel]) == pytest.approx(slope, rel=1e-4)


def test_empty_patches_have_no_gradient(net, x):
    assert float(gradient_x_input(net, x)[4].abs().max()) == 0


def test_a_linear_network_without_opposite_pixels_is_shared_out_whole(x):
    net = nn.Sequential(nn.Flatten(), nn.Linear(4 * 256, 1, bias=False)).eval()
    with torch.no_grad():
        net[1].weight.abs_()
        whole = net(x).abs()[:, 0]
    torch.testing.assert_close(gradient_x_input(net, x).sum(1), whole, rtol=1e-4, atol=1e-5)


def test_patches_do_not_depend_on_each_other(net, x):
    together = gradient_x_input(net, x)
    alone = torch.cat([gradient_x_input(net, x[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
